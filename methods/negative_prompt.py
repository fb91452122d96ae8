"""Negative-prompt inversion: the source prompt takes the place of the empty one, and nothing is optimised.

Miyake, Iohara, Saito, Tanaka: Negative-prompt Inversion: Fast Image Inversion for Editing with Text-guided Diffusion
Models (WACV 2025, arXiv 2305.16807), Algorithm 1.

    eps~ = eps(z, c_source) + w (eps(z, c_target) - eps(z, c_source))

It is null-text inversion with the optimum guessed: where both predictions of the source row are the same, guidance has
no effect on it, and the source comes back as well as DDIM brings it back at guidance 1, whatever w is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance
from framework.inversion import Inversion, InversionAround
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import ScheduleOptions
from framework.step import COND, UNCOND, Condition, Conditions, Row, Stream
from methods.ddim import Convention, DDIMInversion

_DDIM = DDIMInversion()


@dataclass(frozen=True)
class NegativePromptInversion(InversionAround):
    """Denoises every row with the source prompt in place of the unconditional (or negative) one.

    The record is the base's, and can be shared with other methods. A negative prompt of the sample has no effect. At
    interpolation 0 the source row costs one evaluation, since both of its predictions are the same.

    Attributes:
        base: How the source is inverted.
        interpolation: How far to go back to the empty prompt along the great circle, in [0, 1]; 0 is the paper's.
    """

    base: Inversion = _DDIM
    interpolation: float = 0.0

    def __post_init__(self) -> None:
        checks = Checks("NegativePromptInversion")
        checks.between("interpolation", self.interpolation, 0, 1, "paper default 0, the source prompt itself")
        checks.done()
        super().__post_init__()

    def condition(self, record: Record, i: int, conditions: Conditions) -> Conditions:
        """Put the source prompt where the unconditional one was."""
        conditions = self.base.condition(record, i, conditions)
        source, empty = conditions[Row(Stream.SOURCE, COND)], conditions[Row(Stream.SOURCE, UNCOND)]
        text = source if self.interpolation == 0 else interpolate_conditions(source, empty, self.interpolation)
        return {row: text if row.branch == UNCOND else condition for row, condition in conditions.items()}


def interpolate_conditions(start: Condition, end: Condition, share: float) -> Condition:
    """Interpolate text and pooled features spherically; everything else is the end's."""

    def between(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else slerp(a, b, share)

    return replace(end, text=between(start.text, end.text), pooled=between(start.pooled, end.pooled))


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Interpolate along the great circle, each row as one vector; the ends are not normalised.

    (sin((1 - s) omega) start + sin(s omega) end) / sin(omega), omega the angle between the flattened rows. Rows that
    are (nearly) parallel are interpolated linearly, which is the limit.

    Args:
        start, end: [B, ...].
        share: s in [0, 1]; 0 is the start.

    Source: `npi_interp` of the ProxEdit code (phymhan/prompt-to-prompt, negative_prompt_inversion.py).
    """
    a, b = start.flatten(1), end.flatten(1)
    lengths = (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)).clamp_min(torch.finfo(a.dtype).tiny)
    cosine = (a * b).sum(1, keepdim=True) / lengths
    omega = cosine.clamp(-1, 1).acos()
    parallel = omega.sin().abs() < 1e-6
    omega = torch.where(parallel, torch.ones_like(omega), omega)
    weights = (((1 - share) * omega).sin() / omega.sin(), (share * omega).sin() / omega.sin())
    curved, straight = weights[0] * a + weights[1] * b, (1 - share) * a + share * b
    return torch.where(parallel, straight, curved).view_as(start)


class NegativePrompt(EditModule):
    """Negative-prompt inversion with the paper's settings: 50 steps, guidance 7.5."""

    references = (
        Reference(
            "Negative-prompt Inversion: Fast Image Inversion for Editing with Text-guided Diffusion Models",
            "Miyake, Iohara, Saito, Tanaka",
            "WACV 2025",
            "https://arxiv.org/abs/2305.16807",
            "https://github.com/phymhan/prompt-to-prompt (9955a1f; the authors published none)",
            "Apache-2.0",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        interpolation: float = 0.0,
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
            interpolation: See `NegativePromptInversion`.
            convention, skip: Of the DDIM inversion; see `DDIMInversion`.
            guidance: Scales; the source's makes no difference at interpolation 0.
            inversion: Replaces the inversion; `interpolation`, `convention` and `skip` then have no effect.
            schedule: Conventions of the schedule; timesteps begin at 0 and the clean end is a[0], as in the code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or NegativePromptInversion(DDIMInversion(convention, skip), interpolation)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
