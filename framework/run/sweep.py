"""Sweeps: one experiment file, several variants, each with a name that is a folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from framework.errors import SettingsError, did_you_mean
from framework.run.config import COMMAND_LINE, TOP_LEVEL, Config, dotted
from framework.run.problems import Origin, Problems

if TYPE_CHECKING:
    from framework.run.build import Experiment

FIXED = ("base", "sweep", "output")
"""Top-level keys that all variants share."""

MOST_VARIANTS = 10_000
_LONGEST_NAME = 100
_TAKEN = (
    "samples",
    "records",
    "events",
    "config.yaml",
    "statistics",
    "report.html",
    "report_files",
    "run.lock",
    "manifest.lock.jsonl",
)


@dataclass(frozen=True)
class Variant:
    """One point of a sweep.

    Attributes:
        name: Folder below the root of the experiment; empty where there is no sweep.
        overrides: Dotted place -> value.
        config: The experiment with these values, without its sweep.
    """

    name: str
    overrides: Mapping[str, Any] = field(repr=False)
    config: Config = field(repr=False)


def expand(config: Config) -> list[Variant]:
    """Expand `sweep:` into its variants; an experiment without one is its own only variant.

    An axis is a place and its values: `method.skip: [12, 18]`, or names with values, `method: {ddim: {...}}`, where a
    mapping replaces what stood there whole. Variants are all combinations, the last axis fastest. What the command line
    says about the inside of a swept place (`method.steps=10`) holds for every variant.

    Raises:
        SettingsError: An axis has no values, values have no readable name, or two variants have the same name.
    """
    sweep = config.values.get("sweep")
    if not sweep:
        return [Variant("", {}, config.without("sweep"))]
    problems = Problems(config.origins)
    if not isinstance(sweep, dict):
        problems.add(("sweep",), "is not a mapping; write sweep: {method.skip: [12, 18]}.")
        problems.done()
    axes = _axes(sweep, problems)
    inside = _inside(config, axes, problems)
    count = 1
    for points in axes.values():
        count *= len(points)
    if count > MOST_VARIANTS:
        problems.add(("sweep",), f"makes {count} variants; {MOST_VARIANTS} is the most.")
    problems.done()
    # What replaces a whole part comes before what changes one of its settings.
    order = sorted(axes, key=lambda key: key.count("."))
    variants: list[Variant] = []
    taken: dict[str, str] = {}
    for chosen in itertools.product(*axes.values()):
        name = ",".join(point for point, _ in chosen)
        point = dict(zip(axes, (value for _, value in chosen), strict=True))
        overrides = {key: point[key] for key in order}
        if name.casefold() in taken or name.casefold() in _TAKEN or len(name) > _LONGEST_NAME:
            reason = "too long" if len(name) > _LONGEST_NAME else "already taken"
            problems.add(("sweep",), f"the variant name {name!r} is {reason}; give names, as in {{name: value}}.")
        taken.setdefault(name.casefold(), name)
        changed = config.without("sweep").with_values(overrides, Origin(f"sweep {name}"))
        changed = changed.with_values(inside, COMMAND_LINE)
        variants.append(Variant(name, overrides, changed))
    problems.done()
    return variants


def build_all(config: Config) -> list[tuple[str, Experiment]]:
    """Build every variant, so that all are checked before the first starts.

    Returns:
        Name (empty without a sweep) and experiment of each. Equal backbones and data sets are one object.

    Raises:
        SettingsError: All problems; those that only some variants have begin with the variants' names.
    """
    from framework.run.build import Shared, build

    variants = expand_or_report(config)
    shared = Shared()
    experiments: list[tuple[str, Experiment]] = []
    found: dict[str, list[str]] = {}
    for variant in variants:
        try:
            experiments.append((variant.name, build(variant.config, shared)))
        except SettingsError as error:
            for problem in error.problems:
                # The same fault reads the same whichever variant met it.
                sentence = problem.replace(f"sweep {variant.name}: ", "sweep: ")
                found.setdefault(sentence, []).append(variant.name)
    if found:
        raise SettingsError([_of(names, len(variants)) + sentence for sentence, names in found.items()])
    return experiments


def expand_or_report(config: Config) -> list[Variant]:
    """Expand, and if the sweep itself is faulty report what is wrong with the rest of the experiment as well."""
    from framework.run.build import build

    try:
        return expand(config)
    except SettingsError as error:
        problems = list(error.problems)
    sweep = config.values.get("sweep")
    axes = _axes(sweep, Problems()) if isinstance(sweep, dict) else {}
    first = {key: points[0][1] for key, points in axes.items() if points}
    try:
        build(config.without("sweep").with_values(first, Origin("sweep")))
    except SettingsError as error:
        problems += error.problems
    raise SettingsError(problems)


def _of(names: list[str], count: int) -> str:
    if len(names) == count:
        return ""
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"[{shown}] "


def _axes(sweep: Mapping[str, Any], problems: Problems) -> dict[str, list[tuple[str, Any]]]:
    """Return the places that are swept over, with the name and value of each of their points."""
    return {key: _values(key, values, sweep, problems) for key, values in sweep.items() if _is_place(key, problems)}


def _inside(config: Config, axes: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """Return the overrides of places inside a swept one, which the values of the sweep would undo."""
    found: dict[str, Any] = {}
    for key, value in config.overrides:
        if dotted(key) in map(dotted, axes):
            problems.note(f"command line: {key} is swept over; change sweep.{key}, or give sweep=null.")
        elif any(dotted(key).startswith(f"{dotted(axis)}.") for axis in axes):
            found[key] = value
    return found


def _is_place(key: str, problems: Problems) -> bool:
    top = re.split(r"[.\[]", key)[0]
    choices = [name for name in TOP_LEVEL if name not in FIXED]
    if top in choices:
        return True
    near = did_you_mean(top, choices)
    why = "is the same for all variants" if top in FIXED else "is no key of an experiment"
    problems.add(("sweep", key), f"{top!r} {why}{near}; sweep over {', '.join(choices)} or places inside them.")
    return False


def _values(key: str, values: Any, sweep: Mapping[str, Any], problems: Problems) -> list[tuple[str, Any]]:
    """Return the points of an axis: name and value of each."""
    place = ("sweep", key)
    if isinstance(values, dict) and values and "_target_" not in values:
        points = [(str(name), value) for name, value in values.items()]
        for name, _ in points:
            if not name or _safe(name) != name:
                problems.add((*place, name), "is no name for a folder; use letters, digits and . _ - + only.")
        return points
    if not isinstance(values, list) or not values:
        problems.add(place, "has no values; write a list, [12, 18], or names with values, {low: 12, high: 18}.")
        return []
    short = key.rpartition(".")[2]
    label = key if sum(other.rpartition(".")[2] == short for other in sweep) > 1 else short
    points = []
    for value in values:
        if isinstance(value, (dict, list)):
            problems.add(place, f"the value {value!r} gives no readable name; write {{name: value}}.")
        points.append((f"{_safe(label)}={_safe(_text(value))}", value))
    return points


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _safe(text: str) -> str:
    """Replace what is not safe in a folder's name, and what separates axes."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).lstrip(".")
