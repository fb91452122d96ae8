"""Closed forms of noise maps for data that is Gaussian with unit variance, N(mu, I), and the exact denoiser.

With y = z - alpha mu the exact noise prediction is sigma y, and the DDPM mean is sqrt(r) y with r = abar / abar_next,
abar = alpha^2 (the deviation of z from what the mean alone would give). What follows is algebra on these.

Source: derived from the definitions in Huberman-Spiegelglas et al. (CVPR 2024), section 3; their figure of the
two-dimensional noise space shows the same quantities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _terms(abar: ArrayLike, abar_next: ArrayLike) -> tuple[Array, Array, Array, Array]:
    a, a_next = np.asarray(abar, dtype=np.float64), np.asarray(abar_next, dtype=np.float64)
    r = a / a_next
    variance = (1 - a_next) / (1 - a) * (1 - r)
    return a, a_next, r, variance


def edit_friendly_variance(abar: ArrayLike, abar_next: ArrayLike, *, given_x0: bool = False) -> Array:
    """Variance of edit-friendly noise maps per coordinate.

    Args:
        abar: [T] squared signal scales before each step, noisy to clean.
        abar_next: [T] after each step; a step that does not move gives infinity or NaN.
        given_x0: Over the draws alone, for one fixed image, instead of over images and draws.

    Returns:
        [T].
    """
    a, a_next, r, variance = _terms(abar, abar_next)
    from_data = 0.0 if given_x0 else a_next * (1 - r) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = (from_data + (1 - a_next) + r * (1 - a)) / variance
    return result


def edit_friendly_correlation(abar: ArrayLike, abar_next: ArrayLike, *, given_x0: bool = False) -> Array:
    """Correlation of each edit-friendly noise map with that of the following step, near -1/2 for small steps.

    Args:
        abar, abar_next, given_x0: See `edit_friendly_variance`.

    Returns:
        [T - 1].
    """
    _, a_next, r, variance = _terms(abar, abar_next)
    spread = edit_friendly_variance(abar, abar_next, given_x0=given_x0)
    shared = 0.0 if given_x0 else np.sqrt(a_next[:-1] * a_next[1:]) * (1 - r[:-1]) * (1 - r[1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = (shared - np.sqrt(r[1:]) * (1 - a_next[:-1])) / np.sqrt(variance[:-1] * variance[1:])
        result: Array = covariance / np.sqrt(spread[:-1] * spread[1:])
    return result


def posterior_variance(abar: ArrayLike, abar_next: ArrayLike) -> Array:
    """Variance of noise maps of a path drawn from the posterior given the data; neighbours are uncorrelated. [T]."""
    _, a_next, r, _ = _terms(abar, abar_next)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = 1 + a_next * (1 - r) / (1 - a_next)
    return result


def angle_density(angle: ArrayLike, correlation: ArrayLike) -> Array:
    """Density of the angle between two 2-D Gaussian vectors with equal variances and this correlation per coordinate.

    Args:
        angle: Radians in [0, pi].
        correlation: In (-1, 1); broadcasts against `angle`.

    Returns:
        Density over [0, pi].
    """
    rho = np.asarray(correlation, dtype=np.float64)
    b = rho * np.cos(np.asarray(angle, dtype=np.float64))
    tail: Array = 1 + b * (np.pi - np.arccos(b)) / np.sqrt(1 - b**2)
    return (1 - rho**2) / np.pi / (1 - b**2) * tail


def angle_fractions(edges: ArrayLike, correlation: ArrayLike, *, nodes: int = 64) -> Array:
    """Share of angles in each bin, averaged over the correlations.

    Args:
        edges: [bins + 1] degrees, increasing, within 0..180.
        correlation: [pairs].
        nodes: Gauss-Legendre nodes per bin.

    Returns:
        [bins].
    """
    borders = np.radians(np.asarray(edges, dtype=np.float64))
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = (borders[1:] - borders[:-1]) / 2
    angles = (borders[1:] + borders[:-1])[:, None] / 2 + half[:, None] * x
    density = angle_density(angles[None], np.asarray(correlation, dtype=np.float64)[:, None, None])
    result: Array = ((density * w).sum(-1) * half).mean(0)
    return result
