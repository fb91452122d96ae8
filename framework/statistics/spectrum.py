"""Power spectra of maps: over radii, how flat they are, and the circular autocorrelation that they contain."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from framework.statistics.fold import to_float64


def power_spectrum(maps: Tensor) -> Tensor:
    """Squared size of the Fourier coefficients of each map without its mean, |FFT2(x - mean)|^2 / (H W).

    White noise of variance v has the expected value v everywhere but at frequency 0.

    Args:
        maps: [..., H, W].

    Returns:
        [..., H, W] float64 in FFT order.
    """
    x = to_float64(maps)
    rows, columns = x.shape[-2:]
    # A constant map leaves exactly nothing, not the rounding of its mean.
    low, high = torch.aminmax(x.flatten(-2), dim=-1)
    x = torch.where((low == high)[..., None, None], 0.0, x - x.mean((-2, -1), keepdim=True))
    return torch.view_as_real(torch.fft.fft2(x)).square().sum(-1) / (rows * columns)


def radial(power: Tensor) -> Tensor:
    """Mean of a spectrum over the coefficients whose rounded radius is k cycles per map, k = 0 .. min(H, W) // 2.

    Args:
        power: [..., H, W] in FFT order.

    Returns:
        [..., radii]. The corners beyond the last radius are left out.
    """
    rows, columns = power.shape[-2:]
    places, sizes = _rings(rows, columns, power.device)
    flat = power.flatten(-2)
    sums = torch.zeros(*flat.shape[:-1], len(sizes) + 1, dtype=flat.dtype, device=flat.device)
    return sums.index_add_(-1, places, flat)[..., :-1] / sizes


def radial_sizes(rows: int, columns: int) -> Tensor:
    """Return the number of coefficients at each radius, [radii] float64."""
    return _rings(rows, columns, torch.device("cpu"))[1]


def flatness(spectrum: Tensor) -> Tensor:
    """Geometric over arithmetic mean of a radial spectrum over radii above 0: 1 if flat, near 0 if one scale rules.

    Args:
        spectrum: [..., radii], averaged over maps: the raw spectrum of one map of white noise is far from flat.

    Returns:
        [...] in [0, 1]; NaN of a constant map.
    """
    p = spectrum[..., 1:]
    return p.log().mean(-1).exp() / p.mean(-1)


def circular_autocovariance(power: Tensor, max_lag: int) -> Tensor:
    """Autocovariance with wrapped borders at the lags 0 .. max_lag along columns and rows, from the power spectrum.

    Args:
        power: [..., H, W] from `power_spectrum`, or a mean of several.
        max_lag: Largest distance in pixels, less than either side.

    Returns:
        [..., 2, max_lag + 1]: horizontal, vertical. Divided by its value at lag 0 it is the autocorrelation.
    """
    # A sum over one axis of frequencies is lag 0 along that axis; what is left is one-dimensional.
    horizontal = torch.fft.ifft(power.mean(-2), dim=-1).real[..., : max_lag + 1]
    vertical = torch.fft.ifft(power.mean(-1), dim=-1).real[..., : max_lag + 1]
    return torch.stack([horizontal, vertical], -2)


@lru_cache(maxsize=16)
def _rings(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Radius of every coefficient, flattened, and how many there are of each; kept, since a copy waits for a device."""
    vertical = torch.fft.fftfreq(rows, 1 / rows, dtype=torch.float64)
    horizontal = torch.fft.fftfreq(columns, 1 / columns, dtype=torch.float64)
    last = min(rows, columns) // 2
    places = torch.hypot(vertical[:, None], horizontal[None]).round().long().clamp(max=last + 1).flatten()
    sizes = torch.bincount(places, minlength=last + 2)[:-1].double()
    return places.to(device), sizes.to(device)
