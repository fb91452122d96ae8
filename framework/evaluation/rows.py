"""What was measured in some runs: one value per method, image and figure, as it was committed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framework.run.finished import StoredRun, StoredSample
from framework.run.folders import MANIFEST, find_runs
from framework.run.journal import SampleEntry, read_lines

EDIT = "edit"
"""The row of the edits themselves, beside the fixed rows of a metric."""

ROWS = "evaluation.jsonl"
"""Rows of `invedit evaluate` in a run folder: one line per image, row, metric and figure."""

FIGURES = "evaluation.json"
"""What the figures of these rows mean, and which metrics could not be computed."""

Key = tuple[str, str]
"""Metric and figure."""


@dataclass(frozen=True)
class Cost:
    """What the edits of one batch cost, per image; see `callbacks.Throughput`.

    Attributes:
        calls: Forward passes of the batch, whatever their size (guidance and further rows count once).
        rows: Pictures evaluated per image, of which `inversion_rows` by the inversion; NaN where nobody counted.
        backward_rows: Pictures through which gradients were taken.
        seconds: Wall time per image without loading, metrics and saving.
        peak_gib: Peak memory: of the device where there is one, else of the process.
        warm_up: Whether this was the first batch of its process.
    """

    calls: float
    rows: float
    inversion_rows: float
    backward_rows: float
    seconds: float
    peak_gib: float
    warm_up: bool


@dataclass
class MethodRows:
    """Everything that was measured of one method (or of a fixed row).

    Attributes:
        name: The variant of a sweep, the folder's name, or the name of the fixed row.
        fixed: Whether it is a fixed row: pictures that no method made.
        groups: Sample -> group (its edit type, usually); samples in the sorted order of their ids.
        values: Figure -> sample -> value: None where the metric gave none, infinite, NaN or finite.
        costs: Per sample.
        expected: Samples of the manifest; `failed` of them failed, the others that are not in `groups` are unfinished.
        failed: Samples that failed.
    """

    name: str
    fixed: bool = False
    groups: dict[str, str] = field(default_factory=dict)
    values: dict[Key, dict[str, float | None]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    expected: int = 0
    failed: int = 0


@dataclass
class Collection:
    """The rows of several runs.

    Attributes:
        methods: In the order of the runs; fixed rows last.
        figures: Direction, unit and scale of every figure that a run describes.
        unavailable: Metric -> why it could not be computed.
        versions: Versions and devices that the runs name, as "torch 2.13.0".
        days: The days on which samples were made, as "2031-05-24", sorted.
    """

    methods: list[MethodRows] = field(default_factory=list)
    figures: dict[Key, Mapping[str, Any]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    days: list[str] = field(default_factory=list)


def collect(paths: Sequence[Path], *, by: str = "edit_type") -> Collection:
    """Read the committed rows of runs; samples that other processes are still working on are simply not there yet.

    Args:
        paths: Run folders, or folders of runs such as a sweep's.
        by: What samples are grouped by: a place in `meta.json`, as `edit_type` or `extra.shapes_edit.kind`.

    Raises:
        SettingsError: A path is no folder or holds no run.
    """
    collection = Collection()
    fixed: dict[str, MethodRows] = {}
    versions: set[str] = set()
    days: set[str] = set()
    made_elsewhere = [path for path in paths if (path / ROWS).is_file() and not (path / MANIFEST).exists()]
    runs = [path for path in paths if path not in made_elsewhere]
    for folder in find_runs(runs) if runs else ():
        run = StoredRun(folder.directory)
        method = MethodRows(folder.name, expected=run.state.total, failed=len(run.state.failed))
        keys = {}
        for sample in run.samples():
            _take(sample, run.state.done[sample.id], by, method, fixed)
            keys[sample.id] = run.state.done[sample.id].key
            days |= _day(run.state.done[sample.id])
        _take_evaluation(folder.directory / ROWS, method, fixed, keys)
        _describe(folder.directory, collection)
        versions |= set(_versions(folder.directory))
        collection.methods.append(method)
    for path in made_elsewhere:
        method = MethodRows(path.resolve().name)
        _take_evaluation(path / ROWS, method, fixed, None)
        missing = _describe(path, collection).get("missing", {})
        method.expected, method.failed = len(method.groups) + len(missing), len(missing)
        collection.methods.append(method)
    for row in fixed.values():
        row.groups = dict(sorted(row.groups.items()))
        row.expected = len(row.groups)
    collection.methods += fixed.values()
    collection.versions, collection.days = sorted(versions), sorted(days)
    return collection


def _take(sample: StoredSample, entry: SampleEntry, by: str, method: MethodRows, fixed: dict[str, MethodRows]) -> None:
    group = _group(sample.meta, by)
    method.groups[sample.id] = group
    cost = _cost(entry)
    if cost is not None:
        method.costs[sample.id] = cost
    for measured in sample.meta.get("measurements", {}).values():
        rows = measured.get("rows") if isinstance(measured, Mapping) else None
        if not isinstance(rows, Mapping):
            continue
        for row, metrics in rows.items():
            holder = method if row == EDIT else fixed.setdefault(row, MethodRows(row, fixed=True))
            holder.groups.setdefault(sample.id, group)
            for metric, figures in metrics.items():
                for figure, value in figures.items():
                    place = f"{row}/{metric}/{figure}"
                    if value is None and place in measured.get("infinite", ()):
                        value = math.inf
                    elif value is None and place in measured.get("nan", ()):
                        value = math.nan
                    # Fixed rows are the same in every run; the first one that has them counts.
                    holder.values.setdefault((metric, figure), {}).setdefault(sample.id, value)


def _take_evaluation(
    path: Path, method: MethodRows, fixed: dict[str, MethodRows], keys: Mapping[str, str] | None
) -> None:
    """Read rows of `invedit evaluate`; they replace what was measured while editing under the same name.

    Args:
        path: The file.
        method: Receives the rows of the edits.
        fixed: Receives the others.
        keys: Of the samples of the run; rows of samples that have been computed again since do not count. None for
            results made elsewhere.
    """
    for line in read_lines(path) if path.is_file() else ():
        if keys is not None and keys.get(line["id"]) != line["key"]:
            continue
        holder = method if line["row"] == EDIT else fixed.setdefault(line["row"], MethodRows(line["row"], fixed=True))
        holder.groups.setdefault(line["id"], method.groups.get(line["id"]) or line["edit_type"] or "")
        holder.values.setdefault((line["metric"], line["figure"]), {})[line["id"]] = row_value(line)


def row_value(line: Mapping[str, Any]) -> float | None:
    """Return the value of a row of `evaluation.jsonl`, in which json keeps what is not finite as a word."""
    apart = {"infinite": math.inf, "nan": math.nan}
    value = line["value"]
    return apart.get(str(line.get("status"))) if value is None else float(value)


def csv_cell(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def _group(meta: Mapping[str, Any], by: str) -> str:
    value: Any = meta
    for part in by.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def _cost(entry: SampleEntry) -> Cost | None:
    found = entry.details.get("timings") or {}
    images = found.get("batch_images")
    if not images:
        return None
    peak = found.get("peak_allocated_gib", found.get("peak_resident_gib", math.nan))
    return Cost(
        calls=found.get("calls", math.nan),
        rows=found.get("rows", math.nan) / images,
        inversion_rows=found.get("inversion_rows", math.nan) / images,
        backward_rows=found.get("backward_rows", math.nan) / images,
        seconds=found.get("batch_seconds", math.nan) / images,
        peak_gib=peak,
        warm_up=bool(found.get("warm_up")),
    )


def _day(entry: SampleEntry) -> set[str]:
    made = entry.details.get("time")
    return {datetime.fromtimestamp(made, UTC).date().isoformat()} if isinstance(made, (int, float)) else set()


def _describe(directory: Path, collection: Collection) -> Mapping[str, Any]:
    """Find out what the figures mean, where a finished run or an evaluation says it; returns the last one's words."""
    last: Mapping[str, Any] = {}
    for path in (*sorted((directory / "statistics").glob("*.json")), directory / FIGURES):
        try:
            about = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if not isinstance(about, dict) or not isinstance(about.get("figures"), dict):
            continue
        for metric, figures in about["figures"].items():
            for figure, meaning in figures.items():
                collection.figures.setdefault((metric, figure), meaning)
        collection.unavailable |= about.get("unavailable", {})
        last = about
    return last


def _versions(directory: Path) -> Iterator[str]:
    for path in sorted((directory / "records").glob("rank-*.jsonl")):
        for line in read_lines(path):
            if line.get("kind") == "start":
                for name, version in (line.get("environment") or {}).items():
                    if version is not None and name not in ("threads", "cuda"):
                        yield f"{name} {version}"
