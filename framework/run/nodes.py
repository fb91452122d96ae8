"""From a tree of plain values to parts: every value is checked against the constructor that takes it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from framework.errors import SettingsError, did_you_mean
from framework.run.config import UNRESOLVED
from framework.run.problems import Problems
from framework.run.strict_yaml import KeyPath
from framework.run.targets import REQUIRED, UNSTATED, Parameter, locate, parameters, target_of
from framework.run.values import (
    MAPPINGS,
    SEQUENCES,
    MisfitError,
    UnplainError,
    describe,
    is_anything,
    is_part,
    is_union,
    origin,
    scalar,
    to_plain,
)

TARGET = "_target_"


class Built(NamedTuple):
    """A value that fits.

    Attributes:
        value: What a constructor is given.
        plain: The same in plain values, with the defaults of every part written out.
    """

    value: Any
    plain: Any


class Builder:
    """Builds parts depth first. Problems go to `problems`; a part with a problem is None, and its siblings go on."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def part(
        self, node: Any, expected: Any, path: KeyPath, inject: Mapping[str, Built | None] | None = None
    ) -> Built | None:
        """Build the part that a mapping with a `_target_` describes.

        Args:
            node: Value from the experiment.
            expected: Class that the part must be of; Any for no demand.
            path: Where the node stands.
            inject: Keywords that the engine gives (where the class takes them) and that nobody may write; None stands
                for one that could not be built.
        """
        if node is UNRESOLVED:
            return None
        if not isinstance(node, dict) or not isinstance(node.get(TARGET), str):
            if isinstance(node, dict) and node.get(TARGET, UNRESOLVED) is not UNRESOLVED:
                self.problems.add((*path, TARGET), f"got {node[TARGET]!r}; give the dotted path of a class.")
            elif not isinstance(node, dict) or TARGET not in node:
                wanted = "a mapping with a _target_" if is_anything(expected) else describe(expected)
                self.problems.add(path, f"got {_brief(node)}; give {wanted}.")
            return None
        cls = self._locate(node[TARGET], expected, path)
        if cls is None:
            return None
        given = {key: value for key, value in node.items() if key != TARGET}
        return self._construct(cls, given, path, inject or {}, {TARGET: node[TARGET]})

    def value(self, hint: Any, value: Any, path: KeyPath, default: Any = REQUIRED) -> Built | None:
        """Check one value against a type, and build the parts inside it.

        Args:
            hint: Type that is asked for.
            value: Value from the experiment.
            path: Where it stands.
            default: What stands there when nothing is given; a part whose settings a mapping may change.
        """
        if value is UNRESOLVED:
            return None
        if is_union(hint):
            return self._union(hint, value, path, default)
        if is_anything(hint):
            return self._anything(value, path)
        base = origin(hint)
        if base in SEQUENCES:
            return self._sequence(hint, base, value, path)
        if base in MAPPINGS:
            return self._mapping(hint, value, path)
        if is_part(hint):
            return self._described(base, value, path, default)
        try:
            fitting = scalar(hint, value)
        except MisfitError as misfit:
            self.problems.add(path, f"got {_brief(value)}; {misfit}.")
            return None
        return Built(fitting, to_plain(fitting) if isinstance(fitting, (Path, typing.Hashable)) else fitting)

    def _locate(self, target: str, expected: Any, path: KeyPath) -> type | None:
        folders = [Path.cwd()]
        if folder := self.problems.folder((*path, TARGET)):
            folders.insert(0, folder)
        place = (*path, TARGET)
        try:
            cls = locate(target, folders)
        except SettingsError as error:
            for problem in error.problems:
                self.problems.add(place, problem)
            return None
        base = origin(expected)
        if getattr(base, "_is_protocol", False):
            missing = [name for name, value in vars(base).items() if callable(value) and not name.startswith("_")]
            missing = [name for name in missing if not hasattr(cls, name)]
            if missing:
                self.problems.add(place, f"{target} is no {base.__name__}: it has no {' and no '.join(missing)}.")
                return None
        elif isinstance(base, type) and not is_anything(base) and not issubclass(cls, base):
            kind = next((parent for parent in cls.__mro__[1:] if parent.__module__.startswith("framework.")), None)
            is_a = f" (its kind is {kind.__name__})" if kind else ""
            self.problems.add(place, f"{target} is no {base.__name__}{is_a}; name a subclass of {target_of(base)}.")
            return None
        return cls

    def _construct(
        self,
        cls: type,
        given: Mapping[str, Any],
        path: KeyPath,
        inject: Mapping[str, Built | None],
        head: Mapping[str, Any],
        preset: Any = None,
    ) -> Built | None:
        """Check the keys of one part and build it; `preset` is the part that they change, if there is one."""
        known, takes_others = parameters(cls)
        if preset is not None:
            current = {name: getattr(preset, name, known[name].default) for name in known}
            known = {name: dataclasses.replace(known[name], default=current[name]) for name in known}
        injected = {name: built for name, built in inject.items() if name in known or takes_others}
        arguments = {name: built.value if built else None for name, built in injected.items()}
        faulty = {name for name, built in injected.items() if built is None}
        plain: dict[str, Any] = {}
        sound = not faulty
        for key, value in given.items():
            parameter = known.get(key, Parameter(Any, REQUIRED) if takes_others else None)
            if key in inject:
                self.problems.add((*path, key), "is given by the engine; remove it here, it stands at the top level.")
                sound = False
            elif parameter is None:
                self.problems.add((*path, key), self._unknown(cls, key, [name for name in known if name not in inject]))
                sound = False
            elif built := self.value(parameter.hint, value, (*path, key), parameter.default):
                arguments[key], plain[key] = built
            else:
                faulty.add(key)
        missing = [
            name
            for name, parameter in known.items()
            if parameter.default is REQUIRED and name not in {*arguments, *faulty}
        ]
        for name in missing:
            hint = f"; give {describe(known[name].hint)}" if not is_anything(known[name].hint) else ""
            self.problems.add(path, f"{cls.__name__} needs the key {name!r}{hint}.")
        if missing or any(known[name].default is REQUIRED for name in faulty if name in known and name not in inject):
            return None
        made = self._make(cls, {**_defaults(known, preset), **arguments}, path, faulty)
        if made is None or faulty or not sound:
            return None
        return Built(made, {**head, **_written_out(known, plain, inject)})

    def _make(self, cls: type, arguments: Mapping[str, Any], path: KeyPath, faulty: set[str]) -> Any:
        """Call the constructor.

        Where some keys are faulty, it is called without them to hear what else is wrong; a complaint that names a
        faulty key is left out, since it may be about what stands there instead.
        """
        try:
            return cls(**arguments)
        except SettingsError as error:
            for problem in error.problems:
                if not any(re.search(rf"\b{re.escape(name)}\b", problem) for name in faulty):
                    self._complain(problem, cls, arguments, path)
        except Exception as error:
            if not faulty:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(". ")
                self.problems.add(path, f"{cls.__name__} could not be built: {reason}.")
        return None

    def _complain(self, problem: str, cls: type, arguments: Mapping[str, Any], path: KeyPath) -> None:
        """Note a constructor's complaint at the key that it begins with, if it does."""
        owner, colon, rest = problem.partition(": ")
        if colon and owner in (cls.__name__, path[-1] if path else None):
            problem = rest
        name = re.match(r"(?:\w+: )?(\w+)=", problem)
        self.problems.add((*path, name[1]) if name and name[1] in arguments else path, problem)

    def _unknown(self, cls: type, key: str, choices: list[str]) -> str:
        near = did_you_mean(key, choices)
        return f"unknown key{near}; {cls.__name__} has {', '.join(choices) or 'no settings'}."

    def _described(self, base: Any, value: Any, path: KeyPath, default: Any) -> Built | None:
        """Build a part: by its `_target_`, or by changing the part that stands there by default."""
        if not isinstance(value, dict) or TARGET in value:
            return self.part(value, base, path)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            cls = type(default)
            return self._construct(cls, value, path, {}, {TARGET: target_of(cls)}, preset=default)
        if isinstance(base, type) and dataclasses.is_dataclass(base) and not inspect.isabstract(base):
            return self._construct(base, value, path, {}, {TARGET: target_of(base)})
        return self.part(value, base, path)

    def _anything(self, value: Any, path: KeyPath) -> Built | None:
        if isinstance(value, dict) and TARGET in value:
            return self.part(value, Any, path)
        if isinstance(value, dict):
            return self._mapping(dict[str, Any], value, path)
        if isinstance(value, list):
            return self._sequence(list[Any], list, value, path)
        return Built(value, value)

    def _sequence(self, hint: Any, base: Any, value: Any, path: KeyPath) -> Built | None:
        if not isinstance(value, list):
            self.problems.add(path, f"got {_brief(value)}; give {describe(hint)}, written [a, b].")
            return None
        arguments = typing.get_args(hint)
        if base is tuple and arguments and Ellipsis not in arguments:
            if len(value) != len(arguments):
                self.problems.add(path, f"got {len(value)} values; give {len(arguments)}.")
                return None
            hints = list(arguments)
        else:
            hints = [arguments[0] if arguments else Any] * len(value)
        items = [self.value(item, part, (*path, k)) for k, (item, part) in enumerate(zip(hints, value, strict=True))]
        if not all(items):
            return None
        built = [item for item in items if item is not None]
        # A tuple where any sequence will do: nobody can change what two parts share.
        kind = base if base in (list, set, frozenset) else tuple
        return Built(kind(item.value for item in built), [item.plain for item in built])

    def _mapping(self, hint: Any, value: Any, path: KeyPath) -> Built | None:
        if not isinstance(value, dict):
            self.problems.add(path, f"got {_brief(value)}; give a mapping, written {{key: value}}.")
            return None
        item = (typing.get_args(hint) or (str, Any))[1]
        items = {key: self.value(item, part, (*path, key)) for key, part in value.items()}
        if not all(items.values()):
            return None
        built = {key: part for key, part in items.items() if part is not None}
        return Built({key: part.value for key, part in built.items()}, {key: part.plain for key, part in built.items()})

    def _union(self, hint: Any, value: Any, path: KeyPath, default: Any) -> Built | None:
        """Try the members, the one of the value's own type first."""
        members = sorted(typing.get_args(hint), key=lambda member: origin(member) is not type(value))
        attempts: list[tuple[Any, Problems]] = []
        for member in members:
            attempt = Builder(self.problems.scratch())
            if built := attempt.value(member, value, path, default):
                return built
            attempts.append((member, attempt.problems))
        shape = list if isinstance(value, list) else dict if isinstance(value, dict) else None
        likely = [problems for member, problems in attempts if _takes(member, shape)]
        if len(likely) == 1:
            self.problems.extend(likely[0].sentences)
        else:
            self.problems.add(path, f"got {_brief(value)}; give {describe(hint)}.")
        return None


def _takes(member: Any, shape: type | None) -> bool:
    """Whether a value of this shape was probably meant for this member of a union."""
    base = origin(member)
    if base in (type(None), None):
        return False
    if shape is list:
        return base in SEQUENCES
    if shape is dict:
        return base in MAPPINGS or is_part(member)
    return True


def _defaults(known: Mapping[str, Parameter], preset: Any) -> dict[str, Any]:
    """Return the settings of the part that is changed; a new part has its own."""
    return {} if preset is None else {name: parameter.default for name, parameter in known.items()}


def _written_out(known: Mapping[str, Parameter], plain: Mapping[str, Any], inject: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a part in the order of its constructor, defaults included where they have a plain form."""
    found: dict[str, Any] = {}
    for name, parameter in known.items():
        if name in inject:
            continue
        if name in plain:
            found[name] = plain[name]
        elif parameter.default is not REQUIRED and parameter.default is not UNSTATED:
            try:
                found[name] = to_plain(parameter.default)
            except UnplainError:
                continue
    return {**found, **{name: value for name, value in plain.items() if name not in found}}


def _brief(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
