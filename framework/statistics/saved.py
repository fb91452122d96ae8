"""Statistics of the inversions that finished runs have saved: one record in memory at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.errors import SampleError, SettingsError
from framework.record import Record
from framework.run.finished import StoredRun, StoredSample
from framework.run.folders import RunFolder
from framework.run.journal import read_samples
from framework.statistics.comoments import CoMoments
from framework.statistics.distribution import DistributionFold, image_distribution, measure_distribution
from framework.statistics.pairs import PairFold, beside, measure_matrix, measure_pairs
from framework.statistics.series import Of, Series, as_keys, series_of
from framework.statistics.steps import measure_steps
from framework.statistics.structure import (
    CleanLatents,
    StructureFold,
    StructureSettings,
    image_structure,
    measure_structure,
)


@dataclass
class SavedStatistics:
    """What one run's saved inversions amount to.

    Attributes:
        name: Of the run, among those it is compared with.
        directory: Its folder.
        key: Equal for runs that may be drawn on one axis: what is measured, levels, model.
        what: What was measured, in words.
        t: [S] time of each step.
        excluded: Step -> reason why it is left out.
        distribution, pairs, structure: The folded states.
        skipped: Sample -> why it does not count: not finished, files missing or cut off, other steps.
        not_finite: Sample -> the steps at which a map was not finite.
    """

    name: str
    directory: Path
    key: str = ""
    what: str = ""
    t: Tensor = field(default_factory=lambda: torch.zeros(0))
    excluded: Mapping[str, str] = field(default_factory=dict)
    distribution: DistributionFold = field(default_factory=DistributionFold)
    pairs: PairFold = field(default_factory=PairFold)
    structure: StructureFold = field(default_factory=StructureFold)
    skipped: dict[str, str] = field(default_factory=dict)
    not_finite: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Images that count."""
        return self.distribution.images

    def summary(self) -> dict[str, Any]:
        """Return everything as json holds it; what cannot be computed is null, with a reason beside it."""
        about = {
            "run": self.name,
            "directory": self.directory.resolve(),
            "of": self.what,
            "key": self.key,
            "images": self.images,
            "skipped": self.skipped,
            "not_finite": self.not_finite,
        }
        if not self.images:
            return about
        steps = self.distribution.rows(self.t, self.excluded)
        shaped = self.structure.rows(self.t, self.excluded) if self.structure.images else [{}] * len(steps)
        steps = [{**in_space, **row} for row, in_space in zip(steps, shaped, strict=True)]
        means = self.pairs.over_steps() if self.pairs.images else {}
        pairs = self.pairs.rows(self.excluded) if self.pairs.images else []
        return {**about, "mean_over_images_and_steps": means, "steps": steps, "pairs": pairs}

    def arrays(self) -> dict[str, Tensor]:
        """Return the folded states, to be merged or drawn elsewhere."""
        groups: dict[str, Any] = {"distribution": self.distribution, "pairs": self.pairs, "structure": self.structure}
        found = {
            f"{name}.{key}": x for name, group in groups.items() if group.images for key, x in group.arrays().items()
        }
        return {**found, "t": self.t}


def measure_run(
    run: RunFolder,
    *,
    of: Of = "auto",
    unused: bool = False,
    settings: StructureSettings = StructureSettings(),
    progress: Callable[[int, int], None] | None = None,
) -> SavedStatistics:
    """Measure the saved inversions of one run, in the order of the samples' ids.

    Args:
        run: A run that was made with `output.save.inversion: true`.
        of: What is measured; see `series_of`.
        unused: Measure also steps that the edit does not use.
        settings: What is measured in space.
        progress: Told how many samples are done, of how many.

    Raises:
        SettingsError: The folder is no run.
    """
    stored = StoredRun(run.directory)
    found = SavedStatistics(run.name, run.directory)
    found.skipped |= _unfinished(stored)
    model = _model(run.directory)
    first = ""
    for number, sample in enumerate(stored.samples()):
        try:
            record = _load(sample)
            series = series_of(record, of, unused=unused)
            key = _key(series, record, model)
            if not first:
                first, found.key, found.what, found.t = sample.id, key, series.what, series.t
                found.excluded = as_keys(series.excluded)
            if (key, as_keys(series.excluded)) != (found.key, found.excluded):
                raise SampleError(f"measured on other steps than {first} ({series.what}, {len(series.t)} steps)")
            broken = _measure(found, series, record, settings)
            if broken:
                found.not_finite[sample.id] = f"steps {', '.join(map(str, broken))}"
        except SampleError as problem:
            found.skipped[sample.id] = str(problem)
        if progress is not None:
            progress(number + 1, len(stored.state.done))
    return found


def _measure(found: SavedStatistics, series: Series, record: Record, settings: StructureSettings) -> list[int]:
    """Add one image; returns the steps at which a map was not finite."""
    maps, excluded = series.maps, series.excluded
    steps = len(maps)
    measured = measure_steps(maps, lambda part, _: measure_distribution(part))
    own, broken = image_distribution(measured, excluded)
    found.distribution.add(own)
    if steps > 1:
        pairs = CoMoments.from_tensor(measure_pairs(maps).transpose(0, 1).contiguous())
        empty = ~pairs.finite
        empty[:, beside(excluded, steps)] = True
        left = sorted({*excluded, *broken})
        found.pairs.add({"pairs": pairs.without(empty).to_tensor(), "matrix": measure_matrix(maps, left)})
    if record.z0.ndim == 4:
        clean = CleanLatents.of(record.z0)
        states = measure_steps(maps, lambda part, draw: measure_structure(part, clean.rows(draw), settings))
        found.structure.add(image_structure(states, excluded))
    return broken


def _load(sample: StoredSample) -> Record:
    """Read a sample's inversion; its draws are stacked.

    Raises:
        SampleError: There is none, or it cannot be read.
    """
    files = sorted(sample.directory.glob("inversion*.safetensors"))
    if not files:
        raise SampleError("no inversion was saved; run again with output.save.inversion=true")
    return Record.stack([Record.load(path) for path in files])


def _unfinished(run: StoredRun) -> dict[str, str]:
    """Say of every sample that is not finished why not."""
    claimed = {entry.id for entry in read_samples(run.directory / "records") if entry.status == "done"}
    reasons = {name: f"failed: {entry.reason}" for name, entry in run.state.failed.items()}
    broken = "files are missing or are not what was committed; run the experiment again to compute them anew"
    reasons |= {name: broken for name in sorted(claimed) if name not in run.state.done and name not in reasons}
    return reasons


def _model(directory: Path) -> str:
    """Return the hash of what decided the network's numbers, as the run recorded it."""
    try:
        identity = json.loads((directory / "records" / "identity.json").read_bytes())
        known = identity["model"]
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def _key(series: Series, record: Record, model: str) -> str:
    levels = [record.t.tolist(), record.alpha.tolist(), record.sigma.tolist()]
    digest = hashlib.sha256(json.dumps([levels, list(series.maps.shape[2:])]).encode()).hexdigest()[:12]
    return f"{series.what}; {len(series.t)} steps {digest}; model {model}"


def check_any(found: list[SavedStatistics]) -> None:
    """Refuse when no run holds anything that could be measured.

    Raises:
        SettingsError: With the first reason of each run.
    """
    if any(one.images for one in found):
        return
    problems = []
    for one in found:
        reason = next(iter(one.skipped.values()), "it has no finished sample")
        problems.append(f"{one.directory}: nothing to measure in {len(one.skipped)} samples, such as: {reason}")
    raise SettingsError(problems)
