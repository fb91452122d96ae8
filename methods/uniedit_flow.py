"""UniEdit-Flow: Uni-Inv inverts by predicting the next state, Uni-Edit mixes two velocities by where they differ.

Jiao, Huang, Wang, Liao: UniEdit-Flow: Unleashing Inversion and Editing in the Era of Flow Models (ICLR 2026, arXiv
2504.13109). Inversion, from the clean end, interval sigma_a -> sigma_b:

    V <- v(x_a + (sigma_b - sigma_a) V, sigma_b)        x_b = x_a + (sigma_b - sigma_a) V        V = v(x_0, 0) at first

Edit, from the share alpha of the way, both velocities at the target's latent:

    g = v_target - v_source     m = mean of |g| over channels, scaled to [0, 1]
    x <- x + (sigma_next - sigma) (m v_target + (1 - m) v_source + omega (1 + m) g)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import Guidance, State, StepNetwork
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Schedule, ScheduleOptions, euler_step
from framework.step import UNCOND, Latents, Need, Row, Stream, same_start
from methods.flowalign import AT_TARGET, SOURCE, TARGET, beside_target

Rounding = Literal["floor", "round"]
Difference = Literal["absolute", "signed"]


@dataclass(frozen=True)
class UniInversion(Inversion):
    """Euler inversion at the noisy end, whose unknown state is guessed with the previous velocity.

    Attributes:
        alpha: Share of the schedule's steps, from the clean end, that is inverted and edited, in (0, 1].
        rounding: Whether alpha T is rounded down (the authors' diffusers code) or to the nearest (their FLUX code).
        first_guess: "clean" evaluates the velocity at the clean end, one call more; "zero" takes none.

    Source: `UniInvEulerScheduler.py` (69f7e81). Sampling back is plain Euler; the round trip is of second order.
    """

    alpha: float = 0.6
    rounding: Rounding = "floor"
    first_guess: Literal["clean", "zero"] = "clean"

    forms: ClassVar = ("velocity",)

    def __post_init__(self) -> None:
        checks = Checks("UniInversion")
        checks.require(0 < self.alpha <= 1, f"alpha={self.alpha} is not allowed; give a share in (0, 1].")
        checks.one_of("rounding", self.rounding, ("floor", "round"))
        checks.one_of("first_guess", self.first_guess, ("clean", "zero"))
        checks.done()

    def executed(self, schedule_steps: int) -> int:
        """Run as many steps, up to the clean end, as alpha means."""
        # Shares such as 0.29 of 100 are a little below their number in binary.
        share = round(self.alpha * schedule_steps, 9)
        return math.floor(share) if self.rounding == "floor" else round(share)

    def provides(self) -> frozenset[Need]:
        """Return the trajectory where all of it is walked."""
        return frozenset({Need.TRAJECTORY} if self.alpha == 1 else ())

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a share that leaves no step."""
        if self.executed(schedule_steps) > 0:
            return []
        return [
            f"alpha={self.alpha} of steps={schedule_steps} is no step; give alpha of at least {1 / schedule_steps:g}."
        ]

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Walk from the clean latent to the level where the edit begins."""
        schedule, levels = ctx.schedule, ctx.schedule.levels
        steps, executed = schedule.num_steps, self.executed(schedule.num_steps)
        velocity = torch.zeros_like(z0)
        if self.first_guess == "clean":
            velocity = predict(Latents(source=z0), steps)[Stream.SOURCE]
        z, path = z0, [z0]
        for index, i in enumerate(range(steps - 1, steps - 1 - executed, -1)):
            clean, noisy = levels[i + 1], levels[i]
            guess = euler_step(z, velocity, clean, noisy)
            velocity = predict(Latents(source=guess), i)[Stream.SOURCE]
            z_next = euler_step(z, velocity, clean, noisy)
            z = ctx.invert_step(index, i, (clean, noisy), z=z, z_next=z_next, prediction=velocity)
            path.append(z)
        latents = torch.stack(path[::-1])
        return Record.on(
            schedule,
            type(self).__name__,
            z0,
            latents=latents if executed == steps else None,
            own={"uni_inv.start": latents[:1]},
            unused=tuple(range(steps - executed)),
            settings={"alpha": self.alpha, "rounding": self.rounding, "first_guess": self.first_guess},
        )

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin at the level that the inversion reached."""
        del record
        return schedule.num_steps - self.executed(schedule.num_steps)

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin at the inverted latent."""
        return same_start(record.own["uni_inv.start"][0], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Take an Euler step of every stream."""
        level, level_next = ctx.schedule.levels[i], ctx.schedule.levels[i + 1]
        return z.map(lambda z, v: euler_step(z, v, level, level_next), predict(z, i)), state


def difference_map(difference: Tensor, kind: Difference) -> Tensor:
    """Channel mean of a difference of velocities, scaled to [0, 1] over the positions of each image.

    Args:
        difference: [B, C, h, w].
        kind: "absolute" takes magnitudes; "signed", as the authors' diffusers code does, is 0 where the difference is
            most negative.

    Returns:
        [B, 1, h, w]; zero for an image whose difference is the same everywhere.
    """
    mean = (difference.abs() if kind == "absolute" else difference).mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    return (mean - low) / (high - low).clamp(min=torch.finfo(mean.dtype).tiny)


@dataclass(frozen=True)
class VelocityFusion(Guidance):
    """Mixes the velocities under source and target prompt at the target's latent, by where they differ.

    All rows of a step are one call: the target's latent under both prompts and, where it takes part, the source.

    Attributes:
        omega: Strength of the step towards the target, at least 0.
        difference: How the map of differences is taken; see `difference_map`.
        invert_with: Prompt while inverting; the authors' demonstration inverts with the empty one.
        told: Scale that networks with embedded guidance are told.

    Source: `UniEditEulerScheduler.py` (69f7e81), whose map is signed; their FLUX code takes magnitudes.
    """

    omega: float = 5.0
    difference: Difference = "absolute"
    invert_with: Literal["empty", "source"] = "empty"
    told: float = 1.0

    def __post_init__(self) -> None:
        checks = Checks("VelocityFusion")
        checks.between("omega", self.omega, 0, float("inf"), "the authors use 5")
        checks.one_of("difference", self.difference, ("absolute", "signed"))
        checks.one_of("invert_with", self.invert_with, ("empty", "source"))
        checks.between("told", self.told, 0, float("inf"))
        checks.done()

    @property
    def _source(self) -> Row:
        """The source stream's row: it is walked back under the prompt with which it was inverted."""
        return SOURCE if self.invert_with == "source" else Row(Stream.SOURCE, UNCOND)

    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Predict with the prompt of the inversion."""
        del ctx
        return Latents(source=network(z, [self._source], scales=self._told())[self._source])

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Predict the edit from both prompts."""
        del i, record, state, ctx
        rows = [AT_TARGET, TARGET] if z.source is None else [self._source, AT_TARGET, TARGET]
        v = network(beside_target(z), rows, scales=self._told())
        gap = v[TARGET] - v[AT_TARGET]
        m = difference_map(gap, self.difference)
        edit = m * v[TARGET] + (1 - m) * v[AT_TARGET] + self.omega * (1 + m) * gap
        return Latents(target=edit, source=v.get(self._source)), m

    def found(self, state: State) -> Mapping[str, Tensor]:
        """Return the map of differences of the last step, [B, 1, h, w]."""
        return {} if state is None else {"difference_map": state}

    def _told(self) -> Mapping[Stream, float]:
        return dict.fromkeys(Stream, self.told)


class UniEditFlow(EditModule):
    """Uni-Inv and Uni-Edit: 15 steps of which 60 % run, omega 5, no guidance beside it.

    Evaluations per image: alpha T + 1 rows to invert, alpha T calls of 2 rows to edit (3 with a reconstruction).
    """

    references = (
        Reference(
            "UniEdit-Flow: Unleashing Inversion and Editing in the Era of Flow Models",
            "Jiao, Huang, Wang, Liao",
            "ICLR 2026",
            "https://arxiv.org/abs/2504.13109",
            "https://github.com/DSL-Lab/UniEdit-Flow (69f7e81)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 15,
        alpha: float = 0.6,
        rounding: Rounding = "floor",
        guidance: Guidance = VelocityFusion(),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A flow model.
            steps: T, 8 to 30.
            alpha, rounding: See `UniInversion`; 0.6 to 0.8.
            guidance: How the edit's velocity is made.
            inversion: Replaces Uni-Inv; `alpha` and `rounding` then have no effect.
            schedule: Conventions of the schedule.
            **common: See `CommonSettings`.
        """
        inversion = inversion or UniInversion(alpha, rounding)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
