"""How far values are from normal: Kolmogorov-Smirnov distances of samples, and D'Agostino's test from moments."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from framework.statistics.fold import to_float64
from framework.statistics.moments import Moments


def ks_distance(values: Tensor, *, standardise: bool = False) -> Tensor:
    """Largest distance of the empirical distribution function of each group from that of N(0, 1), exactly.

    Needs the sample itself: distances of parts cannot be merged into that of the whole (a histogram gives bounds, see
    `Histogram.ks_bound`).

    Args:
        values: [groups, ...].
        standardise: Take mean and (population) standard deviation out first. Then the critical values are Lilliefors'
            and not Kolmogorov's.

    Returns:
        [groups] float64 in [0, 1]; NaN where a value is not finite, or where a constant group is to be standardised.
    """
    return _standardised(_sorted(values)) if standardise else _distance(_sorted(values))


def ks_distances(values: Tensor) -> Tensor:
    """Both distances of `ks_distance`, plain and standardised, [groups, 2], from one sort."""
    x = _sorted(values)
    return torch.stack([_distance(x), _standardised(x)], -1)


def _sorted(values: Tensor) -> Tensor:
    """Sort each group, [groups, n] float64; single precision sorts in half the time and in the same order."""
    flat = values.detach().flatten(1)
    flat = flat if flat.dtype == torch.float32 else to_float64(flat)
    if flat.device.type == "cpu":  # NumPy's vectorised sort takes a tenth of the time; NaN comes last in both.
        return to_float64(torch.from_numpy(np.sort(flat.numpy(), axis=1)))
    return to_float64(flat.sort(1).values)


def _distance(x: Tensor) -> Tensor:
    n = x.shape[1]
    reached = torch.special.ndtr(x)
    ranks = torch.arange(n + 1, dtype=torch.float64, device=x.device) / n
    above, below = (ranks[1:] - reached).amax(1), (reached - ranks[:-1]).amax(1)
    # NaN sorts behind all numbers, so the ends of a group show whether all of it is finite.
    known = x[:, 0].isfinite() & x[:, -1].isfinite()
    return torch.where(known, torch.maximum(above, below), torch.nan)


def _standardised(x: Tensor) -> Tensor:
    constant = x[:, :1] == x[:, -1:]
    centred = x - x.mean(1, keepdim=True)
    return _distance(torch.where(constant, torch.nan, centred / centred.square().mean(1, keepdim=True).sqrt()))


def ks_log10_p(distance: float, n: int) -> float:
    """Log10 of the chance that n standard normal values are at least so far from their distribution.

    For one sample only: never average such chances, and with millions of values every sample is rejected.

    Args:
        distance: From `ks_distance`, not standardised.
        n: Number of values, at least 100 (what is returned is good to 2e-5 there, and to 1e-6 from 1000 values on).

    Returns:
        At most 0; -inf where it is below every float.

    Source: Birnbaum and Tingey (1951) for the tail, where the two sides exclude each other; Pelz and Good (1976) for
    the middle, as put together by Simard and L'Ecuyer (Journal of Statistical Software 39(11), 2011).
    """
    if distance <= 0.5 / n:
        return 0.0
    if n * distance * distance >= 2.2:
        return min(0.0, (math.log(2) + _log_one_sided(distance, n)) / math.log(10))
    return math.log10(min(1.0, max(1 - _pelz_good(distance, n), 1e-300)))


def _log_one_sided(d: float, n: int) -> float:
    """Logarithm of P(sup (F_n - F) >= d) = d sum_j C(n, j) (d + j / n)^(j - 1) (1 - d - j / n)^(n - j)."""
    j = torch.arange(math.floor(n * (1 - d)) + 1, dtype=torch.float64)
    rest = 1 - d - j / n
    j, rest = j[rest > 0], rest[rest > 0]
    n_, one = torch.tensor(float(n), dtype=torch.float64), 1.0
    choose = torch.lgamma(n_ + one) - torch.lgamma(j + one) - torch.lgamma(n_ - j + one)
    terms = choose + (j - 1) * (d + j / n).log() + (n - j) * rest.log()
    return float(math.log(d) + terms.logsumexp(0))


def _pelz_good(d: float, n: int) -> float:
    """P(D_n < d) by Kolmogorov's limit and three terms in powers of 1 / sqrt(n)."""
    z, pi2 = d * math.sqrt(n), math.pi**2
    terms = range(-20, 21)
    halves = [(pi2 * (k + 0.5) ** 2, math.exp(-pi2 * (k + 0.5) ** 2 / (2 * z * z))) for k in terms]
    wholes = [(pi2 * k * k, math.exp(-pi2 * k * k / (2 * z * z))) for k in terms]
    root = math.sqrt(math.pi / 2)
    k0 = root / z * sum(e for _, e in halves)
    k1 = root / (6 * z**4) * sum((a - z**2) * e for a, e in halves)
    k2 = (
        root
        / (72 * z**7)
        * sum((6 * z**6 + 2 * z**4 + a * (2 * z**4 - 5 * z**2) + a * a * (1 - 2 * z**2)) * e for a, e in halves)
    )
    k2 -= root / (36 * z**3) * sum(a * e for a, e in wholes)
    k3 = (
        root
        / (6480 * z**10)
        * sum(
            (
                a**3 * (5 - 30 * z**2)
                + a * a * (-60 * z**2 + 212 * z**4)
                + a * (135 * z**4 - 96 * z**6)
                - (30 * z**6 + 90 * z**8)
            )
            * e
            for a, e in halves
        )
    )
    k3 += root / (216 * z**6) * sum((3 * a * z**2 - a * a) * e for a, e in wholes)
    return float(k0 + k1 / n**0.5 + k2 / n + k3 / n**1.5)


def dagostino_k2(moments: Moments) -> Tensor:
    """D'Agostino and Pearson's K^2 = z(skewness)^2 + z(kurtosis)^2, chi-squared with 2 degrees of freedom if normal.

    Recomputed from merged moments, so that it is exact over any number of images.

    Args:
        moments: [groups].

    Returns:
        [groups]; NaN of fewer than 8 values and of a constant group.

    Source: D'Agostino (1970) for the skewness, Anscombe and Glynn (1983) for the kurtosis.
    """
    n = moments.n
    k2 = _skewness_z(moments.skewness, n).square() + _kurtosis_z(moments.excess_kurtosis, n).square()
    return torch.where(n >= 8, k2, torch.nan)


def _skewness_z(skewness: Tensor, n: Tensor) -> Tensor:
    y = skewness * ((n + 1) * (n + 3) / (6 * (n - 2))).sqrt()
    beta = 3 * (n * n + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    w2 = (2 * (beta - 1)).sqrt() - 1
    return (y / (2 / (w2 - 1)).sqrt()).asinh() / (0.5 * w2.log()).sqrt()


def _kurtosis_z(excess: Tensor, n: Tensor) -> Tensor:
    mean = 3 * (n - 1) / (n + 1)
    variance = 24 * n * (n - 2) * (n - 3) / ((n + 1).square() * (n + 3) * (n + 5))
    x = (excess + 3 - mean) / variance.sqrt()
    third = (6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3))).sqrt()
    root_beta = 6 * (n * n - 5 * n + 2) / ((n + 7) * (n + 9)) * third
    a = 6 + 8 / root_beta * (2 / root_beta + (1 + 4 / root_beta.square()).sqrt())
    ratio = (1 - 2 / a) / (1 + x * (2 / (a - 4)).sqrt())
    cube = ratio.sign() * ratio.abs().pow(1 / 3)
    return (1 - 2 / (9 * a) - cube) / (2 / (9 * a)).sqrt()
