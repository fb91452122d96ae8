"""How far predicted noise is from white: pix2pix-zero's two losses, as measures and as something to descend.

Parmar, Singh, Zhang, Li, Lu, Zhu: Zero-shot Image-to-Image Translation (SIGGRAPH 2023, arXiv 2302.03027), section 3.1,
in the form of the authors' code (pix2pixzero/pix2pix-zero 16e5c1d, `ddim_inv.py`). Both vanish for ideal white noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

COARSEST_ROWS = 8
"""The pyramid ends with the first level of at most this many rows."""


def pyramid_rows(rows: int) -> list[int]:
    """Return the rows of every level of the pyramid over maps of so many rows: 64 gives 64, 32, 16, 8."""
    levels = [rows]
    while levels[-1] > COARSEST_ROWS:
        levels.append(levels[-1] // 2)
    return levels


def auto_correlation(x: Tensor, shifts: Tensor | int) -> Tensor:
    """Sum the squared circular auto-correlations of a map over its channels, its pyramid and both axes.

    sum over channels and levels of mean(h roll_rows(h, d))^2 + mean(h roll_columns(h, d))^2, where a level is the one
    above it averaged over 2 x 2.

    Args:
        x: [B, C, H, W].
        shifts: d of every image, channel and level, [B, C, levels] or what broadcasts to it, integers; or one number
            for all. See `pyramid_rows` for the number of levels.

    Returns:
        [B], at least 0. Differentiable in x.

    Source: pix2pix-zero, Eq. of L_pair with one offset per channel and level; `auto_corr_loss`, whose random offsets
    are in [1, H / 2 - 1] of each level. (Those of diffusers' pipeline begin at 0, where the term measures the power.)
    """
    total = x.new_zeros(x.shape[0])
    level = x
    count = len(pyramid_rows(x.shape[-2]))
    table = torch.as_tensor(shifts, device=x.device).expand(*x.shape[:2], count)
    for number in range(count):
        if number:
            level = F.avg_pool2d(level, 2)
        for axis in (-2, -1):
            correlation = (level * _roll(level, table[..., number], axis)).mean((-2, -1))
            total = total + correlation.square().sum(1)
    return total


def kl_divergence(x: Tensor) -> Tensor:
    """Compare mean and variance of every image's values with those of a standard normal: var + mean^2 - 1 - ln(var).

    Twice the divergence of the fitted Gaussian, as in the authors' code; the variance is unbiased, and 1e-7 is added
    to it in the logarithm.

    Args:
        x: [B, ...].

    Returns:
        [B]. Differentiable in x.
    """
    values = x.flatten(1)
    variance, mean = torch.var_mean(values, 1)
    return variance + mean.square() - 1 - torch.log(variance + 1e-7)


def descend(x: Tensor, shifts: Sequence[Tensor], *, auto_correlation_rate: float, kl_rate: float) -> Tensor:
    """Make a prediction whiter: one round of plain gradient descent, first on auto-correlation, then on the divergence.

    Args:
        x: [B, C, H, W].
        shifts: Offsets of every auto-correlation step, see `auto_correlation`; the rate is divided among the steps.
        auto_correlation_rate, kl_rate: lambda_ac and lambda_kl; 0 leaves the loss out.

    Returns:
        [B, C, H, W], detached; every image by itself.

    Source: pix2pix-zero, Algorithm 1, as in the authors' `ddim_inv.py`: each gradient is taken at the updated x.
    """
    if auto_correlation_rate:
        for offsets in shifts:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(auto_correlation(leaf, offsets).sum(), leaf)
            x = leaf.detach() - auto_correlation_rate / len(shifts) * gradient
    if kl_rate:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(kl_divergence(leaf).sum(), leaf)
        x = leaf.detach() - kl_rate * gradient
    return x.detach()


def _roll(x: Tensor, shifts: Tensor, axis: int) -> Tensor:
    """Roll maps [B, C, H, W] by shifts [B, C] of their own, as `torch.roll` does by one."""
    size = x.shape[axis]
    line = torch.arange(size, device=x.device)
    index = (line - shifts[..., None]) % size  # [B, C, size]
    index = index[..., :, None] if axis == -2 else index[..., None, :]
    return x.gather(axis, index.expand_as(x))
