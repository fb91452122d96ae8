"""How well the source comes back."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from framework.evaluation.metric import Figure, Metric, MetricInput, Values


def psnr(picture: Tensor, reference: Tensor, weight: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio 10 log10(1 / MSE) of pictures in [0, 1], in dB, computed in float64.

    Args:
        picture, reference: [3, H, W].
        weight: [1, H, W], averages over the part where it is 1 (weighted in between); None for everything.

    Returns:
        dB; infinite for equal pictures, NaN where the weight is zero everywhere.
    """
    squared = (picture.double() - reference.to(picture.device).double()).square()
    if weight is None:
        error = float(squared.mean())
    else:
        w = weight.to(squared.device).double().expand_as(squared)
        total = float(w.sum())
        error = float((squared * w).sum()) / total if total > 0 else math.nan
    return math.inf if error == 0 else -10 * math.log10(error)


class ReconstructionPSNR(Metric):
    """PSNR of the reconstruction against the source, and against the source as the autoencoder alone returns it.

    The second figure shows the inversion's own error, which the loss of the autoencoder hides in the first.
    """

    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("psnr_source", "higher", "dB"),
        Figure("psnr_round_trip", "higher", "dB"),
    )

    def measure(self, item: MetricInput) -> Values:
        if item.reconstruction is None:
            return {"psnr_source": None, "psnr_round_trip": None}
        return {
            "psnr_source": psnr(item.reconstruction, item.source),
            "psnr_round_trip": psnr(item.reconstruction, item.round_trip),
        }
