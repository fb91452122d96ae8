"""How values of each step are distributed: what is measured of one image, and how images are folded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framework.statistics.fold import fold_draws
from framework.statistics.histogram import NOISE_EDGES, Histogram
from framework.statistics.moments import Moments
from framework.statistics.normality import ks_distances
from framework.statistics.tables import noise_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KS = ("ks", "ks_standardised")


def measure_distribution(values: Tensor) -> dict[str, Tensor]:
    """Measure groups of values [groups, ...] on their device.

    Returns:
        `moments` [groups, 7], `histogram` [groups, bins + 2] and `ks` [groups, 2] (plain, standardised).
    """
    return {
        "moments": Moments.of(values).to_tensor(),
        "histogram": Histogram.of(values, NOISE_EDGES).counts,
        "ks": ks_distances(values),
    }


def empty_distribution(steps: int, draws: int) -> dict[str, Tensor]:
    """Return what `measure_distribution` gives for no values, [steps, draws, ...] each."""
    moments = torch.zeros(steps, draws, 7, dtype=torch.float64)
    moments[..., 5:] = torch.tensor([torch.inf, -torch.inf])
    counts = torch.zeros(steps, draws, len(NOISE_EDGES) + 1, dtype=torch.int64)
    return {
        "moments": moments,
        "histogram": counts,
        "ks": torch.full((steps, draws, 2), torch.nan, dtype=torch.float64),
    }


def image_distribution(found: Mapping[str, Tensor], excluded: Mapping[int, str]) -> tuple[dict[str, Tensor], list[int]]:
    """Fold the draws of one image; maps that are not finite and excluded steps count nothing.

    Args:
        found: Measured, [steps, draws, ...] each, on the CPU.
        excluded: Steps to leave out.

    Returns:
        The image's state, [steps, ...] each, and the steps at which a map was not finite.
    """
    draws = found["moments"].shape[1]
    state = Moments.from_tensor(found["moments"].transpose(0, 1))
    histogram = Histogram(found["histogram"].transpose(0, 1), NOISE_EDGES)
    broken = ~state.finite
    empty = broken.clone()
    empty[:, list(excluded)] = True
    distances = torch.where(empty[..., None], torch.nan, found["ks"].transpose(0, 1))
    own = {
        "moments": fold_draws(state.without(empty), draws).to_tensor(),
        "histogram": fold_draws(histogram.without(empty), draws).counts,
        "ks": distances.nanmean(0),
    }
    return own, broken.any(0).nonzero().flatten().tolist()


class DistributionFold:
    """Images folded one after the other, in the order of their ids."""

    def __init__(self) -> None:
        self.images = 0
        self.pooled: Moments | None = None
        self.histogram: Histogram | None = None
        self.spread: Moments | None = None
        self.ks: Moments | None = None

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add one image's state; see `image_distribution`."""
        state = Moments.from_tensor(tensors["moments"])
        bins = Histogram(tensors["histogram"], NOISE_EDGES)
        variance, distances = Moments.single(state.variance), Moments.single(tensors["ks"])
        self.pooled = state if self.pooled is None else self.pooled.merge(state)
        self.histogram = bins if self.histogram is None else self.histogram.merge(bins)
        self.spread = variance if self.spread is None else self.spread.merge(variance)
        self.ks = distances if self.ks is None else self.ks.merge(distances)
        self.images += 1

    def rows(self, t: Tensor, excluded: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return one row of figures per step; see `noise_table`. At least one image must have been added."""
        assert self.pooled is not None and self.histogram is not None and self.spread is not None
        rows = noise_table(self.pooled, self.histogram, self.spread, t, excluded)
        assert self.ks is not None
        for step, row in enumerate(rows):
            if row["count"]:
                for place, name in enumerate(KS):
                    folded = self.ks.select(step).select(place)
                    row[f"{name}_mean_over_images"] = float(folded.mean) if float(folded.n) else float("nan")
        return rows

    def arrays(self) -> dict[str, Tensor]:
        """Return the folded states."""
        if self.pooled is None or self.histogram is None or self.spread is None or self.ks is None:
            return {}
        return {
            "moments": self.pooled.to_tensor(),
            "histogram": self.histogram.counts,
            "histogram_edges": NOISE_EDGES,
            "variance_over_images": self.spread.to_tensor(),
            "ks_over_images": self.ks.to_tensor(),
        }

    def figures(self, title: str, axis: str) -> Iterator[tuple[str, Figure]]:
        """Draw variance per step and the histograms; nothing where no step has values.

        Args:
            title: What is shown, such as "noise maps, 12 images".
            axis: Text of the axis of steps.
        """
        from framework.statistics import plots

        if self.pooled is None or self.spread is None or self.histogram is None or not bool((self.pooled.n > 0).any()):
            return
        mean = torch.where(self.spread.n > 0, self.spread.mean, torch.nan)
        curves = [
            plots.Curve("mean over images (bands: 1 sd, extremes)", mean, self.spread),
            plots.Curve("all values pooled", torch.where(self.pooled.n > 0, self.pooled.variance, torch.nan)),
        ]
        yield (
            "variance",
            plots.per_step(
                curves,
                title=f"Variance: {title}",
                ylabel="variance",
                references=[(1.0, "white noise")],
                positive=True,
                axis=axis,
            ),
        )
        yield (
            "histograms",
            plots.ridge(
                self.histogram.counts,
                self.histogram.edges,
                steps=(self.histogram.n > 0).nonzero().flatten().tolist(),
                title=f"Histograms: {title}",
                xlabel="value (dashed: N(0, 1))",
                axis=axis,
            ),
        )
