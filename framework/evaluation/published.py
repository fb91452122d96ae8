"""Rows of PIE-Bench as papers print them, to stand beside one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from framework.evaluation.rows import Key

COLUMNS: dict[str, Key] = {
    "structure": ("StructureDistance", "structure_distance"),
    "psnr": ("PixelMetrics", "psnr_unedit_part"),
    "lpips": ("LPIPS", "lpips_squeeze_unedit_part"),
    "mse": ("PixelMetrics", "mse_unedit_part"),
    "ssim": ("PixelMetrics", "ssim_unedit_part"),
    "clip_whole": ("CLIPSimilarity", "clip_similarity_target_image"),
    "clip_edited": ("CLIPSimilarity", "clip_similarity_target_image_edit_part"),
}
"""Names of the file -> the figure that measures the same, in the order of the benchmark's tables."""

SCALES: dict[Key, float] = {
    COLUMNS["structure"]: 1e3,
    COLUMNS["lpips"]: 1e3,
    COLUMNS["mse"]: 1e4,
    COLUMNS["ssim"]: 100,
}
"""What these tables multiply a figure by, where it is not 1."""


@dataclass(frozen=True)
class PublishedRow:
    """One method in one publication.

    Attributes:
        method: Inversion and editing.
        model: The base model.
        source: Where the numbers stand.
        values: Figure -> mean over the 700 images, not scaled.
        verified: The figures that were read on a published page; the others are from memory of the paper.
    """

    method: str
    model: str
    source: str
    values: Mapping[Key, float]
    verified: frozenset[Key]


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Read the rows that come with the project."""
    text = files(__package__).joinpath("published.yaml").read_text("utf-8")
    return tuple(_row(**row) for row in yaml.safe_load(text)["rows"])


def _row(*, method: str, model: str, source: str, verified: str | list[str], **values: float) -> PublishedRow:
    seen = list(values) if verified == "all" else list(verified)
    return PublishedRow(
        method,
        model,
        source,
        {key: values[name] / SCALES.get(key, 1) for name, key in COLUMNS.items() if name in values},
        frozenset(COLUMNS[name] for name in seen),
    )
