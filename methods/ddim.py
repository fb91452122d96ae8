"""DDIM inversion, reconstruction and plain edit.

Song, Meng, Ermon: Denoising Diffusion Implicit Models (ICLR 2021, arXiv 2010.02502), section 4.3; Dhariwal and Nichol
(2021) for its use as an encoder.

    z_next = alpha_next (z - sigma eps) / alpha + sigma_next eps          one formula, both directions

Denoising evaluates eps at the level it leaves. Inversion ought to evaluate it at the level it arrives at, where z is
not known yet; the conventions in circulation differ in which levels are joined and which time the network is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Unpack, get_args

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Level, Schedule, ScheduleOptions, ddim_step
from framework.step import Latents, Need, same_start

Convention = Literal["next_step", "input_level", "course_snippet", "diffusers", "pix2pix_zero", "pix2pix_zero_all"]


SHORT = ("course_snippet", "pix2pix_zero")
"""Conventions that leave out the first and the last timestep."""


class InversionStep(NamedTuple):
    """One step of a DDIM inversion.

    Attributes:
        interval: Interval of the schedule, 0 the noisiest.
        level, level_next: From where to where.
        told: Level whose time the network is told.
    """

    interval: int
    level: Level
    level_next: Level
    told: Level


def inversion_path(schedule: Schedule, convention: Convention) -> list[InversionStep]:
    """List the steps of an inversion, clean to noisy.

    - "next_step" (null-text, negative-prompt, proximal and direct inversion, MasaCtrl): along the schedule's levels,
      the network is told the level it goes to.
    - "diffusers" (its DDIMInverseScheduler as it stands today): the same, but the clean end is noise-free.
    - "input_level" (its form of versions 0.14 to 0.18, used by Noise Map Guidance): from every timestep one stride up,
      the last to the end of training; the network is told the level it leaves.
    - "course_snippet" (Hugging Face diffusion course, unit 4): as "next_step" without the first and the last timestep.
    - "pix2pix_zero" (its authors): without the first and the last timestep, from one training step below the timestep
      to one stride above that; the network is told the timestep. The clean latent counts as one of the first stride.
    - "pix2pix_zero_all" (PIE-Bench): the same over all timesteps, the last to the end of training.
    """
    n, levels = schedule.num_steps, schedule.levels
    ascending = list(range(n - 1, -1, -1))
    if convention == "next_step":
        return [InversionStep(i, levels[i + 1], levels[i], levels[i]) for i in ascending]
    if convention == "diffusers":
        clean = Level(levels[n].t, 1.0, 0.0) if levels[n].t < 0 else levels[n]
        return [InversionStep(i, clean if i == n - 1 else levels[i + 1], levels[i], levels[i]) for i in ascending]
    if convention == "input_level":
        table = schedule.alphas_cumprod
        last = 0 if table is None else len(table) - 1
        return [
            InversionStep(i, levels[i], schedule.at_timestep(min(int(levels[i].t) + schedule.stride, last)), levels[i])
            for i in ascending
        ]
    if convention in ("pix2pix_zero", "pix2pix_zero_all"):
        last = 0 if schedule.alphas_cumprod is None else len(schedule.alphas_cumprod) - 1
        below = {i: max(0, int(levels[i].t) - 1) for i in ascending}
        return [
            InversionStep(
                i,
                schedule.at_timestep(below[i]),
                schedule.at_timestep(min(below[i] + schedule.stride, last)),
                levels[i],
            )
            for i in (ascending if convention == "pix2pix_zero_all" else ascending[1:-1])
        ]
    return [
        InversionStep(i, schedule.at_timestep(max(0, int(levels[i].t) - schedule.stride)), levels[i], levels[i])
        for i in ascending[1:-1]
    ]


@dataclass(frozen=True)
class DDIMInversion(Inversion):
    """Deterministic inversion; the record is the trajectory.

    Attributes:
        convention: Which levels are joined and which time the network is told; see `inversion_path`.
        skip: Noisiest steps left out of the edit, in [0, steps - 1]; the edit starts from the trajectory there.
        keep_predictions: Keep the guided predictions of the inversion in the record.
        partial: Invert no further than the edit begins; skipped levels of the record are zero then.
    """

    convention: Convention = "next_step"
    skip: int = 0
    keep_predictions: bool = False
    partial: bool = False

    forms: ClassVar = ("epsilon",)

    def __post_init__(self) -> None:
        checks = Checks("DDIMInversion")
        checks.one_of("convention", self.convention, get_args(Convention))
        checks.between("skip", self.skip, 0, float("inf"))
        checks.done()

    def provides(self) -> frozenset[Need]:
        """Return the trajectory, and the predictions when they are kept."""
        return frozenset({Need.TRAJECTORY, *([Need.PREDICTIONS] if self.keep_predictions else [])})

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a skip that leaves no step, and a course snippet too short to have any."""
        problems = skip_problems(self.skip, schedule_steps)
        if self.convention in SHORT and schedule_steps < 3:
            problems.append(
                f"convention={self.convention} leaves out two of steps={schedule_steps}; give at least 3 steps."
            )
        return problems

    def recorded_steps(self, schedule_steps: int) -> int:
        """Return T, or two less where the convention leaves out two."""
        return schedule_steps - 2 * (self.convention in SHORT)

    def adjusted(self, eps: Tensor, index: int, ctx: Context) -> Tensor:
        """Change the prediction of a step of the inversion before it is used; default unchanged."""
        del index, ctx
        return eps

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Walk from the clean latent to noise."""
        path = inversion_path(ctx.schedule, self.convention)
        left_out = self.skip if self.partial else 0
        z, trajectory, predictions = z0, [z0], []
        for index, step in enumerate(path[: len(path) - left_out]):
            eps = predict(Latents(source=z), step.interval, level=step.told).source
            assert eps is not None
            eps = self.adjusted(eps, index, ctx)
            z_next = ddim_step(z, eps, step.level, step.level_next)
            levels = (step.level, step.level_next)
            z = ctx.invert_step(index, step.interval, levels, z=z, z_next=z_next, prediction=eps)
            trajectory.append(z)
            predictions.append(eps)
        trajectory += [torch.zeros_like(z0)] * left_out
        predictions += [torch.zeros_like(z0)] * left_out
        visited = [path[0].level, *(step.level_next for step in path)][::-1]
        t, alpha, sigma = torch.tensor(visited, dtype=torch.float64).unbind(1)
        return Record(
            type(self).__name__,
            ctx.schedule.form,
            z0,
            t,
            alpha,
            sigma,
            latents=torch.stack(trajectory[::-1]),
            predictions=torch.stack(predictions[::-1]) if self.keep_predictions else None,
            unused=tuple(range(self.skip)),
            settings={"convention": self.convention, "skip": self.skip, "partial": self.partial},
        )

    def executed(self, schedule_steps: int) -> int:
        """Leave the skipped steps out."""
        return schedule_steps - self.skip

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin after the skipped steps."""
        del record, schedule
        return self.skip

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin every stream at the trajectory.

        The course snippet's trajectory is one level short, so that its start lies a level below what the first
        sampling step assumes; the snippet lives with it, and so do we.
        """
        assert record.latents is not None
        return same_start(record.latents[self.skip], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Denoise by one DDIM step."""
        del record
        levels = ctx.schedule.levels
        return z.map(lambda z, eps: ddim_step(z, eps, levels[i], levels[i + 1]), predict(z, i)), state


def skip_problems(skip: int, steps: int) -> list[str]:
    """Refuse a skip that leaves no step to run."""
    if skip < steps:
        return []
    return [f"skip={skip} leaves no step of steps={steps}; give a skip in [0, {steps - 1}]."]


class DDIM(EditModule):
    """DDIM inversion with the source prompt, then plain denoising with the target prompt.

    Defaults are those that the papers compare with: 50 steps, no guidance while inverting, 7.5 for the edit. The source
    row is walked back at guidance 1, so that the reconstruction shows the inversion's own error.
    """

    references = (
        Reference(
            "Denoising Diffusion Implicit Models",
            "Song, Meng, Ermon",
            "ICLR 2021",
            "https://arxiv.org/abs/2010.02502",
            "https://github.com/ermongroup/ddim",
            "MIT",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        convention: Convention = "next_step",
        skip: int = 0,
        guidance: Guidance = ClassifierFree(target=7.5, source=1.0, inversion=1.0),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            convention: Of the inversion; see `inversion_path`.
            skip: Noisiest steps left out of the edit.
            guidance: Scales of inversion, source row and edit.
            inversion: Replaces DDIM inversion; `convention` and `skip` then have no effect.
            schedule: Conventions of the schedule; the clean end is a[0], in the course snippet always a[1].
            **common: See `CommonSettings`.
        """
        if convention == "course_snippet":
            schedule = replace(schedule, final_alpha="second")
        inversion = inversion or DDIMInversion(convention, skip)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
