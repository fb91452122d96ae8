"""Co-moments of several variables: correlation, cosine and angle between noise maps of different steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from framework.statistics.fold import to_float64


class Centred(NamedTuple):
    """Groups of values without their mean, to be compared with others of the same shape.

    Attributes:
        mean: [groups].
        deviations: [groups, n] float64; exactly 0 where a group is constant.
        square: [groups] sums of the squared deviations.
    """

    mean: Tensor
    deviations: Tensor
    square: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Centred:
        """Centre groups [groups, ...] on their device; the values may change afterwards."""
        x = to_float64(values).flatten(1)
        low, high = torch.aminmax(x, dim=1)
        mean = torch.where(low == high, low, x.mean(1))
        d = x - mean[:, None]
        return cls(mean, d, torch.linalg.vecdot(d, d))


@dataclass(frozen=True)
class CoMoments:
    """Count, means and centred products of V variables that are observed together. All fields float64.

    A constant variable has centred products of exactly 0: its correlations are NaN, its cosines are not.

    Attributes:
        n: [groups] number of joint observations; 0 changes nothing when merged.
        mean: [groups, V].
        products: [groups, V, V] sums of (x_v - mean_v)(x_w - mean_w).

    Source: Chan, Golub and LeVeque (1979); C = C_a + C_b + d d^T n_a n_b / n.
    """

    n: Tensor
    mean: Tensor
    products: Tensor

    @classmethod
    def of(cls, variables: Tensor) -> Self:
        """Measure groups [groups, V, ...]: all later axes are joint observations. Stays on their device."""
        x = to_float64(variables).flatten(2)
        low, high = torch.aminmax(x, dim=2)
        constant = low == high
        mean = torch.where(constant, low, x.mean(2))
        d = x - mean[..., None]
        return cls(torch.full_like(mean[:, 0], x.shape[2]), mean, d @ d.mT)

    @classmethod
    def between(cls, a: Centred, b: Centred) -> Self:
        """Measure pairs of variables that were centred before, group by group; V is 2."""
        shared = torch.linalg.vecdot(a.deviations, b.deviations)
        rows = torch.stack([a.square, shared], -1), torch.stack([shared, b.square], -1)
        n = torch.full_like(a.mean, a.deviations.shape[1])
        return cls(n, torch.stack([a.mean, b.mean], -1), torch.stack(rows, -2))

    @classmethod
    def from_tensor(cls, packed: Tensor) -> Self:
        """Inverse of `to_tensor`."""
        size = packed.shape[-1] - 1
        variables = round(((9 + 8 * size) ** 0.5 - 3) / 2)
        mean, triangle = packed[..., 1 : 1 + variables], packed[..., 1 + variables :]
        rows, columns = torch.triu_indices(variables, variables)
        products = packed.new_zeros(*packed.shape[:-1], variables, variables)
        products[..., rows, columns] = triangle
        products[..., columns, rows] = triangle
        return cls(packed[..., 0], mean, products)

    def to_tensor(self) -> Tensor:
        """Pack into [groups, 1 + V + V (V + 1) / 2]: n, means, upper triangle of the products by rows."""
        size = self.mean.shape[-1]
        rows, columns = torch.triu_indices(size, size, device=self.mean.device)
        return torch.cat([self.n[..., None], self.mean, self.products[..., rows, columns]], -1)

    def select(self, index: int) -> Self:
        """Return the groups at one index of the first axis."""
        return type(self)(self.n[index], self.mean[index], self.products[index])

    def without(self, empty: Tensor) -> Self:
        """Empty the groups at which a boolean tensor [groups] is set."""
        return type(self)(
            torch.where(empty, 0.0, self.n),
            torch.where(empty[..., None], 0.0, self.mean),
            torch.where(empty[..., None, None], 0.0, self.products),
        )

    def merge(self, other: Self) -> Self:
        """Return the co-moments of the observations of both, group by group."""
        a, b = self, other
        n = a.n + b.n
        some = torch.where(n > 0, n, 1.0)[..., None]
        d = b.mean - a.mean
        mean = a.mean + d / some * b.n[..., None]
        weight = (a.n * b.n)[..., None] / some
        products = a.products + b.products + d[..., :, None] * d[..., None, :] * weight[..., None]

        def whole(x: Tensor, y: Tensor, both: Tensor) -> Tensor:
            shape = (*n.shape, *([1] * (x.ndim - n.ndim)))
            return torch.where((b.n == 0).view(shape), x, torch.where((a.n == 0).view(shape), y, both))

        return type(self)(n, whole(a.mean, b.mean, mean), whole(a.products, b.products, products))

    @property
    def finite(self) -> Tensor:
        """Whether all values of a group were finite, [groups] bool."""
        return torch.isfinite(self.products).flatten(-2).all(-1)

    @property
    def pearson(self) -> Tensor:
        """Centred correlations, [groups, V, V] in [-1, 1]; NaN where a side is constant or a group is empty."""
        return _normalised(self.products)

    @property
    def cosine(self) -> Tensor:
        """Uncentred correlations <a, b> / (|a| |b|), [groups, V, V] in [-1, 1]; NaN where a side is zero."""
        return _normalised(self.products + self.n[..., None, None] * self.mean[..., :, None] * self.mean[..., None, :])

    @property
    def angle(self) -> Tensor:
        """Angles between the variables in degrees, [groups, V, V] in [0, 180]; NaN where a side is zero."""
        return self.cosine.arccos().rad2deg()


def _normalised(products: Tensor) -> Tensor:
    scale = products.diagonal(dim1=-2, dim2=-1).sqrt()
    # Divided by one root after the other: the product of two small variances could underflow.
    return (products / scale[..., :, None] / scale[..., None, :]).clamp(-1, 1)
