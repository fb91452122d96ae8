"""DiffEdit: edit only where source and target prompt disagree about the noise.

Couairon, Verbeek, Schwenk, Cord: DiffEdit: Diffusion-based semantic image editing with mask guidance (ICLR 2023, arXiv
2210.11427), section 3.2. The authors published no code; compared with diffusers' StableDiffusionDiffEditPipeline.

    1. mask     d = mean over draws n_j and channels of |e_target(x_j) - e_source(x_j)|,  x_j = alpha z_0 + sigma n_j
                mask = min(d, r mean(d)) / (r mean(d)) > 1/2
    2. invert   DDIM with the source prompt, up to the edit's first level
    3. edit     z <- DDIM step with the target prompt,   z <- mask z + (1 - mask) z*        z* the inversion's latent

The mask is found when the edit begins, by calls of its own, so that one inversion serves many targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.data.sample import EditSample
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State, StepNetwork
from framework.inversion import Inversion
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import ScheduleOptions
from framework.step import COND, UNCOND, Latents, Need, Predictions, Row, Stream
from methods.cycle_diffusion import skip_of_strength
from methods.ddim import DDIMInversion

MASK_NEGATIVE = Row(Stream.TARGET, "mask-negative")
"""Negative text of the mask's target side; the edit's own unless a method says otherwise."""

_ROWS = (Row(Stream.SOURCE, UNCOND), Row(Stream.SOURCE, COND), MASK_NEGATIVE, Row(Stream.TARGET, COND))


@dataclass(frozen=True)
class DiffEditGuidance(ClassifierFree):
    """Classifier-free guidance, and after every step the inversion's latents outside a mask of its own finding.

    Evaluations per image for the mask: 4 rows of each of its maps, in calls of one map.

    Attributes:
        target, source, inversion: See `ClassifierFree`; diffusers inverts at 7.5, the paper without guidance.
        mask_maps: Draws that the difference is averaged over (m, paper 10).
        mask_strength: Where the draws lie: at the level that the last int(T share) steps begin with (paper 0.5).
        mask_ratio: r; differences are cut at r times their mean, and the mask begins at half of that (diffusers 3).
        mask_scale: Guidance of the mask's predictions (diffusers 7.5).
        mix: Latents of the inversion outside the mask: "arrived", of the level that the step arrives at (the paper's;
            the background ends as z_0), or "left", of the level that it leaves (diffusers').
        exchanged: Guide the mask's predictions as diffusers' pipeline does, which exchanges prompt and negative text on
            both sides: c + s (u - c). With equal negative texts the mask is the same.
    """

    target: float = 7.5
    source: float = 1.0
    inversion: float | None = 1.0
    mask_maps: int = 10
    mask_strength: float = 0.5
    mask_ratio: float = 3.0
    mask_scale: float = 7.5
    mix: Literal["arrived", "left"] = "arrived"
    exchanged: bool = False

    needs: ClassVar = frozenset({Need.TRAJECTORY})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("DiffEditGuidance")
        checks.between("mask_maps", self.mask_maps, 1, 10_000, "paper 10")
        checks.between("mask_strength", self.mask_strength, 0, 1, "a share of the steps, paper 0.5")
        checks.require(
            self.mask_ratio > 0, f"mask_ratio={self.mask_ratio} is not allowed; give a number above 0 (diffusers 3)."
        )
        checks.require(
            self.mask_scale > 1,
            f"mask_scale={self.mask_scale} is not allowed; the mask compares guided predictions, give more than 1 "
            "(diffusers 7.5).",
        )
        checks.one_of("mix", self.mix, ("arrived", "left"))
        checks.done()

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a mask level beyond the schedule."""
        if int(schedule_steps * self.mask_strength) > 0:
            return []
        return [
            f"mask_strength={self.mask_strength} is less than one of {schedule_steps} steps; give at least "
            f"{1 / max(1, schedule_steps):.3g}."
        ]

    def prompts(self, samples: Sequence[EditSample]) -> Mapping[Row, Sequence[str]]:
        """Return the negative text of the mask's target side."""
        return {MASK_NEGATIVE: [sample.negative for sample in samples]}

    def prepare(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Find the mask before the first step."""
        del i
        return z, self.mask(network, record, ctx) if state is None else state

    def mask(self, network: StepNetwork, record: Record, ctx: Context) -> Tensor:
        """Compare the predictions of both prompts on the same draws.

        Returns:
            [B, 1, H, W] of 0 and 1 in the latents' dtype, 1 where the edit takes place.
        """
        schedule = ctx.schedule
        level_index = schedule.num_steps - max(1, int(schedule.num_steps * self.mask_strength))
        difference = torch.zeros_like(record.z0[:, :1])
        for noise in ctx.noise("mask", self.mask_maps):
            x = schedule.add_noise(record.z0, noise, level_index)
            known = network(Latents(source=x, target=x), _ROWS, level=schedule.levels[level_index], controlled=False)
            source, target = self._guided(known, *_ROWS[:2]), self._guided(known, *_ROWS[2:])
            difference = difference + (target - source).abs().mean(1, keepdim=True) / self.mask_maps
        most = self.mask_ratio * difference.mean((1, 2, 3), keepdim=True)
        # Prompts that agree everywhere give 0 / 0, which is above no threshold: nothing is edited.
        return (torch.minimum(difference, most) / most > 0.5).to(difference)

    def _guided(self, known: Predictions, negative: Row, positive: Row) -> Tensor:
        u, c = known[negative], known[positive]
        return c + self.mask_scale * (u - c) if self.exchanged else u + self.mask_scale * (c - u)

    def found(self, state: State) -> Mapping[str, Tensor]:
        """Return the mask."""
        return {"mask": state}

    def correct(self, z: Latents, z_next: Latents, i: int, record: Record, state: State, ctx: Context) -> Latents:
        """Put the inversion's latents back outside the mask."""
        del z, ctx
        assert record.latents is not None
        mask, background = state, record.latents[i + (self.mix == "arrived")]
        return z_next.with_stream(Stream.TARGET, mask * z_next[Stream.TARGET] + (1 - mask) * background)


class DiffEdit(EditModule):
    """DiffEdit with diffusers' settings, inverted without guidance: 50 steps, strength 0.8, guidance 7.5.

    Evaluations per image: 40 for the mask, 40 for the inversion (the levels beyond the strength are not visited), 2 per
    step of the edit, and one more with `reconstruct`.
    """

    references = (
        Reference(
            "DiffEdit: Diffusion-based semantic image editing with mask guidance",
            "Couairon, Verbeek, Schwenk, Cord",
            "ICLR 2023",
            "https://arxiv.org/abs/2210.11427",
            "none by the authors; compared with diffusers' StableDiffusionDiffEditPipeline",
            "Apache-2.0 (diffusers)",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        strength: float = 0.8,
        guidance: Guidance = DiffEditGuidance(),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(steps_offset=1, final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            strength: Share of the schedule that is inverted and edited, the last int(T strength) steps, in (0, 1].
            guidance: Finds the mask and mixes.
            inversion: Replaces DDIM inversion by another with a trajectory; `strength` then has no effect.
            schedule: Conventions of the schedule; timesteps begin at 1 and the clean end is a[0], as in diffusers.
            **common: See `CommonSettings`.
        """
        inversion = inversion or DDIMInversion(skip=skip_of_strength(strength, steps), partial=True)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
