"""From experiment files and `key=value` overrides to one tree of plain values that knows where each was written."""

from __future__ import annotations

import copy
import importlib.resources
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from framework.errors import SettingsError, did_you_mean
from framework.run.problems import Origin, Problems, show
from framework.run.strict_yaml import KeyPath, parse_value, read_yaml

TOP_LEVEL = ("base", "seed", "backbone", "method", "data", "callbacks", "trainer", "sweep", "output")
TRAINING_ONLY = ("model", "training")
BUNDLED = "experiments"
"""Package whose yaml files are found by name."""

COMMAND_LINE = Origin("command line")
_DEEPEST = 50


@dataclass(frozen=True)
class Config:
    """An experiment as it was written: files merged, overrides applied, interpolations still in place.

    Attributes:
        name: Stem of the experiment file.
        file: The experiment file.
        values: The top-level keys but for `base`; plain mappings, lists and scalars.
        origins: Where every value was written.
        problems: What is wrong so far; `resolve`, `build` and `expand` report it with whatever they find.
        overrides: Dotted places and values from the command line, which `values` holds already.
    """

    name: str
    file: Path
    values: dict[str, Any]
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Any], ...] = ()

    def collect(self) -> Problems:
        """Start a collection of problems that begins with those of this config."""
        return Problems(self.origins, list(self.problems))

    def with_values(self, changes: Mapping[str, Any], origin: Origin) -> Config:
        """Return a copy in which values are replaced, whole mappings included.

        Args:
            changes: Dotted place -> value.
            origin: Where the changes were written.
        """
        values, problems = copy.deepcopy(self.values), Problems(dict(self.origins), list(self.problems))
        for key, value in changes.items():
            _assign(values, key, copy.deepcopy(value), origin, problems)
        return replace(self, values=values, origins=problems.origins, problems=tuple(problems.sentences))

    def without(self, key: str) -> Config:
        """Return a copy without a top-level key."""
        return replace(self, values={name: value for name, value in self.values.items() if name != key})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment, the files it is based on, and overrides.

    Base files are merged in their order, the experiment last: mappings key by key, lists and scalars whole, and a
    mapping that names another `_target_` whole too, since the keys of one class mean nothing to another. An override
    replaces the value it names, nothing else.

    Args:
        path: Yaml file, or the name of a bundled experiment with or without its folder and suffix.
        overrides: `key=value` texts, values written as in yaml: `method.skip=12`, `data.root=x`, `callbacks=[]`,
            `callbacks[0].bins=32`.

    Raises:
        SettingsError: A file cannot be found or read. Everything else that is wrong is kept in `problems`.
    """
    problems = Problems()
    changes = _parse_overrides(overrides, problems)
    values: dict[str, Any] = {}
    file: Path | None = None
    unreadable = False
    try:
        file = find_experiment(path)
        values = _read(file, problems, [])
    except SettingsError as error:
        problems.extend(error.problems)
        unreadable = True
    if unreadable or file is None:
        problems.done()
        raise AssertionError("an unreadable experiment without a problem")
    for key, value in changes:
        _assign(values, key, copy.deepcopy(value), COMMAND_LINE, problems)
    return Config(file.stem, file, values, problems.origins, tuple(problems.sentences), tuple(changes))


def resolve(config: Config, problems: Problems) -> dict[str, Any]:
    """Fill in interpolations (`${seed}`, `${data.root}`).

    A value that cannot be resolved is noted and stands as `UNRESOLVED`, so that nobody complains about it again.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree = OmegaConf.create(config.values)
    except OmegaConfBaseException as error:
        problems.add((), f"an interpolation is not written as ${{key}}: {_first_line(error)}")
        return dict.fromkeys(config.values, UNRESOLVED)

    endless: set[KeyPath] = set()

    def walk(container: Any, path: KeyPath) -> Any:
        if path[:1] in endless:
            return UNRESOLVED
        keys: Iterable[Any] = range(len(container)) if OmegaConf.is_list(container) else list(container)
        found: dict[Any, Any] = {}
        for key in keys:
            try:
                value = None if OmegaConf.is_missing(container, key) else container[key]
                if OmegaConf.is_missing(container, key):
                    problems.add((*path, key), "must be given; ??? stands for a value that is still to be written.")
                    value = UNRESOLVED
                elif len(path) > _DEEPEST:
                    problems.add(path[:1], "an interpolation in it leads back to itself.")
                    endless.add(path[:1])
                    return UNRESOLVED
            except OmegaConfBaseException as error:
                reason = _first_line(error)
                loop = "Recursive" in reason or "parent node" in reason
                problems.add((*path, key), "an interpolation leads back to itself." if loop else f"{reason}.")
                value = UNRESOLVED
            if OmegaConf.is_config(value):
                value = walk(value, (*path, key))
            found[key] = value
        return list(found.values()) if OmegaConf.is_list(container) else found

    values: dict[str, Any] = walk(tree, ())
    return values


class _Unresolved:
    """Stands for a value whose problem has been noted."""

    def __repr__(self) -> str:
        return "<unresolved>"


UNRESOLVED = _Unresolved()


def check_top_level(values: Mapping[str, Any], problems: Problems) -> None:
    """Note keys that an editing experiment does not have, and required ones that are missing."""
    if any(key in values for key in TRAINING_ONLY):
        problems.add((), "this is a training experiment (it has the key 'model' or 'training'); use `invedit train`.")
        return
    for key in values:
        if key not in TOP_LEVEL:
            near = did_you_mean(key, TOP_LEVEL)
            problems.add((key,), f"unknown key{near}; an experiment has {', '.join(TOP_LEVEL)}.")
    for key in ("backbone", "method", "data"):
        if key not in values:
            problems.add((), f"the key {key!r} is missing; give {key}: {{_target_: ...}}.")


def find_experiment(path: str | Path) -> Path:
    """Find an experiment file: as a path from the working directory, else among the bundled ones.

    Raises:
        SettingsError: There is no such file; the nearest bundled name is offered.
    """
    text = str(path)
    for candidate in (Path(text), Path(f"{text}.yaml")):
        if candidate.is_file():
            return candidate
    bundled = bundled_experiments()
    name = text.removeprefix(f"{BUNDLED}/").removesuffix(".yaml")
    if name in bundled:
        return bundled[name]
    if Path(text).exists():
        raise SettingsError([f"{text} is not a file; give the yaml file of an experiment."])
    near = did_you_mean(name, bundled)
    raise SettingsError([f"there is no experiment {text!r}{near}; `invedit list experiments` names the bundled ones."])


def bundled_experiments() -> dict[str, Path]:
    """Return the yaml files that travel with the package: name without suffix -> file."""
    try:
        root = importlib.resources.files(BUNDLED)
    except ModuleNotFoundError:
        return {}

    def walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Path]]:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                yield from walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                # Installed packages are unpacked on disk, so that the resource is a path.
                yield prefix + entry.name.removesuffix(".yaml"), Path(str(entry))

    return dict(walk(root, ""))


def _read(file: Path, problems: Problems, chain: list[Path]) -> dict[str, Any]:
    """Read a file on top of the files it is based on."""
    document = read_yaml(file)
    problems.extend(document.problems)
    if not isinstance(document.values, dict):
        got = "is empty" if document.values is None else "does not hold a mapping"
        raise SettingsError([f"{file}: {got}; an experiment is a mapping of {', '.join(TOP_LEVEL)}."])
    values: dict[str, Any] = document.values
    merged: dict[str, Any] = {}
    bases = values.pop("base", None) or []
    unreadable: list[str] = []
    for base in [bases] if isinstance(bases, str) else bases:
        place = f"{file}:{document.lines.get(('base',), 1)}: base"
        if not isinstance(base, str):
            unreadable.append(f"{place}: {base!r} is not the name of a file.")
            continue
        try:
            found = _find_base(base, file, place)
            if found.resolve() in (loop := [*chain, file.resolve()]):
                names = " -> ".join(part.name for part in [*loop, found])
                raise SettingsError([f"{place}: the files are based on each other: {names}."])
            _merge(merged, _read(found, problems, loop), (), problems)
        except SettingsError as error:
            unreadable += error.problems
    if unreadable:
        raise SettingsError(unreadable)
    _merge(merged, values, (), problems)
    for path, line in document.lines.items():
        problems.origins[path] = Origin(f"{file}:{line}", file.parent.resolve())
    problems.origins[()] = Origin(str(file), file.parent.resolve())
    return merged


def _find_base(base: str, file: Path, place: str) -> Path:
    beside = file.parent / base
    if beside.is_file():
        return beside
    bundled = bundled_experiments()
    name = base.removeprefix(f"{BUNDLED}/").removesuffix(".yaml")
    if name in bundled:
        return bundled[name]
    near = did_you_mean(name, bundled)
    raise SettingsError([f"{place}: {base!r} is neither a file beside this one nor a bundled experiment{near}."])


def _merge(into: dict[str, Any], values: Mapping[str, Any], path: KeyPath, problems: Problems) -> None:
    for key, value in values.items():
        old = into.get(key)
        if (
            isinstance(old, dict)
            and isinstance(value, dict)
            and value.get("_target_", old.get("_target_")) == old.get("_target_")
        ):
            _merge(old, value, (*path, key), problems)
        else:
            if key in into:
                _forget(problems.origins, (*path, key))
            into[key] = value


def _forget(origins: dict[KeyPath, Origin], path: KeyPath) -> None:
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]


def _parse_overrides(overrides: Sequence[str], problems: Problems) -> list[tuple[str, Any]]:
    changes = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.note(f"command line: {text!r} is not an override; write key=value, for example method.skip=12.")
            continue
        try:
            changes.append((key.strip(), parse_value(value)))
        except SettingsError:
            problems.note(f"command line: {text!r}: the value is not yaml; put it in quotes: {key}='\"...\"'.")
    return changes


def _assign(values: dict[str, Any], key: str, value: Any, origin: Origin, problems: Problems) -> None:
    """Replace the value at a dotted place; mappings on the way are made where there are none."""
    path = _split(key, values)
    if path is None:
        problems.note(f"{origin.text}: {key!r} is not a place in an experiment; write it as method.controls[0].kind.")
        return
    if path[0] == "base":
        problems.note(f"{origin.text}: base cannot be changed here; write a file that names other base files.")
        return
    here: Any = values
    part: Any
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                there = f"a list of {len(here)}, counted from 0"
                problems.note(f"{origin.text}: {key}: {show(path[:depth])} is {there}; {part!r} is none of its places.")
                return
        elif not isinstance(here, dict) or isinstance(part, int):
            problems.note(f"{origin.text}: {key}: {show(path[:depth])} is {here!r}, which has no part {part!r}.")
            return
        if last:
            here[part] = value
        elif isinstance(here, list):
            here = here[part]
        else:
            # What `key:` or nothing at all left empty becomes a mapping.
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
    _forget(problems.origins, path)
    problems.origins[path] = origin


def _split(key: str, values: Mapping[str, Any]) -> KeyPath | None:
    """Split `method.controls[0].kind` or `method.controls.0.kind`.

    After `sweep.` comes an axis, dots and all, unless the words lead into a named value: `sweep.method.ddim.steps`.
    """
    parts: list[str | int] = []
    here: Any = values
    if key.startswith("sweep."):
        rest = key.removeprefix("sweep.")
        sweep = values.get("sweep")
        axes = [(axis, names) for axis, names in (sweep if isinstance(sweep, dict) else {}).items()]
        inner = [
            (axis, names)
            for axis, names in axes
            if rest.startswith(f"{axis}.") and isinstance(names, dict) and rest[len(axis) + 1 :].split(".")[0] in names
        ]
        if not inner:
            return ("sweep", rest)
        axis, here = inner[0]
        parts, key = ["sweep", axis], rest[len(axis) + 1 :]
    for token in dotted(key).split("."):
        if not token or "[" in token or "]" in token:
            return None
        part: str | int = int(token) if token.isdigit() and isinstance(here, list) else token
        parts.append(part)
        if isinstance(here, list):
            here = here[part] if isinstance(part, int) and part < len(here) else None
        else:
            here = here.get(part) if isinstance(here, dict) else None
    return tuple(parts)


def dotted(key: str) -> str:
    """Write a place with dots alone: `controls[0].kind` as `controls.0.kind`."""
    return re.sub(r"\[(\d+)\]", r".\1", key)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
