"""The shapes world as a data set without files: edits drawn from a seed, rendered once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.shapes.edits import EDITS, concepts, sample_edit
from experiments.shapes.export import export_benchmark
from experiments.shapes.render import render
from framework.data.readers.pie_bench import PieBench
from framework.errors import SettingsError

CACHE = "cache"


@dataclass(kw_only=True)
class ShapesBenchmark(PieBench):
    """Edits of the shapes world with exact truth, the kinds in turn; equal settings give equal pictures everywhere.

    The pictures are rendered when they are first asked for. Samples carry `shapes_edit` for the metric, and `concepts`
    for methods that are told what to add and what to take away.

    Attributes:
        root: Folder in which sets are kept; "cache" is `$XDG_CACHE_HOME/invedit`, by default `~/.cache/invedit`.
        count: Number of edits.
        seed: Of the set.
        kinds: Kinds of edits, from `experiments.shapes.edits.EDITS`.
    """

    root: str | Path = CACHE
    count: int = 256
    seed: int = 0
    kinds: Sequence[str] = tuple(EDITS)
    border: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            problems.append(f"ShapesBenchmark: count={self.count!r} is not allowed; give an integer of at least 1.")
        unknown = [kind for kind in self.kinds if kind not in EDITS]
        if unknown or not self.kinds or isinstance(self.kinds, str):
            allowed = f"give a list from {', '.join(EDITS)}"
            problems.append(f"ShapesBenchmark: kinds={self.kinds!r} is not allowed; {allowed}.")
        if problems:
            raise SettingsError(problems)
        super().__post_init__()
        try:
            self.root = self._made()
        except OSError as problem:
            raise SettingsError(
                [f"ShapesBenchmark: root={str(self.root)!r} cannot be written ({problem}); give another folder."]
            ) from problem

    def _made(self) -> Path:
        """Return the folder of this set, rendered if it is not there yet; several processes may ask at once."""
        first = sample_edit(self.kinds[0], self.seed, 0)
        known = json.dumps([self.count, self.seed, list(self.kinds), first.to_dict(), concepts(first)]).encode()
        name = hashlib.sha256(known + render(first.source).tobytes() + render(first.target).tobytes()).hexdigest()[:16]
        home = _folder(self.root) / f"shapes-{name}"
        if home.is_dir():
            return home
        partial = home.with_name(f".{home.name}-{os.getpid()}")
        export_benchmark(partial, count=self.count, seed=self.seed, kinds=self.kinds)
        try:
            partial.rename(home)
        except OSError:  # Another process was first; its files are the same.
            shutil.rmtree(partial)
        return home


def _folder(root: str | Path) -> Path:
    if root != CACHE:
        return Path(root).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "invedit"
