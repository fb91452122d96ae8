"""Intervals and comparisons of values that belong to images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 2000


class Paired(NamedTuple):
    """Difference of two lists of values over the images in which both have one.

    Attributes:
        mean: Mean of first minus second; NaN without images.
        low, high: 95 % bootstrap interval of the mean over images.
        n: Number of images.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap_interval(values: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean over images, by resampling images.

    Args:
        values: One finite value per image, in a fixed order.
        resamples: Bootstrap samples.
        seed: Of the resampling; equal values give equal intervals.

    Returns:
        Lower and upper end; NaN without images.
    """
    n = len(values)
    if n == 0:
        return float("nan"), float("nan")
    means = values[_resampling(n, resamples, seed)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


@lru_cache(maxsize=4)
def _resampling(n: int, resamples: int, seed: int) -> Tensor:
    """Indices [resamples, n] of the images of every bootstrap sample."""
    return torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Paired:
    """Compare values image by image; a pair with a value that is not finite is left out.

    Args:
        first, second: One value per image, in the same order.
        resamples: Bootstrap samples of images.
        seed: Of the resampling; equal values give equal intervals.
    """
    a, b = (torch.tensor(list(values), dtype=torch.float64) for values in (first, second))
    difference = (a - b)[torch.isfinite(a) & torch.isfinite(b)]
    if len(difference) == 0:
        return Paired(float("nan"), float("nan"), float("nan"), 0)
    low, high = bootstrap_interval(difference, resamples=resamples, seed=seed)
    return Paired(float(difference.mean()), low, high, len(difference))
