"""RF-Inversion: controlled ordinary and stochastic differential equations that tie noise and edit to the image.

Rout, Chen, Ruiz, Caramanis, Shakkottai, Chu: Semantic Image Inversion and Editing using Rectified Stochastic
Differential Equations (ICLR 2025, arXiv 2410.10792). With v = d x / d sigma pointing to noise, y1 one draw of noise, y0
the image:

    inversion    v_hat = v + gamma ((y1 - x) / (1 - sigma) - v)          x <- x + v_hat d sigma
    sampling     v_hat = v + eta ((x - y0) / sigma - v)                  x <- x + v_hat d sigma
    stochastic   x <- x + d (-2 v_hat - x / (1 - sigma)) + sqrt(2 sigma d / (1 - sigma)) xi,      d = |d sigma|

The drift of the stochastic form is doubled with its controller, as in the authors' code; its first step is the
ordinary one. Source: diffusers' community pipeline `pipeline_flux_rf_inversion` (58eb52c), by the authors; its
inversion departs from the equations in two ways, which `time_grid` "reference" keeps: the network is told i / n, n the
number of levels, which is not the level of the state; and steps are taken in the order of sampling, the smallest first.
"consistent" walks the schedule's levels and tells the network where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, EmbeddedGuidance, Guidance, State, usual_guidance
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.network import Network
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Level, Schedule, ScheduleOptions, euler_step
from framework.step import Latents, Need, same_start

TimeGrid = Literal["reference", "consistent"]


@dataclass(frozen=True)
class ControlledInversion(Inversion):
    """Controlled inversion, and sampling that is pulled back to the image.

    Attributes:
        gamma: Share of the inversion's velocity that leads straight to y1, in [0, 1]; paper 0.5.
        eta: Share of the sampling's velocity that leads straight to the image, in [0, 1]; 1 over all steps returns it.
        start_share, stop_share: Window of eta as shares of the steps, in [0, 1], turned into indices before `strength`.
        decay: Power of the decay eta (1 - i / n)^decay over the executed steps; 0 for none.
        strength: Share of the steps that is inverted and sampled, in (0, 1].
        stochastic: Sample by the stochastic equation.
        time_grid: See the head of this file.
        inversion_steps: Steps of the inversion where they are not the edit's; None for the same.
    """

    gamma: float = 0.5
    eta: float = 0.9
    start_share: float = 0.0
    stop_share: float = 0.25
    decay: float = 0.0
    strength: float = 1.0
    stochastic: bool = False
    time_grid: TimeGrid = "reference"
    inversion_steps: int | None = None

    forms: ClassVar = ("velocity",)

    def __post_init__(self) -> None:
        checks = Checks("ControlledInversion")
        checks.between("gamma", self.gamma, 0, 1, "paper 0.5")
        checks.between("eta", self.eta, 0, 1, "paper 0.9")
        checks.between("start_share", self.start_share, 0, 1, "share of the steps")
        checks.between("stop_share", self.stop_share, 0, 1, "share of the steps, paper 0.25")
        checks.require(
            self.start_share <= self.stop_share,
            f"start_share={self.start_share} lies behind stop_share={self.stop_share}; exchange them.",
        )
        checks.between("decay", self.decay, 0, float("inf"), "a power; 0 is no decay")
        checks.require(
            0 < self.strength <= 1, f"strength={self.strength} is not allowed; give a share in (0, 1], 1 for all steps."
        )
        checks.one_of("time_grid", self.time_grid, get_args(TimeGrid))
        if self.inversion_steps is not None:
            checks.between("inversion_steps", self.inversion_steps, 1, float("inf"), "None is the edit's steps")
        checks.done()

    def provides(self) -> frozenset[Need]:
        """Return the trajectory."""
        return frozenset({Need.TRAJECTORY})

    def recorded_steps(self, schedule_steps: int) -> int:
        """Record the steps of the inversion."""
        return self.inversion_steps or schedule_steps

    def executed(self, schedule_steps: int) -> int:
        """Run the share of the steps that `strength` says."""
        return schedule_steps - self._skipped(schedule_steps)

    def _skipped(self, steps: int) -> int:
        # As the authors round it: at least one step runs, whatever the strength.
        return int(max(steps - min(steps * self.strength, steps), 0))

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Walk from the image towards one draw of noise."""
        steps, schedule = ctx.schedule.num_steps, ctx.schedule
        first = self._skipped(steps)
        y1 = ctx.noise("controller", 1)[0]
        sigmas = [level.sigma for level in schedule.levels[first:]]
        z, visited, trajectory = z0, [schedule.at_sigma(sigmas[-1])], [z0]
        for index, i in enumerate(reversed(range(first, steps))):
            if self.time_grid == "reference":
                told = schedule.at_sigma(index / len(sigmas))
                sigma_next = visited[-1].sigma + sigmas[index] - sigmas[index + 1]
            else:
                told = schedule.levels[i + 1]
                sigma_next = schedule.levels[i].sigma
            velocity = predict(Latents(source=z), i, level=told).source
            assert velocity is not None
            controlled = velocity + self.gamma * ((y1 - z) / (1 - told.sigma) - velocity)
            level_next = schedule.at_sigma(min(sigma_next, 1.0))
            z_next = euler_step(z, controlled, visited[-1], level_next)
            z = ctx.invert_step(index, i, (visited[-1], level_next), z=z, z_next=z_next, prediction=controlled)
            visited.append(level_next)
            trajectory.append(z)
        # Levels above the strength are not reached; the record repeats the noisiest state there.
        visited += [visited[-1]] * first
        trajectory += [z] * first
        t, alpha, sigma = torch.tensor(visited[::-1], dtype=torch.float64).unbind(1)
        return Record(
            self.kind,
            schedule.form,
            z0,
            t,
            alpha,
            sigma,
            latents=torch.stack(trajectory[::-1]),
            unused=tuple(range(first)),
            settings={"gamma": self.gamma, "strength": self.strength, "time_grid": self.time_grid},
        )

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin after the steps that `strength` leaves out."""
        del record
        return self._skipped(schedule.num_steps)

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin every stream at the noisiest state."""
        assert record.latents is not None
        return same_start(record.latents[0], ctx.streams)

    def begin(self, record: Record, ctx: Context) -> State:
        """Draw the noise of the stochastic equation, one per executed step."""
        del record
        return ctx.noise("steps", self.executed(ctx.schedule.num_steps)) if self.stochastic else None

    def share(self, i: int, steps: int) -> float:
        """Eta of interval i."""
        executed, total = i - self._skipped(steps), self.executed(steps)
        start, stop = int(self.start_share * steps), min(int(self.stop_share * steps), steps)
        if not start <= executed < stop:
            return 0.0
        return self.eta * (1 - executed / total) ** self.decay if self.decay else self.eta

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Denoise by the controlled equation; all streams share the draws."""
        level, level_next = ctx.schedule.levels[i], ctx.schedule.levels[i + 1]
        eta, index = self.share(i, ctx.schedule.num_steps), i - self._skipped(ctx.schedule.num_steps)

        def controlled(z: Tensor, velocity: Tensor) -> Tensor:
            return velocity + eta * ((z - record.z0) / level.sigma - velocity)

        velocities = z.map(controlled, predict(z, i))
        if not self.stochastic or index == 0:
            return z.map(lambda z, v: euler_step(z, v, level, level_next), velocities), state
        noise = state[index]
        return z.map(lambda z, v: stochastic_step(z, v, noise, level, level_next), velocities), state


def stochastic_step(z: Tensor, velocity: Tensor, noise: Tensor, level: Level, level_next: Level) -> Tensor:
    """One Euler-Maruyama step of the rectified stochastic equation towards the image.

    z + d (-2 v - z / (1 - sigma)) + sqrt(2 sigma d / (1 - sigma)) noise with d = sigma - sigma_next; sigma below 1.

    Source: Rout et al. (2024), Eq. 10 as the authors' code takes it.
    """
    d = level.sigma - level_next.sigma
    drift = -2 * velocity - z / (1 - level.sigma)
    return z + d * drift + math.sqrt(2 * level.sigma * d / (1 - level.sigma)) * noise


class RFInversion(EditModule):
    """RF-Inversion with the settings of its readme: 28 steps, gamma 0.5, eta 0.9 over the first quarter, guidance 3.5.

    Inverts under the empty prompt at guidance 0; inverting with the prompt takes the subject out of the noise.
    Evaluations per image: T for the inversion and T for each row of the edit.
    """

    references = (
        Reference(
            "Semantic Image Inversion and Editing using Rectified Stochastic Differential Equations",
            "Rout, Chen, Ruiz, Caramanis, Shakkottai, Chu",
            "ICLR 2025",
            "https://arxiv.org/abs/2410.10792",
            "https://github.com/LituRout/RF-Inversion (7692b96)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 28,
        gamma: float = 0.5,
        eta: float = 0.9,
        start_share: float = 0.0,
        stop_share: float = 0.25,
        decay: float = 0.0,
        strength: float = 1.0,
        stochastic: bool = False,
        time_grid: TimeGrid = "reference",
        inversion_steps: int | None = None,
        guidance: Guidance | None = None,
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A flow model.
            steps: T.
            gamma, eta, start_share, stop_share, decay, strength, stochastic, time_grid, inversion_steps: See
                `ControlledInversion`.
            guidance: Scales; None is 3.5 for the edit and the empty prompt at scale 0 while inverting.
            inversion: Replaces the controlled inversion; the settings above then have no effect.
            schedule: Conventions of the schedule.
            **common: See `CommonSettings`.
        """
        inversion = inversion or ControlledInversion(
            gamma, eta, start_share, stop_share, decay, strength, stochastic, time_grid, inversion_steps
        )
        guidance = guidance or _guidance(backbone)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
        self.inversion_schedule = backbone.schedule(self.inversion.recorded_steps(steps), schedule)

    def record_latents(self, z0: Tensor, ctx: Context, network: Network) -> Record:
        """Invert on levels of its own where the inversion has another number of steps."""
        if self.inversion_schedule.num_steps == self.steps:
            return super().record_latents(z0, ctx, network)
        levels = self.inversion_schedule.for_size(z0.shape[-2:])
        return super().record_latents(z0, replace(ctx, schedule=levels), network.on(levels))


def _guidance(backbone: Backbone) -> ClassifierFree | EmbeddedGuidance:
    if backbone.guided_by == "embedding":
        return EmbeddedGuidance(target=3.5, source=1.0, inversion=0.0, invert_with="empty")
    if backbone.guided_by == "nothing":
        return ClassifierFree(1.0, 1.0, 0.0)
    return usual_guidance(backbone.guided_by, target=3.5, inversion=0.0)
