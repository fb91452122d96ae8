"""Regularised DDIM inversion: every prediction is brought nearer to white noise before it is used.

Parmar, Singh, Zhang, Li, Lu, Zhu: Zero-shot Image-to-Image Translation (SIGGRAPH 2023, arXiv 2302.03027), section 3.1,
in the form of the authors' code (pix2pixzero/pix2pix-zero 16e5c1d, `ddim_inv.py`).

    repeat:  repeat:  e <- e - lambda_ac / rolls dL_auto(e)/de        with offsets drawn anew
             e <- e - lambda_kl dL_kl(e)/de
    z_next = alpha_next (z - sigma e) / alpha + sigma_next e

Plain gradient descent on the prediction itself: no gradient goes through the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from framework.context import Context
from framework.errors import Checks
from framework.statistics.regularisers import descend, pyramid_rows
from framework.step import Need
from methods.ddim import Convention, DDIMInversion


@dataclass(frozen=True)
class RegularisedInversion(DDIMInversion):
    """DDIM inversion whose predictions are made whiter before they are used.

    Attributes:
        convention, skip, keep_predictions: See `DDIMInversion`.
        auto_correlation_rate, kl_rate: lambda_ac and lambda_kl of the gradient steps; paper 20 for both, 0 for none.
        repeats: Rounds per prediction (paper 5).
        rolls: Steps on auto-correlation in each round, with offsets drawn anew (paper 5).

    Source: Algorithm 1 of the paper; `framework.statistics.regularisers`.
    """

    convention: Convention = "pix2pix_zero"
    auto_correlation_rate: float = 20.0
    kl_rate: float = 20.0
    repeats: int = 5
    rolls: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("RegularisedInversion")
        checks.between("auto_correlation_rate", self.auto_correlation_rate, 0, float("inf"), "paper 20, 0 for none")
        checks.between("kl_rate", self.kl_rate, 0, float("inf"), "paper 20, 0 for none")
        checks.between("repeats", self.repeats, 0, 1000, "paper 5")
        checks.between("rolls", self.rolls, 1, 1000, "paper 5")
        checks.done()

    def provides(self) -> frozenset[Need]:
        """Return what DDIM inversion provides; a trajectory only where it has a latent for every level."""
        short = self.recorded_steps(3) < 3
        return super().provides() - (frozenset({Need.TRAJECTORY}) if short else frozenset())

    def adjusted(self, eps: Tensor, index: int, ctx: Context) -> Tensor:
        """Make a prediction whiter."""
        if not self.repeats or not (self.auto_correlation_rate or self.kl_rate):
            return eps
        for offsets in self.shifts(eps, index, ctx).unbind(1):
            eps = descend(
                eps,
                offsets.unbind(1),
                auto_correlation_rate=self.auto_correlation_rate,
                kl_rate=self.kl_rate,
            )
        return eps

    def shifts(self, eps: Tensor, index: int, ctx: Context) -> Tensor:
        """Draw the offsets of one step, uniform in [1, rows / 2 - 1] of each level.

        Returns:
            [B, repeats, rolls, C, levels] integers.
        """
        levels = pyramid_rows(eps.shape[-2])
        shape = (self.repeats, self.rolls, eps.shape[1], len(levels))
        count = torch.Size(shape).numel()
        draws = ctx.noise(f"pix2pix-zero offsets {index}", -(-count // eps[0].numel()))
        uniform = torch.special.ndtr(draws.transpose(0, 1).flatten(1)[:, :count].double()).view(-1, *shape)
        most = torch.tensor([max(1, rows // 2 - 1) for rows in levels], device=eps.device)
        return 1 + torch.minimum((uniform * most).long(), most - 1)
