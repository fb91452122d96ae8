"""Replay of the recorded noise statistics: reference values in float64, tolerances as recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framework.statistics.comoments import Centred, CoMoments
from framework.statistics.fold import fold
from framework.statistics.histogram import ANGLE_EDGES, Histogram
from framework.statistics.moments import Moments

CASES = Path(__file__).parents[1] / "parity_data" / "cases" / "metrics"
NAMES = ("noise_stats_small", "noise_stats_white")


def computed(tensors: dict[str, torch.Tensor], settings: dict) -> dict[str, torch.Tensor]:
    z = tensors["in.z"]
    moments = fold([Moments.of(image) for image in z])
    per_image = [Moments.of(image) for image in z]
    edges = torch.linspace(*settings["histogram"]["range"], settings["histogram"]["bins"] + 1, dtype=torch.float64)
    histogram = fold([Histogram.of(image, edges) for image in z])
    matrices = [CoMoments.of(image[None]) for image in z]
    matrix = fold(matrices)
    pairs = [CoMoments.between(Centred.of(image[:-1]), Centred.of(image[1:])) for image in z]
    assert moments and histogram and matrix
    angles = torch.stack([pair.angle[:, 0, 1] for pair in pairs])
    angle_histogram = fold([Histogram.single(angle, ANGLE_EDGES) for angle in angles])
    assert angle_histogram
    return {
        "out.count": moments.n,
        "out.mean": moments.mean,
        "out.min": moments.low,
        "out.max": moments.high,
        "out.rms": moments.rms,
        "out.M2": moments.m2,
        "out.M3": moments.m3,
        "out.M4": moments.m4,
        "out.var_population": moments.variance,
        "out.var_unbiased": moments.variance_unbiased,
        "out.skewness": moments.skewness,
        "out.excess_kurtosis": moments.excess_kurtosis,
        "out.jarque_bera": moments.jarque_bera,
        "out.kl_gaussian_to_standard": moments.gaussian_kl,
        "out.kl_histogram_to_standard": histogram.kl_to_normal,
        "out.ks_D_from_histogram": histogram.ks_to_normal,
        "out.histogram_counts": histogram.counts.double(),
        "out.mean_per_image": torch.stack([m.mean for m in per_image]),
        "out.var_per_image": torch.stack([m.variance for m in per_image]),
        "out.pearson_adjacent_per_image": torch.stack([pair.pearson[:, 0, 1] for pair in pairs]),
        "out.cosine_adjacent_per_image": torch.stack([pair.cosine[:, 0, 1] for pair in pairs]),
        "out.angle_degrees_adjacent_per_image": angles,
        "out.pearson_adjacent_pooled": fold(pairs).pearson[:, 0, 1],
        "out.angle_histogram_1deg": angle_histogram.counts[:, 1:-1].double(),
        "out.pearson_matrix_pooled": matrix.pearson[0],
        "out.pearson_matrix_mean_over_images": torch.stack([m.pearson[0] for m in matrices]).mean(0),
    }


@pytest.mark.parametrize("name", NAMES)
def test_noise_statistics_equal_the_recorded_ones(name):
    about = json.loads((CASES / f"{name}.json").read_text())
    tensors = load_file(CASES / f"{name}.safetensors")

    results = computed(tensors, about["settings"])

    for key, result in results.items():
        expected, entry = tensors[key], about["expected"][key]
        bound = entry["atol"] + entry["rtol"] * float(expected[expected.isfinite()].abs().max())
        error = float((result - expected).abs().nan_to_num(0).max())
        assert result.shape == expected.shape, key
        assert torch.equal(result.isfinite(), expected.isfinite()), key
        assert error <= bound, f"{key}: {error} > {bound}"


@pytest.mark.parametrize("name", NAMES)
def test_recorded_moments_of_groups_merge_to_the_recorded_whole(name):
    about = json.loads((CASES / f"{name}.json").read_text())
    tensors = load_file(CASES / f"{name}.safetensors")
    groups = [tensors[f"in.shard{g}.moments"] for g in range(len(about["settings"]["shards"]))]
    unknown = torch.full_like(groups[0][:, 0], torch.nan)

    merged = fold([Moments(*group.unbind(1), unknown, unknown) for group in groups])

    assert merged is not None
    for key, result in {
        "count": merged.n,
        "mean": merged.mean,
        "M2": merged.m2,
        "M3": merged.m3,
        "M4": merged.m4,
    }.items():
        expected, entry = tensors[f"out.{key}"], about["expected"][f"out.{key}"]
        bound = entry["atol"] + entry["rtol"] * float(expected.abs().max())
        assert float((result - expected).abs().max()) <= bound, key
