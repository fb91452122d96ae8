"""What there is to choose from: methods, callbacks, backbones with their settings, and bundled experiments."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from framework.run.config import bundled_experiments
from framework.run.targets import REQUIRED, UNSTATED, Parameter, parameters, target_of
from framework.run.values import UnplainError, describe, is_anything, to_plain

Kind = Literal["methods", "callbacks", "backbones", "experiments"]

_PACKAGES = {"methods": "methods", "callbacks": "callbacks", "backbones": "framework.backbones"}
_GIVEN_BY_ENGINE = ("backbone", "seed")


@dataclass(frozen=True)
class Setting:
    """One setting of a part.

    Attributes:
        name: Key in an experiment.
        type: What may be given, in words.
        required: Whether it must be given.
        default: What stands there otherwise, in plain values.
        decides: Whether the part chooses by itself when nothing is given; `default` then says nothing.
    """

    name: str
    type: str
    required: bool
    default: Any = None
    decides: bool = False

    def in_words(self) -> str:
        """Return what it takes and what stands there when nothing is given."""
        otherwise = "chosen by the method" if self.decides else f"default {_short(self.default)}"
        return f"{self.name}: {self.type}; {'required' if self.required else otherwise}"


@dataclass(frozen=True)
class Entry:
    """One thing to choose.

    Attributes:
        name: Short name.
        target: `_target_` of a part, file of an experiment.
        kind: "method", "inversion", "guidance", "control", "callback", "backbone", "experiment" or "training".
        summary: First line of its documentation.
        settings: What can be set; empty for experiments.
    """

    name: str
    target: str
    kind: str
    summary: str
    settings: tuple[Setting, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        return asdict(self)


def catalogue(kind: Kind) -> tuple[list[Entry], list[str]]:
    """Find everything of a kind.

    Returns:
        Entries, sorted by kind and name, and a sentence for everything that could not be imported.
    """
    if kind == "experiments":
        return [_experiment(name, file) for name, file in bundled_experiments().items()], []
    package = _PACKAGES[kind]
    entries: list[Entry] = []
    failures: list[str] = []
    try:
        home = importlib.import_module(package)
    except ImportError as error:
        return [], [f"{package} is left out: {error}."]
    for name in getattr(home, "__all__", ()):
        try:
            found = getattr(home, name)
        except Exception as error:
            failures.append(f"{package}.{name} is left out: {type(error).__name__}: {error}.")
            continue
        role = _role(found) if isinstance(found, type) else None
        if role in _ROLES[kind] and not inspect.isabstract(found):
            entries.append(Entry(name, target_of(found), role, _summary(found), tuple(_settings(found, role))))
    order = _ROLES[kind]
    return sorted(entries, key=lambda entry: (order.index(entry.kind), entry.name)), failures


_ROLES: dict[str, tuple[str, ...]] = {
    "methods": ("method", "inversion", "guidance", "control"),
    "callbacks": ("callback",),
    "backbones": ("backbone",),
}


def format_entries(entries: Iterable[Entry]) -> str:
    """Lay entries out for reading."""
    blocks = []
    for entry in entries:
        lines = [f"{entry.name}  ({entry.kind})", f"    {entry.summary}", f"    {entry.target}"]
        for setting in entry.settings:
            lines += textwrap.wrap(setting.in_words(), 110, initial_indent="      ", subsequent_indent="          ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) if blocks else "nothing found"


def _role(cls: type) -> str | None:
    from lightning.pytorch import Callback

    from framework.backbones.base import Backbone
    from framework.control import Control
    from framework.guidance import Guidance
    from framework.inversion import Inversion
    from framework.module import EditModule

    roles = {
        EditModule: "method",
        Inversion: "inversion",
        Guidance: "guidance",
        Control: "control",
        Callback: "callback",
        Backbone: "backbone",
    }
    return next((role for base, role in roles.items() if issubclass(cls, base)), None)


def _settings(cls: type, role: str) -> Iterable[Setting]:
    for name, parameter in parameters(cls)[0].items():
        if role == "method" and name in _GIVEN_BY_ENGINE:
            continue
        words = "anything" if is_anything(parameter.hint) else describe(parameter.hint)
        required, decides = parameter.default is REQUIRED, parameter.default is UNSTATED
        yield Setting(name, words, required, None if required or decides else _default(parameter), decides)


def _default(parameter: Parameter) -> Any:
    try:
        return to_plain(parameter.default)
    except UnplainError:
        return repr(parameter.default)


def _summary(cls: type) -> str:
    # A dataclass without a docstring is given its signature, which says nothing here.
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text.partition("\n\n")[0].replace("\n", " ")


def _experiment(name: str, file: Path) -> Entry:
    """Describe an experiment by its first comment, or say that it has none."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")
    kind = "training" if any(line.startswith(("training:", "model:")) for line in lines) else "experiment"
    return Entry(name, f"experiments/{name}.yaml", kind, comment)


def _short(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict) and "_target_" in value:
        rest = ", ".join(f"{key}={_short(item)}" for key, item in value.items() if key != "_target_")
        return f"{value['_target_'].rpartition('.')[2]}({rest})"
    return str(value).lower() if isinstance(value, bool) else str(value)
