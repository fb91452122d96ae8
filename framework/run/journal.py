"""The journal of a run: one json line per finished or failed sample and process start, appended and synced."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from framework.run.files import json_line, store_error, write_all

_NAME = re.compile(r"rank-([0-9]+)\.jsonl")


@dataclass(frozen=True)
class FileEntry:
    """What a file held when it was committed.

    Attributes:
        size: In bytes.
        sha256: Of its content, hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class SampleEntry:
    """One line about one sample.

    Attributes:
        id: The sample's own id.
        key: Hash of everything that decides its results.
        status: "done" or "failed".
        folder: Name below `samples/`.
        files: What was committed there; empty for a failed sample.
        reason: Why it failed, in words; None when done.
        details: What does not belong to the result: seconds, rank, host, time, memory, network evaluations.
    """

    id: str
    key: str
    status: str
    folder: str
    files: dict[str, FileEntry] = field(default_factory=dict)
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Appends to the journal of one rank."""

    def __init__(self, records: Path, rank: int) -> None:
        self.path = records / f"rank-{rank}.jsonl"

    def append(self, entry: SampleEntry) -> None:
        """Write one line about a sample and sync it: when this returns, the line survives a power cut.

        Raises:
            StoreError: The line cannot be written; what was written of it is taken back where possible, and readers
                drop a torn last line anyway.
        """
        self._write({"kind": "sample", **asdict(entry)})

    def note(self, kind: str, values: dict[str, Any]) -> None:
        """Write one line that is not about a sample, such as the start of a process."""
        self._write({"kind": kind, **values})

    def _write(self, line: dict[str, Any]) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    write_all(descriptor, json_line(line))
                    os.fsync(descriptor)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(descriptor, before)
                    raise
            finally:
                os.close(descriptor)
        except OSError as problem:
            raise store_error(self.path, problem) from problem


def journals(records: Path) -> list[Path]:
    """List the journals of all ranks that ever took part, in the order of the ranks."""
    found = [(int(match[1]), path) for path in records.glob("rank-*.jsonl") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def read_lines(path: Path, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read the whole lines of one journal; a torn last line and lines that are not json objects are passed over.

    Args:
        path: The journal.
        problems: Receives a sentence for every line that is passed over.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = None
            if raw.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    line = json.loads(raw)
            if isinstance(line, dict):
                yield line
            elif problems is not None:
                problems.append(f"line {number} of {path.name} is not whole; it is passed over")


def read_samples(records: Path, problems: list[str] | None = None) -> Iterator[SampleEntry]:
    """Read every line about a sample, oldest first within each rank.

    Args:
        records: Folder of the journals.
        problems: Receives a sentence for every line that is passed over.
    """
    for path in journals(records):
        for line in read_lines(path, problems):
            if line.pop("kind", None) != "sample":
                continue
            try:
                yield sample_entry(line)
            except (TypeError, KeyError, AttributeError):
                if problems is not None:
                    problems.append(f"a line of {path.name} about a sample lacks what it must say; it is passed over")


def sample_entry(line: dict[str, Any]) -> SampleEntry:
    """Build the entry of a line about a sample, without its kind.

    Raises:
        TypeError, KeyError, AttributeError: The line lacks something, or says something that is unknown.
    """
    files = {name: FileEntry(**entry) for name, entry in line["files"].items()}
    return SampleEntry(**{**line, "files": files})


def mend_journals(records: Path) -> None:
    """Cut torn last lines off, so that the next line does not continue one. Only for the holder of the run's lock.

    Raises:
        StoreError: A journal cannot be written.
    """
    for path in journals(records):
        try:
            content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                os.truncate(path, end)
        except OSError as problem:
            raise store_error(path, problem) from problem
