"""Measuring pictures that lie on disk: one row per image, row and figure, streamed in batches."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from framework.data.sample import EditSample
from framework.errors import SampleError, SettingsError
from framework.evaluation.metric import Codec, Metric, MetricInput, Values
from framework.evaluation.pairs import Pair, Pictures, Results
from framework.evaluation.rows import EDIT, FIGURES, ROWS, csv_cell
from framework.run.files import json_document, json_line, write_file
from framework.run.journal import read_lines

PARQUET = "evaluation.parquet"

OFFICIAL = "evaluation.csv"
"""The rows of the edits as PIE-Bench's script writes them: `file_id` and a column `<method>|<figure>` per figure."""


class Evaluation:
    """Measures results with some metrics.

    Args:
        results: Where the pictures lie.
        metrics: What is measured; those that are unavailable are named and left out.
        batch_size: Images measured together, which bounds the memory.
        device: Where the metrics' networks run.
        fixed_rows: Measure also the fixed rows that metrics bring along.
    """

    def __init__(
        self,
        results: Results,
        metrics: Sequence[Metric],
        *,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
        fixed_rows: bool = False,
    ) -> None:
        self.results = results
        self.unavailable = {m.name: reason for m in metrics if (reason := m.unavailable) is not None}
        self.metrics = [metric for metric in metrics if metric.name not in self.unavailable]
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.fixed_rows = fixed_rows
        self.measured = 0

    @torch.no_grad()
    def rows(self) -> Iterator[dict[str, Any]]:
        """Measure everything; `results.missing` and `unavailable` are complete afterwards."""
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False  # it moves the features of the networks
        try:
            pairs = self.results.pairs()
            while batch := list(islice(pairs, self.batch_size)):
                loaded = list(self._loaded(batch))
                self.measured += len(loaded)
                yield from self._batch(loaded)
        finally:
            torch.backends.cudnn.allow_tf32 = tf32

    def _loaded(self, batch: Iterable[Pair]) -> Iterator[tuple[Pair, Pictures]]:
        for pair in batch:
            try:
                yield pair, self.results.load(pair)
            except SampleError as problem:
                self.results.missing[pair.sample.id] = str(problem)

    def _batch(self, loaded: Sequence[tuple[Pair, Pictures]]) -> Iterator[dict[str, Any]]:
        sizes: dict[tuple[int, ...], list[tuple[Pair, Pictures]]] = {}
        for one in loaded:
            sizes.setdefault(tuple(one[1].source.shape), []).append(one)
        for group in sizes.values():
            codec = Codec(self.results.backbone, torch.stack([p.source for _, p in group]).to(self.device))
            items = [
                [_item(pair.sample, pictures, index, draw, codec, self.device) for draw in range(len(pictures.edits))]
                for index, (pair, pictures) in enumerate(group)
            ]
            for metric in list(self.metrics):
                try:
                    yield from self._measured(metric, [pair for pair, _ in group], items)
                except SettingsError as error:
                    self.metrics.remove(metric)
                    self.unavailable[metric.name] = " ".join(error.problems)

    def _measured(
        self, metric: Metric, pairs: Sequence[Pair], items: Sequence[Sequence[MetricInput]]
    ) -> Iterator[dict[str, Any]]:
        flat = iter(metric.measure_batch([item for draws in items for item in draws]))
        for pair, draws in zip(pairs, items, strict=True):
            yield from _lines(metric, pair, EDIT, [next(flat) for _ in draws])
        for row, pictures in metric.rows([draws[0] for draws in items]).items() if self.fixed_rows else ():
            for pair, draws, picture in zip(pairs, items, pictures, strict=True):
                if picture is not None:
                    item = draws[0]
                    replaced = MetricInput(
                        item.sample, item.index, item.source, picture, item.reconstruction, item.mask, item.codec
                    )
                    yield from _lines(metric, pair, row, [metric.measure(replaced)])


def evaluate(evaluation: Evaluation) -> Path:
    """Measure results and write `evaluation.jsonl`, `.parquet`, `.csv` and `.json` beside them.

    Rows of other metrics from an earlier evaluation stay, as far as their samples are still the same.

    Returns:
        The file of the rows.

    Raises:
        StoreError: They cannot be written.
    """
    from framework.run.writer import environment

    directory = evaluation.results.directory
    rows = list(evaluation.rows())
    path, about = directory / ROWS, directory / FIGURES
    new = {metric.name for metric in evaluation.metrics}
    keys = {row["id"]: row["key"] for row in rows}
    before = list(read_lines(path)) if path.is_file() else []
    kept = [row for row in before if row["metric"] not in new and keys.get(row["id"], row["key"]) == row["key"]]
    known = _read(about)
    rows = sorted(kept + rows, key=lambda row: (row["row"], row["metric"], row["figure"], row["id"]))
    figures = {name: known.get("figures", {}).get(name) for name in {row["metric"] for row in kept}}
    figures |= {
        metric.name: {figure.name: figure.about() for figure in metric.figures} for metric in evaluation.metrics
    }
    unavailable = {**known.get("unavailable", {}), **evaluation.unavailable}
    described = {
        "figures": {name: meaning for name, meaning in figures.items() if meaning},
        "unavailable": {name: reason for name, reason in unavailable.items() if name not in figures},
        "metrics": {**known.get("metrics", {}), **{metric.name: _settings(metric) for metric in evaluation.metrics}},
        "versions": {**environment(), "device": str(evaluation.device)},
        "missing": evaluation.results.missing,
        "notes": evaluation.results.notes,
        "samples": evaluation.measured + len(evaluation.results.missing),
    }
    write_file(path, b"".join(json_line(row) for row in rows))
    write_file(about, json_document(described))
    _write_parquet(directory / PARQUET, rows)
    write_file(directory / OFFICIAL, _official(directory.resolve().name, rows).encode("utf-8", "backslashreplace"))
    return path


def _item(
    sample: EditSample, pictures: Pictures, index: int, draw: int, codec: Codec, device: torch.device
) -> MetricInput:
    reconstruction, mask = (None if x is None else x.to(device) for x in (pictures.reconstruction, pictures.mask))
    source, edit = pictures.source.to(device), pictures.edits[draw].to(device)
    return MetricInput(sample, index, source, edit, reconstruction, mask, codec)


def _lines(metric: Metric, pair: Pair, row: str, draws: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """Fold the draws of an image as `callbacks.Metrics` does: the mean of those that have a finite value."""
    for figure in draws[0]:
        given = [value for values in draws if (value := values[figure]) is not None]
        finite = [value for value in given if math.isfinite(value)]
        status = "missing"
        if finite:
            status = "valid"
        elif given:
            status = "nan" if all(math.isnan(value) for value in given) else "infinite"
        yield {
            "id": pair.sample.id,
            "key": pair.key,
            "edit_type": pair.sample.edit_type,
            "row": row,
            "metric": metric.name,
            "figure": figure,
            "value": math.fsum(finite) / len(finite) if finite else None,
            "status": status,
        }


def _read(path: Path) -> Mapping[str, Any]:
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _settings(metric: Metric) -> dict[str, Any]:
    fields: dict[str, Any] = asdict(metric) if is_dataclass(metric) and not isinstance(metric, type) else {}
    return {"class": type(metric).__qualname__, "settings": fields, "weights": metric.weights}


def _official(method: str, rows: Sequence[Mapping[str, Any]]) -> str:
    values: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["row"] == EDIT:
            shown = {"valid": repr(row["value"]), "infinite": "inf"}.get(row["status"], "nan")
            figure = row["figure"].replace(
                "lpips_squeeze", "lpips"
            )  # the benchmark has one network and does not name it
            values.setdefault(row["id"], {})[f"{method}|{figure}"] = shown
    columns = list(dict.fromkeys(column for found in values.values() for column in found))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file_id", *columns], lineterminator="\n", restval="nan")
    writer.writeheader()
    writer.writerows({"file_id": csv_cell(id), **found} for id, found in sorted(values.items()))
    return text.getvalue()


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = ("id", "key", "edit_type", "row", "metric", "figure", "status")
    columns = {name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in texts}
    columns["value"] = pyarrow.array([row["value"] for row in rows], pyarrow.float64())
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    write_file(path, sink.getvalue().to_pybytes())
