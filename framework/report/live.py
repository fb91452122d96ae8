"""The runs below a folder as they are at this moment, for a server that is asked again and again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from framework.errors import SettingsError
from framework.report.document import build_document
from framework.report.noise import noise_figures
from framework.report.pictures import SMALL_BYTES, TYPES, pictures_in, thumbnail_bytes
from framework.report.results import Cell, ResultsReader, RunResults
from framework.run.folders import MANIFEST, RunFolder, find_runs
from framework.run.journal import journals
from framework.run.lock import living_owner


class Answer(NamedTuple):
    """What a page is told.

    Attributes:
        tag: Names this state; a page that has it already gets no document.
        groups: Folders that hold runs, the newest first.
        group: The one that the document shows; empty if there is none.
        document: None where nothing has changed.
    """

    tag: str
    groups: list[str]
    group: str
    document: dict[str, Any] | None


class LiveRuns:
    """Reads the runs below a folder, grouped by the folder that holds them: the variants of a sweep are one group.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._readers: dict[Path, ResultsReader] = {}
        self._runs: dict[tuple[str, str], RunResults] = {}
        self._last: dict[str, tuple[str, dict[str, Any]]] = {}

    def groups(self) -> dict[str, list[RunFolder]]:
        """Find the runs, by group; the group whose runs began last comes first."""
        try:
            runs = find_runs([self.root])
        except (SettingsError, OSError):
            return {}
        found: dict[str, list[RunFolder]] = {}
        for run in runs:
            inside = run.directory != self.root
            group = run.directory.parent.relative_to(self.root).as_posix() if inside else "."
            found.setdefault(group, []).append(RunFolder(run.directory.resolve().name, run.directory))
        return dict(
            sorted(found.items(), key=lambda item: -max(_modified(run.directory / MANIFEST) for run in item[1]))
        )

    def answer(self, group: str = "", tag: str = "") -> Answer:
        """Describe one group, the newest if it is not named or not there, unless the asker knows its state by `tag`."""
        with self._lock:
            groups = self.groups()
            names = list(groups)
            if not names:
                return Answer("", [], "", build_document(self.root.resolve().name, [], Served("", [])))
            group = group if group in groups else names[0]
            now = _signature(group, groups[group])
            if now == tag:
                return Answer(tag, names, group, None)
            if self._last.get(group, ("",))[0] != now:
                self._last[group] = (now, self._document(group, groups[group]))
            return Answer(now, names, group, self._last[group][1])

    def picture(self, group: str, run: str, sample: str, file: str, *, small: bool) -> tuple[bytes, str] | None:
        """Read a committed picture of a sample, or its thumbnail.

        Every part is looked up in what the records say, none is made into a path: what is not in the records of a run
        below the root does not exist, nor does a file that leads out of its run by a link.

        Returns:
            Content and media type, None if there is no such picture.
        """
        results = self._runs.get((group, run))
        cell = results.cells.get(sample) if results is not None else None
        if results is None or cell is None or file not in pictures_in(cell.files):
            return None
        path = _inside(results.directory, cell.directory / file)
        if path is None:
            return None
        try:
            if small and cell.entry.files[file].size > SMALL_BYTES:
                return _thumbnail(path, cell.entry.files[file].sha256), "image/jpeg"
            return path.read_bytes(), TYPES[path.suffix.lower()]
        except (OSError, ValueError):
            return None

    def figure(self, group: str, run: str, file: str) -> tuple[bytes, str] | None:
        """Read a figure that a run left; None if there is no such one."""
        results = self._runs.get((group, run))
        named = [path for path in noise_figures(results) if path.name == file] if results is not None else []
        path = _inside(results.directory, named[0]) if results is not None and named else None
        try:
            return None if path is None else (path.read_bytes(), "image/png")
        except OSError:
            return None

    def _document(self, group: str, folders: list[RunFolder]) -> dict[str, Any]:
        runs = [self._readers.setdefault(folder.directory, ResultsReader(folder)).read() for folder in folders]
        self._runs |= {(group, run.name): run for run in runs}
        title = self.root.resolve().name if group == "." else group
        return build_document(title, runs, Served(group, runs))


class Served:
    """Addresses of pictures at the routes of the plugin, relative to it; a changed picture has another address.

    Args:
        group: The group of the runs.
        runs: The runs of one document.
    """

    def __init__(self, group: str, runs: list[RunResults]) -> None:
        self._group = group
        self._names = [run.name for run in runs]
        self._runs = {run.directory / "samples": run.name for run in runs}

    def thumbnail(self, cell: Cell, name: str) -> str:
        return self._picture(cell, name, {"small": "1"})

    def full(self, cell: Cell, name: str) -> str:
        return self._picture(cell, name, {})

    def figure(self, run: int, path: Path) -> str:
        version = str(int(_modified(path)))
        words = {"group": self._group, "run": self._names[run], "file": path.name, "v": version}
        return f"./figure?{urlencode(words)}"

    def _picture(self, cell: Cell, name: str, more: Mapping[str, str]) -> str:
        run = self._runs[cell.directory.parent]
        words = {"group": self._group, "run": run, "sample": cell.sample.id, "file": name}
        return f"./picture?{urlencode({**words, **more, 'v': cell.entry.files[name].sha256[:12]})}"


def _signature(group: str, folders: list[RunFolder]) -> str:
    """Name the state of some runs by their journals and figures, without reading them."""
    seen: list[Any] = [group]
    for folder in folders:
        directory = folder.directory
        watched = [directory / MANIFEST, *journals(directory / "records"), directory / "statistics"]
        seen.append([str(directory), living_owner(directory / "run.lock") is not None])
        for path in watched:
            try:
                status = path.stat()
            except OSError:
                continue
            seen.append([path.name, status.st_mtime_ns, status.st_size])
    return hashlib.sha256(repr(seen).encode("utf-8", "backslashreplace")).hexdigest()[:24]


def _inside(folder: Path, path: Path) -> Path | None:
    """Return where a path really leads, if that is below a folder."""
    try:
        real = path.resolve(strict=True)
    except OSError:
        return None
    return real if real.is_relative_to(folder.resolve()) and real.is_file() else None


@lru_cache(maxsize=2048)
def _thumbnail(path: Path, digest: str) -> bytes:
    del digest
    return thumbnail_bytes(path)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
