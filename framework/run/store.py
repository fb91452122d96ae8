"""The folder of a run: which samples are finished, and how one more is committed.

A sample is finished when a whole line of a journal says so under the sample's present key and every file that the line
names has the recorded size and hash. The files are written first, the line last, so that a run killed at any moment
loses at most the samples it was working on, and a reader never finds half of one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from framework.errors import SettingsError
from framework.run.files import (
    StoreError,
    bytes_digest,
    discard_files,
    file_digest,
    is_temporary,
    json_document,
    json_line,
    publish_files,
    stage_file,
    store_error,
    write_file,
)
from framework.run.identity import Identity, differences
from framework.run.journal import FileEntry, Journal, SampleEntry, mend_journals, read_samples
from framework.run.names import folder_name

_SHOWN = 12


@dataclass(frozen=True)
class LockedSample:
    """One line of `manifest.lock.jsonl`.

    Attributes:
        id: The sample's own id.
        folder: Its folder below `samples/`.
        content: Hash of its image, mask, prompts and description.
        key: Hash of everything that decides its results.
    """

    id: str
    folder: str
    content: str
    key: str


@dataclass(frozen=True)
class State:
    """How far a run has come.

    Attributes:
        done: Finished samples, by id.
        failed: The last failure of samples that are not finished, by id.
        total: Samples of the manifest.
    """

    done: Mapping[str, SampleEntry] = field(default_factory=dict)
    failed: Mapping[str, SampleEntry] = field(default_factory=dict)
    total: int = 0

    @property
    def complete(self) -> bool:
        """Whether every sample is finished."""
        return len(self.done) == self.total


def lock_samples(contents: Iterable[tuple[str, str]], identity: Identity) -> tuple[LockedSample, ...]:
    """Name folder and key of every sample, in the order of the data set.

    Args:
        contents: Id and content hash of each sample.
        identity: What else decides the results.

    Raises:
        SettingsError: Two ids share a folder, or would on a file system that ignores case.
    """
    samples = [LockedSample(id, folder_name(id), content, identity.key(id, content)) for id, content in contents]
    seen: dict[str, str] = {}
    problems = []
    for sample in samples:
        other = seen.setdefault(sample.folder.lower(), sample.id)
        if other != sample.id:
            problems.append(
                f"the ids {other!r} and {sample.id!r} would share the folder {sample.folder!r}; rename one."
            )
    if problems:
        raise SettingsError(problems)
    return tuple(samples)


class RunStore:
    """Reads and writes one run folder.

    Args:
        directory: The run folder; nothing is made before `prepare`.

    Attributes:
        journal: Where this process writes; rank zero's until somebody says otherwise.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.samples = directory / "samples"
        self.records = directory / "records"
        self.events = directory / "events"
        self.lock = directory / "run.lock"
        self.journal = Journal(self.records, 0)
        self._manifest = directory / "manifest.lock.jsonl"
        self._identity = self.records / "identity.json"
        self._digests: dict[Path, tuple[tuple[int, ...], str]] = {}

    def locked(self) -> tuple[LockedSample, ...]:
        """Read the samples that this folder was made for; empty for a new folder."""
        try:
            lines = self._manifest.read_bytes().split(b"\n")
            return tuple(LockedSample(**json.loads(line)) for line in lines if line)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as problem:
            raise SettingsError(
                [f"{self._manifest} cannot be read ({problem}); restore it or choose another output folder."]
            ) from problem

    def state(self, samples: Iterable[LockedSample] | None = None) -> State:
        """Find out what is finished. Every file of a finished sample is read and compared with its recorded hash.

        Args:
            samples: The samples as they should be; those of `manifest.lock.jsonl` if not given.
        """
        wanted = {sample.id: sample for sample in (self.locked() if samples is None else samples)}
        candidates: dict[str, list[SampleEntry]] = {}
        failed: dict[str, SampleEntry] = {}
        for entry in read_samples(self.records):
            sample = wanted.get(entry.id)
            if sample is None or entry.key != sample.key:
                continue
            if entry.status == "done":
                candidates.setdefault(entry.id, []).append(entry)
            elif _time(entry) >= _time(failed.get(entry.id)):
                failed[entry.id] = entry
        done = {}
        for name, entries in candidates.items():
            # Another rank or an earlier run may have written the same sample: any line that its files bear out will do.
            whole = next((entry for entry in reversed(entries) if self._holds(wanted[name].folder, entry)), None)
            if whole is not None:
                done[name] = whole
        return State(
            {name: done[name] for name in wanted if name in done},
            {name: failed[name] for name in wanted if name in failed and name not in done},
            len(wanted),
        )

    def failures(self, samples: Mapping[str, LockedSample]) -> dict[str, SampleEntry]:
        """Return the samples whose last line is a failure, by id, oldest first."""
        last: dict[str, SampleEntry] = {}
        for entry in read_samples(self.records):
            sample = samples.get(entry.id)
            if sample is not None and entry.key == sample.key and _time(entry) >= _time(last.get(entry.id)):
                last[entry.id] = entry
        return dict(sorted(((n, e) for n, e in last.items() if e.status == "failed"), key=lambda pair: _time(pair[1])))

    def changes(self, identity: Identity, samples: Iterable[LockedSample]) -> list[str]:
        """List what differs from the runs that finished samples in this folder; empty when nothing would be mixed.

        Differences do not count while no sample is finished, nor does the content of a sample that is not.
        """
        before = self.locked()
        finished = self.state(before).done
        if not finished:
            return []
        try:
            found = differences(json.loads(self._identity.read_bytes()), identity.as_dict())
        except (OSError, ValueError) as problem:
            found = [f"{self._identity.name} cannot be read ({problem})"]
        old, new = {sample.id: sample for sample in before}, {sample.id: sample for sample in samples}
        lists = (
            ("samples that are gone", [name for name in old if name not in new]),
            ("samples that are new", [name for name in new if name not in old]),
            (
                "finished samples whose image, mask or text changed",
                [name for name in finished if name in new and new[name].content != old[name].content],
            ),
        )
        found += [f"{len(names)} {what}: {_some(names)}" for what, names in lists if names]
        if not found and list(old) != list(new):
            found.append("the order of the samples, which decides their batches")
        return found

    def prepare(self, identity: Identity, samples: Iterable[LockedSample], config: str) -> None:
        """Get the folder ready for this process and its ranks: clean up after a kill, write config and manifest.

        Only for the holder of the lock, before any other rank writes.

        Raises:
            StoreError: A file cannot be written.
        """
        try:
            for folder in (self.directory, self.records, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.directory, self.records, *(f for f in self.samples.iterdir() if f.is_dir())):
                for file in list(folder.iterdir()):
                    if is_temporary(file.name):
                        file.unlink()
        except OSError as problem:
            raise store_error(self.directory, problem) from problem
        mend_journals(self.records)
        write_file(self.directory / "config.yaml", config.encode())
        # The manifest names the keys; it comes last, so that it never speaks of an identity that is not there yet.
        write_file(self._identity, json_document(identity.as_dict()))
        write_file(self._manifest, b"".join(json_line(asdict(sample)) for sample in samples))

    def commit(self, sample: LockedSample, files: Mapping[str, bytes], details: Mapping[str, Any]) -> SampleEntry:
        """Make a sample's results durable: files under temporary names, renames, one journal line.

        Args:
            sample: Whose results they are.
            files: Name -> content. Other files in the sample's folder are removed: they are results of other settings.
            details: For the journal alone: time, rank, seconds and so on.

        Raises:
            StoreError: Something cannot be written. The sample then counts as unfinished.
        """
        folder = self.samples / sample.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise store_error(folder, problem) from problem
        paths = [folder / name for name in sorted(files)]
        try:
            for path in paths:
                stage_file(path, files[path.name])
            publish_files(paths)
        except StoreError:
            discard_files(paths)
            raise
        for leftover in [file for file in folder.iterdir() if file.name not in files and not is_temporary(file.name)]:
            with contextlib.suppress(OSError):
                leftover.unlink()
        entries = {name: FileEntry(len(content), bytes_digest(content)) for name, content in sorted(files.items())}
        entry = SampleEntry(sample.id, sample.key, "done", sample.folder, entries, None, dict(details))
        self.journal.append(entry)
        return entry

    def fail(self, sample: LockedSample, reason: str, details: Mapping[str, Any]) -> SampleEntry:
        """Note that a sample failed and why; results that other settings left in its folder are removed.

        Raises:
            StoreError: The journal cannot be written.
        """
        folder = self.samples / sample.folder
        if folder.is_dir():
            with contextlib.suppress(OSError):
                for file in list(folder.iterdir()):
                    file.unlink()
                folder.rmdir()
        entry = SampleEntry(sample.id, sample.key, "failed", sample.folder, {}, reason, dict(details))
        self.journal.append(entry)
        return entry

    def _holds(self, name: str, entry: SampleEntry) -> bool:
        """Whether all files of a line are there as it says."""
        folder = self.samples / name
        try:
            return bool(entry.files) and all(
                (folder / name).stat().st_size == recorded.size and self._digest(folder / name) == recorded.sha256
                for name, recorded in entry.files.items()
            )
        except OSError:
            return False

    def _digest(self, path: Path) -> str:
        """Hash a file; a file that is as it was a moment ago is not read again."""
        status = path.stat()
        version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._digests.get(path, ((), ""))[0] != version:
            self._digests[path] = (version, file_digest(path))
        return self._digests[path][1]


def _time(entry: SampleEntry | None) -> float:
    value = 0.0 if entry is None else entry.details.get("time", 0.0)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
