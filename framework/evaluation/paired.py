"""Comparisons of two lists of values that belong to the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


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


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Paired:
    """Compare values image by image; a pair with a value that is not finite is left out.

    Args:
        first, second: One value per image, in the same order.
        resamples: Bootstrap samples of images.
        seed: Of the resampling; equal values give equal intervals.
    """
    a, b = (torch.tensor(list(values), dtype=torch.float64) for values in (first, second))
    difference = (a - b)[torch.isfinite(a) & torch.isfinite(b)]
    n = len(difference)
    if n == 0:
        return Paired(float("nan"), float("nan"), float("nan"), 0)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack([difference[torch.randint(n, (n,), generator=generator)].mean() for _ in range(resamples)])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Paired(float(difference.mean()), low, high, n)
