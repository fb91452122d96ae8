"""Euler inversion of rectified flows, and what all deterministic inversions of flows share.

    sampling, sigma_b -> sigma_a:     x_a = x_b + (sigma_a - sigma_b) v(x_b, sigma_b)
    its exact inverse:                x_b = x_a + (sigma_b - sigma_a) v(x_b, sigma_b)        x_b is not known yet

"noisy_end" replaces only the unknown state, v(x_a, sigma_b), as DDIM inversion does (two-stage inversion without
fixed-point iterations). "clean_end" replaces state and time, v(x_a, sigma_a), Euler's rule run backwards (the "reflow"
of the RF-Solver and FireFlow repositories). Papers rarely say which of the two their Euler row uses, and the two differ
clearly in noise and in reconstruction. Here as in all flow methods v = d x / d sigma points to noise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.control import Control
from framework.errors import Checks
from framework.guidance import Guidance, State, usual_guidance
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Level, Schedule, ScheduleOptions, euler_step
from framework.step import Latents, Need, Site, same_start
from methods.ddim import skip_problems
from methods.feature_sharing import FeatureSharing, Storing

Time = Literal["noisy_end", "clean_end"]


@dataclass(frozen=True)
class FlowInversion(Inversion):
    """A deterministic inversion of a flow: one velocity per interval, from the clean end to noise.

    Attributes:
        skip: Noisiest steps that are neither inverted nor edited, in [0, steps - 1]. The record repeats the noisiest
            state reached on the levels above it.
        keep_predictions: Keep the velocities of the inversion in the record.
    """

    skip: int = 0
    keep_predictions: bool = False

    forms: ClassVar = ("velocity",)

    def __post_init__(self) -> None:
        checks = Checks(type(self).__name__)
        checks.between("skip", self.skip, 0, float("inf"))
        for name, problem in self.problems().items():
            checks.require(False, f"{name} {problem}")
        checks.done()

    def problems(self) -> dict[str, str]:
        """Return what is wrong with further settings, by their names."""
        return {}

    def provides(self) -> frozenset[Need]:
        """Return the trajectory, and the velocities when they are kept."""
        return frozenset({Need.TRAJECTORY, *([Need.PREDICTIONS] if self.keep_predictions else [])})

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a skip that leaves no step."""
        return skip_problems(self.skip, schedule_steps)

    def executed(self, schedule_steps: int) -> int:
        """Leave the skipped steps out."""
        return schedule_steps - self.skip

    @abstractmethod
    def invert(self, z: Tensor, i: int, predict: RecordPredict, state: State, ctx: Context) -> tuple[Tensor, State]:
        """Find the velocity by which interval i is inverted.

        Args:
            z: [B, ...] source at level i + 1.
            i: Interval of the schedule.
            predict: The source's guided velocity.
            state: What the previous interval returned, None at first.
            ctx: The edit.

        Returns:
            [B, ...] velocity, and the next state.
        """

    @staticmethod
    def move(z: Tensor, prediction: Tensor, level: Level, level_next: Level) -> Tensor:
        """Go from one level to another with a prediction."""
        return euler_step(z, prediction, level, level_next)

    def watcher(self, ctx: Context) -> tuple[Control, Any] | None:
        """Return a control with its state that keeps features of the source's calls; default none."""
        del ctx
        return None

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Walk from the clean latent to noise."""
        levels, watcher = ctx.schedule.levels, self.watcher(ctx)
        z, trajectory, velocities, state = z0, [z0], [], None
        with nullcontext(predict) if watcher is None else predict.watched(*watcher) as seen:
            for index, i in enumerate(reversed(range(self.skip, ctx.schedule.num_steps))):
                velocity, state = self.invert(z, i, seen, state, ctx)
                z_next = self.move(z, velocity, levels[i + 1], levels[i])
                z = ctx.invert_step(index, i, (levels[i + 1], levels[i]), z=z, z_next=z_next, prediction=velocity)
                trajectory.append(z)
                velocities.append(velocity)
        trajectory += self.skip * [z]
        velocities += self.skip * [torch.zeros_like(z)]
        return Record.on(
            ctx.schedule,
            self.kind,
            z0,
            latents=torch.stack(trajectory[::-1]),
            predictions=torch.stack(velocities[::-1]) if self.keep_predictions else None,
            features={} if watcher is None else watcher[1],
            unused=tuple(range(self.skip)),
            settings={"skip": self.skip},
        )

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin after the skipped steps."""
        del record, schedule
        return self.skip

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin every stream at the noisiest state."""
        assert record.latents is not None
        return same_start(record.latents[self.skip], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Denoise by one Euler step."""
        del record
        levels = ctx.schedule.levels
        return z.map(lambda z, v: self.move(z, v, levels[i], levels[i + 1]), predict(z, i)), state


@dataclass(frozen=True)
class SharingInversion(FlowInversion):
    """An inversion whose calls may keep attention features of the source for the edit.

    Attributes:
        sharing: Keep them for this control, which the edit then uses too.
    """

    sharing: FeatureSharing | None = None

    def calls(self, intervals: int, steps: int) -> int:
        """Count the network calls of the inversion in so many of the noisiest intervals."""
        del steps
        return intervals

    def feature_bytes(self, sites: Sequence[Site], latent: Sequence[int], steps: int, itemsize: int) -> int:
        """Count what is kept for the sharing."""
        if self.sharing is None:
            return 0
        intervals = max(0, min(self.sharing.inject_steps, steps) - self.skip)
        return self.sharing.memory(sites, latent, self.calls(intervals, steps), itemsize)

    def provides(self) -> frozenset[Need]:
        """Return the trajectory, and features where they are shared."""
        return frozenset({*super().provides(), *([Need.FEATURES] if self.sharing else [])})

    def watcher(self, ctx: Context) -> tuple[Control, Any] | None:
        """Keep features in the sharing's intervals."""
        del ctx
        return None if self.sharing is None or not self.sharing.inject_steps else (Storing(self.sharing), {})


@dataclass(frozen=True)
class EulerInversion(SharingInversion):
    """One evaluation per interval; sampling is Euler's rule.

    Attributes:
        time: Which end of the interval the network is told; see the head of this file.
    """

    time: Time = "noisy_end"

    def problems(self) -> dict[str, str]:
        """Refuse other words for the time."""
        words = get_args(Time)
        return {} if self.time in words else {f"time={self.time!r}": f"is not known; give one of {', '.join(words)}."}

    def invert(self, z: Tensor, i: int, predict: RecordPredict, state: State, ctx: Context) -> tuple[Tensor, State]:
        """Evaluate at the state that is known, telling the network one end or the other."""
        told = ctx.schedule.levels[i if self.time == "noisy_end" else i + 1]
        velocity = predict(Latents(source=z), i, level=told).source
        assert velocity is not None
        return velocity, state


def with_sharing(sharing: FeatureSharing | None, controls: Sequence[Control]) -> list[Control]:
    """Put a sharing before other controls, unless it shares nothing."""
    return [*([sharing] if sharing is not None and sharing.inject_steps else []), *controls]


class EulerFlow(EditModule):
    """Euler inversion with the source prompt, then plain sampling with the target prompt: the baseline on flows.

    30 steps, no guidance while inverting. Evaluations per image: T for the inversion, and T for each row of the edit.
    """

    references = (
        Reference(
            "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
            "Liu, Gong, Liu",
            "ICLR 2023",
            "https://arxiv.org/abs/2209.03003",
            "https://github.com/gnobitab/RectifiedFlow",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 30,
        time: Time = "noisy_end",
        skip: int = 0,
        sharing: FeatureSharing | None = None,
        guidance: Guidance | None = None,
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A flow model.
            steps: T.
            time: Convention of the inversion.
            skip: Noisiest steps left out.
            sharing: Features that the edit takes from the inversion, on FLUX; None for none.
            guidance: Scales; None is 2 for the edit and 1 for the source and the inversion.
            inversion: Replaces Euler inversion; `time`, `skip` and `sharing` then have no effect.
            schedule: Conventions of the schedule.
            **common: See `CommonSettings`; the sharing stands before other controls.
        """
        if inversion is None:
            inversion = EulerInversion(skip=skip, time=time, sharing=sharing)
            common["controls"] = with_sharing(sharing, common.get("controls", ()))
        guidance = guidance or usual_guidance(backbone.guided_by, target=2.0)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
