"""Direct inversion: keep the source row on the inverted trajectory, and leave the target row alone.

Ju, Zeng, Bian, Liu, Xu: PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code (ICLR 2024, arXiv
2310.01506), Algorithm 1.

    offset_i = z*_{i+1} - step(z_i)          z* the trajectory of the inversion
    z_{i+1} = step(z_i) + offset_i           source row only

The authors find the offsets in a pass of their own before the edit. A source row is not affected by the edit beside it,
so that the offsets can be found as the edit goes, and a whole offset is the same as writing z* over the source row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State
from framework.inversion import Inversion, InversionAround, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Level, Schedule, ScheduleOptions
from framework.step import Conditions, Latents, Need, Stream
from methods.ddim import Convention, DDIMInversion

_DDIM = DDIMInversion()

TargetOffset = Literal["none", "own", "source"]


@dataclass(frozen=True)
class DirectInversion(InversionAround):
    """Puts the source row back on the trajectory after every step of another inversion.

    Attributes:
        base: Any inversion that keeps a trajectory along the schedule's levels.
        scale: Share of the offset that is added, in [0, 1]; what is left out carries over to the next step. 1 is the
            paper's, 0.4 and 0.8 are its ablations.
        every: The offset is added in steps i with i mod every = 0; 1 is the paper's.
        target: Offset that is added to the target row as well (the paper's ablations): "none"; "source", the source's;
            "own", that which would keep a row under the target prompt on the trajectory.
        recorded: Find the offsets in a pass of their own while inverting, as the authors do, without controls; costs
            the rows of one more edit. The pass is made in any case for the target's own offsets. The record then keeps
            the source's offsets as residuals, in the units of predictions.
    """

    base: Inversion = _DDIM
    scale: float = 1.0
    every: int = 1
    target: TargetOffset = "none"
    recorded: bool = False

    needs: ClassVar = frozenset({Need.SOURCE, Need.TRAJECTORY})

    def __post_init__(self) -> None:
        checks = Checks("DirectInversion")
        checks.between("scale", self.scale, 0, 1, "paper default 1")
        checks.between("every", self.every, 1, float("inf"), "paper default 1, every step")
        checks.one_of("target", self.target, ("none", "own", "source"))
        base = type(self.base).__name__
        checks.require(
            Need.TRAJECTORY in self.base.provides(),
            f"base={base} keeps no trajectory to hold the source to; use DDIMInversion or another inversion that does.",
        )
        checks.done()
        super().__post_init__()

    @property
    def passes(self) -> bool:
        """Whether the offsets are found in a pass of their own."""
        return self.recorded or self.target == "own"

    @property
    def kind(self) -> str:
        """Name of the base's records, unless offsets are recorded."""
        return f"DirectInversion({self.base.kind})" if self.passes else self.base.kind

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a trajectory that does not lie along the schedule."""
        problems = self.base.check(schedule_steps)
        innermost = self.base
        while isinstance(innermost, InversionAround):
            innermost = innermost.base
        convention = getattr(innermost, "convention", "next_step")
        if convention in ("course_snippet", "input_level", "pix2pix_zero"):
            problems.append(
                f"DirectInversion holds the source to the schedule's levels, and convention={convention} leaves them; "
                "use convention=next_step."
            )
        return problems

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Record as the base does, then find the offsets of both prompts where they are asked for."""
        record = self.base.record(z0, predict, ctx)
        if not self.passes:
            return record
        own = dict(record.own)
        for stream in (Stream.SOURCE, Stream.TARGET):
            own[f"direct_inversion.{stream.value}"] = self._offsets(record, stream, predict, ctx)
        settings = {**record.settings, "scale": self.scale, "every": self.every}
        residuals = _as_predictions(own["direct_inversion.source"], ctx.schedule)
        return replace(record, kind=self.kind, own=own, residuals=residuals, settings=settings)

    def _offsets(self, record: Record, stream: Stream, predict: RecordPredict, ctx: Context) -> Tensor:
        """Walk one stream from the start and return what is added after each step, [T, B, ...]; zero where skipped."""
        assert record.latents is not None
        offsets = torch.zeros_like(record.latents[1:])
        ctx = replace(ctx, streams=(stream,))
        z, state = self.base.start(record, ctx), self.base.begin(record, ctx)
        for i in range(self.base.first(record, ctx.schedule), ctx.schedule.num_steps):
            conditions = self.base.condition(record, i, ctx.conditions)
            alone = _Uncontrolled(predict, record, conditions)
            z_next, state = self.base.step(record, i, z, alone, state, ctx)
            if i % self.every == 0:
                offsets[i] = self.scale * (record.latents[i + 1] - z_next[stream])
            z = z_next.with_stream(stream, z_next[stream] + offsets[i])
        return offsets

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Step as the base does, then add the offsets."""
        z_next, state = self.base.step(record, i, z, predict, state, ctx)
        if i % self.every:
            return z_next, state
        assert record.latents is not None
        pivot, source = record.latents[i + 1], z_next[Stream.SOURCE]
        offset = record.own["direct_inversion.source"][i] if self.passes else self.scale * (pivot - source)
        pinned = pivot if self.scale == 1 and not self.passes else source + offset
        corrected = z_next.with_stream(Stream.SOURCE, pinned)
        if self.target != "none" and z_next.target is not None:
            added = offset if self.target == "source" else record.own["direct_inversion.target"][i]
            corrected = corrected.with_stream(Stream.TARGET, z_next.target + added)
        return corrected, state


def _as_predictions(offsets: Tensor, schedule: Schedule) -> Tensor:
    """Say offsets of latents [T, B, ...] as the errors of noise or velocity that a deterministic step makes them of."""
    errors = torch.zeros_like(offsets)
    for i, (level, level_next) in enumerate(pairwise(schedule.levels)):
        if schedule.form == "velocity":
            slope = level_next.sigma - level.sigma
        else:
            slope = level_next.sigma - level_next.alpha * level.sigma / level.alpha
        if slope:
            errors[i] = offsets[i] / slope
    return errors


@dataclass(frozen=True)
class _Uncontrolled:
    """A denoising step's prediction while recording."""

    predict: RecordPredict
    record: Record
    conditions: Conditions

    def __call__(self, z: Latents, i: int, *, level: Level | None = None, stage: int = 0) -> Latents:
        del stage  # controls do not act here
        return self.predict.denoising(z, i, self.record, self.conditions, level=level)


class DirectDDIM(EditModule):
    """DDIM inversion with the source row held to it: 50 steps, guidance 7.5 for both rows, none while inverting.

    Evaluations per image: T for the inversion and 4 T for the edit; as many again for an offset pass (`recorded`).
    """

    references = (
        Reference(
            "PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code",
            "Ju, Zeng, Bian, Liu, Xu",
            "ICLR 2024",
            "https://arxiv.org/abs/2310.01506",
            "https://github.com/cure-lab/PnPInversion (07f97f4)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        scale: float = 1.0,
        every: int = 1,
        target: TargetOffset = "none",
        recorded: bool = False,
        convention: Convention = "next_step",
        skip: int = 0,
        guidance: Guidance = ClassifierFree(target=7.5, source=7.5, inversion=1.0),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(steps_offset=0, final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            scale, every, target, recorded: See `DirectInversion`.
            convention, skip: Of the DDIM inversion; see `DDIMInversion`.
            guidance: Scales. The source's changes nothing while its row is held whole (scale 1, every 1): source 1.0
                saves a quarter of the edit's evaluations.
            inversion: Replaces the inversion; the settings above then have no effect.
            schedule: Conventions of the schedule; timesteps begin at 0 and the clean end is a[0], as in the code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or DirectInversion(DDIMInversion(convention, skip), scale, every, target, recorded)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
