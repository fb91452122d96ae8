"""TurboEdit (experimental): edit-friendly inversion for few-step models, with shifted noise and pseudo-guidance.

Deutch, Gal, Garibi, Patashnik, Cohen-Or: TurboEdit: Text-Based Image Editing Using Few-Step Diffusion Models (SIGGRAPH
Asia 2024, arXiv 2408.00735), sections 4.1 and 4.2.

    z_i = alpha_j z_0 + sigma_j n_i          level j lies `shift` training steps below the level that the step works at
    z_{i+1} <- z_{i+1} + [mean(z', source) - mean(z, source)] + w [mean(z', target) - mean(z', source)]

with z on the source's path and z' on the edit's. The shift makes the statistics of the maps those that few-step models
know. The second line needs nothing new: z_{i+1} and the first bracket are an edit-friendly step under the source
prompt, and as the mean is linear in the prediction, w is the scale of a guidance whose unconditional prompt is the
source's. Hence pseudo-guidance is negative-prompt inversion in one slot and classifier-free guidance in the other.

Experimental: there is no recorded case of the authors' code, and the bundled model is not a few-step one. What is
proven is the law that weight 1 without shift is edit-friendly sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from framework.schedule import Level, Schedule, ScheduleOptions
from methods.edit_friendly import NoiseMapInversion
from methods.negative_prompt import NegativePromptInversion


@dataclass(frozen=True)
class ShiftedInversion(NoiseMapInversion):
    """Edit-friendly noise maps of latents that hold less noise than the steps take them for.

    Attributes:
        shift: Training steps between the level that a step works at and that of its latent, at least 0 (the code's
            200). A latent that would lie below the first training step is the clean one.
        clip: Root mean square to which the last map is clipped, per image; None leaves it. The code's whole-tensor norm
            of 15.5 over 4 x 64 x 64 elements is 0.121.
    """

    skip: int = 0
    shift: int = 200
    clip: float | None = 0.121

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("TurboEdit")
        checks.between("shift", self.shift, 0, float("inf"), "the code's 200; 0 is edit-friendly inversion")
        if self.clip is not None:
            checks.require(
                self.clip > 0,
                f"clip={self.clip} is not allowed; give a number above 0 (0.121), or none to clip nothing.",
            )
        checks.done()

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Noise every level independently, `shift` below its own, and read off the maps that join them."""
        schedule = ctx.schedule
        steps = range(schedule.num_steps)
        levels = [*(self.noised_to(schedule, i) for i in steps), schedule.levels[-1]]
        draws = ctx.noise("edit-friendly levels", schedule.num_steps)
        z = torch.stack([level.alpha * z0 + level.sigma * draws[i] for i, level in enumerate(levels[:-1])] + [z0])
        known = predict.at_levels(z[:-1], steps)
        maps = torch.empty_like(z[:-1])
        for i in steps:
            maps[i], arrived = self.extract(z[i], known[i], z[i + 1], i, schedule)
            told = (schedule.levels[i], schedule.levels[i + 1])
            z[i + 1] = ctx.invert_step(i, i, told, z=z[i], z_next=arrived, prediction=known[i], noise=maps[i])
        if self.clip is not None:
            size = maps[-1].square().flatten(1).mean(1).sqrt().view(-1, *([1] * (z0.ndim - 1)))
            maps[-1] = maps[-1] * (self.clip / size.clamp(min=self.clip))
        t, alpha, sigma = torch.tensor(levels, dtype=torch.float64).unbind(1)
        settings = {"skip": self.skip, "eta": self.eta, "eta_rule": self.eta_rule, "shift": self.shift}
        return Record(
            type(self).__name__,
            schedule.form,
            z0,
            t,
            alpha,
            sigma,
            latents=z,
            noise_maps=maps,
            unused=tuple(range(self.skip)),
            settings={**settings, "clip": self.clip},
        )

    def noised_to(self, schedule: Schedule, i: int) -> Level:
        """Return the level at which the latent of interval i is drawn; noise-free once the shift leaves the table."""
        if self.shift == 0:
            return schedule.levels[i]
        t = int(schedule.levels[i].t) - self.shift
        return schedule.at_timestep(t) if t > 0 else Level(-1.0, 1.0, 0.0)


class TurboEdit(EditModule):
    """Few-step edits by shifted edit-friendly maps and pseudo-guidance (experimental).

    Defaults are the authors' for SDXL-Turbo: 4 steps at timesteps 799, 599, 399, 199, weight 1.5, no other guidance.
    Evaluations per image: T for the inversion, 3 T for the edit (source on its path, source and target on the edit's).
    """

    references = (
        Reference(
            "TurboEdit: Text-Based Image Editing Using Few-Step Diffusion Models",
            "Deutch, Gal, Garibi, Patashnik, Cohen-Or",
            "SIGGRAPH Asia 2024",
            "https://arxiv.org/abs/2408.00735",
            "https://github.com/GiilDe/turbo-edit (85cb70c)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 4,
        skip: int = 0,
        shift: int = 200,
        clip: float | None = 0.121,
        timesteps: Sequence[int] | None = None,
        guidance: Guidance = ClassifierFree(target=1.5, source=1.0),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model, best one of few steps.
            steps: T.
            skip, shift, clip: See `ShiftedInversion`.
            timesteps: T timesteps, noisiest first; None spreads them evenly from 799 to 199, as the code's lists for
                three and four steps do.
            guidance: Pseudo-guidance: its target scale is the weight w of the difference between the prompts.
            inversion: Replaces the inversion; the settings of the default one then have no effect.
            schedule: Conventions of the schedule in place of `timesteps`; the clean end is a[0].
            **common: See `CommonSettings`.
        """
        inversion = inversion or NegativePromptInversion(ShiftedInversion(skip=skip, shift=shift, clip=clip))
        if schedule is None:
            listed = timesteps if timesteps is not None else few_timesteps(steps)
            schedule = ScheduleOptions(timesteps=listed, final_alpha="first")
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)


def few_timesteps(steps: int) -> list[int]:
    """Spread timesteps evenly from 799 to 199: 799, 499, 199 for three and 799, 599, 399, 199 for four.

    From six steps on they go lower, so that the last step still ends at the clean end.
    """
    last = min(199, 1000 // steps - 1)
    return [round(799 - (799 - last) * k / max(1, steps - 1)) for k in range(steps)]
