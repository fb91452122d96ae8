"""Noise statistics of runs as curves over the steps: from the tables that runs left, or from what is committed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from framework.report.results import Cell, RunResults
from framework.report.summary import in_words, read_json

MOST_FOLDED = 64
"""Most samples of an unfinished run that are folded for a preview."""
STATISTICS = "statistics.safetensors"
_PLACES = ("step", "next", "t", "count", "images", "draws", "n", "reason")
_SPREADS = ("_sd_over_images", "_standard_deviation", "_sd")
_MEANS = ("_mean_over_images", "_mean")
# What an analyst looks at first, in this order; everything else follows.
_FIRST = ("variance", "correlation", "angle", "mean", "excess_kurtosis", "ks_histogram", "ks", "kl_histogram")

Rows = Sequence[Mapping[str, Any]]


def noise_charts(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """Collect curves, one chart per quantity and one line per run.

    A run that has ended left tables in `statistics/`: every list of rows with a `step` counts, whoever wrote it. For
    one that goes on, the moments of its samples are folded. Runs stay apart, each line saying what it was measured on.

    Returns:
        Charts with `name`, `unit`, `first` (whether it is one of those to look at first) and `lines`; a line has
        `run` (index), `of`, `images`, `x`, `y`, and `spread` where there is one. What cannot be computed is None.
    """
    charts: dict[tuple[str, str], dict[str, Any]] = {}
    for index, run in enumerate(runs):
        for source, summary in _tables(run).items():
            for rows in (value for value in summary.values() if _is_table(value)):
                about = {"run": index, "of": str(summary.get("of") or ""), "images": summary.get("images")}
                for name, line in _lines(rows):
                    chart = charts.setdefault((source, name), {"name": in_words(name), "source": source})
                    chart.setdefault("lines", []).append({**about, **line})
    several = {name for _, name in charts if sum(other == name for _, other in charts) > 1}
    for (source, name), chart in charts.items():
        chart["first"] = name in _FIRST[:6] and source in ("NoiseStatistics", "NoiseCorrelation")
        if name in several:
            chart["name"] = f"{chart['name']} ({source})"
        chart["unit"] = "degrees" if name.startswith("angle") else ""
    return [chart for _, chart in sorted(charts.items(), key=lambda item: _order(item[0]))]


def noise_figures(run: RunResults) -> list[Path]:
    """List the pictures that callbacks drew when the run ended, and that `invedit stats` drew since."""
    return sorted((run.directory / "statistics").glob("*.png"))


def _order(key: tuple[str, str]) -> tuple[int, str, str]:
    source, name = key
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), source, name)


def _tables(run: RunResults) -> dict[str, Mapping[str, Any]]:
    """Return summaries by the callback that wrote them, or would."""
    written = {path.stem: read_json(path) for path in sorted((run.directory / "statistics").glob("*.json"))}
    if run.status == "running" or not any(_is_table(value) for table in written.values() for value in table.values()):
        written |= _preview(run.done)
    return written


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) and "step" in row for row in value)


def _lines(rows: Rows) -> list[tuple[str, dict[str, Any]]]:
    """Turn the columns of a table into lines; a mean over images takes its deviation along and its name."""
    columns = {name: None for row in rows for name, value in row.items() if isinstance(value, (int, float))}
    columns = {name: None for name in columns if name not in _PLACES}
    means = {name[: -len(end)]: name for end in _MEANS for name in columns if name.endswith(end)}
    spreads = {name[: -len(end)]: name for end in _SPREADS for name in columns if name.endswith(end)}
    lines = []
    for name in columns:
        base = next((base for base, mean in means.items() if mean == name), None)
        if name in spreads.values() or name in means:
            continue
        line: dict[str, Any] = {
            "x": [(row["step"] + row["next"]) / 2 if "next" in row else row["step"] for row in rows],
            "y": [_finite(row.get(name)) for row in rows],
        }
        if base is not None and base in spreads:
            line["spread"] = [_finite(row.get(spreads[base])) for row in rows]
        if any(value is not None for value in line["y"]):
            lines.append((base if base is not None else name, line))
    return lines


def _preview(cells: Sequence[Cell]) -> dict[str, Mapping[str, Any]]:
    """Fold the moments and histograms of the first samples, each kind by itself."""
    import torch

    from framework.statistics.histogram import NOISE_EDGES, Histogram
    from framework.statistics.moments import Moments
    from framework.statistics.tables import noise_table

    folded: dict[str, tuple[Any, Moments, Histogram, Moments]] = {}
    images: dict[str, int] = {}
    for cell in islice((cell for cell in cells if STATISTICS in cell.files), MOST_FOLDED):
        for name, tensors in _tensors(cell).items():
            if not {"moments", "histogram", "t"} <= set(tensors):
                continue
            moments = Moments.from_tensor(tensors["moments"])
            histogram = Histogram(tensors["histogram"], NOISE_EDGES)
            values = cell.meta.get("measurements", {}).get(name, {})
            key = values.get("of"), values.get("excluded") or {}, tensors["t"].nan_to_num(-1).tolist()
            own = Moments.single(moments.variance)
            before = folded.get(name)
            if before is None:
                folded[name] = (key, moments, histogram, own)
            elif before[0] == key and histogram.counts.shape == before[2].counts.shape:
                folded[name] = (key, before[1].merge(moments), before[2].merge(histogram), before[3].merge(own))
            else:
                continue
            images[name] = images.get(name, 0) + 1
    tables: dict[str, Mapping[str, Any]] = {}
    for name, ((of, excluded, t), moments, histogram, spread) in folded.items():
        rows = noise_table(moments, histogram, spread, torch.tensor(t), excluded)
        tables[name] = {"of": of, "images": images[name], "steps": rows}
    return tables


def _tensors(cell: Cell) -> dict[str, dict[str, Any]]:
    """Read a sample's statistics, by callback; empty if they cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, dict[str, Any]] = {}
    try:
        for name, tensor in load_file(cell.directory / STATISTICS).items():
            callback, _, rest = name.rpartition(".")
            found.setdefault(callback, {})[rest] = tensor
    except (OSError, SafetensorError):
        return {}
    return found


def _finite(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def figure_title(path: Path) -> str:
    """Return the name of a drawn figure in words: `NoiseStatistics-variance.png` -> "noise statistics: variance"."""
    callback, _, rest = path.stem.partition("-")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", callback).lower().replace("_", " ")
    return f"{words}: {rest.replace('-', ' ').replace('_', ' ')}" if rest else words
