"""LEDITS: edit-friendly inversion, then semantic guidance with the recorded noise maps.

Tsaban, Passos: LEDITS: Real Image Editing with DDPM Inversion and Semantic Guidance (arXiv 2307.00522).

Nothing here is new maths: the inversion of `methods.edit_friendly` in one slot, the guidance of `methods.sega` in the
other. Prompt-to-Prompt can be added in the slot of the controls. Warm-up counts from the first executed step. As in the
authors' application the picture is inverted with the empty prompt, and where the target prompt only repeats the caption
it is left out, so that the concepts alone edit ("pure SEGA").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from framework.backbones.base import Backbone
from framework.guidance import Guidance
from framework.inversion import Inversion
from framework.module import CommonSettings, EditModule
from framework.reference import Reference
from framework.schedule import EtaRule, ScheduleOptions
from methods.concepts import Concept
from methods.edit_friendly import EditFriendlyInversion
from methods.sega import SemanticGuidance


@dataclass(frozen=True)
class LeditsConcept(Concept):
    """A concept with the defaults of the authors' application."""

    scale: float = 7.0
    warmup: int = 2
    threshold: float = 0.95


@dataclass(frozen=True)
class StyleConcept(LeditsConcept):
    """A concept of the whole picture's style."""

    scale: float = 8.0
    threshold: float = 0.92


@dataclass(frozen=True)
class FaceConcept(LeditsConcept):
    """A concept of a face."""

    scale: float = 5.0


@dataclass(frozen=True)
class ObjectConcept(LeditsConcept):
    """A concept of an object."""

    scale: float = 15.0
    warmup: int = 5


class LEDITS(EditModule):
    """Edit-friendly inversion with semantic guidance.

    Defaults are the authors': 100 steps, skip 36, empty source prompt, guidance 15 with the target prompt, momentum 0.3
    and 0.6.
    """

    references = (
        Reference(
            "LEDITS: Real Image Editing with DDPM Inversion and Semantic Guidance",
            "Tsaban, Passos",
            "2023",
            "https://arxiv.org/abs/2307.00522",
            "https://huggingface.co/spaces/editing-images/ledits (mirror 6c15340)",
            "MIT",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 100,
        skip: int = 36,
        eta: float | Sequence[float] = 1.0,
        eta_rule: EtaRule = "official",
        zero_last: bool = True,
        guidance: Guidance = SemanticGuidance(
            target=15.0, source=0.0, momentum_scale=0.3, momentum=0.6, pure="caption", default=LeditsConcept()
        ),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            skip, eta, eta_rule: See `NoiseMapInversion`.
            zero_last: See `EditFriendlyInversion`.
            guidance: Concepts, and scales of target, source row and inversion (0: the empty prompt).
            inversion: Replaces the inversion; the settings of the default one then have no effect.
            schedule: Conventions of the schedule; the clean end is a[0], as in the authors' code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or EditFriendlyInversion(skip, eta, eta_rule, zero_last)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
