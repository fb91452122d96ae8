"""How maps are structured in space: spectrum, autocorrelation, channels, patches, imprint of the image, whiteness.

One state per image and step, of a few hundred numbers. Pooled figures come from merged sums; the imprint and the
pix2pix-zero regularisers are figures of one image each, whose mean and spread over images are given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.statistics.comoments import CoMoments
from framework.statistics.fold import fold_draws, to_float64
from framework.statistics.moments import Moments
from framework.statistics.regularisers import auto_correlation, kl_divergence
from framework.statistics.spectrum import circular_autocovariance, flatness, power_spectrum, radial

WINDOW = 3
"""Side of the window of a local variance, in pixels of the latent."""
TOP = 20
"""Patch correlations whose mean is given beside the mean of all."""
WIDEST_PATCH = 32
"""Most variables of a patch that is chosen unasked: the state holds half of their square."""
_DIRECTIONS = ("horizontal", "vertical")
PER_IMAGE = ("imprint", "imprint_variance", "imprint_contrast", "auto_correlation", "kl")


@dataclass(frozen=True)
class Sums:
    """Counts and sums that add up.

    Attributes:
        n: [groups] number of summed vectors.
        total: [groups, length] their sum.
    """

    n: Tensor
    total: Tensor

    @classmethod
    def from_tensor(cls, packed: Tensor) -> Self:
        """Inverse of `to_tensor`."""
        return cls(packed[..., 0], packed[..., 1:])

    def to_tensor(self) -> Tensor:
        """Pack into [groups, 1 + length]."""
        return torch.cat([self.n[..., None], self.total], -1)

    def select(self, index: int) -> Self:
        """Return the groups at one index of the first axis."""
        return type(self)(self.n[index], self.total[index])

    def merge(self, other: Self) -> Self:
        """Add, group by group."""
        return type(self)(self.n + other.n, self.total + other.total)

    @property
    def mean(self) -> Tensor:
        """[groups, length]; NaN of an empty group."""
        return self.total / self.n[..., None]


@dataclass(frozen=True)
class StructureSettings:
    """What is measured in space.

    Attributes:
        max_lag: Largest distance of the autocorrelation, in pixels of the latent; shorter where a map is smaller.
        patch: Side of the patches; 0 measures none, None takes 2 where that makes at most 32 variables, and else none.
    """

    max_lag: int = 4
    patch: int | None = None

    def lag(self, shape: torch.Size) -> int:
        """Return the largest lag that maps [..., H, W] allow."""
        return max(0, min(self.max_lag, *(side - 1 for side in shape[-2:])))

    def side(self, shape: torch.Size) -> int:
        """Return the side of patches for maps [..., C, H, W]; 0 for none."""
        if self.patch is not None:
            return self.patch if self.patch <= min(shape[-2:]) else 0
        return 2 if 4 * shape[-3] <= WIDEST_PATCH and min(shape[-2:]) >= 2 else 0


class CleanLatents(NamedTuple):
    """What the maps of all steps are compared with, computed once.

    Attributes:
        flat: [G, C H W] float64.
        inner: [G, C, H - 2, W - 2], without the border that windows do not reach; empty where a window does not fit.
        variance: The variance in the windows around those pixels.
    """

    flat: Tensor
    inner: Tensor
    variance: Tensor

    @classmethod
    def of(cls, z0: Tensor) -> CleanLatents:
        """Take clean latents [G, C, H, W]."""
        x, border = to_float64(z0), WINDOW // 2
        if min(x.shape[-2:]) < WINDOW:
            return cls(x.flatten(1), x[..., :0, :0], x[..., :0, :0])
        return cls(x.flatten(1), x[..., border:-border, border:-border], local_variance(x))

    def rows(self, places: Tensor) -> CleanLatents:
        """Return the latents at some places, in that order."""
        return CleanLatents(*(value[places] for value in self))


def measure_structure(maps: Tensor, clean: CleanLatents, settings: StructureSettings) -> dict[str, Tensor]:
    """Measure maps on their device.

    Args:
        maps: [G, C, H, W].
        clean: The clean latent of each.
        settings: See there.

    Returns:
        Packed states [G, ...]: `spectrum`, `circular` (sums over channels), `lags`, `channels`, `patches`, `source`,
        `source_variance` (co-moments), and `regularisers` [G, 2]. A constant or not finite map is left empty.
    """
    x, lag, side = to_float64(maps), settings.lag(maps.shape), settings.side(maps.shape)
    flat = x.flatten(1)
    low, high = torch.aminmax(flat, dim=1)
    usable = (low < high) & torch.isfinite(flat).all(1)  # NaN compares false
    x = torch.where(usable[:, None, None, None], x, 0.0)
    power = power_spectrum(x).sum(1)
    n = torch.full_like(low, maps.shape[1])
    found = {
        "spectrum": torch.cat([n[:, None], radial(power)], 1),
        "circular": torch.cat([n[:, None], circular_autocovariance(power, lag).flatten(1)], 1),
        "channels": CoMoments.of(x).to_tensor(),
        "source": CoMoments.of(torch.stack([flat.nan_to_num(), clean.flat], 1)).to_tensor(),
    }
    if lag:
        found["lags"] = lag_comoments(x, lag).to_tensor()
    if side:
        found["patches"] = CoMoments.of(patches(x, side)).to_tensor()
    if min(maps.shape[-2:]) >= WINDOW:
        together = torch.stack([local_variance(x), clean.inner, clean.variance], 1)
        found["source_variance"] = CoMoments.of(together).to_tensor()
    found = {name: torch.where(usable.view(-1, *[1] * (value.ndim - 1)), value, 0.0) for name, value in found.items()}
    losses = torch.stack([_pyramid_correlation(x), kl_divergence(x)], 1)
    found["regularisers"] = torch.where(usable[:, None], losses, torch.nan)
    return found


def local_variance(maps: Tensor) -> Tensor:
    """Population variance in every window of 3 x 3, [..., H, W] -> [..., H - 2, W - 2]."""
    x = maps.reshape(-1, 1, *maps.shape[-2:])
    mean = F.avg_pool2d(x, WINDOW, 1)
    square = F.avg_pool2d(x * x, WINDOW, 1)
    return (square - mean * mean).clamp(min=0).view(*maps.shape[:-2], *mean.shape[-2:])


def image_structure(found: Mapping[str, Tensor], excluded: Collection[int]) -> dict[str, Tensor]:
    """Fold the draws of one image; excluded steps count nothing.

    Args:
        found: Measured, [steps, draws, ...] each, on the CPU.
        excluded: Steps to leave out.

    Returns:
        The image's state, [steps, ...] each.
    """
    own = {}
    for name, value in found.items():
        empty = torch.full_like(value, torch.nan if name == "regularisers" else 0.0)
        keep = torch.ones(len(value), dtype=torch.bool)
        keep[list(excluded)] = False
        value = torch.where(keep.view(-1, *[1] * (value.ndim - 1)), value, empty)
        if name == "regularisers":
            own[name] = value.nanmean(1)
        else:
            own[name] = fold_draws(_state(name, value.transpose(0, 1).contiguous()), value.shape[1]).to_tensor()
    return own


class StructureFold:
    """Images folded one after the other, in the order of their ids."""

    def __init__(self) -> None:
        self.images = 0
        self.states: dict[str, Any] = {}
        self.singles: dict[str, Moments] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add one image's state; see `image_structure`."""
        states = {name: _state(name, value) for name, value in tensors.items() if name in _SUMS or name in _PRODUCTS}
        source = states["source"].pearson[..., 0, 1]
        local = states["source_variance"].pearson if "source_variance" in states else None
        unknown = torch.full_like(source, torch.nan)
        values = [
            source,
            unknown if local is None else local[..., 0, 1],
            unknown if local is None else local[..., 0, 2],
            *tensors["regularisers"].unbind(-1),
        ]
        singles = {name: Moments.single(value) for name, value in zip(PER_IMAGE, values, strict=True)}
        known = self.images > 0
        self.states = {name: self.states[name].merge(x) if known else x for name, x in states.items()}
        self.singles = {name: self.singles[name].merge(x) if known else x for name, x in singles.items()}
        self.images += 1

    def spectrum(self) -> Tensor:
        """Return the radial power spectrum per step, [T, radii], over all images and channels."""
        found: Tensor = self.states["spectrum"].mean
        return found

    def autocorrelation(self) -> Tensor:
        """Return the autocorrelation over pairs of pixels without wrapping, [T, 2, max_lag]: horizontal, vertical."""
        if "lags" not in self.states:
            return torch.zeros(len(self.states["spectrum"].n), 2, 0, dtype=torch.float64)
        pearson: Tensor = self.states["lags"].pearson[..., 0, 1].unflatten(-1, (2, -1))
        return pearson

    def circular(self) -> Tensor:
        """Return the autocorrelation with wrapped borders, [T, 2, max_lag]."""
        covariance = self.states["circular"].mean.unflatten(-1, (2, -1))
        found: Tensor = covariance[..., 1:] / covariance[..., :1]
        return found

    def rows(self, t: Tensor, excluded: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return one row of figures per step; what cannot be computed is NaN, with the reason beside it."""
        columns: dict[str, Tensor] = {"flatness": flatness(self.spectrum())}
        for name, values in (("autocorrelation", self.autocorrelation()), ("circular", self.circular())):
            for d, direction in enumerate(_DIRECTIONS):
                for k in range(values.shape[-1]):
                    columns[f"{name}_{direction}_{k + 1}"] = values[:, d, k]
        for name in ("channels", "patches"):
            if name in self.states:
                columns[f"{name}_mean_abs"], columns[f"{name}_mean_top"] = off_diagonal(self.states[name].pearson)
        for name, folded in self.singles.items():
            columns[f"{name}_mean_over_images"] = torch.where(folded.n > 0, folded.mean, torch.nan)
            columns[f"{name}_sd_over_images"] = folded.variance_unbiased.sqrt()
        rows = []
        maps = self.states["spectrum"].n
        for step in range(len(t)):
            row: dict[str, Any] = {"step": step, "t": float(t[step]), "maps": int(maps[step])}
            if maps[step] == 0:
                row["reason"] = excluded.get(str(step), "no step here, or no map that is finite and not constant")
            else:
                row |= {name: float(column[step]) for name, column in columns.items()}
            rows.append(row)
        return rows

    def arrays(self) -> dict[str, Tensor]:
        """Return the folded states."""
        arrays = {name: state.to_tensor() for name, state in self.states.items()}
        return arrays | {f"{name}_over_images": state.to_tensor() for name, state in self.singles.items()}


def off_diagonal(correlations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the absolute correlations [..., V, V] above the diagonal, and of the 20 largest of them."""
    rows, columns = torch.triu_indices(correlations.shape[-1], correlations.shape[-1], 1)
    above = correlations[..., rows, columns].abs()
    if above.shape[-1] == 0:
        nothing = above.new_full(above.shape[:-1], torch.nan)
        return nothing, nothing
    return above.mean(-1), above.topk(min(TOP, above.shape[-1]), -1).values.mean(-1)


_SUMS = ("spectrum", "circular")
_PRODUCTS = ("lags", "channels", "patches", "source", "source_variance")


def _state(name: str, packed: Tensor) -> Any:
    return Sums.from_tensor(packed) if name in _SUMS else CoMoments.from_tensor(packed)


def lag_comoments(x: Tensor, max_lag: int) -> CoMoments:
    """Measure all pairs of pixels at distances 1 .. max_lag along rows and columns; nothing is wrapped.

    Both sides of a distance are the map without its last or first lines, so that their sums are differences of running
    sums over lines, and only the products across the distance are formed anew.

    Args:
        x: [G, C, H, W] float64.
        max_lag: In pixels, less than either side.

    Returns:
        Co-moments of groups [G, 2 max_lag]: horizontal distances, then vertical ones.
    """
    low, high = torch.aminmax(x.flatten(1), dim=1)
    centre = torch.where(low == high, low, x.mean((1, 2, 3)))
    d = x - centre[:, None, None, None]
    squares = d * d
    found = []
    for axis, others in ((3, (1, 2)), (2, (1, 3))):
        length = x.shape[axis]
        first, second = (F.pad(part.sum(others).cumsum(1), (1, 0)) for part in (d, squares))
        for lag in range(1, max_lag + 1):
            ends = slice(0, length - lag), slice(lag, length)
            n = torch.full_like(centre, x[0].numel() // length * (length - lag))
            sums = torch.stack([first[:, end.stop] - first[:, end.start] for end in ends], 1)
            powers = torch.stack([second[:, end.stop] - second[:, end.start] for end in ends], 1)
            shared = (d.narrow(axis, 0, length - lag) * d.narrow(axis, lag, length - lag)).sum((1, 2, 3))
            own = powers - sums * sums / n[:, None]
            # A side that is constant leaves the rounding of its sums.
            own = torch.where(own > 1e-13 * powers, own, 0.0)
            both = torch.where((own > 0).all(1), shared - sums[:, 0] * sums[:, 1] / n, 0.0)
            rows = torch.stack([own[:, 0], both], 1), torch.stack([both, own[:, 1]], 1)
            found.append(CoMoments(n, centre[:, None] + sums / n[:, None], torch.stack(rows, 1)))
    return CoMoments(*(torch.stack(parts, 1) for parts in zip(*map(_fields, found), strict=True)))


def _fields(state: CoMoments) -> tuple[Tensor, Tensor, Tensor]:
    return state.n, state.mean, state.products


def patches(x: Tensor, side: int) -> Tensor:
    """Return variables (channel, row, column) in blocks that do not overlap, [G, C, H, W] -> [G, C side^2, blocks]."""
    rows, columns = (length // side * side for length in x.shape[-2:])
    return F.unfold(x[..., :rows, :columns], side, stride=side)


def _pyramid_correlation(x: Tensor) -> Tensor:
    """Measure pix2pix-zero's auto-correlation with every offset 1."""
    return auto_correlation(x, 1)
