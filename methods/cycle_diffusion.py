"""The native noise space: inversion consistent with generation (CycleDiffusion's DPM-Encoder).

Wu, De la Torre: A Latent Space of Stochastic Diffusion Models for Zero-Shot Image Editing and Guidance (ICCV 2023,
arXiv 2210.05559), Algorithm 1.

    z_first = alpha z_0 + sigma n
    z_{i+1} ~ q(z_{i+1} | z_i, z_0)          a path of the forward chain, drawn from noisy to clean
    w_i     = (z_{i+1} - mean(z_i)) / std_i

The maps are nearly white and carry little of the image's structure, which is what edit-friendly inversion is
compared with. Conventions follow diffusers' CycleDiffusionPipeline: eta enters squared, the step that leaves
the table arrives at z_0 without a draw, the last map is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance
from framework.inversion import Inversion, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import EtaRule, ScheduleOptions, ddpm_posterior, x0_to_eps
from methods.edit_friendly import NoiseMapInversion


@dataclass(frozen=True)
class PosteriorInversion(NoiseMapInversion):
    """Noise maps of a path drawn from the posterior of the forward chain given the clean latent."""

    skip: int = 10
    eta: float = 0.1
    eta_rule: EtaRule = "ddim"

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Draw the path, which asks nothing of the network, then read off its maps in a few large calls."""
        schedule = ctx.schedule
        first, last = self.skip, schedule.num_steps
        draws = ctx.noise("posterior path", last - first)
        z = torch.zeros(last + 1, *z0.shape, dtype=z0.dtype, device=z0.device)
        z[first] = schedule.add_noise(z0, draws[0], first)
        for i in range(first, last - 1):
            level = schedule.levels[i]
            eps = x0_to_eps(z[i], z0, alpha=level.alpha, sigma=level.sigma)
            mean, std = ddpm_posterior(z[i], eps, level, schedule.levels[i + 1], eta=self.eta, rule="ddim")
            # As in diffusers, timestep 0 is the clean latent already.
            z[i + 1] = z0 if schedule.levels[i + 1].t <= 0 else mean + std * draws[i + 1 - first]
        z[last] = z0
        known = predict.at_levels(z[first:last], range(first, last))
        maps = torch.zeros_like(z[:-1])
        for i in range(first, last):
            eps = known[i - first]
            maps[i], arrived = self.extract(z[i], eps, z[i + 1], i, schedule)
            levels = (schedule.levels[i], schedule.levels[i + 1])
            z[i + 1] = ctx.invert_step(i - first, i, levels, z=z[i], z_next=arrived, prediction=eps, noise=maps[i])
        return Record.on(
            schedule,
            type(self).__name__,
            z0,
            latents=z,
            noise_maps=maps,
            unused=tuple(range(first)),
            zeroed=tuple(range(first)),
            settings={"skip": self.skip, "eta": self.eta, "eta_rule": self.eta_rule},
        )


class CycleDiffusion(EditModule):
    """Inversion into the native noise space, then denoising with the same maps.

    Defaults are diffusers': 50 steps of which strength 0.8 runs 40, eta 0.1, guidance 1 for the source and 7.5 for the
    target.
    """

    references = (
        Reference(
            "A Latent Space of Stochastic Diffusion Models for Zero-Shot Image Editing and Guidance",
            "Wu, De la Torre",
            "ICCV 2023",
            "https://arxiv.org/abs/2210.05559",
            "https://github.com/ChenWu98/cycle-diffusion; compared with diffusers' CycleDiffusionPipeline",
            "Apache-2.0 (diffusers)",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        strength: float = 0.8,
        eta: float = 0.1,
        guidance: Guidance = ClassifierFree(target=7.5, source=1.0),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            strength: Share of the schedule that is run, the last int(T strength) steps, in (0, 1].
            eta: Stochasticity in (0, 1].
            guidance: Scales of inversion and source row (`source`) and of the edit (`target`).
            inversion: Replaces the inversion; `strength` and `eta` then have no effect.
            schedule: Conventions of the schedule; the clean end is a[0], as in the authors' code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or PosteriorInversion(skip_of_strength(strength, steps), eta)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)


def skip_of_strength(strength: float, steps: int) -> int:
    """Convert a strength to the number of noisiest steps left out, steps - int(steps strength).

    Raises:
        SettingsError: The strength is outside (0, 1] or leaves no step.
    """
    checks = Checks("strength")
    if checks.between("strength", strength, 0, 1, "share of the steps that are run"):
        run = int(steps * strength)
        checks.require(run > 0, f"strength={strength} runs no step of steps={steps}; give at least {1 / steps:g}.")
    checks.done()
    return steps - min(int(steps * strength), steps)
