"""FlowEdit: edit along the difference of two velocities, without inverting.

Kulikov, Kleiner, Huberman-Spiegelglas, Michaeli: FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow
Models (ICCV 2025, arXiv 2412.08629), algorithm 1. The edit Z starts as the source latent x0 and moves at every level by

    q = (1 - sigma) x0 + sigma n        p = Z + q - x0        the same fresh noise n for both
    Z <- Z + (sigma_next - sigma) mean over n of (v(p, target) - v(q, source))

on the last n_max levels of the schedule; the last n_min of them are ordinary sampling of p with the target prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import Guidance, State, usual_guidance
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Schedule, ScheduleOptions, euler_step
from framework.step import Latents, Stream, same_start


def noised_pair(z: Tensor, z0: Tensor, noise: Tensor, sigma: float) -> Latents:
    """Noise a source, and carry the edit along: q = (1 - sigma) z0 + sigma noise as source, z + q - z0 as target."""
    noised = torch.lerp(z0, noise, sigma)
    return Latents(source=noised, target=z + noised - z0)


@dataclass(frozen=True)
class VelocityDifference(Inversion):
    """Records nothing but draws; the edit moves by the difference between target and source velocity.

    The source stream is the source itself at every level.

    Attributes:
        n_max: Number of the schedule's last steps that run, in [1, steps]; fewer keep more of the source.
        n_min: Of these, the last that sample ordinarily, in [0, n_max - 1]; more change the style more.
        n_avg: Draws of noise over which a step's difference is averaged.

    Source: FlowEdit `FlowEdit_utils.py` (457f402). Its SD3 function names no target velocity for n_min above 0; the
    velocity under the target prompt at the target's scale is meant.
    """

    n_max: int = 33
    n_min: int = 0
    n_avg: int = 1

    forms: ClassVar = ("velocity",)
    streams: ClassVar = (Stream.SOURCE,)

    def __post_init__(self) -> None:
        checks = Checks("FlowEdit")
        checks.between("n_max", self.n_max, 1, float("inf"), "33 of 50 for SD3, 24 of 28 for FLUX")
        checks.between("n_avg", self.n_avg, 1, 1000)
        checks.require(
            0 <= self.n_min < self.n_max,
            f"n_min={self.n_min} is not allowed; it counts the last of the n_max={self.n_max} steps, give a number in "
            f"[0, {max(self.n_max - 1, 0)}].",
        )
        checks.done()

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse more steps than there are."""
        if self.n_max <= schedule_steps:
            return []
        return [f"n_max={self.n_max} is more than steps={schedule_steps}; give n_max in [1, {schedule_steps}]."]

    def executed(self, schedule_steps: int) -> int:
        """Run the last n_max steps."""
        return min(self.n_max, schedule_steps)

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Draw the noise; the network is not asked."""
        del predict
        draws = (self.n_max - self.n_min) * self.n_avg + (1 if self.n_min else 0)
        return Record.on(
            ctx.schedule,
            type(self).__name__,
            z0,
            own={"flowedit.noise": ctx.noise("flowedit", draws)},
            unused=tuple(range(ctx.schedule.num_steps - self.n_max)),
            settings={"n_max": self.n_max, "n_min": self.n_min, "n_avg": self.n_avg},
        )

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin with the first of the last n_max steps."""
        del record
        return schedule.num_steps - self.n_max

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin at the source, clean."""
        return same_start(record.z0, ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Move by the mean difference, or sample ordinarily."""
        schedule, z0, noise = ctx.schedule, record.z0, record.own["flowedit.noise"]
        level, level_next = schedule.levels[i], schedule.levels[i + 1]
        left, edit = schedule.num_steps - i, z[Stream.TARGET]
        if left > self.n_min:
            difference = torch.zeros_like(z0)
            begin = (self.n_max - left) * self.n_avg
            for n in noise[begin : begin + self.n_avg]:
                velocity = predict(noised_pair(edit, z0, n, level.sigma), i)
                difference = difference + (velocity[Stream.TARGET] - velocity[Stream.SOURCE]) / self.n_avg
        else:
            if left == self.n_min:
                edit = noised_pair(edit, z0, noise[-1], level.sigma)[Stream.TARGET]
            difference = predict(Latents(target=edit), i)[Stream.TARGET]
        return z.with_stream(Stream.TARGET, euler_step(edit, difference, level, level_next)), state


class FlowEdit(EditModule):
    """Editing by velocity differences: 50 steps of which 33 run, guidance 3.5 and 13.5, as published for SD3.

    Published for FLUX: 28 steps, `n_max` 24, guidance 1.5 and 5.5. Evaluations per image: n_max n_avg calls of 4 rows
    (2 where guidance is embedded), fewer in the last n_min.
    """

    references = (
        Reference(
            "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models",
            "Kulikov, Kleiner, Huberman-Spiegelglas, Michaeli",
            "ICCV 2025",
            "https://arxiv.org/abs/2412.08629",
            "https://github.com/fallenshock/FlowEdit (457f402)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        n_max: int = 33,
        n_min: int = 0,
        n_avg: int = 1,
        guidance: Guidance | None = None,
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A flow model.
            steps: T.
            n_max, n_min, n_avg: See `VelocityDifference`.
            guidance: Scales under source and target prompt; None is 3.5 and 13.5, or 1.5 and 5.5 where the network is
                told its scale.
            inversion: Replaces the velocity difference; n_max, n_min and n_avg then have no effect.
            schedule: Conventions of the schedule.
            **common: See `CommonSettings`.
        """
        target, source = (5.5, 1.5) if backbone.guided_by == "embedding" else (13.5, 3.5)
        guidance = guidance or usual_guidance(backbone.guided_by, target=target, source=source)
        inversion = inversion or VelocityDifference(n_max, n_min, n_avg)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
