"""Laws of the mergeable states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from framework.statistics.comoments import Centred, CoMoments
from framework.statistics.fold import fold, fold_draws
from framework.statistics.histogram import ANGLE_EDGES, NOISE_EDGES, Histogram, normal_mass
from framework.statistics.moments import Moments


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_of_two_values_are_those_done_by_hand():
    moments = Moments.of(torch.tensor([[1.0, 3.0]]))

    assert moments.to_tensor().tolist() == [[2, 2, 2, 0, 2, 1, 3]]


def test_moments_of_the_parts_merge_to_the_moments_of_the_whole():
    x = draw(3, 1000) ** 3 + 5

    merged = Moments.of(x[:, :10]).merge(Moments.of(x[:, 10:700])).merge(Moments.of(x[:, 700:]))

    torch.testing.assert_close(merged.to_tensor(), Moments.of(x).to_tensor(), rtol=1e-11, atol=0)


def test_an_empty_group_leaves_the_other_bits_as_they_are():
    moments, products = Moments.of(draw(2, 50)), CoMoments.of(draw(2, 3, 50))
    empty = torch.tensor([True, True])

    for joined in (moments.merge(moments.without(empty)), moments.without(empty).merge(moments)):
        assert torch.equal(joined.to_tensor(), moments.to_tensor())
    for joined in (products.merge(products.without(empty)), products.without(empty).merge(products)):
        assert torch.equal(joined.to_tensor(), products.to_tensor())


def test_a_constant_group_has_no_shape_and_poisons_nothing():
    x = draw(2, 4096)
    x[0] = 0.1

    moments = Moments.of(x)

    assert moments.variance[0] == 0
    assert moments.skewness[0].isnan() and moments.excess_kurtosis[0].isnan() and moments.jarque_bera[0].isnan()
    assert moments.gaussian_kl[0] == math.inf
    assert abs(float(moments.excess_kurtosis[1])) < 0.4


def test_a_constant_variable_has_no_correlation_and_poisons_no_other():
    x = draw(1, 3, 4096)
    x[0, 1] = 0.1

    state = CoMoments.of(x).merge(CoMoments.of(x))

    assert state.pearson[0].isnan().tolist() == [[False, True, False], [True, True, True], [False, True, False]]
    assert state.cosine[0].isfinite().all()


def test_a_zeroed_map_has_neither_correlation_nor_angle():
    x = draw(1, 2, 64)
    x[0, 1] = 0

    state = CoMoments.of(x)

    assert state.pearson[0, 0, 1].isnan() and state.angle[0, 0, 1].isnan()


def test_values_that_are_not_finite_are_told_and_can_be_left_out():
    x = draw(2, 100)
    x[1, 7] = math.nan
    moments, state = Moments.of(x), CoMoments.of(x[:, None])

    assert moments.finite.tolist() == [True, False] and state.finite.tolist() == [True, False]
    kept = moments.without(~moments.finite)
    assert kept.n.tolist() == [100, 0] and kept.mean[1] == 0


def test_single_values_fold_to_their_mean_and_deviation():
    values = [torch.tensor([1.0, math.nan]), torch.tensor([3.0, 5.0])]

    folded = fold([Moments.single(value) for value in values])

    assert folded is not None
    assert folded.n.tolist() == [2, 1] and folded.mean.tolist() == [2, 5]
    assert folded.variance_unbiased[0] == 2 and folded.variance_unbiased[1].isnan()


def test_correlation_of_the_parts_merges_to_numpys_of_the_whole():
    x = draw(1, 4, 900)
    x[0, 1] += 0.5 * x[0, 0] + 3

    state = CoMoments.of(x[..., :100]).merge(CoMoments.of(x[..., 100:]))

    np.testing.assert_allclose(state.pearson[0], np.corrcoef(x[0]), atol=1e-13)
    cosine = (x[0, 0] @ x[0, 1]) / (x[0, 0].norm() * x[0, 1].norm())
    np.testing.assert_allclose(state.cosine[0, 0, 1], cosine, atol=1e-13)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_the_angle_between_two_vectors_is_the_one_that_they_were_built_with(degrees):
    other = [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    state = CoMoments.of(torch.tensor([[[1.0, 0.0], other]], dtype=torch.float64))

    assert float(state.angle[0, 0, 1]) == pytest.approx(degrees, abs=1e-5)


def test_a_pair_that_was_centred_before_is_measured_like_any_other():
    a, b = draw(4, 200), draw(4, 200, seed=1) + 3
    a[2] = 0.1

    found, expected = CoMoments.between(Centred.of(a), Centred.of(b)), CoMoments.of(torch.stack([a, b], 1))

    torch.testing.assert_close(found.to_tensor(), expected.to_tensor(), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.pearson.isnan(), expected.pearson.isnan())


def test_states_come_back_from_their_packed_form_bit_by_bit():
    moments, state = Moments.of(draw(3, 40)), CoMoments.of(draw(2, 5, 40))

    assert torch.equal(Moments.from_tensor(moments.to_tensor()).m3, moments.m3)
    again = CoMoments.from_tensor(state.to_tensor())
    assert torch.equal(again.mean, state.mean) and torch.equal(again.products.triu(), state.products.triu())


def test_counts_equal_numpys_also_on_the_edges():
    x = torch.cat([draw(5000) * 3, NOISE_EDGES, torch.tensor([-math.inf, math.inf], dtype=torch.float64)])

    histogram = Histogram.of(x[None], NOISE_EDGES)

    assert histogram.counts[0, 1:-1].tolist() == np.histogram(x.numpy(), NOISE_EDGES.numpy())[0].tolist()
    assert histogram.counts[0, [0, -1]].tolist() == [int((x < -5).sum()), int((x > 5).sum())]


def test_histograms_on_different_edges_are_refused():
    first, second = Histogram.of(draw(1, 9), NOISE_EDGES), Histogram.of(draw(1, 9), NOISE_EDGES * 2)

    with pytest.raises(ValueError, match=r"100 bins on \[-5, 5\] and 100 bins on \[-10, 10\]"):
        first.merge(second)


def test_the_mass_of_a_normal_adds_up_to_one_and_large_samples_have_no_distance_to_it():
    histogram = Histogram.of(draw(1, 200_000), NOISE_EDGES)

    assert float(normal_mass(NOISE_EDGES).sum()) == pytest.approx(1, abs=1e-15)
    assert float(histogram.kl_to_normal) < 101 / (2 * 200_000) * 2
    assert float(histogram.ks_to_normal) < 1.63 / math.sqrt(200_000)
    assert float(histogram.density.sum() * 0.1) == pytest.approx(1, abs=1e-5)


def test_the_right_angle_falls_in_the_bin_above_it_and_a_missing_angle_nowhere():
    histogram = Histogram.single(torch.tensor([90.0, 180.0, math.nan]), ANGLE_EDGES)

    assert histogram.counts.sum(1).tolist() == [1, 1, 0]
    assert histogram.counts[0, 1 + 90] == 1 and histogram.counts[1, 180] == 1


def test_draws_of_an_image_fold_like_images():
    x = draw(4, 3, 50)

    state = Moments.from_tensor(torch.stack([Moments.of(part).to_tensor() for part in x]))

    assert torch.equal(fold_draws(state, 4).m4, fold([Moments.of(part) for part in x]).m4)
