"""Tables of methods: means with intervals, per group, paired against one method, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch

from framework.errors import SettingsError, did_you_mean
from framework.evaluation.paired import RESAMPLES, Paired, bootstrap_interval, paired_difference
from framework.evaluation.published import COLUMNS, PublishedRow
from framework.evaluation.rows import Collection, Cost, Key, MethodRows

ALL = ""
"""The group of all samples."""


@dataclass(frozen=True)
class Summary:
    """One figure of one method over a group of images. Numbers are not scaled.

    Attributes:
        mean: Over the images with a finite value; NaN without any.
        deviation: Standard deviation over images, with n - 1.
        low, high: 95 % bootstrap interval of the mean over images.
        n: Images with a finite value.
        missing: Images for which the metric gave no value.
        nan, infinite: Images whose value is no number, or infinite (identical pictures).
    """

    mean: float
    deviation: float
    low: float
    high: float
    n: int
    missing: int = 0
    nan: int = 0
    infinite: int = 0


@dataclass(frozen=True)
class CostSummary:
    """Costs per image of one method.

    Attributes:
        calls, rows, inversion_rows, backward_rows: Means over images; see `framework.evaluation.rows.Cost`.
        seconds, seconds_deviation: Mean and standard deviation over images of batches after the first of a process.
        timed: Number of these images; 0 when every batch was a first one, whose times then stand there all the same.
        peak_gib: Largest.
    """

    calls: float
    rows: float
    inversion_rows: float
    backward_rows: float
    seconds: float
    seconds_deviation: float
    timed: int
    peak_gib: float


@dataclass
class Table:
    """Everything that a table shows, as numbers.

    Attributes:
        figures: Columns.
        about: Direction, unit and scale of figures, as far as known.
        methods: Rows, with the number of samples that failed or are not finished.
        groups: Names of the groups, without the group of all samples; empty when there are fewer than two.
        summaries: Group -> method -> figure -> summary.
        against: The method of the comparison, or None.
        paired: Method -> figure -> its value minus that of `against`, over the images that both have.
        costs: Method -> cost.
        unavailable: Metric -> why it could not be computed.
        versions, days: As in `Collection`.
        published: Rows of publications to stand beside one's own.
    """

    figures: list[Key]
    about: Mapping[Key, Mapping[str, Any]]
    methods: list[MethodRows]
    groups: list[str] = field(default_factory=list)
    summaries: dict[str, dict[str, dict[Key, Summary]]] = field(default_factory=dict)
    against: str | None = None
    paired: dict[str, dict[Key, Paired]] = field(default_factory=dict)
    costs: dict[str, CostSummary] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    versions: Sequence[str] = ()
    days: Sequence[str] = ()
    published: Sequence[PublishedRow] = ()


def make_table(
    collection: Collection,
    *,
    against: str | None = None,
    figures: Sequence[str] = (),
    methods: Sequence[str] = (),
    resamples: int = RESAMPLES,
    published: Sequence[PublishedRow] = (),
) -> Table:
    """Fold rows into a table.

    Args:
        collection: The rows.
        against: Compare every other method with this one, image by image.
        figures: Patterns such as "success*" or "EditSuccess.*" that choose columns, in this order; empty for all.
        methods: Patterns that choose rows, in this order; empty for all.
        resamples: Bootstrap samples of every interval.
        published: Rows of publications; of figures that the runs do not have nothing is shown.

    Raises:
        SettingsError: A pattern fits nothing, there is no such method, or no figure is one of the published.
    """
    found = list(dict.fromkeys(key for method in collection.methods for key in method.values))
    names = [method.name for method in collection.methods]
    problems: list[str] = []
    chosen = _choose(found, figures, lambda key: (key[1], ".".join(key)), "figure", problems)
    rows = _choose(collection.methods, methods, lambda method: (method.name,), "method", problems)
    if against is not None and against not in names:
        near = did_you_mean(against, names)
        problems.append(f"--against {against!r}: there is no such method{near}; there are {', '.join(names)}.")
    if published and not set(chosen) & set(COLUMNS.values()):
        problems.append(
            "--published: none of the figures is one of PIE-Bench's; measure them with `invedit evaluate RUN_DIR`."
        )
    if problems:
        raise SettingsError(problems)
    groups = sorted({group for method in rows for group in method.groups.values()} - {ALL})
    table = Table(
        chosen,
        collection.figures,
        rows,
        groups if len(groups) > 1 else [],
        against=against,
        unavailable=collection.unavailable,
        versions=collection.versions,
        days=collection.days,
        published=published,
    )
    for group in (ALL, *table.groups):
        table.summaries[group] = {
            method.name: {key: _summary(method, key, group, resamples) for key in chosen if key in method.values}
            for method in rows
        }
    if against is not None:
        other = collection.methods[names.index(against)]
        table.paired = {
            method.name: {key: _paired(method, other, key, resamples) for key in chosen if key in method.values}
            for method in rows
            if method is not other
        }
    table.costs = {method.name: _cost(list(method.costs.values())) for method in rows if method.costs}
    return table


def _choose(items: Sequence[Any], patterns: Sequence[str], names: Any, what: str, problems: list[str]) -> list[Any]:
    if not patterns:
        return list(items)
    chosen: list[Any] = []
    known = [name for item in items for name in names(item)]
    for pattern in patterns:
        fitting = [item for item in items if any(fnmatchcase(name, pattern) for name in names(item))]
        if not fitting:
            near = did_you_mean(pattern, known)
            listed = ", ".join(names(item)[-1] for item in items) or "none"
            problems.append(f"{pattern!r} fits no {what}{near}; there are {listed}.")
        chosen += [item for item in fitting if not any(item is one for one in chosen)]
    return chosen


def _summary(method: MethodRows, key: Key, group: str, resamples: int) -> Summary:
    values = [
        method.values[key].get(id) for id, own in method.groups.items() if group in (ALL, own)
    ]  # in the order of the ids
    present = [value for value in values if value is not None]
    finite = torch.tensor([value for value in present if math.isfinite(value)], dtype=torch.float64)
    n = len(finite)
    mean = math.fsum(finite.tolist()) / n if n else math.nan
    deviation = float(finite.std()) if n > 1 else math.nan
    low, high = bootstrap_interval(finite, resamples=resamples)
    nan, infinite = (sum(1 for value in present if test(value)) for test in (math.isnan, math.isinf))
    return Summary(mean, deviation, low, high, n, len(values) - len(present), nan, infinite)


def _paired(method: MethodRows, other: MethodRows, key: Key, resamples: int) -> Paired:
    theirs = other.values.get(key, {})
    both = [id for id in method.groups if id in other.groups]

    def of(values: Mapping[str, float | None]) -> list[float]:
        return [math.nan if (value := values.get(id)) is None else value for id in both]

    return paired_difference(of(method.values[key]), of(theirs), resamples=resamples)


def _cost(costs: Sequence[Cost]) -> CostSummary:
    timed = [cost.seconds for cost in costs if not cost.warm_up]
    seconds = torch.tensor(timed or [cost.seconds for cost in costs], dtype=torch.float64)
    calls, rows, inverted, backward = (
        math.fsum(getattr(cost, name) for cost in costs) / len(costs)
        for name in ("calls", "rows", "inversion_rows", "backward_rows")
    )
    spread = float(seconds.std()) if len(seconds) > 1 else math.nan
    peak = max(cost.peak_gib for cost in costs)
    return CostSummary(calls, rows, inverted, backward, float(seconds.mean()), spread, len(timed), peak)
