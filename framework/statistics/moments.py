"""Mean and centred powers of groups of values, merged by the formulas of Chan and Pebay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from framework.statistics.fold import to_float64


@dataclass(frozen=True)
class Moments:
    """Count, mean, sums of centred powers and extrema of groups of values. All fields float64 of one shape [groups].

    A group without values has count 0 and changes nothing when merged. A constant group has centred sums of exactly 0,
    so that what divides by its variance is NaN and not a ratio of rounding errors.

    Attributes:
        n: Number of values.
        mean: Their mean.
        m2, m3, m4: Sums of (x - mean)^k.
        low, high: Smallest and largest value; +inf and -inf of an empty group.

    Source: Pebay, Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
    moments (Sandia report SAND2008-6212), after Chan, Golub and LeVeque (1979).
    """

    n: Tensor
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Measure groups of values [groups, ...]; everything stays on their device."""
        x = to_float64(values).flatten(1)
        low, high = torch.aminmax(x, dim=1)
        constant = low == high
        mean = torch.where(constant, low, x.mean(1))
        d = x - mean[:, None]
        d2 = d * d
        n = torch.full_like(mean, x.shape[1])
        return cls(n, mean, d2.sum(1), (d2 * d).sum(1), (d2 * d2).sum(1), low, high)

    @classmethod
    def single(cls, values: Tensor) -> Self:
        """Take every value as a group of its own; one that is not finite is an empty group."""
        x = to_float64(values)
        zero, valid = torch.zeros_like(x), torch.isfinite(x)
        low, high = torch.where(valid, x, torch.inf), torch.where(valid, x, -torch.inf)
        return cls(valid.to(x.dtype), torch.where(valid, x, zero), zero, zero, zero, low, high)

    @classmethod
    def from_tensor(cls, packed: Tensor) -> Self:
        """Inverse of `to_tensor`."""
        return cls(*packed.unbind(-1))

    def to_tensor(self) -> Tensor:
        """Pack into [groups, 7]: n, mean, M2, M3, M4, smallest, largest."""
        return torch.stack(self._fields, -1)

    def select(self, index: int) -> Self:
        """Return the groups at one index of the first axis."""
        return type(self)(*(value[index] for value in self._fields))

    def without(self, empty: Tensor) -> Self:
        """Empty the groups at which a boolean tensor [groups] is set."""
        nothing = (0.0, 0.0, 0.0, 0.0, 0.0, torch.inf, -torch.inf)
        return type(self)(*(torch.where(empty, *pair) for pair in zip(nothing, self._fields, strict=True)))

    def merge(self, other: Self) -> Self:
        """Return the moments of the values of both, group by group."""
        a, b = self, other
        n = a.n + b.n
        some = torch.where(n > 0, n, 1.0)
        d = b.mean - a.mean
        d_n = d / some
        d2_n2 = d_n * d_n
        cross = d * d_n * a.n * b.n
        m2 = a.m2 + b.m2 + cross
        m3 = a.m3 + b.m3 + cross * d_n * (a.n - b.n) + 3 * d_n * (a.n * b.m2 - b.n * a.m2)
        m4 = (
            a.m4
            + b.m4
            + cross * d2_n2 * (a.n * a.n - a.n * b.n + b.n * b.n)
            + 6 * d2_n2 * (a.n * a.n * b.m2 + b.n * b.n * a.m2)
            + 4 * d_n * (a.n * b.m3 - b.n * a.m3)
        )
        joined = (n, a.mean + d_n * b.n, m2, m3, m4, torch.minimum(a.low, b.low), torch.maximum(a.high, b.high))

        # An empty side leaves the other's bits as they are.
        def whole(x: Tensor, y: Tensor, both: Tensor) -> Tensor:
            return torch.where(b.n == 0, x, torch.where(a.n == 0, y, both))

        return type(self)(*(whole(*values) for values in zip(a._fields, b._fields, joined, strict=True)))

    @property
    def _fields(self) -> tuple[Tensor, ...]:
        return self.n, self.mean, self.m2, self.m3, self.m4, self.low, self.high

    @property
    def finite(self) -> Tensor:
        """Whether all values of a group were finite, [groups] bool."""
        return torch.isfinite(self.m4)

    @property
    def variance(self) -> Tensor:
        """Population variance M2 / n; NaN of an empty group."""
        return self.m2 / self.n

    @property
    def variance_unbiased(self) -> Tensor:
        """Sample variance M2 / (n - 1); NaN of fewer than two values."""
        return torch.where(self.n > 1, self.m2 / (self.n - 1), torch.nan)

    @property
    def rms(self) -> Tensor:
        """Root mean square."""
        return (self.variance + self.mean * self.mean).sqrt()

    @property
    def skewness(self) -> Tensor:
        """Biased g1 = (M3 / n) / v^1.5; NaN of a constant group."""
        v = self.variance
        return self.m3 / self.n / (v * v.sqrt())

    @property
    def excess_kurtosis(self) -> Tensor:
        """Biased g2 = (M4 / n) / v^2 - 3; NaN of a constant group."""
        v = self.variance
        return self.m4 / self.n / (v * v) - 3

    @property
    def jarque_bera(self) -> Tensor:
        """JB = n / 6 (g1^2 + g2^2 / 4), chi-squared with 2 degrees of freedom for normal values; NaN if constant."""
        g1, g2 = self.skewness, self.excess_kurtosis
        return self.n / 6 * (g1 * g1 + g2 * g2 / 4)

    @property
    def gaussian_kl(self) -> Tensor:
        """KL(N(mean, v) || N(0, 1)) = (v + mean^2 - 1 - ln v) / 2 in nats; inf of a constant group."""
        v = self.variance
        return (v + self.mean * self.mean - 1 - v.log()) / 2
