"""Finding the runs below the folders that a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.errors import SettingsError

MANIFEST = "manifest.lock.jsonl"
_INSIDE_A_RUN = ("samples", "records", "events", "statistics")
_DEEPEST = 4


@dataclass(frozen=True)
class RunFolder:
    """One run and what it is called among those it is compared with.

    Attributes:
        name: The variant of a sweep, or the folder's name; different for every run of one list.
        directory: Its folder.
    """

    name: str
    directory: Path


def find_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Find every run in some folders: those that are runs themselves, and the variants of sweeps below the others.

    Runs are called by what tells them apart: their path below the folder they all share.

    Args:
        paths: Run folders, roots of sweeps, or folders that hold either.

    Returns:
        The runs in the order of `paths`, those of one path sorted by modification of their manifest, oldest first,
        which is the order in which a sweep ran them.

    Raises:
        SettingsError: A path is no folder, or holds no run.
    """
    problems: list[str] = []
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            problems.append(f"{path} is not a folder; give a folder of `invedit run`.")
            continue
        runs = sorted(_below(path, 0), key=lambda run: (_age(run), run))
        if not runs:
            problems.append(
                f"{path} holds no run: there is no {MANIFEST} in it or below; give a folder of `invedit run`."
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    if problems:
        raise SettingsError(problems)
    directories = list(found)
    shared = Path(os.path.commonpath(directories)) if len(directories) > 1 else directories[0].parent
    names = (directory.relative_to(shared).as_posix() for directory in directories)
    return [
        RunFolder(name if name != "." else directory.name, run)
        for name, (directory, run) in zip(names, found.items(), strict=True)
    ]


def _below(folder: Path, depth: int) -> list[Path]:
    if (folder / MANIFEST).is_file():
        return [folder]
    if depth == _DEEPEST:
        return []
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    except OSError:
        return []
    return [
        run
        for child in children
        if child.name not in _INSIDE_A_RUN and not child.name.startswith(".")
        for run in _below(child, depth + 1)
    ]


def _age(run: Path) -> float:
    """When a run was last prepared."""
    try:
        return (run / MANIFEST).stat().st_mtime
    except OSError:
        return 0.0
