"""What the engine has to say about single samples of a result."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from framework.backbones.base import Backbone
from framework.data.sample import EditSample
from framework.prompt_limits import truncation_notes


def notes_of(samples: Sequence[EditSample], edited: Tensor, backbone: Backbone) -> list[tuple[str, ...]]:
    """Collect the notes of every sample.

    Args:
        samples: B of them.
        edited: [B, draws, C, H, W] in [0, 1].
        backbone: Whose text encoder may not see the ends of prompts.
    """
    return [
        (*truncation_notes(sample, backbone), *blank_notes(pictures))
        for sample, pictures in zip(samples, edited, strict=True)
    ]


def blank_notes(pictures: Tensor) -> tuple[str, ...]:
    """Flag edits [draws, C, H, W] in [0, 1] that are one single colour, black as a rule: a decoder that gave up."""
    spread = pictures.flatten(1).amax(1) - pictures.flatten(1).amin(1)
    blank = [draw for draw, value in enumerate(spread.tolist()) if value < 1 / 255]
    return tuple(
        f"edit {draw}: every pixel has the same value; look at the model's dtype and the guidance" for draw in blank
    )
