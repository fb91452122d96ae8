"""What editing a batch gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from framework.data.sample import EditSample
from framework.network import Evaluations
from framework.record import Record
from framework.step import Latents

if TYPE_CHECKING:  # upward, for annotations only
    from PIL.Image import Image

    from framework.callback import Measurement


@dataclass
class EditResult:
    """Pictures and numbers of one batch. Pictures are float32 in [0, 1], as the network saw them (before any frame).

    Attributes:
        samples: The B samples, in the order of all other fields.
        source: [B, 3, H, W].
        edits: Per sample, one [3, H, W] per draw; empty for a failed sample.
        reconstructions: Per sample [3, H, W], or None where no source row was walked back.
        record: The inversion, over B draws images, image-major.
        latents: Final latents, rows as in `record`.
        masks: [B, 1, H, W], 1 = edit, or None.
        failures: Index of a sample -> why it failed.
        measurements: Per sample, what callbacks measured, by their names.
        inversion_evaluations, evaluations: Network evaluations of the inversion, and of inversion and edit together.
        notes: Per sample, what the engine had to decide (the end of a prompt that the text encoder does not see, ...).
        controls: Per sample, what the controls made of it, by their names (how words were aligned, ...).
        timings: Seconds and other figures that differ between reruns.
    """

    samples: tuple[EditSample, ...]
    source: Tensor
    edits: list[list[Tensor]]
    reconstructions: list[Tensor | None]
    record: Record
    latents: Latents
    masks: Tensor | None
    failures: dict[int, str]
    inversion_evaluations: Evaluations
    evaluations: Evaluations
    measurements: list[dict[str, Measurement]] = field(default_factory=list)
    notes: list[tuple[str, ...]] = field(default_factory=list)
    controls: list[dict[str, Mapping[str, Any]]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time of inversion, edit and decoding of this batch."""
        return self.timings.get("seconds", 0.0)

    @property
    def draws(self) -> int:
        """Edits per sample."""
        return self.record.z0.shape[0] // max(1, len(self.samples))

    def image(self, index: int = 0, draw: int = 0) -> Image:
        """Return one edit as a PIL image."""
        return to_pil(self.edits[index][draw])

    def show(self) -> Image:
        """Return one strip per sample, source, reconstruction, edits, below each other (a notebook displays it)."""
        strips: list[list[Tensor]] = []
        for index in range(len(self.samples)):
            reconstruction = self.reconstructions[index]
            strips.append(
                [self.source[index], *([] if reconstruction is None else [reconstruction]), *self.edits[index]]
            )
        return picture_grid(strips)


@dataclass(frozen=True)
class FailedBatch:
    """A batch that failed as a whole; all of its samples share the reason.

    Attributes:
        reason: In words; empty when the batch held no sample that could be loaded.
    """

    reason: str


def to_pil(picture: Tensor) -> Image:
    """Convert [3, H, W] (or [1, H, W]) in [0, 1] to an 8-bit PIL image, rounding to the nearest level."""
    from PIL import Image

    levels = (picture.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def picture_grid(rows: Sequence[Sequence[Tensor]], gap: int = 4) -> Image:
    """Lay pictures [3, H, W] in [0, 1] out in rows on white."""
    from PIL import Image

    tiles = [[to_pil(picture).convert("RGB") for picture in row] for row in rows]
    width = max((sum(tile.width + gap for tile in row) for row in tiles), default=gap) - gap
    heights = [max((tile.height for tile in row), default=0) for row in tiles]
    canvas = Image.new("RGB", (max(1, width), max(1, sum(heights) + gap * (len(tiles) - 1))), "white")
    top = 0
    for row, height in zip(tiles, heights, strict=True):
        left = 0
        for tile in row:
            canvas.paste(tile, (left, top))
            left += tile.width + gap
        top += height + gap
    return canvas
