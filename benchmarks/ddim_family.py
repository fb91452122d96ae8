"""Null-text inversion and Noise Map Guidance: what a batch brings, what gradients cost in memory, evaluations.

`python -m benchmarks.ddim_family` prints, one json object per line:
- null_text_batch: seconds per image in a batch over seconds per image alone; at most 0.5. `network_batch` says what the
  bare network gains from the same batch, which is about the most that any method can.
- nmg_memory_steps: peak memory of an edit with Noise Map Guidance over that with a quarter of the steps, the stored
  trajectory left out; at most 1.02.
- checkpointing_memory: peak memory of a gradient with gradient checkpointing over that without; the line also says the
  bytes per row, from which the need of a batch follows.
- evaluations: counted rows over the formula's, forward and backward apart; exactly 1.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from benchmarks.measure import (
    arguments,
    batch_of,
    edit_run,
    finish,
    interleaved,
    load,
    peak_bytes,
    record_calls,
    report,
)
from framework.backbones import StableDiffusion
from framework.guidance import ClassifierFree
from methods import NMG, DirectDDIM, NegativePrompt, NoiseMapGuidance, NullText

STEPS, INNER = 4, 3
GUIDED = ClassifierFree(target=7.5, source=7.5, inversion=1.0)


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    backbone = load(options)
    held = [_batch(backbone, options), *_memory(backbone, options), *_evaluations(backbone, options)]
    return finish(held)


def _null_text(backbone: Any) -> NullText:
    # Without tolerance, so that every image makes every inner step.
    return NullText(backbone, steps=STEPS, inner_steps=INNER, tolerance=0.0, guidance=GUIDED)


def _batch(backbone: Any, options: Any) -> bool:
    size, module = options.batch, _null_text(backbone)
    alone, together = (edit_run(module, batch_of(backbone, count)) for count in (1, size))
    timing = _per_image(interleaved(together, alone, options.rounds, options.device, options.clock), size)
    calls = [record_calls(module, run) for run in (together, alone)]
    bare = [_replay(backbone, found) for found in calls]
    network = _per_image(interleaved(*bare, options.rounds, options.device, options.clock), size)
    report("network_batch", limit=None, batch=size, threads=options.threads, **network)
    return report("null_text_batch", limit=0.5, batch=size, threads=options.threads, network=network["ratio"], **timing)


def _replay(backbone: Any, calls: Any) -> Any:
    @torch.no_grad()
    def run() -> None:
        for z, t, condition in calls:
            backbone(z.detach().to(backbone.dtype), t, condition.map(torch.Tensor.detach))

    return run


def _per_image(timing: dict[str, float], size: int) -> dict[str, float]:
    return {key: value / size if key.startswith(("ratio", "seconds")) and key != "seconds_other" else value
            for key, value in timing.items()}  # fmt: skip


def _memory(backbone: Any, options: Any) -> list[bool]:
    held, batch = [], batch_of(backbone, 1)
    guidance = NoiseMapGuidance(target=7.5, source=7.5, elements=16384)
    peaks = []
    for steps in (4, 16):
        module = NMG(backbone, steps=steps, guidance=guidance)
        run = edit_run(module, batch)
        run()  # what is made once and kept
        trajectory = (steps + 1) * module.invert(batch).z0.nbytes
        peaks.append(peak_bytes(run, options.device) - 2 * trajectory)
    few, many = peaks
    held.append(report("nmg_memory_steps", many / few, 1.02, bytes_few=few, bytes_many=many, steps=[4, 16]))
    rows = {}
    for name in ("kept", "recomputed"):
        other = backbone if name == "kept" else StableDiffusion(
            options.model, dtype=options.dtype, gradient_checkpointing=True
        )  # fmt: skip
        other.load()
        other.to(options.device)
        rows[name] = peak_bytes(_gradient(other, options), options.device) / options.batch
    ratio = rows["recomputed"] / rows["kept"]
    held.append(report("checkpointing_memory", ratio, 1.0, bytes_per_row=rows["kept"], recomputed=rows["recomputed"]))
    return held


def _gradient(backbone: Any, options: Any) -> Any:
    z0 = backbone.encode_image(batch_of(backbone, options.batch).images.to(backbone.device))
    text = backbone.encode_prompt([""] * options.batch)

    def run() -> None:
        with torch.enable_grad():
            z = z0.detach().clone().requires_grad_()
            t = torch.full((len(z),), 500.0, device=z.device)
            torch.autograd.grad(backbone(z.to(backbone.dtype), t, text).float().square().sum(), z)

    return run


def _evaluations(backbone: Any, options: Any) -> list[bool]:
    batch, t = batch_of(backbone, options.batch), STEPS
    guidance = NoiseMapGuidance(target=7.5, source=7.5)
    wanted = {  # rows per image, those with gradients among them; inversion first
        "null_text": (_null_text(backbone), t + t + t * INNER + t + 4 * t, t * INNER),
        "negative_prompt": (NegativePrompt(backbone, steps=t, guidance=GUIDED), t + 3 * t, 0),
        "direct": (DirectDDIM(backbone, steps=t, guidance=GUIDED), t + 4 * t, 0),
        "noise_map_guidance": (NMG(backbone, steps=t, guidance=guidance), t + t + 4 * t, t),
    }
    held = []
    for name, (module, rows, backward) in wanted.items():
        counted = module.edit(batch).evaluations
        share = counted.samples / (rows * options.batch)
        exact = counted.backward == backward * options.batch
        ratio = max(share, 1 / share) if exact else float("inf")
        held.append(report(f"evaluations/{name}", ratio, 1.0, rows=counted.samples, backward=counted.backward))
    return held


if __name__ == "__main__":
    sys.exit(main())
