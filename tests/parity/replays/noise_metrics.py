"""Statistics of noise maps and pix2pix-zero's regularisers, by the definitions that the cases were recorded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.statistics.comoments import Centred, CoMoments
from framework.statistics.fold import fold
from framework.statistics.histogram import ANGLE_EDGES, Histogram
from framework.statistics.moments import Moments
from framework.statistics.normality import dagostino_k2, ks_distance, ks_log10_p
from framework.statistics.regularisers import auto_correlation, kl_divergence, pyramid_rows
from framework.statistics.spectrum import circular_autocovariance, power_spectrum, radial, radial_sizes
from framework.statistics.structure import lag_comoments, off_diagonal, patches
from tests.parity.case import Case, compare


def replay_noise_statistics(case: Case, models: Path) -> dict[str, Any]:
    """Fold the images one after the other; that groups of them merge to the same is checked on the recorded groups."""
    del models
    z, settings = case.input("in.z"), case.settings
    moments = _folded([Moments.of(image) for image in z])
    per_image = [Moments.of(image) for image in z]
    span = settings["histogram"]
    edges = torch.linspace(*span["range"], span["bins"] + 1, dtype=torch.float64)
    histogram = _folded([Histogram.of(image, edges) for image in z])
    pooled = z.transpose(0, 1).flatten(1)
    distances = ks_distance(pooled)
    _check_groups(case)
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
        "out.dagostino_k2": dagostino_k2(moments),
        "out.ks_D_standard_normal": distances,
        "out.ks_D_standardised": ks_distance(pooled, standardise=True),
        "out.ks_D_from_histogram": histogram.ks_to_normal,
        "out.ks_log10_p_standard_normal": torch.tensor(
            [max(ks_log10_p(float(d), pooled.shape[1]), -300.0) for d in distances], dtype=torch.float64
        ),
        "out.kl_gaussian_to_standard": moments.gaussian_kl,
        "out.kl_histogram_to_standard": histogram.kl_to_normal,
        "out.histogram_counts": histogram.counts,
        "out.mean_per_image": torch.stack([m.mean for m in per_image]),
        "out.var_per_image": torch.stack([m.variance for m in per_image]),
        **_between_steps(z),
        **_in_space(z, int(settings["max_lag"]), int(settings["patch"])),
    }


def replay_regularisers(case: Case, models: Path) -> dict[str, Any]:
    del models
    x = case.input("in.x")
    levels = len(pyramid_rows(x.shape[-2]))
    shifts = torch.tensor(case.settings["random_shifts"]).view(1, x.shape[1], levels)
    return {
        "out.auto_corr_shift_1": float(auto_correlation(x, 1)[0]),
        "out.auto_corr_recorded_shifts": float(auto_correlation(x, shifts)[0]),
        "out.kl_divergence": float(kl_divergence(x)[0]),
    }


def _between_steps(z: Tensor) -> dict[str, Tensor]:
    pairs = [CoMoments.between(Centred.of(image[:-1]), Centred.of(image[1:])) for image in z]
    matrices = [CoMoments.of(image[None]) for image in z]
    angles = torch.stack([pair.angle[:, 0, 1] for pair in pairs])
    return {
        "out.pearson_adjacent_per_image": torch.stack([pair.pearson[:, 0, 1] for pair in pairs]),
        "out.cosine_adjacent_per_image": torch.stack([pair.cosine[:, 0, 1] for pair in pairs]),
        "out.angle_degrees_adjacent_per_image": angles,
        "out.angle_histogram_1deg": _folded([Histogram.single(a, ANGLE_EDGES) for a in angles]).counts[:, 1:-1],
        "out.pearson_adjacent_pooled": _folded(pairs).pearson[:, 0, 1],
        "out.pearson_matrix_pooled": _folded(matrices).pearson[0],
        "out.pearson_matrix_mean_over_images": torch.stack([m.pearson[0] for m in matrices]).mean(0),
    }


def _in_space(z: Tensor, max_lag: int, side: int) -> dict[str, Tensor]:
    power = power_spectrum(z).mean((0, 2))
    covariance = circular_autocovariance(power, max_lag)
    circular = covariance[..., 1:] / covariance[..., :1]
    lags = _folded([lag_comoments(image, max_lag) for image in z]).pearson[..., 0, 1].split(max_lag, 1)
    blocks = _folded([CoMoments.of(patches(image, side)) for image in z]).pearson
    mean, largest = off_diagonal(blocks)
    return {
        "out.autocorr_circular_horizontal": circular[:, 0],
        "out.autocorr_circular_vertical": circular[:, 1],
        "out.autocorr_pairs_horizontal": lags[0],
        "out.autocorr_pairs_vertical": lags[1],
        "out.power_spectrum_mean": power,
        "out.power_spectrum_radial": radial(power),
        "out.power_spectrum_radial_bin_size": radial_sizes(*z.shape[-2:]),
        "out.channel_correlation": _folded([CoMoments.of(image) for image in z]).pearson,
        "out.patch_correlation": blocks,
        "out.patch_correlation_mean_abs_offdiag": mean,
        "out.patch_correlation_mean_top20_abs": largest,
    }


def _check_groups(case: Case) -> None:
    """Merge the recorded groups of images and compare with what was recorded of all images together."""
    groups = [case.input(f"in.shard{g}.moments") for g in range(len(case.settings["shards"]))]
    unknown = torch.full_like(groups[0][:, 0], torch.nan)
    merged = _folded([Moments(*group.unbind(1), unknown, unknown) for group in groups])
    for name, value in (
        ("count", merged.n),
        ("mean", merged.mean),
        ("M2", merged.m2),
        ("M3", merged.m3),
        ("M4", merged.m4),
    ):
        assert compare(value, case.wanted(f"out.{name}"), case.expected[f"out.{name}"]).ok, name


def _folded(states: list[Any]) -> Any:
    total = fold(states)
    assert total is not None
    return total
