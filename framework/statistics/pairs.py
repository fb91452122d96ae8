"""How maps of different steps hang together: what is measured of one image, and how images are folded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framework.statistics.comoments import Centred, CoMoments
from framework.statistics.fold import fold, fold_draws, to_float64
from framework.statistics.histogram import ANGLE_EDGES, CORRELATION_EDGES, Histogram
from framework.statistics.moments import Moments
from framework.statistics.tables import pair_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure_pairs(maps: Tensor) -> Tensor:
    """Measure the maps of every step against those of the next, [S, B, ...] -> co-moments [S - 1, B, 6], packed."""
    steps, images = maps.shape[:2]
    centred = Centred.of(maps.flatten(0, 1))
    parts = [value.unflatten(0, (steps, images)) for value in centred]
    earlier = Centred(*(value[:-1].flatten(0, 1) for value in parts))
    later = Centred(*(value[1:].flatten(0, 1) for value in parts))
    pairs: Tensor = CoMoments.between(earlier, later).to_tensor().unflatten(0, (steps - 1, images))
    return pairs


def position_angles(a: Tensor, b: Tensor) -> Tensor:
    """Count the angles between the channel vectors of two maps at every position.

    Args:
        a, b: [B, C, ...].

    Returns:
        [B, 182] int64 on `ANGLE_EDGES`; a position at which a vector is zero is not counted.
    """
    x, y = to_float64(a).flatten(2), to_float64(b).flatten(2)
    cosine = (x * y).sum(1) / (torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1))
    return Histogram.of(cosine.clamp(-1, 1).arccos().rad2deg(), ANGLE_EDGES).counts


def beside(excluded: Collection[int], steps: int) -> list[int]:
    """Return the pairs (step, step + 1), by their first step, that contain an excluded one."""
    return sorted({first for step in excluded for first in (step - 1, step) if 0 <= first < steps - 1})


def measure_matrix(maps: Tensor, excluded: Collection[int]) -> Tensor:
    """Measure the maps [T, draws, ...] of one image against each other; nothing if one that counts is not finite.

    Returns:
        [1 + T + T (T + 1) / 2] packed co-moments on the CPU, the draws folded. An excluded step is a constant one, so
        that its correlations are NaN.
    """
    kept = torch.ones(len(maps), 1, device=maps.device)
    kept[list(excluded)] = 0
    # One draw at a time: in float64 the maps of a whole batch would take twice the memory of the record.
    states = []
    for draw in maps.unbind(1):
        flat = draw.detach().flatten(1)
        states.append(CoMoments.of(torch.where(kept > 0, flat, 0.0)[None]))
    total = fold(CoMoments.from_tensor(state.to_tensor().cpu()[0]) for state in states)
    assert total is not None
    return total.without(~total.finite).to_tensor()


class PairFold:
    """Images folded one after the other, in the order of their ids."""

    def __init__(self) -> None:
        self.images = 0
        self.pooled: CoMoments | None = None
        self.matrix: CoMoments | None = None
        self.singles: dict[str, Moments] = {}
        self.counts: dict[str, Histogram] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add one image.

        Args:
            tensors: `pairs` [draws, T - 1, 6] packed co-moments, and where measured `matrix` (see `measure_matrix`)
                and `position_angles` [T - 1, 182].
        """
        draws = CoMoments.from_tensor(tensors["pairs"])
        pearson, angle = draws.pearson[..., 0, 1], draws.angle[..., 0, 1]
        own = fold_draws(draws, len(pearson))
        self.pooled = own if self.pooled is None else self.pooled.merge(own)
        singles = {"correlation": Moments.single(pearson.nanmean(0)), "angle": Moments.single(angle.nanmean(0))}
        counts = {}
        for name, value, edges in (("correlation", pearson, CORRELATION_EDGES), ("angle", angle, ANGLE_EDGES)):
            counts[name] = fold_draws(Histogram.single(value, edges), len(value))
        if "position_angles" in tensors:
            counts["position_angle"] = Histogram(tensors["position_angles"], ANGLE_EDGES)
        if "matrix" in tensors:
            state = CoMoments.from_tensor(tensors["matrix"])
            self.matrix = state if self.matrix is None else self.matrix.merge(state)
            singles["matrix"] = Moments.single(state.pearson)
        known = bool(self.singles)
        self.singles = {key: self.singles[key].merge(x) if known else x for key, x in singles.items()}
        self.counts = {key: self.counts[key].merge(x) if known else x for key, x in counts.items()}
        self.images += 1

    def rows(self, excluded: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return one row of figures per pair; see `pair_table`. At least one image must have been added."""
        assert self.pooled is not None
        return pair_table(self.pooled, self.singles["correlation"], self.singles["angle"], excluded)

    def over_steps(self) -> dict[str, float]:
        """Return correlation and angle, averaged over images and then over steps; NaN where there is none."""
        found = {}
        for name in ("correlation", "angle"):
            folded = self.singles[name]
            shown = folded.mean[folded.n > 0]
            found[name] = float(shown.mean()) if len(shown) else float("nan")
        return found

    def arrays(self) -> dict[str, Tensor]:
        """Return the folded states."""
        if self.pooled is None:
            return {}
        arrays = {
            "pairs": self.pooled.to_tensor(),
            "correlation_over_images": self.singles["correlation"].to_tensor(),
            "angle_over_images": self.singles["angle"].to_tensor(),
            "correlation_histogram": self.counts["correlation"].counts,
            "correlation_edges": CORRELATION_EDGES,
            "angle_histogram": self.counts["angle"].counts,
            "angle_edges": ANGLE_EDGES,
        }
        if "position_angle" in self.counts:
            arrays["position_angle_histogram"] = self.counts["position_angle"].counts
        if self.matrix is not None:
            arrays |= {"matrix": self.matrix.to_tensor(), "matrix_over_images": self.singles["matrix"].to_tensor()}
        return arrays

    def figures(self, what: str, many: str) -> Iterator[tuple[str, Figure]]:
        """Draw correlation, angles and the matrix; nothing where no pair has values.

        Args:
            what: What is shown, such as "noise maps".
            many: How many images, in words.
        """
        from framework.statistics import plots

        if self.pooled is None or not bool((self.singles["correlation"].n > 0).any()):
            return
        correlations = self.singles["correlation"]
        at = torch.arange(len(correlations.n)) + 0.5
        mean = torch.where(correlations.n > 0, correlations.mean, torch.nan)
        curves: Sequence[plots.Curve] = [
            plots.Curve("mean over images (bands: 1 sd, extremes)", mean, correlations, at),
            plots.Curve("all values pooled", self.pooled.pearson[:, 0, 1], None, at),
        ]
        yield (
            "correlation",
            plots.per_step(
                curves,
                title=f"Correlation of neighbouring {what}, {many}",
                ylabel="correlation",
                references=[(0.0, "independent maps"), (-0.5, "")],
            ),
        )
        counts = self.counts.get("position_angle", self.counts["angle"]).counts
        of = "at every position of" if "position_angle" in self.counts else "between"
        title = f"Angles {of} neighbouring {what}, {many}"
        yield "angles", plots.angles(counts, self.singles["angle"], title=title)
        if "matrix" in self.singles:
            whole = self.singles["matrix"]
            values = torch.where(whole.n > 0, whole.mean, torch.nan)
            yield "matrix", plots.matrix(values, title=f"Correlation of {what}, mean over {many}")
