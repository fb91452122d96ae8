"""What the records of a run say at this moment, as far as they can be read; nothing is hashed, nothing is fatal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from framework.run.folders import MANIFEST, RunFolder
from framework.run.journal import SampleEntry, journals, read_lines, sample_entry
from framework.run.lock import living_owner
from framework.run.store import LockedSample

META = "meta.json"
Status = Literal["running", "complete", "failures", "stopped"]


@dataclass(frozen=True)
class Cell:
    """One sample of one run.

    Attributes:
        sample: The sample, from the manifest.
        directory: Its folder.
        entry: The journal's line that counts.
        meta: Content of `meta.json`; empty where the sample failed or the file cannot be read.
        files: Names of the committed files that are there with the recorded size.
        problems: What is wrong with the others, in words.
    """

    sample: LockedSample
    directory: Path
    entry: SampleEntry
    meta: Mapping[str, Any]
    files: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the sample was edited."""
        return self.entry.status == "done"


@dataclass
class RunResults:
    """Everything that a report shows of one run.

    Attributes:
        name: What it is called in this report.
        directory: Its folder.
        samples: Those of the manifest, in its order.
        cells: The samples that are finished or failed, by id.
        status: Whether it goes on, has finished every sample, ended with failures, or was stopped.
        owner: Host and process that are writing, in words; empty if nobody is.
        starts: What every process noted when it started, oldest first.
        config: Text of `config.yaml`; empty if it cannot be read.
        problems: What cannot be read or is missing, in words.
    """

    name: str
    directory: Path
    samples: tuple[LockedSample, ...] = ()
    cells: dict[str, Cell] = field(default_factory=dict)
    status: Status = "stopped"
    owner: str = ""
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    config: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[Cell]:
        """The edited samples, in the order of the manifest."""
        return [self.cells[s.id] for s in self.samples if s.id in self.cells and self.cells[s.id].done]

    @property
    def failed(self) -> list[Cell]:
        """The failed samples, in the order of the manifest."""
        return [self.cells[s.id] for s in self.samples if s.id in self.cells and not self.cells[s.id].done]


class ResultsReader:
    """Reads one run, again and again if need be: samples that were read before are not read again.

    Args:
        folder: The run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._known: dict[str, Cell] = {}

    def read(self) -> RunResults:
        """Read the run as it is now."""
        directory = self.folder.directory
        run = RunResults(self.folder.name, directory)
        run.samples = _manifest(directory / MANIFEST, run.problems)
        owner = living_owner(directory / "run.lock")
        run.owner = f"process {owner.pid} on {owner.host}" if owner else ""
        entries = self._entries(run, quiet=owner is not None)
        for sample in run.samples:
            entry = entries.get(sample.id)
            if entry is None:
                continue
            cell = self._known.get(sample.id)
            if cell is None or cell.entry != entry or cell.problems:
                cell = self._known[sample.id] = _cell(sample, entry, directory / "samples" / sample.folder)
            run.cells[sample.id] = cell
            run.problems += [f"sample {sample.id!r}: {problem}" for problem in cell.problems]
        run.config = _text(directory / "config.yaml", run.problems)
        run.status = _status(run)
        return run

    def _entries(self, run: RunResults, *, quiet: bool) -> dict[str, SampleEntry]:
        """Return the line that counts for every sample: the last success, or else the last failure.

        Args:
            run: Receives starts and problems.
            quiet: Somebody is writing: a torn last line is one that is being written.
        """
        keys = {sample.id: sample.key for sample in run.samples}
        entries: dict[str, SampleEntry] = {}
        for path in journals(run.directory / "records"):
            passed: list[str] = []
            try:
                for line in read_lines(path, passed):
                    kind = line.pop("kind", None)
                    if kind == "start":
                        run.starts.append(line)
                    if kind != "sample":
                        continue
                    try:
                        entry = sample_entry(line)
                    except (TypeError, KeyError, AttributeError):
                        passed.append(f"a line of {path.name} lacks what it must say of its sample; it is passed over")
                        continue
                    if keys.get(entry.id) == entry.key and _rank(entry) >= _rank(entries.get(entry.id)):
                        entries[entry.id] = entry
            except OSError as problem:
                passed.append(f"{path.name} cannot be read ({problem.strerror or problem})")
            run.problems += passed[:-1] if quiet and passed and not _ends_whole(path) else passed
        run.starts.sort(key=lambda start: float(start.get("time") or 0))
        return entries


def read_manifest_hash(directory: Path) -> str:
    """SHA-256 of the manifest; empty if it cannot be read."""
    from framework.run.files import file_digest

    try:
        return file_digest(directory / MANIFEST)
    except OSError:
        return ""


def _cell(sample: LockedSample, entry: SampleEntry, folder: Path) -> Cell:
    whole, problems = [], []
    for name, recorded in entry.files.items():
        if not _is_name(name):
            problems.append(f"{name!r} is no name of a file of the sample")
            continue
        try:
            size = (folder / name).stat().st_size
        except OSError:
            problems.append(f"{name} is missing")
            continue
        if size == recorded.size:
            whole.append(name)
        else:
            problems.append(f"{name} has {size} bytes instead of {recorded.size}")
    meta: Any = {}
    if META in whole:
        try:
            meta = json.loads((folder / META).read_bytes())
        except (OSError, ValueError):
            problems.append(f"{META} cannot be read")
    return Cell(sample, folder, entry, meta if isinstance(meta, dict) else {}, tuple(whole), tuple(problems))


def _manifest(path: Path, problems: list[str]) -> tuple[LockedSample, ...]:
    samples: dict[str, LockedSample] = {}
    try:
        for line in read_lines(path, problems):
            try:
                sample = LockedSample(**line)
            except TypeError:
                sample = None
            if sample is None or not _is_name(sample.folder):
                problems.append(f"a line of {path.name} does not describe a sample; it is passed over")
            else:
                samples.setdefault(sample.id, sample)
    except OSError as problem:
        problems.append(f"{path.name} cannot be read ({problem.strerror or problem})")
    return tuple(samples.values())


def _is_name(name: Any) -> bool:
    """Whether a record names a thing within its folder; records may come from anybody."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _status(run: RunResults) -> Status:
    if run.samples and len(run.done) == len(run.samples):
        return "complete"
    if run.owner:
        return "running"
    return "failures" if run.samples and len(run.cells) == len(run.samples) else "stopped"


def _rank(entry: SampleEntry | None) -> tuple[bool, float]:
    """A success counts more than a failure, the newer of two equals more than the older."""
    if entry is None:
        return False, 0.0
    time = entry.details.get("time", 0.0)
    return entry.status == "done", float(time) if isinstance(time, (int, float)) else 0.0


def _ends_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"
    except OSError:
        return True


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as problem:
        problems.append(f"{path.name} cannot be read ({problem.strerror or problem})")
        return ""
