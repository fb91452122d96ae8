"""Folded statistics as rows of figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from framework.statistics.comoments import CoMoments
from framework.statistics.histogram import Histogram
from framework.statistics.moments import Moments
from framework.statistics.normality import dagostino_k2


def noise_table(
    pooled: Moments, histogram: Histogram, spread: Moments, t: Tensor, excluded: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return one row of figures per step; what cannot be computed is NaN, with the reason beside it.

    Args:
        pooled: [T] moments of all values of all images.
        histogram: [T] their histogram.
        spread: [T] variances per image, folded.
        t: [T] time of each step.
        excluded: Step -> reason why it was left out.
    """
    columns = {
        "t": t,
        "count": pooled.n,
        "mean": pooled.mean,
        "variance": pooled.variance,
        "variance_unbiased": pooled.variance_unbiased,
        "skewness": pooled.skewness,
        "excess_kurtosis": pooled.excess_kurtosis,
        "jarque_bera": pooled.jarque_bera,
        "dagostino_k2": dagostino_k2(pooled),
        "kl_gaussian": pooled.gaussian_kl,
        "kl_histogram": histogram.kl_to_normal,
        "ks_histogram": histogram.ks_to_normal,
        "ks_histogram_bound": histogram.ks_bound,
        "smallest": pooled.low,
        "largest": pooled.high,
        "variance_mean_over_images": torch.where(spread.n > 0, spread.mean, torch.nan),
        "variance_sd_over_images": spread.variance_unbiased.sqrt(),
        "images": spread.n,
    }
    rows = []
    for step in range(len(t)):
        row: dict[str, Any] = {"step": step, **{key: float(column[step]) for key, column in columns.items()}}
        if pooled.n[step] == 0:
            row = {"step": step, "t": row["t"], "count": 0}
            row["reason"] = excluded.get(str(step), "no step here, or no value that is finite")
        elif pooled.low[step] == pooled.high[step]:
            row["reason"] = "constant: no shape, and an infinite distance to a normal"
        rows.append(row)
    return rows


def pair_table(
    pooled: CoMoments, correlations: Moments, angles: Moments, excluded: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return one row of figures per pair of neighbouring steps; what cannot be computed is NaN, with the reason.

    Args:
        pooled: [T - 1] co-moments of two maps over all values of all images.
        correlations, angles: [T - 1] correlation and angle in degrees per image, folded.
        excluded: Step -> reason why it was left out.
    """
    pearson = pooled.pearson[:, 0, 1]
    rows = []
    for step in range(len(pearson)):
        row: dict[str, Any] = {
            "step": step,
            "next": step + 1,
            "correlation_pooled": float(pearson[step]),
            "images": int(correlations.n[step]),
        }
        for name, folded in (("correlation", correlations), ("angle", angles)):
            row[f"{name}_mean_over_images"] = float(folded.mean[step]) if folded.n[step] > 0 else float("nan")
            row[f"{name}_sd_over_images"] = float(folded.variance_unbiased[step].sqrt())
        if correlations.n[step] == 0:
            why = [f"step {s}: {excluded[str(s)]}" for s in (step, step + 1) if str(s) in excluded]
            row["reason"] = "; ".join(why) or "a map is missing, constant or not finite"
        rows.append(row)
    return rows
