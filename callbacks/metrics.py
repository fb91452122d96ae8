"""Metrics of every edit, and their table over a run."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from callbacks._committed import measured, statistics_folder, write_summary
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.errors import Checks
from framework.evaluation.metric import Codec, Metric, MetricInput, Values
from framework.evaluation.paired import paired_difference
from framework.evaluation.reconstruction import ReconstructionPSNR
from framework.run.files import write_file

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult

EDIT = "edit"
"""Name of the row of the edits themselves, beside the fixed rows of a metric."""


class Metrics(EditCallback):
    """Measures every edit, and the fixed rows that a metric brings along, and folds them into one table.

    A sample's value is the mean over its draws that have one. Values that a metric cannot give are counted, not
    averaged; infinite ones (identical pictures) and those that are no number are counted apart.

    Args:
        metrics: Objects that follow `framework.evaluation.metric.Metric`.
        reconstruction: Measure also the PSNR of the reconstruction.
        rows: Measure the fixed rows of the metrics; they cost what making their pictures costs.
        intervals: Give the paired differences to the fixed rows with bootstrap intervals.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] = (),
        *,
        reconstruction: bool = True,
        rows: bool = True,
        intervals: bool = True,
    ) -> None:
        self.metrics = (*([ReconstructionPSNR()] if reconstruction else []), *metrics)
        self.rows = rows
        self.intervals = intervals
        checks = Checks("Metrics")
        names = [metric.name for metric in self.metrics]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            checks.require(False, f"two metrics are named {name}; leave one out or give one another name.")
        checks.require(bool(names), "metrics=[] and reconstruction=False leave nothing to measure; give a metric.")
        checks.done()

    def available(self) -> list[Metric]:
        """Return the metrics that can be computed here; a run goes on without the others and its summary names them."""
        return [metric for metric in self.metrics if metric.unavailable is None]

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        good = [index for index in range(len(result.samples)) if index not in result.failures]
        codec = Codec(module.backbone, result.source)
        edits = [[_item(result, index, draw, codec) for draw in range(result.draws)] for index in good]
        found: dict[int, dict[str, dict[str, list[Values]]]] = {index: {} for index in good}
        for metric in self.available() if good else ():
            flat = iter(metric.measure_batch([item for items in edits for item in items]))
            for index in good:
                found[index].setdefault(EDIT, {})[metric.name] = [next(flat) for _ in range(result.draws)]
            for row, pictures in metric.rows([items[0] for items in edits]).items() if self.rows else ():
                known = [(k, picture) for k, picture in enumerate(pictures) if picture is not None]
                items = [replace(edits[k][0], edit=picture) for k, picture in known]
                for (k, _), values in zip(known, metric.measure_batch(items), strict=True):
                    found[good[k]].setdefault(row, {})[metric.name] = [values]
        return [
            Measurement(values=_values(found[b])) if b in found else Measurement() for b in range(len(result.samples))
        ]

    def on_run_end(self, run: FinishedRun) -> None:
        figures = {m.name: {f.name: f.about() for f in m.figures} for m in self.available()}
        columns = [(metric, figure) for metric, group in figures.items() for figure in group]
        table: dict[str, dict[str, dict[str, Any]]] = {}
        kinds: dict[str, str] = {}
        apart: dict[str, Counter[str]] = {"infinite": Counter(), "nan": Counter()}
        for sample, values in measured(run, self.name):
            kinds[sample.id] = sample.meta.get("edit_type") or ""
            for kind, counter in apart.items():
                counter.update(values.get(kind, ()))
            for row, groups in values.get("rows", {}).items():
                table.setdefault(row, {})[sample.id] = groups
        reasons = {metric.name: metric.unavailable for metric in self.metrics}
        summary: dict[str, Any] = {
            "figures": figures,
            "unavailable": {name: reason for name, reason in reasons.items() if reason is not None},
            "rows": {row: _summaries(columns, list(samples.values())) for row, samples in table.items()},
            "edit_types": {
                kind: _summaries(columns, [groups for id, groups in table.get(EDIT, {}).items() if kinds[id] == kind])
                for kind in sorted(set(kinds.values()) - {""})
            },
            **{kind: dict(sorted(counter.items())) for kind, counter in apart.items()},
            "edit_minus_row": self._differences(columns, table) if self.intervals else {},
        }
        write_summary(run, self.name, summary, {})
        write_file(statistics_folder(run) / f"{self.name}.csv", _csv(columns, table, kinds))
        if run.writer is not None:
            run.writer.add_text("4_edits/metrics", _markdown(columns, figures, summary["rows"]), 0)
            for metric, figure, mean in _means(summary["rows"].get(EDIT, {})):
                run.writer.add_scalar(f"1_run/{metric}_{figure}", mean, 0)

    def _differences(
        self, columns: Sequence[tuple[str, str]], table: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Compare the edits with every fixed row on the images that both have."""
        differences: dict[str, dict[str, dict[str, Any]]] = {}
        edits = table.get(EDIT, {})
        for row in (row for row in table if row != EDIT):
            both = [id for id in edits if id in table[row]]
            for metric, figure in columns:
                a, b = ([_number(table[name][id], metric, figure) for id in both] for name in (EDIT, row))
                paired = paired_difference(a, b)
                if paired.n:
                    differences.setdefault(row, {}).setdefault(metric, {})[figure] = paired._asdict()
        return differences


def _item(result: EditResult, index: int, draw: int, codec: Codec) -> MetricInput:
    sample = result.samples[index]
    edit = result.edits[index][draw]
    # Samples without a mask have ones where another sample of the batch has a mask.
    mask = result.masks[index].to(edit.device) if result.masks is not None and sample.mask is not None else None
    source, reconstruction = result.source[index].to(edit.device), result.reconstructions[index]
    return MetricInput(sample, index, source, edit, reconstruction, mask, codec)


def _values(rows: Mapping[str, Mapping[str, Sequence[Values]]]) -> dict[str, Any]:
    """Fold draws; a figure without a finite value becomes None, one with an infinite value or NaN is named."""
    kept: dict[str, Any] = {}
    apart: dict[str, list[str]] = {"infinite": [], "nan": []}
    draws: dict[str, Any] = {}
    for row, groups in rows.items():
        for metric, measurements in groups.items():
            for figure in measurements[0]:
                values = [_finite(measurement[figure]) for measurement in measurements]
                valid = [value for value in values if value is not None and math.isfinite(value)]
                given = [measurement[figure] for measurement in measurements]
                for kind, test in (("infinite", math.isinf), ("nan", math.isnan)):
                    if any(value is not None and test(value) for value in given):
                        apart[kind].append(f"{row}/{metric}/{figure}")
                mean = sum(valid) / len(valid) if valid else None
                kept.setdefault(row, {}).setdefault(metric, {})[figure] = mean
                if len(values) > 1:
                    draws.setdefault(metric, {})[figure] = values
    return {"rows": kept, **apart, **({"draws": draws} if draws else {})}


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _number(groups: Mapping[str, Any], metric: str, figure: str) -> float:
    value = groups.get(metric, {}).get(figure)
    return math.nan if value is None else float(value)


def _summaries(columns: Sequence[tuple[str, str]], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation over samples and number of valid values of every figure, summed in the order of ids."""
    summaries: dict[str, Any] = {}
    for metric, figure in columns:
        measured = [groups for groups in samples if figure in groups.get(metric, {})]
        if not measured:
            continue
        values = [value for groups in measured if math.isfinite(value := _number(groups, metric, figure))]
        n = len(values)
        mean = math.fsum(values) / n if n else math.nan
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else math.nan
        about = {"mean": mean, "standard_deviation": deviation, "n": n, "samples": len(measured)}
        summaries.setdefault(metric, {})[figure] = about
    return summaries


def _means(row: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for metric, group in row.items():
        for figure, about in group.items():
            if about["n"]:
                yield metric, figure, about["mean"]


def _csv(columns: Sequence[tuple[str, str]], table: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str]) -> bytes:
    """One line per sample and row, so that runs can be compared image by image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "edit_type", "row", *(f"{metric}.{figure}" for metric, figure in columns)])
    for row, samples in table.items():
        for id, groups in samples.items():
            numbers = [_number(groups, metric, figure) for metric, figure in columns]
            writer.writerow(
                [_text(id), _text(kinds[id]), _text(row), *("" if math.isnan(x) else repr(x) for x in numbers)]
            )
    return text.getvalue().encode("utf-8", "backslashreplace")


def _text(value: str) -> str:
    """Keep a spreadsheet from taking an id for a formula."""
    return f"'{value}" if value[:1] in tuple("=+-@\t\r") else value


def _markdown(columns: Sequence[tuple[str, str]], figures: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    titles = [f"{f} [{figures[m][f]['unit']}]" if figures[m][f]["unit"] else f for m, f in columns]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, groups in rows.items():
        found = [groups.get(metric, {}).get(figure) for metric, figure in columns]
        cells = [f"{about['mean']:.4g} (n {about['n']})" if about and about["n"] else "" for about in found]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
