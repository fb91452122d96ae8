"""Runs as rows of a table: means over samples, spreads, valid counts, and what an edit costs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.report.results import Cell, RunResults

EDIT = "edit"
"""Row of the edits themselves in a sample's measurements; the others are fixed rows."""
_ABBREVIATIONS = frozenset({"psnr", "ssim", "lpips", "mse", "clip", "dino", "iou", "kl", "ks", "rms", "dc", "fid"})

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True, order=True)
class Figure:
    """One number that was measured for every edit.

    Attributes:
        callback, metric, name: Where it stands in a sample's measurements.
    """

    callback: str
    metric: str
    name: str


@dataclass(frozen=True)
class About:
    """How a figure is to be read.

    Attributes:
        label: Its name, for people; different for every figure of a report.
        better: Which direction is better, empty if nobody said.
        unit: "dB", ...; empty for a plain number.
        scale: What a value is multiplied by before it is shown.
    """

    label: str
    better: Better
    unit: str
    scale: float = 1.0

    def shown(self, value: float | None) -> float | None:
        """Return a value as it is shown."""
        return None if value is None else value * self.scale


@dataclass(frozen=True)
class Summary:
    """Mean and spread of some numbers.

    Attributes:
        mean: None where there is no number.
        deviation: Standard deviation over samples (n - 1); None for fewer than two.
        n: How many numbers are valid.
        of: How many samples were measured.
    """

    mean: float | None
    deviation: float | None
    n: int
    of: int

    def shown(self, about: About) -> dict[str, Any]:
        """Return plain values for json, as they are shown."""
        return {"mean": about.shown(self.mean), "sd": about.shown(self.deviation), "n": self.n, "of": self.of}


def summarise(values: Sequence[float | None]) -> Summary:
    """Fold numbers of samples; what is None or not finite is counted, not averaged."""
    valid = [value for value in values if value is not None and math.isfinite(value)]
    n = len(valid)
    mean = math.fsum(valid) / n if n else None
    deviation = None
    if mean is not None and n > 1:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in valid) / (n - 1))
    return Summary(mean, deviation, n, len(values))


def measured(cell: Cell, row: str = EDIT) -> Iterator[tuple[Figure, float | None]]:
    """Iterate over the figures of one sample, in the order in which they were measured."""
    for callback, values in _mapping(cell.meta.get("measurements")).items():
        for metric, figures in _mapping(_mapping(_mapping(values).get("rows")).get(row)).items():
            for name, value in _mapping(figures).items():
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                yield Figure(callback, metric, name), float(value) if number else None


def fixed_rows(run: RunResults) -> dict[str, dict[Figure, Summary]]:
    """Summarise the fixed rows of a run's metrics (the source copied, ...): row -> figures."""
    names: dict[str, None] = {}
    for cell in run.done:
        for values in _mapping(cell.meta.get("measurements")).values():
            names |= dict.fromkeys(row for row in _mapping(_mapping(values).get("rows")) if row != EDIT)
    return {name: summaries(run, name) for name in names}


def summaries(run: RunResults, row: str = EDIT) -> dict[Figure, Summary]:
    """Summarise every figure of one run's samples."""
    found: dict[Figure, list[float | None]] = {}
    for cell in run.done:
        for figure, value in measured(cell, row):
            found.setdefault(figure, []).append(value)
    return {figure: summarise(values) for figure, values in found.items()}


def figures_of(runs: Sequence[RunResults]) -> dict[Figure, About]:
    """Find every figure of some runs, in the order in which they were measured, and how to read each.

    Directions and units are those that the runs noted when they started or when they ended.
    """
    order: dict[Figure, None] = {}
    known: dict[Figure, tuple[Better, str, float]] = {}
    for run in runs:
        for cell in run.done:
            order |= dict.fromkeys(figure for figure, _ in measured(cell))
        for start in run.starts:
            for callback, about in _mapping(start.get("measures")).items():
                known |= _described(callback, about)
        for path in sorted((run.directory / "statistics").glob("*.json")):
            known |= _described(path.stem, read_json(path))
    names = [figure.name for figure in order]
    abouts = {}
    for figure in order:
        label = in_words(figure.name)
        if names.count(figure.name) > 1:
            label = f"{figure.metric} {label}"
        abouts[figure] = About(label, *known.get(figure, ("", "", 1.0)))
    return abouts


def cost(run: RunResults) -> dict[str, float | None]:
    """Mean network evaluations and seconds per image, and peak memory in bytes, of a run's samples.

    The first batch of a process is left out of the seconds where there are others: it holds what is done once.
    """
    rows = [_number(_mapping(_mapping(cell.meta.get("evaluations")).get("total")).get("samples")) for cell in run.done]
    timed = [(_number(cell.entry.details.get("seconds")), _warm_up(cell)) for cell in run.done]
    warm = [seconds for seconds, first in timed if not first]
    seconds = warm if any(value is not None for value in warm) else [value for value, _ in timed]
    memory = [
        _number(cell.entry.details.get("peak_device_memory", cell.entry.details.get("peak_memory")))
        for cell in run.done
    ]
    peaks = [value for value in memory if value is not None]
    return {
        "evaluations": summarise(rows).mean,
        "seconds": summarise(seconds).mean,
        "memory": max(peaks, default=None),
    }


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a json mapping; empty if there is none that can be read."""
    try:
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return {}


def in_words(name: str) -> str:
    """Return the name of a figure for people: `truth_psnr` -> "truth PSNR"."""
    words = name.replace("_", " ").split()
    return " ".join(word.upper() if word.lower() in _ABBREVIATIONS else word for word in words)


def _described(callback: str, about: Any) -> dict[Figure, tuple[Better, str, float]]:
    found: dict[Figure, tuple[Better, str, float]] = {}
    for metric, group in _mapping(_mapping(about).get("figures")).items():
        for name, figure in _mapping(group).items():
            values = _mapping(figure)
            better = values.get("better")
            direction: Better = better if better in ("higher", "lower") else ""
            scale = _number(values.get("scale")) or 1.0
            unit = " ".join(filter(None, [str(values.get("unit") or ""), f"x{scale:g}" if scale != 1 else ""]))
            found[Figure(callback, metric, name)] = direction, unit, scale
    return found


def _warm_up(cell: Cell) -> bool:
    return bool(_mapping(cell.entry.details.get("timings")).get("warm_up"))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
