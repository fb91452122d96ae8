"""Pictures compared by their values: error, PSNR, SSIM, over the whole picture or one side of a mask."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Part = Literal["whole", "unedit", "edit"]
"""The whole picture, what the mask leaves out (1 - mask), or what it holds."""

Rule = Literal["official", "region"]
"""`official` multiplies both pictures by the weight of the part and averages over all pixels, zeros included, as
PIE-Bench does; `region` averages over the pixels of the part."""

Border = Literal["crop", "reflect"]
"""`crop` counts only windows that lie inside (torchmetrics up to 1.4.1, the published rows); `reflect` pads."""

WINDOW = 11
_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03


def part_weight(mask: Tensor | None, part: Part) -> Tensor | None:
    """Return the weight of a part, 1 where it is, or None where it is the whole picture.

    Args:
        mask: [1, H, W] or [H, W] of 0 and 1, 1 = edit.
        part: Which side.

    Raises:
        ValueError: A side of no mask is asked for.
    """
    if part == "whole":
        return None
    if mask is None:
        raise ValueError(f"part={part!r} needs a mask")
    return mask.double() if part == "edit" else 1 - mask.double()


def squared_error(result: Tensor, source: Tensor, weight: Tensor | None = None, rule: Rule = "official") -> float:
    """Mean squared difference over all channels and pixels, in float64.

    Args:
        result, source: [3, H, W] in [0, 1].
        weight: [1, H, W]; None for the whole picture.
        rule: How the weight enters.

    Returns:
        NaN where the part is empty.
    """
    squared = (result.double() - source.double()).square_()
    if weight is None:
        return float(squared.mean())
    kept = float(weight.mean())
    if kept == 0:
        return math.nan
    official = float(squared.mul_(weight.square()).mean())
    return official if rule == "official" else official / kept


def psnr_of(error: float) -> float:
    """PSNR in dB of a mean squared error of pictures in [0, 1]; infinite for equal pictures."""
    if math.isnan(error):
        return math.nan
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(
    result: Tensor, source: Tensor, weight: Tensor | None = None, *, rule: Rule = "official", border: Border = "crop"
) -> float:
    """Structural similarity with a Gaussian window of 11 x 11 (sigma 1.5) and population variances, mean over channels.

    Args:
        result, source: [3, H, W] in [0, 1], sides of at least 11.
        weight: [1, H, W]; None for the whole picture.
        rule: `official` multiplies the pictures; `region` averages the map of the whole pictures over the part.
        border: What happens where windows reach beyond the picture.

    Returns:
        In [-1, 1]; NaN where the part is empty, or a side is shorter than the window.

    Source: Wang et al. (IEEE TIP 2004); torchmetrics' StructuralSimilarityIndexMeasure.
    """
    if min(result.shape[-2:]) < WINDOW or (weight is not None and not bool(weight.any())):
        return math.nan
    if weight is not None and rule == "official":
        result, source, weight = result * weight.to(result.dtype), source * weight.to(source.dtype), None
    similarity = _ssim_map(result.float(), source.float(), border)
    if weight is None:
        return float(similarity.mean(dtype=torch.float64))
    margin = WINDOW // 2 if border == "crop" else 0
    inner = weight[..., margin : weight.shape[-2] - margin, margin : weight.shape[-1] - margin]
    total = float(inner.sum())
    return float((similarity * inner).sum(dtype=torch.float64)) / (3 * total) if total else math.nan


def _ssim_map(x: Tensor, y: Tensor, border: Border) -> Tensor:
    if border == "reflect":
        x, y = (F.pad(z[None], (WINDOW // 2,) * 4, mode="reflect")[0] for z in (x, y))
    # Channel by channel and in place: the pictures of one channel fit into the processor's cache.
    return torch.stack([_ssim_channel(one, other) for one, other in zip(x, y, strict=True)])


def _ssim_channel(x: Tensor, y: Tensor) -> Tensor:
    c1, c2 = _K1**2, _K2**2
    mean_x, mean_y, squares, products = (_blur(z) for z in (x, y, x.square().addcmul_(y, y), x * y))
    means = mean_x * mean_y
    covariance = products.sub_(means)
    squared_means = mean_x.square_().addcmul_(mean_y, mean_y)
    variances = squares.sub_(squared_means).clamp_(min=0)  # of x and y together
    similarity = means.mul_(2).add_(c1).mul_(covariance.mul_(2).add_(c2))
    return similarity.div_(squared_means.add_(c1).mul_(variances.add_(c2)))


def _blur(x: Tensor) -> Tensor:
    """Average [H, W] under the window, without padding; a Gaussian is the product of two of one dimension."""
    weights = _window()
    rows, columns = (side - WINDOW + 1 for side in x.shape)
    across = x[:, :columns] * weights[0]
    for k in range(1, WINDOW):
        across.add_(x[:, k : k + columns], alpha=weights[k])
    blurred = across[:rows] * weights[0]
    for k in range(1, WINDOW):
        blurred.add_(across[k : k + rows], alpha=weights[k])
    return blurred


@lru_cache(maxsize=1)
def _window() -> tuple[float, ...]:
    weights = [math.exp(-(((k - WINDOW // 2) / _SIGMA) ** 2) / 2) for k in range(WINDOW)]
    return tuple(weight / math.fsum(weights) for weight in weights)
