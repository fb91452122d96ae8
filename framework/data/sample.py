"""One sample of a data set as it is described, and a batch of samples as it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class RunLengthMask:
    """A mask as (start, length) pairs over the row-major flattened image.

    Attributes:
        pairs: Flat list start, length, start, length, ...; any order, overlaps allowed, clipped at the image's end.
        size: Rows and columns of the mask; None stands for those of the sample's own picture.
        border: Whether the outermost rows and columns are set as well (PIE-Bench's rule).
    """

    pairs: tuple[int, ...]
    size: tuple[int, int] | None = None
    border: bool = True


@dataclass(frozen=True)
class EditSample:
    """One image with the edit that is asked for. Nothing is read from disk yet.

    Attributes:
        id: Unique within the data set; names the folder of the results (made safe where it has to be).
        image: Path of the source image.
        source: Prompt that describes the source image; may be empty.
        target: Prompt of the edit.
        negative: Negative prompt of the edit; empty for none.
        instruction: What a person would ask for, in words; for the report.
        edit_type: Label by which results are grouped.
        blend_source, blend_target: Blended words of PIE-Bench, in source and target prompt.
        mask: Region to be edited, 1 = edit: a path of an 8-bit image (at least 128 = edit), run lengths, or None.
        extra: Everything else that the manifest says about this sample.
    """

    id: str
    image: Path
    source: str
    target: str
    negative: str = ""
    instruction: str | None = None
    edit_type: str | None = None
    blend_source: str | None = None
    blend_target: str | None = None
    mask: Path | RunLengthMask | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """Where the network's picture lies in the original image, so that a result can be returned in the original frame.

    Attributes:
        original: Rows and columns of the original image after EXIF rotation.
        box: Top, left, bottom, right of the part of the original that the network sees; it may reach beyond the image
            (padding).
        network: Rows and columns of the network's picture.
    """

    original: tuple[int, int]
    box: tuple[int, int, int, int]
    network: tuple[int, int]


@dataclass(frozen=True)
class EditBatch:
    """Samples that go through the network together.

    Attributes:
        samples: Their descriptions, B of them.
        images: [B, 3, H, W] (or the channels of the model), float32 in [-1, 1].
        masks: [B, 1, H, W] float32 in {0, 1}, 1 = edit, or None when no sample has one; a sample without one has ones.
        frames: How each result goes back into its original image.
        notes: Per sample, what loading had to decide ("16 bit scaled to 8", "first frame of 12", ...).
        failed: Samples that could not be loaded, with the reason in words; they are not among `samples`.
    """

    samples: tuple[EditSample, ...]
    images: Tensor
    masks: Tensor | None
    frames: tuple[Frame, ...]
    notes: tuple[tuple[str, ...], ...]
    failed: tuple[tuple[EditSample, str], ...] = ()
