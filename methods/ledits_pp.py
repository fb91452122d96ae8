"""LEDITS++: inversion for a fast multistep solver, and edit concepts with implicit masks.

Brack, Friedrich, Kornmeier, Tsaban, Schramowski, Kersting, Passos: LEDITS++: Limitless Image Editing using
Text-to-Image Models (CVPR 2024, arXiv 2311.16711), sections 3 and 4. The solver is SDE-DPM-Solver++ of order two (Lu et
al., arXiv 2211.01095), in data prediction, with lambda = log(alpha / sigma) and h = lambda_next - lambda:

    mean = sigma_next / sigma exp(-h) z + alpha_next (1 - exp(-2h)) (x0 + h / (2 h_before) (x0 - x0_before))
    std  = sigma_next sqrt(1 - exp(-2h))          w_i = (z_{i+1} - mean) / std

with every level drawn independently, as in edit-friendly inversion. Two implementations differ in numbers (`variant`):
"repo" is the authors' own, which they recommend for research; "diffusers" ends noise-free at its last timestep and
never reconstructs exactly. They differ in the schedule, the last step, the intersection of masks and the source prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import Guidance, State
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Schedule, eps_to_x0
from framework.step import Latents, Need, same_start
from methods.implicit_masks import ImplicitMaskGuidance, Variant

LOWER_ORDER_BELOW = 15
"""Steps below which the authors' solver ends an edit with a first-order step (`lower_order_final`)."""


def sde_step(
    z: Tensor, x0: Tensor, i: int, schedule: Schedule, before: Tensor | None, *, first_order: bool = False
) -> tuple[Tensor, float]:
    """Mean and standard deviation of one step of SDE-DPM-Solver++ (midpoint form).

    Args:
        z: Latent at level i, [B, ...].
        x0: Clean estimate there.
        i: Interval of the schedule.
        schedule: The levels; a noise-free end is reached as x0 itself, without noise.
        before: Clean estimate of interval i - 1, or None for a first-order step.
        first_order: Leave `before` out of account.

    Returns:
        The mean, shape of z, and the standard deviation.

    Source: Lu et al., DPM-Solver++, Eq. 18 and its second-order form; LEDITS++ Eq. 3 to 5.
    """
    level, level_next = schedule.levels[i], schedule.levels[i + 1]
    if level_next.sigma == 0:
        return x0, 0.0
    h = log_snr(schedule, i + 1) - log_snr(schedule, i)
    gain = level_next.alpha * -math.expm1(-2 * h)
    mean = level_next.sigma / level.sigma * math.exp(-h) * z + gain * x0
    if before is not None and not first_order:
        h_before = log_snr(schedule, i) - log_snr(schedule, i - 1)
        mean = mean + 0.5 * gain * h / h_before * (x0 - before)
    return mean, level_next.sigma * math.sqrt(-math.expm1(-2 * h))


def log_snr(schedule: Schedule, i: int) -> float:
    """Lambda = log(alpha / sigma) of level i."""
    level = schedule.levels[i]
    return math.log(level.alpha / level.sigma)


@dataclass(frozen=True)
class MultistepSDEInversion(Inversion):
    """Noise maps of the second-order multistep SDE solver, edit-friendly: every level is drawn by itself.

    Attributes:
        lower_order_final: End an edit of fewer than 15 steps with a first-order step, as the authors' solver does. The
            last map was made for the second-order one, so that such an edit does not reconstruct exactly.
    """

    lower_order_final: bool = True

    forms: ClassVar = ("epsilon",)

    def provides(self) -> frozenset[Need]:
        """Return noise maps and the latents that they join."""
        return frozenset({Need.NOISE_MAPS, Need.TRAJECTORY})

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Noise every level independently and read off the maps that join them."""
        schedule = ctx.schedule
        steps = range(schedule.num_steps)
        draws = ctx.noise("edit-friendly levels", schedule.num_steps)
        z = torch.cat([schedule.add_noise_everywhere(z0, draws), z0[None]])
        known = predict.at_levels(z[:-1], steps)
        maps = torch.zeros_like(z[:-1])
        before: Tensor | None = None
        for i in steps:
            x0 = self._x0(z[i], known[i], i, schedule)
            mean, std = sde_step(z[i], x0, i, schedule, before)
            arrived = z[i + 1]
            if std > 0:
                maps[i] = (z[i + 1] - mean) / std
                arrived = mean + std * maps[i]
            levels = (schedule.levels[i], schedule.levels[i + 1])
            z[i + 1] = ctx.invert_step(i, i, levels, z=z[i], z_next=arrived, prediction=known[i], noise=maps[i])
            before = x0
        zeroed = (schedule.num_steps - 1,) if schedule.levels[-1].sigma == 0 else ()
        settings = {"lower_order_final": self.lower_order_final}
        return Record.on(schedule, self.kind, z0, latents=z, noise_maps=maps, zeroed=zeroed, settings=settings)

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin every stream at the noisiest level."""
        assert record.latents is not None
        return same_start(record.latents[0], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Take the solver's step with the recorded map in place of fresh noise."""
        assert record.noise_maps is not None
        return self.inject(z, predict(z, i), same_start(record.noise_maps[i], z.streams()), i, state, ctx)

    def inject(
        self, z: Latents, prediction: Latents, noise: Latents, i: int, state: State, ctx: Context
    ) -> tuple[Latents, Latents]:
        """Step with given noise maps, one per stream; the state is the clean estimate of the step before."""
        schedule = ctx.schedule
        short = self.lower_order_final and schedule.num_steps < LOWER_ORDER_BELOW
        first_order = short and i == schedule.num_steps - 1
        x0 = z.map(lambda z, eps: self._x0(z, eps, i, schedule), prediction)

        def sample(z: Tensor, x0: Tensor, noise: Tensor, *history: Tensor) -> Tensor:
            mean, std = sde_step(z, x0, i, schedule, history[0] if history else None, first_order=first_order)
            return mean + std * noise

        history = () if state is None else (state,)
        return z.map(sample, x0, noise, *history), x0

    @staticmethod
    def _x0(z: Tensor, eps: Tensor, i: int, schedule: Schedule) -> Tensor:
        level = schedule.levels[i]
        return eps_to_x0(z, eps, alpha=level.alpha, sigma=level.sigma)


def ledits_pp_schedule(alphas_cumprod: Tensor, steps: int, skip: float, variant: Variant) -> Schedule:
    """Build the levels of LEDITS++.

    Args:
        alphas_cumprod: [training steps] table of the model.
        steps: T, all of which are executed.
        skip: Share of the training time above the first timestep, in [0, 1).
        variant: "repo": T timesteps evenly from (1 - skip) of the training time down to 1, ending at timestep 0.
            "diffusers": the last T of int(T (1 + skip)) "leading" timesteps, ending noise-free.

    Raises:
        SettingsError: The timesteps would repeat.
    """
    train = len(alphas_cumprod)
    checks = Checks("LEDITSPP")
    if variant == "repo":
        timesteps = [int(t) for t in np.linspace(train - train * skip - 1, 1, steps)]
    else:
        ratio = train // (int(steps * (1 + skip)) + 1)
        timesteps = [ratio * (steps - k) + 1 for k in range(steps)]
    checks.require(
        len(set(timesteps)) == steps,
        f"steps={steps} do not fit between timesteps {timesteps[0]} and 1; give fewer steps or a smaller skip.",
    )
    checks.done()
    if variant == "repo":
        return Schedule.from_alphas_cumprod(alphas_cumprod, timesteps, final_alpha="first", stride=timesteps[-1])
    return Schedule.from_alphas_cumprod(alphas_cumprod, timesteps, final_alpha="one", stride=train)


class LEDITSPP(EditModule):
    """Inversion for the multistep solver, then edit concepts inside implicit masks.

    Defaults are the authors': 30 steps, skip 0.15 of the training time, empty source prompt, noise masks.
    """

    references = (
        Reference(
            "LEDITS++: Limitless Image Editing using Text-to-Image Models",
            "Brack, Friedrich, Kornmeier, Tsaban, Schramowski, Kersting, Passos",
            "CVPR 2024",
            "https://arxiv.org/abs/2311.16711",
            "https://github.com/ml-research/ledits_pp (c2ccffb); compared with diffusers' pipeline too",
            "MIT",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 30,
        skip: float = 0.15,
        lower_order_final: bool = True,
        guidance: Guidance = ImplicitMaskGuidance(),
        inversion: Inversion | None = None,
        variant: Variant = "repo",
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T, all of which are executed.
            skip: Share of the training time that is left out at its noisy end, in [0, 1).
            lower_order_final: See `MultistepSDEInversion`.
            guidance: Concepts and masks; its `variant` decides their conventions.
            inversion: Replaces the inversion; `lower_order_final` then has no effect.
            variant: Whose schedule: "repo" ends at timestep 0 with a noise map of its own, "diffusers" noise-free at
                its last timestep.
            **common: See `CommonSettings`.

        Raises:
            SettingsError: The settings cannot work; all problems together.
        """
        checks = Checks("LEDITSPP")
        checks.one_of("variant", variant, ("repo", "diffusers"))
        checks.require(
            0 <= skip < 1, f"skip={skip} is not a share of the schedule; give a number in [0, 1) (default 0.15)."
        )
        checks.done()
        inversion = inversion or MultistepSDEInversion(lower_order_final)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, **common)
        table = self.edit_schedule.alphas_cumprod
        if table is not None:  # a flow model is refused by its form, in words
            self.edit_schedule = ledits_pp_schedule(table, steps, skip, variant)
