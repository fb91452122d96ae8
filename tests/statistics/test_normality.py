from __future__ import annotations

import math

import pytest
import torch

from framework.statistics.histogram import NOISE_EDGES, Histogram
from framework.statistics.moments import Moments
from framework.statistics.normality import dagostino_k2, ks_distance, ks_log10_p


def test_the_distance_of_one_value_is_known():
    # F_n jumps from 0 to 1 at the value: the distance is the larger of Phi and 1 - Phi.
    found = ks_distance(torch.tensor([[0.0], [1.0], [-1.0]]))

    expected = [0.5, float(torch.special.ndtr(torch.tensor(1.0))), float(torch.special.ndtr(torch.tensor(1.0)))]
    assert found.tolist() == pytest.approx(expected, abs=1e-7)


def test_quantiles_of_the_normal_are_as_near_as_a_sample_can_be():
    n = 500
    values = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)

    assert float(ks_distance(values[None])) == pytest.approx(0.5 / n, abs=1e-12)


def test_a_histogram_bounds_the_exact_distance():
    values = torch.randn(5, 4096, generator=torch.Generator().manual_seed(0)) * 1.3 + 0.2
    histogram = Histogram.of(values, NOISE_EDGES)

    exact = ks_distance(values)

    assert (histogram.ks_to_normal <= exact).all() and (exact <= histogram.ks_bound).all()
    assert (histogram.ks_bound - histogram.ks_to_normal).max() < 0.04


def test_constant_and_broken_groups_are_nan_and_spoil_no_other():
    values = torch.randn(3, 100)
    values[0] = 2.0
    values[1, 5] = math.nan

    assert ks_distance(values, standardise=True).isnan().tolist() == [True, True, False]
    assert ks_distance(values).isnan().tolist() == [False, True, False]
    assert dagostino_k2(Moments.of(values)).isnan().tolist() == [True, True, False]


def test_the_chance_of_a_distance_meets_kolmogorovs_limit():
    # P(sqrt(n) D > x) -> 2 sum (-1)^(k-1) exp(-2 k^2 x^2)
    x, n = 1.358, 10**6
    limit = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 20))

    assert 10 ** ks_log10_p(x / math.sqrt(n), n) == pytest.approx(limit, rel=5e-3)
    assert limit == pytest.approx(0.05, abs=2e-4)


def test_both_expansions_of_the_chance_agree_where_they_meet():
    n = 4096
    below, above = (math.sqrt(square / n) for square in (2.2 * (1 - 1e-9), 2.2 * (1 + 1e-9)))

    # The tail leaves out that both sides are so far at once, a share of about exp(-6 * 2.2) of it.
    assert ks_log10_p(below, n) == pytest.approx(ks_log10_p(above, n), abs=1e-6)


def test_k2_of_normal_values_is_chi_squared():
    values = torch.randn(2000, 256, generator=torch.Generator().manual_seed(1))

    found = dagostino_k2(Moments.of(values))

    # Mean 2, and 5 % above 5.99.
    assert float(found.mean()) == pytest.approx(2.0, abs=0.2)
    assert float((found > 5.991).double().mean()) == pytest.approx(0.05, abs=0.02)
