"""How a picture becomes the network's size, and how a result goes back into the original frame."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from framework.data.sample import Frame


def frame_for(original: tuple[int, int], size: tuple[int, int] | None, *, resize: str, multiple: int) -> Frame:
    """Decide which part of a picture the network sees, and how large.

    Args:
        original: Rows and columns of the picture.
        size: Rows and columns of the network's picture; ignored by `native`.
        resize: `crop`: the largest centred box of the network's aspect ratio inside the picture; `pad`: the smallest
            centred box of that ratio round the picture; `stretch`, `native`: the picture itself.
        multiple: `native` rounds both sides to the nearest multiple of this, at least one.
    """
    height, width = original
    if resize == "native" or size is None:
        return Frame(original, (0, 0, height, width), (_rounded(height, multiple), _rounded(width, multiple)))
    rows, columns = size
    if resize == "stretch":
        return Frame(original, (0, 0, height, width), size)
    is_wider = width * rows > height * columns
    if is_wider == (resize == "crop"):
        box_height, box_width = height, max(1, round(height * columns / rows))
    else:
        box_height, box_width = max(1, round(width * rows / columns)), width
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return Frame(original, (top, left, top + box_height, left + box_width), size)


def to_network(
    picture: Image.Image, frame: Frame, *, padding: str = "reflect", background: tuple[int, int, int] = (255, 255, 255)
) -> NDArray[np.uint8]:
    """Bring a picture to the network's size: cut, resize with Pillow's bicubic filter, add margins.

    Args:
        picture: RGB or L, of the frame's original size.
        frame: From `frame_for`.
        padding: Margins of a box that reaches beyond the picture: `reflect` or `background`.
        background: Colour of plain margins, 0..255.

    Returns:
        [H, W, 3] or [H, W].
    """
    top, left, bottom, right = seen(frame)
    inner = inside(frame)
    if (top, left, bottom, right) != (0, 0, picture.height, picture.width):
        picture = picture.crop((left, top, right, bottom))
    size = inner[2] - inner[0], inner[3] - inner[1]
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    if size == frame.network:
        return resized
    rows, columns = frame.network
    margins = [(inner[0], rows - inner[2]), (inner[1], columns - inner[3])] + [(0, 0)] * (resized.ndim - 2)
    if padding == "reflect":
        return np.pad(resized, margins, mode="reflect" if min(size) > 1 else "edge")
    filled = np.empty((rows, columns, *resized.shape[2:]), dtype=np.uint8)
    filled[...] = (
        background if resized.ndim == 3 else Image.new("RGB", (1, 1), background).convert("L").getpixel((0, 0))
    )
    filled[inner[0] : inner[2], inner[1] : inner[3]] = resized
    return filled


def mask_to_network(mask: NDArray[np.bool_], frame: Frame) -> NDArray[np.bool_]:
    """Bring a mask of the original size to the network's by nearest neighbours; margins are not to be edited.

    Args:
        mask: Of the frame's original size, true = edit.
        frame: From `frame_for`.
    """
    top, left, bottom, right = seen(frame)
    inner = inside(frame)
    placed = np.zeros(frame.network, dtype=bool)
    size = inner[2] - inner[0], inner[3] - inner[1]
    placed[inner[0] : inner[2], inner[1] : inner[3]] = nearest(mask[top:bottom, left:right], size)
    return placed


def nearest(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize by taking the value at the centre of each new pixel."""
    rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip(size, mask.shape, strict=True))
    return np.asarray(mask[rows[:, None], columns[None, :]], dtype=bool)


def restore(image: Tensor, frame: Frame) -> Tensor:
    """Bring a network's picture back to the resolution of the original.

    For `pad`, `stretch` and `native` the result has the size of the original, margins removed. For `crop` it is the
    part of the original that the network saw, `seen(frame)`, at its original resolution: what lies outside was never
    edited and is not made up. Sizes that agree are passed through untouched.

    Args:
        image: [..., C, H, W] in [-1, 1], H and W those of `frame.network`.
        frame: Where the picture came from.

    Returns:
        [..., C, h, w] in [-1, 1], same dtype and device; resized by an antialiased bicubic filter.
    """
    top, left, bottom, right = inside(frame)
    part = image[..., top:bottom, left:right]
    box = seen(frame)
    size = box[2] - box[0], box[3] - box[1]
    if tuple(part.shape[-2:]) == size:
        return part
    flat = part.reshape(-1, *part.shape[-3:])
    wide = flat if flat.dtype == torch.float64 else flat.float()
    resized = F.interpolate(wide, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
    return resized.reshape(*part.shape[:-2], *size).to(part.dtype)


def to_picture(image: Tensor) -> Image.Image:
    """Make an 8-bit picture of a tensor, the inverse of x / 127.5 - 1.

    Args:
        image: [3, H, W] or [1, H, W] in [-1, 1]; values beyond are clipped.

    Raises:
        ValueError: The tensor holds NaN or infinities, or has another shape.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a picture has the shape [3, H, W] or [1, H, W], got {list(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError("the picture holds values that are not finite; nothing that can be shown")
    levels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy() if image.shape[0] == 3 else levels[0].numpy())


def seen(frame: Frame) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the part of the original that is in the network's picture."""
    top, left, bottom, right = frame.box
    height, width = frame.original
    return max(0, top), max(0, left), min(height, bottom), min(width, right)


def inside(frame: Frame) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of that part in the network's picture; all of it but the margins, at least a pixel."""
    (top, left, bottom, right), (rows, columns) = frame.box, frame.network
    part = seen(frame)
    high = _scaled(part[0] - top, part[2] - top, bottom - top, rows)
    wide = _scaled(part[1] - left, part[3] - left, right - left, columns)
    return high[0], wide[0], high[1], wide[1]


def _scaled(start: int, stop: int, old: int, new: int) -> tuple[int, int]:
    first = min(round(start * new / old), new - 1)
    return first, max(first + 1, round(stop * new / old))


def _rounded(side: int, multiple: int) -> int:
    return max(1, (2 * side + multiple) // (2 * multiple)) * multiple
