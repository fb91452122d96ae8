"""Histograms on fixed edges, which add up exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from framework.statistics.fold import to_float64

NOISE_EDGES = torch.linspace(-5, 5, 101, dtype=torch.float64)
"""100 bins on [-5, 5], for values near a standard normal."""
CORRELATION_EDGES = torch.linspace(-1, 1, 101, dtype=torch.float64)
"""100 bins on [-1, 1]."""
ANGLE_EDGES = torch.linspace(0, 180, 181, dtype=torch.float64)
"""Bins of one degree."""


@dataclass(frozen=True)
class Histogram:
    """Counts on fixed edges with a tail at either side; bins are closed below, the last one on both sides.

    Attributes:
        counts: [groups, bins + 2] int64, the first below all edges, the last above.
        edges: [bins + 1] float64, ascending.
    """

    counts: Tensor
    edges: Tensor

    @classmethod
    def of(cls, values: Tensor, edges: Tensor) -> Self:
        """Count groups of values [groups, ...] on their device, NaN left out."""
        x = to_float64(values).flatten(1)
        known = ~x.isnan()
        places = _places(torch.where(known, x, 0.0), edges)
        counts = torch.zeros(x.shape[0], len(edges) + 1, dtype=torch.int64, device=x.device)
        return cls(counts.scatter_add_(1, places, known.to(torch.int64)), edges)

    @classmethod
    def single(cls, values: Tensor, edges: Tensor) -> Self:
        """Take every value of [groups] as a group of its own; a NaN is an empty group."""
        counts = cls.of(values.reshape(-1, 1), edges).counts
        return cls(counts.view(*values.shape, -1), edges)

    def select(self, index: int) -> Self:
        """Return the groups at one index of the first axis."""
        return type(self)(self.counts[index], self.edges)

    def without(self, empty: Tensor) -> Self:
        """Empty the groups at which a boolean tensor [groups] is set."""
        return type(self)(torch.where(empty[..., None], 0, self.counts), self.edges)

    def merge(self, other: Self) -> Self:
        """Add the counts, group by group.

        Raises:
            ValueError: The edges differ.
        """
        if not torch.equal(self.edges, other.edges):
            raise ValueError(
                f"histograms on different edges cannot be added: {_words(self.edges)} and {_words(other.edges)}; show "
                "the two apart, or count the values again on common edges."
            )
        return type(self)(self.counts + other.counts, self.edges)

    @property
    def n(self) -> Tensor:
        """Number of values counted, [groups] int64."""
        return self.counts.sum(-1)

    @property
    def density(self) -> Tensor:
        """Share of the values per unit of the axis, [groups, bins] without the tails; NaN of an empty group."""
        return self.counts[..., 1:-1].double() / (self.n[..., None] * self.edges.diff())

    @property
    def kl_to_normal(self) -> Tensor:
        """Sum of p ln(p / q) over bins and tails in nats, q the mass of N(0, 1); NaN of an empty group."""
        p = self.counts.double() / self.n[..., None]
        return torch.where(p > 0, p * (p / normal_mass(self.edges)).log(), p).sum(-1)

    @property
    def ks_to_normal(self) -> Tensor:
        """Largest distance of the distribution function from that of N(0, 1) over the edges.

        A lower bound of the Kolmogorov-Smirnov distance, short of it by the mass of one bin at most.
        """
        below = self.counts.cumsum(-1)[..., :-1].double() / self.n[..., None]
        distance: Tensor = (below - torch.special.ndtr(self.edges)).abs()
        return distance.amax(-1)

    @property
    def ks_bound(self) -> Tensor:
        """Upper bound of the Kolmogorov-Smirnov distance from N(0, 1): the worst order of values within each bin."""
        reached = self.counts.cumsum(-1).double() / self.n[..., None]
        before = torch.cat([torch.zeros_like(reached[..., :1]), reached[..., :-1]], -1)
        normal = torch.cat([torch.special.ndtr(self.edges), torch.ones(1, dtype=torch.float64)])
        normal_before = torch.cat([torch.zeros(1, dtype=torch.float64), normal[:-1]])
        return torch.maximum(reached - normal_before, normal - before).amax(-1)


def normal_mass(edges: Tensor) -> Tensor:
    """Mass of N(0, 1) below, between and above the edges, [bins + 2]."""
    lower, upper = torch.special.ndtr(edges), torch.special.ndtr(-edges)
    # Differences are taken in the tail that is small, where they lose no digits.
    between = torch.where(edges[1:] > 0, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    return torch.cat([lower[:1], between, upper[-1:]])


def _places(x: Tensor, edges: Tensor) -> Tensor:
    """Find the bin of every value on evenly spaced edges, the same one as numpy."""
    bounds = _bounds(tuple(edges.tolist()), x.device)
    if x.device.type != "cpu":
        return torch.bucketize(x, bounds, right=True)
    # On a CPU the search takes ten times as long as arithmetic, so only values beside an edge are searched.
    first, bins = float(edges[0]), len(edges) - 1
    scaled = ((x - first) * (bins / (float(edges[-1]) - first))).clamp_(-1, bins + 1)
    places = scaled.floor().clamp_(max=bins).to(torch.int64).add_(1)
    beside = (scaled - scaled.round()).abs_() < 1e-6
    places[beside] = torch.bucketize(x[beside], bounds, right=True)
    return places


@lru_cache(maxsize=64)
def _bounds(edges: tuple[float, ...], device: torch.device) -> Tensor:
    """Edges on a device, the last one moved to close its bin; copied once, since a copy waits for the device."""
    bounds = torch.tensor(edges, dtype=torch.float64)
    bounds[-1] = torch.nextafter(bounds[-1], bounds.new_tensor(torch.inf))
    return bounds.to(device)


def _words(edges: Tensor) -> str:
    return f"{len(edges) - 1} bins on [{float(edges[0]):g}, {float(edges[-1]):g}]"
