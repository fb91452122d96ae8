"""Two-stage inversion of flows: fixed-point iterations, then compensation of what they leave.

Xu, Jiang, Hu, Luo, et al.: Unveil Inversion and Invariance in Flow Transformer for Versatile Image Editing (CVPR 2025,
arXiv 2411.15843). Stage I, interval from sigma_a to the noisier sigma_b, K iterations:

    y = x_a;   j = 0 .. K:   v_j = v(y, sigma_b),  y = x_a + (sigma_b - sigma_a) v_j
    x_b = x_a + (sigma_b - sigma_a) mean of the v_j in a window          the average never feeds the iteration

Stage II holds the source row to that trajectory while editing, x <- p + (X - p) with p the sampler's step and X the
state that the inversion came from. That is direct inversion's offset on the source row, and is `DirectInversion` here.

The iterations invert the sampler, not the flow: without averaging the round trip is of order K + 1 in the step, and the
noise is as far from the flow's own as Euler's. The authors' average contains the first, plain Euler evaluation, which
makes the order 1 again for every K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import Guidance, State, usual_guidance
from framework.inversion import Inversion, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.reference import Reference
from framework.schedule import ScheduleOptions
from framework.step import Latents
from methods.adaln_invariance import AdaLNInvariance, ValueInjection
from methods.direct_inversion import DirectInversion
from methods.euler_flow import FlowInversion

Average = Literal["all", "skip_first", "none"]
Compensate = Literal["source", "both", "none"]


@dataclass(frozen=True)
class FixedPointInversion(FlowInversion):
    """Stage I: K fixed-point iterations per interval at its noisy end; sampling is Euler's rule.

    Attributes:
        iterations: K, at least 0; K + 1 evaluations per interval.
        average: Which evaluations are averaged for the step: "all" (the authors), "skip_first" without the plain Euler
            guess, "none" the last one alone.
        window: [lo, hi]: evaluations lo <= j < hi instead, the last one alone if there are none; replaces `average`.
    """

    iterations: int = 2
    average: Average = "all"
    window: Sequence[int] | None = None

    def problems(self) -> dict[str, str]:
        """Refuse negative iterations, unknown averages and windows that are none."""
        found = {}
        if self.iterations < 0:
            found[f"iterations={self.iterations}"] = "is not allowed; give at least 0 (paper default 2)."
        if self.average not in get_args(Average):
            found[f"average={self.average!r}"] = f"is not known; give one of {', '.join(get_args(Average))}."
        if self.window is not None and not (len(self.window) == 2 and 0 <= self.window[0] <= self.window[1]):
            found[f"window={list(self.window)}"] = "is no window; give [lo, hi], 0 <= lo <= hi (code default [0, 5])."
        return found

    def averaged(self) -> range:
        """Evaluations that are averaged, the last one alone where none is asked for."""
        last = self.iterations + 1
        if self.window is not None:
            chosen = range(self.window[0], min(self.window[1], last))
        else:
            chosen = range({"all": 0, "skip_first": 1, "none": last}[self.average], last)
        return chosen or range(last - 1, last)

    def invert(self, z: Tensor, i: int, predict: RecordPredict, state: State, ctx: Context) -> tuple[Tensor, State]:
        """Iterate towards the state from which the sampler would come here."""
        level, level_next = ctx.schedule.levels[i + 1], ctx.schedule.levels[i]
        y, velocities = z, []
        for stage in range(self.iterations + 1):
            velocity = predict(Latents(source=y), i, stage=stage).source
            assert velocity is not None
            y = self.move(z, velocity, level, level_next)
            velocities.append(velocity)
        chosen = self.averaged()
        return torch.stack(velocities[chosen.start : chosen.stop]).mean(0), state


class TwoStage(EditModule):
    """Fixed-point inversion, compensation of the source row, AdaLN invariance and value injection.

    Defaults are the authors' for PIE-Bench on SD3.5-large: 30 steps, K = 2, no guidance while inverting, guidance 2 of
    source and edit, AdaLN invariance at all steps, value injection in the first 15 %. Their function adds the residual
    to the source row alone, although paper and README read as if the target had it too; `compensate` is both.

    Evaluations per image: (K + 1) T for the inversion and T for each row of the edit.
    """

    references = (
        Reference(
            "Unveil Inversion and Invariance in Flow Transformer for Versatile Image Editing",
            "Xu, Jiang, Hu, Luo, et al.",
            "CVPR 2025",
            "https://arxiv.org/abs/2411.15843",
            "https://github.com/Pengchengpcx/FTEdit (442ef0f)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 30,
        iterations: int = 2,
        average: Average = "all",
        skip: int = 0,
        compensate: Compensate = "source",
        recorded: bool = False,
        adaln_steps: float | Sequence[float] = 1.0,
        value_steps: float = 0.15,
        guidance: Guidance | None = None,
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A flow transformer.
            steps: T.
            iterations, average, skip: Of stage I; see `FixedPointInversion`.
            compensate: Rows of stage II: the source's (authors' code), both, or none.
            recorded: Find the residuals of stage II while inverting, without controls, and keep them in the record as
                errors of velocity; costs the rows of one more edit.
            adaln_steps: Share of the steps with AdaLN invariance, or [from, to]; 0 for none.
            value_steps: Share of the steps with value injection; 0 for none (the authors use 0 for edits of written
                text and 0.1 for poses).
            guidance: Scales; None is the authors'.
            inversion: Replaces both stages.
            schedule: Conventions of the schedule.
            **common: See `CommonSettings`; `controls` replaces AdaLN invariance and value injection.
        """
        if inversion is None:
            inversion = FixedPointInversion(skip=skip, iterations=iterations, average=average)
            inversion = compensated(inversion, compensate, recorded)
        if "controls" not in common:
            window = (0.0, adaln_steps) if isinstance(adaln_steps, (int, float)) else adaln_steps
            common["controls"] = [
                *([AdaLNInvariance(window)] if window[-1] else []),
                *([ValueInjection(value_steps)] if value_steps else []),
            ]
        guidance = guidance or usual_guidance(backbone.guided_by, target=2.0, source=2.0, inversion=1.0)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)


def compensated(inversion: FlowInversion, compensate: Compensate, recorded: bool = False) -> Inversion:
    """Add stage II to an inversion; refuse other words."""
    checks = Checks("TwoStage")
    checks.one_of("compensate", compensate, get_args(Compensate))
    checks.require(
        not (recorded and compensate == "none"),
        "recorded=True asks for the residuals of a compensation that is left out; give compensate source or both.",
    )
    checks.done()
    if compensate == "none":
        return inversion
    return DirectInversion(inversion, target="source" if compensate == "both" else "none", recorded=recorded)
