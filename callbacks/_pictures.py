"""Strips of pictures for a sample's folder, and their thumbnails for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks._committed import measured
from framework.callback import FinishedRun

GAP = 4
"""White pixels between the pictures of a strip."""


def strip(tiles: Sequence[Tensor]) -> Tensor:
    """Lay pictures [3, H, W] (or [1, H, W]) in [0, 1] side by side on white; uint8 [H, W', 3] on the CPU."""
    height = max(tile.shape[1] for tile in tiles)
    columns: list[Tensor] = []
    for tile in tiles:
        picture = tile.detach().float().clamp(0, 1).expand(3, -1, -1)
        below = height - picture.shape[1]
        columns += [F.pad(picture, (0, GAP, 0, below), value=1.0)]
    levels = (torch.cat(columns, 2)[:, :, :-GAP] * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu()


def log_thumbnails(run: FinishedRun, name: str, file: str, tag: str, *, budget: int, height: int) -> None:
    """Show the strips of the first samples in TensorBoard, one image per sample; nothing without a writer.

    Args:
        run: The finished run.
        name: Of the callback.
        file: Name of the picture in the sample's folder, without its suffix.
        tag: Group of the images.
        budget: Most samples, in the order of their ids.
        height: Most rows of a thumbnail.
    """
    if run.writer is None or budget == 0:
        return
    from PIL import Image

    found = ((sample.id, sample.directory / f"{file}.png") for sample, _ in measured(run, name))
    for sample, path in islice(((s, p) for s, p in found if p.exists()), budget):
        with Image.open(path) as picture:
            small: Any = picture.convert("RGB")
        if small.height > height:
            small = small.resize((round(small.width * height / small.height), height), Image.Resampling.LANCZOS)
        run.writer.add_image(f"{tag}/{sample}", _array(small), 0, dataformats="HWC")


def _array(picture: Any) -> Any:
    import numpy as np

    return np.asarray(picture)


def shrunk(pictures: Iterable[Tensor], side: int | None) -> list[Tensor]:
    """Reduce pictures [3, H, W] whose shorter side is above `side`, by averaging; None leaves them alone."""
    reduced = []
    for picture in pictures:
        shorter = min(picture.shape[1:])
        if side is not None and shorter > side:
            size = [round(length * side / shorter) for length in picture.shape[1:]]
            picture = F.interpolate(picture[None].float(), size=size, mode="area")[0]
        reduced.append(picture)
    return reduced


def heat_over(picture: Tensor, weights: Tensor, side: int) -> Tensor:
    """Colour a greyed picture [3, H, W] in [0, 1] by a map [rows, columns], scaled to its largest value.

    Returns:
        [3, H', W'] in [0, 1], whose shorter side is `side`.
    """
    from matplotlib import colormaps

    scale = side / min(picture.shape[1:])
    size = [round(length * scale) for length in picture.shape[1:]]
    grey = F.interpolate(picture[None].float().mean(1, keepdim=True), size=size, mode="nearest")[0]
    strength = F.interpolate(weights[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
    strength = (strength / strength.amax().clamp(min=1e-12)).clamp(0, 1)
    colours = torch.from_numpy(colormaps["inferno"](strength.numpy())[..., :3]).permute(2, 0, 1).float()
    return 0.4 * grey + 0.6 * colours


def labelled(tile: Tensor, text: str, height: int = 14) -> Tensor:
    """Write a line of text above a picture [3, H, W] in [0, 1]."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    line = Image.new("RGB", (tile.shape[2], height), "white")
    ImageDraw.Draw(line).text((1, 0), text, fill="black", font=ImageFont.load_default(size=11))
    written = torch.from_numpy(np.asarray(line).copy()).permute(2, 0, 1).float() / 255
    return torch.cat([written, tile.cpu()], 1)
