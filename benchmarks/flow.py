"""Wall time of flow edits over the bare calls of the same transformer, and evaluations against the formula.

`python -m benchmarks.flow`: at most 1.05 without controls, at batch 8, on the bundled flow model; with AdaLN invariance
and value injection the ratio is stated. The bare calls run with diffusers' own processors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import arguments, batch_of, edit_run, finish, interleaved, load, record_calls, report
from framework.backbones import SD3
from framework.guidance import ClassifierFree
from methods import EulerFlow, FireFlow, FlowEdit, RFSolver, TwoStage

STEPS = 10
POSITIONS = 32
"""Text positions of T5: few, so that a call is quick and whatever stands round it shows."""
USUAL = ClassifierFree(target=5.0, source=1.0, inversion=1.0)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.set_defaults(model="shapes-flow")
    options = parser.parse_args()
    backbone = load(options, partial(SD3, max_sequence_length=POSITIONS))
    batch = batch_of(backbone, options.batch)
    plain: Any = {"compensate": "none", "adaln_steps": 0, "value_steps": 0}
    per_image = {  # network evaluations of one image: inversion + edit, the source with one row and the target with two
        "euler_flow": (EulerFlow(backbone, steps=STEPS, guidance=USUAL), STEPS + 3 * STEPS),
        "two_stage": (TwoStage(backbone, steps=STEPS, guidance=USUAL, **plain), 3 * STEPS + 3 * STEPS),
        "rf_solver": (RFSolver(backbone, steps=STEPS // 2, guidance=USUAL), STEPS + 3 * STEPS),
        "fireflow": (FireFlow(backbone, steps=STEPS, guidance=USUAL), STEPS + 1 + 3 * (STEPS + 1)),
        "flowedit": (FlowEdit(backbone, steps=STEPS, n_max=7, guidance=ClassifierFree(5.0, 1.5)), 4 * 7),
        "two_stage_controlled": (TwoStage(backbone, steps=STEPS, guidance=USUAL), 3 * STEPS + 3 * STEPS),
    }
    held = []
    for name, (module, formula) in per_image.items():
        edit = edit_run(module, batch)
        calls = record_calls(module, edit)
        rows = sum(z.shape[0] for z, _, _ in calls)
        share = rows / (formula * options.batch)  # neither more nor fewer than the formula says
        held.append(report(f"evaluations/{name}", max(share, 1 / share), 1.0, rows=rows, calls=len(calls)))
        bare = bare_transformer(backbone, calls)
        timing = interleaved(edit, bare, options.rounds, options.device, options.clock)
        limit = None if module.controls else 1.05
        held.append(report(f"overhead/{name}", limit=limit, batch=options.batch, clock=options.clock, **timing))
    return finish(held)


def bare_transformer(backbone: Any, calls: Sequence[tuple[Tensor, Tensor, Any]]) -> Callable[[], None]:
    """Call the same network, with its stock processors, in a plain loop over the recorded inputs."""
    inputs = [
        {
            "hidden_states": z.to(backbone.dtype),
            "timestep": t.float(),
            "encoder_hidden_states": condition.text.to(backbone.dtype),
            "pooled_projections": condition.pooled.to(backbone.dtype),
        }
        for z, t, condition in calls
    ]

    @torch.no_grad()
    def run() -> None:
        for given in inputs:
            backbone.transformer(**given, return_dict=False)

    return run


if __name__ == "__main__":
    sys.exit(main())
