"""Finding the class that a `_target_` names, and what its constructor takes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from framework.errors import SettingsError, did_you_mean

HOUSE = ("framework", "methods", "callbacks", "experiments")
"""Packages whose names are offered when the first word of a dotted path is wrong."""

_USER_MODULE = "invedit_user_"


class _Mark:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


REQUIRED: Any = _Mark("<required>")
UNSTATED: Any = _Mark("<its own>")
"""The class chooses a value when none is given, and does not say which."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One keyword of a constructor.

    Attributes:
        hint: Its resolved annotation; Any where there is none.
        default: Its default, or `REQUIRED`, or `UNSTATED`.
    """

    hint: Any
    default: Any


def locate(target: str, folders: Iterable[Path]) -> type:
    """Find a class by dotted path (`methods.ddim.DDIM`) or by file (`my_method.py:MyMethod`).

    Args:
        target: What was written.
        folders: Where a file's path may begin, tried in this order.

    Raises:
        SettingsError: One sentence that says what is missing or which import failed, with the nearest name.
    """
    file, colon, name = target.rpartition(":")
    if colon and file.endswith(".py"):
        found = _attribute(_import_file(file, folders), name, f"{target}: the file")
    elif all(part.isidentifier() for part in target.split(".")) and "." in target:
        found = _import_dotted(target)
    else:
        raise SettingsError([f"{target!r} names no class; write package.module.Class or path/to/file.py:Class."])
    if not isinstance(found, type):
        raise SettingsError([f"{target} is a {type(found).__name__}, not a class."])
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise SettingsError([f"{target} is abstract (without {missing}); name one of its subclasses."])
    return found


def target_of(cls: type) -> str:
    """Return the `_target_` under which a class is found again."""
    if cls.__module__.startswith(_USER_MODULE):
        return f"{Path(sys.modules[cls.__module__].__file__ or '').name}:{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def parameters(cls: type) -> tuple[dict[str, Parameter], bool]:
    """Return the keywords that a class takes, and whether it takes any others too.

    A constructor with `**kwargs` is taken to hand them to the next constructor of its bases, unless it says which they
    are (`**common: Unpack[SomeTypedDict]`).
    """
    found: dict[str, Parameter] = {}
    owners = [base for base in cls.__mro__ if "__init__" in vars(base) and base is not object]
    if not owners:
        return _keywords(cls, cls, cls)
    for owner in owners:
        keywords, takes_others = _keywords(cls, owner, owner.__init__)  # type: ignore[misc]
        found = {**keywords, **found} if owner is not owners[0] else keywords
        if not takes_others:
            return found, False
    return found, True


def _keywords(cls: type, owner: type, constructor: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    hints = _hints(cls if dataclasses.is_dataclass(owner) else constructor, owner)
    factories: dict[str, Any] = {}
    if dataclasses.is_dataclass(cls):
        factories = {
            field.name: field.default_factory
            for field in dataclasses.fields(cls)
            if field.default_factory is not dataclasses.MISSING
        }
    found: dict[str, Parameter] = {}
    takes_others = False
    for position, (name, parameter) in enumerate(inspect.signature(constructor).parameters.items()):
        if parameter.kind is parameter.VAR_KEYWORD:
            hint = hints.get(name, Any)
            takes_others = typing.get_origin(hint) is not typing.Unpack
            if not takes_others:
                extra = typing.get_type_hints(typing.get_args(hint)[0])
                found |= {key: Parameter(extra[key], UNSTATED) for key in extra}
        elif parameter.kind is parameter.VAR_POSITIONAL or (position == 0 and name == "self"):
            continue
        else:
            default = REQUIRED if parameter.default is parameter.empty else parameter.default
            hint = hints.get(name, Any)
            hint = hint.type if isinstance(hint, dataclasses.InitVar) else hint
            found[name] = Parameter(hint, factories[name]() if name in factories else default)
    return found, takes_others


def _hints(thing: Any, owner: type) -> dict[str, Any]:
    """Resolve annotations; one that names what only a type checker imports counts as Any."""
    try:
        return typing.get_type_hints(thing)
    except Exception:
        scope = {**vars(sys.modules[owner.__module__])}
        raw: dict[str, Any] = {}
        for base in reversed(thing.__mro__) if isinstance(thing, type) else (thing,):
            raw |= getattr(base, "__annotations__", {})
        found: dict[str, Any] = {}
        for name, hint in raw.items():
            try:
                found[name] = eval(hint, scope) if isinstance(hint, str) else hint
            except Exception:
                found[name] = Any
        return found


def _import_file(file: str, folders: Iterable[Path]) -> ModuleType:
    tried = [(folder / file).resolve() for folder in folders]
    path = next((candidate for candidate in tried if candidate.is_file()), None)
    if path is None:
        places = " or ".join(dict.fromkeys(str(candidate) for candidate in tried))
        raise SettingsError([f"there is no file {file}; looked for {places}."])
    # The same name in every process, so that objects of its classes can be pickled.
    name = f"{_USER_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SettingsError([f"{path} is not a Python file."])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SettingsError([f"importing {path} failed: {_reason(error)}."]) from error
    return module


def _import_dotted(target: str) -> Any:
    """Import the longest prefix that is a module, then follow the attributes."""
    parts = target.split(".")
    found: Any = None
    for depth, part in enumerate(parts):
        name = ".".join(parts[: depth + 1])
        if depth and (not isinstance(found, ModuleType) or _offers(found, part)):
            found = _attribute(found, part, ".".join(parts[:depth]))
            continue
        try:
            found = importlib.import_module(name)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                choices = _names(found) if depth else HOUSE
                place = ".".join(parts[:depth]) + " has no" if depth else "there is no package"
                near = did_you_mean(part, choices)
                raise SettingsError([f"{target}: {place} {part!r}{near}{_remedy(depth)}."]) from None
            raise SettingsError([f"{target}: importing {name} failed: {_reason(error)}."]) from error
    return found


def _remedy(depth: int) -> str:
    return "" if depth else "; a class of your own is written path/to/file.py:Class"


def _offers(module: ModuleType, name: str) -> bool:
    """Whether a name is an attribute rather than a sub-module that is not imported yet."""
    return name in vars(module) or name in getattr(module, "__all__", ())


def _attribute(owner: Any, name: str, place: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        near = did_you_mean(name, _names(owner))
        raise SettingsError([f"{place} has no class {name!r}{near}."]) from None
    except Exception as error:
        raise SettingsError([f"importing {name} from {place} failed: {_reason(error)}."]) from error


def _names(owner: Any) -> list[str]:
    """Names that may follow: sub-modules, what a package exports lazily, classes."""
    names = [name for name, value in vars(owner).items() if isinstance(value, type) and not name.startswith("_")]
    names += getattr(owner, "__all__", [])
    names += [entry.name for entry in pkgutil.iter_modules(getattr(owner, "__path__", []))]
    return names


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}".rstrip(".")
