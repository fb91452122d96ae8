"""A run whose samples are committed: iterating over them, folding figures, summary and tables."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from framework.errors import SettingsError
from framework.run.files import json_document, json_line, plain, write_file
from framework.run.store import RunStore, State

META = "meta.json"
STATISTICS = "statistics.safetensors"
_ALWAYS = ("id", "status", "reason", "key", "folder")


@dataclass(frozen=True)
class StoredSample:
    """One finished sample, as it lies on disk.

    Attributes:
        id: The sample's own id.
        directory: Its folder.
        meta: Content of `meta.json`.
    """

    id: str
    directory: Path
    meta: Mapping[str, Any]

    def statistics(self) -> dict[str, Tensor]:
        """Read `statistics.safetensors`; empty where nothing was measured."""
        from safetensors.torch import load_file

        path = self.directory / STATISTICS
        return load_file(path) if path.exists() else {}


class StoredRun:
    """A run folder as callbacks and commands see it once its samples are committed.

    Args:
        directory: The run folder.
        writer: TensorBoard's SummaryWriter, or None.
        state: What is finished, where the caller has just found out; otherwise every file is checked now.

    Raises:
        SettingsError: The folder holds no run.
    """

    def __init__(self, directory: Path, writer: Any = None, state: State | None = None) -> None:
        self.directory = directory
        self.writer = writer
        self._store = RunStore(directory)
        self._locked = {sample.id: sample for sample in self._store.locked()}
        if not self._locked and not (directory / "manifest.lock.jsonl").exists():
            raise SettingsError(
                [f"{directory} is not a run: it has no manifest.lock.jsonl; give a folder of `invedit run`."]
            )
        self.state = self._store.state() if state is None else state

    def samples(self) -> Iterator[StoredSample]:
        """Iterate over finished samples in the sorted order of their ids; nothing of them is kept in memory."""
        for name in sorted(self.state.done):
            directory = self._store.samples / self._locked[name].folder
            yield StoredSample(name, directory, json.loads((directory / META).read_bytes()))


def write_summary(run: StoredRun, *, computed: int) -> None:
    """Write `records/summary.json`: how many samples are done, failed and left, and why those failed.

    Args:
        run: The run.
        computed: Samples finished by this process and its ranks; the others were finished before.

    Raises:
        StoreError: It cannot be written.
    """
    state = run.state
    values = {
        "total": state.total,
        "done": len(state.done),
        "computed": computed,
        "skipped": len(state.done) - computed,
        "failed": {name: entry.reason for name, entry in state.failed.items()},
        "unfinished": state.total - len(state.done) - len(state.failed),
        "time": time.time(),
    }
    write_file(run.directory / "records" / "summary.json", json_document(values))


def write_table(run: StoredRun) -> None:
    """Write `records.parquet`: one row per sample with its state, and a column for every single number measured.

    The journals and `meta.json` files are the truth; this table is a copy for tools that read tables.

    Raises:
        StoreError: It cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    for sample in run.samples():
        entry = run.state.done[sample.id]
        row = {"id": sample.id, "status": "done", "reason": None, "key": entry.key, "folder": entry.folder}
        row |= {f"meta.{name}": value for name, value in _columns(sample.meta) if name not in ("id", "key")}
        rows.append(row | {f"record.{name}": value for name, value in _columns(entry.details)})
    for name, entry in sorted(run.state.failed.items()):
        row = {"id": name, "status": "failed", "reason": entry.reason, "key": entry.key, "folder": None}
        rows.append(row | {f"record.{key}": value for key, value in _columns(entry.details)})
    columns: dict[str, Any] = {name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in _ALWAYS}
    for name in sorted({name for row in rows for name in row} - set(_ALWAYS)):
        columns[name] = _uniform([row.get(name) for row in rows])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    write_file(run.directory / "records.parquet", sink.getvalue().to_pybytes())


def _columns(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk down mappings; lists stay one value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _columns(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _uniform(values: list[Any]) -> list[Any]:
    """Give a column one type: numbers, booleans or text; whatever else there is becomes json text."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present) or all(isinstance(value, str) for value in present):
        return values
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
        return [None if value is None else float(value) for value in values]
    return [None if value is None else json_line(plain(value)).decode().rstrip("\n") for value in values]
