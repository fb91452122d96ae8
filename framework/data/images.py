"""Loading: a sample's description becomes pixels in the network's frame, with notes on everything that was decided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from framework.data.decode import Decoded, Limits, decode, header_size
from framework.data.frames import frame_for, mask_to_network, to_network
from framework.data.masks import describe_uniform, read_mask
from framework.data.sample import EditBatch, EditSample, Frame
from framework.errors import Checks, SampleError


class ImageLoader:
    """Loads pictures and masks of samples into the frame of one network.

    Args:
        size: Rows and columns of the network's picture; None with `resize="native"`.
        multiple: Both sides of the network's picture are multiples of this.
        resize: `crop`, `pad`, `stretch` or `native`; see `DataSource`. `crop` is the loading of the benchmark scripts:
            centre crop, Pillow's bicubic filter, x / 127.5 - 1.
        channels: 3 for colour, 1 for grey.
        padding: Margins of `pad`: `reflect` or `background`.
        background: Colour below transparent pixels and in plain margins, 0..255.
        alpha: `composite` or `mask`: see `DataSource`.
        strict, max_pixels, min_side, max_ratio: see `DataSource`.

    Raises:
        SettingsError: A size that the network cannot take.
    """

    def __init__(
        self,
        size: tuple[int, int] | None,
        *,
        multiple: int = 8,
        resize: str = "crop",
        channels: int = 3,
        padding: str = "reflect",
        background: tuple[int, int, int] = (255, 255, 255),
        alpha: str = "composite",
        strict: bool = False,
        max_pixels: int = 8192 * 8192,
        min_side: int = 8,
        max_ratio: float = 8.0,
    ) -> None:
        checks = Checks("ImageLoader")
        checks.one_of("resize", resize, ("crop", "pad", "stretch", "native"))
        checks.one_of("padding", padding, ("reflect", "background"))
        checks.one_of("alpha", alpha, ("composite", "mask"))
        checks.one_of("channels", channels, (1, 3))
        fits = size is None or (min(size) > 0 and not any(side % multiple for side in size))
        checks.require(fits, f"size={size} does not suit the network; give multiples of {multiple}.")
        needs = f"resize={resize!r} needs a size; give [rows, columns], or resize: native."
        checks.require(size is not None or resize == "native", needs)
        checks.done()
        self.size = size
        self.multiple = multiple
        self.resize = resize
        self.channels = channels
        self.padding = padding
        self.background = background
        self.alpha = alpha
        self.limits = Limits(max_pixels, min_side, max_ratio, strict)

    def network_size(self, sample: EditSample) -> tuple[int, int]:
        """Rows and columns of the network's picture of this sample; at most the header of the file is read.

        Raises:
            SampleError: The header cannot be read or is beyond the limits.
        """
        if self.resize != "native" and self.size is not None:
            return self.size
        return self._frame(header_size(sample.image, self.limits)).network

    def load(self, sample: EditSample) -> tuple[Tensor, Frame, tuple[str, ...]]:
        """Load the picture of a sample.

        Returns:
            [C, H, W] float32 in [-1, 1], where it lies in the original, and what had to be decided.

        Raises:
            SampleError: The picture cannot be used, with the reason.
        """
        decoded = decode(sample.image, self.limits)
        image, frame, notes = self._pixels(decoded)
        if sample.source == sample.target:
            notes = (*notes, "source and target prompt are equal: a reconstruction")
        return image, frame, notes

    def load_mask(self, sample: EditSample, frame: Frame) -> tuple[Tensor | None, tuple[str, ...]]:
        """Load the mask of a sample into the frame of its picture.

        Returns:
            [1, H, W] float32 in {0, 1}, 1 = edit, or None when the sample has none; and what had to be decided.

        Raises:
            SampleError: The mask cannot be used, with the reason.
        """
        if sample.mask is not None:
            mask, notes = read_mask(sample.mask, frame.original, self._mask_limits())
        else:
            alpha = self._alpha(decode(sample.image, self.limits)) if self.alpha == "mask" else None
            if alpha is None:
                return None, ()
            mask, notes = alpha < 128, ("mask: taken from the transparency", *describe_uniform(alpha < 128))
        placed = mask_to_network(mask, frame)
        if placed.any() != mask.any():
            notes = (*notes, "mask: nothing of it is left in the network's picture")
        return torch.from_numpy(placed.astype(np.float32))[None], notes

    def mask(self, sample: EditSample) -> Tensor | None:
        """Load the mask of a sample, [1, H, W] in {0, 1} in the network's frame, reading only its picture's header.

        Raises:
            SampleError: The header or the mask cannot be used, with the reason.
        """
        return self.load_mask(sample, self._frame(header_size(sample.image, self.limits)))[0]

    def batch(self, samples: Sequence[EditSample], failed: Sequence[tuple[EditSample, str]] = ()) -> EditBatch:
        """Load samples that have the same network size; those that cannot be loaded are listed with the reason.

        Args:
            samples: In the order of the batch.
            failed: Samples that are known to have failed already.
        """
        kept: list[EditSample] = []
        images: list[Tensor] = []
        masks: list[Tensor | None] = []
        frames: list[Frame] = []
        notes: list[tuple[str, ...]] = []
        lost = list(failed)
        for sample in samples:
            try:
                image, frame, said = self.load(sample)
                mask, said_of_mask = self.load_mask(sample, frame)
                if images and image.shape != images[0].shape:
                    raise SampleError(f"has the network size {frame.network}, the batch {frames[0].network}")
            except SampleError as problem:
                lost.append((sample, str(problem)))
                continue
            except Exception as problem:  # whatever a file leads the decoders to, it must not end the run
                lost.append((sample, f"{sample.image.name!r} cannot be loaded: {problem or type(problem).__name__}"))
                continue
            kept.append(sample)
            images.append(image)
            masks.append(mask)
            frames.append(frame)
            notes.append((*said, *said_of_mask))
        return EditBatch(
            samples=tuple(kept),
            images=torch.stack(images) if images else torch.zeros(0, self.channels, *(self.size or (0, 0))),
            masks=_stack_masks(masks, images),
            frames=tuple(frames),
            notes=tuple(notes),
            failed=tuple(lost),
        )

    def _frame(self, original: tuple[int, int]) -> Frame:
        return frame_for(original, self.size, resize=self.resize, multiple=self.multiple)

    def _pixels(self, decoded: Decoded) -> tuple[Tensor, Frame, tuple[str, ...]]:
        picture, notes = self._opaque(decoded)
        if self.channels == 1:
            picture = picture.convert("L")
        frame = self._frame((picture.height, picture.width))
        levels = to_network(picture, frame, padding=self.padding, background=self.background)
        pixels = torch.from_numpy(np.array(levels, dtype=np.float32)) / 127.5 - 1
        return (pixels.permute(2, 0, 1).contiguous() if pixels.ndim == 3 else pixels[None]), frame, notes

    def _opaque(self, decoded: Decoded) -> tuple[Image.Image, tuple[str, ...]]:
        alpha = self._alpha(decoded)
        picture = decoded.picture
        if alpha is None or self.alpha == "mask" or bool((alpha == 255).all()):
            return picture.convert("RGB"), decoded.notes
        below = Image.new("RGBA", picture.size, (*self.background, 255))
        note = f"transparent pixels put on the background {tuple(self.background)}"
        return Image.alpha_composite(below, picture).convert("RGB"), (*decoded.notes, note)

    def _alpha(self, decoded: Decoded) -> NDArray[np.uint8] | None:
        return np.asarray(decoded.picture.getchannel("A")) if decoded.picture.mode == "RGBA" else None

    def _mask_limits(self) -> Limits:
        return Limits(self.limits.max_pixels, 1, float("inf"), self.limits.strict)


def _stack_masks(masks: Sequence[Tensor | None], images: Sequence[Tensor]) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    return torch.stack(
        [torch.ones_like(image[:1]) if mask is None else mask for mask, image in zip(masks, images, strict=True)]
    )
