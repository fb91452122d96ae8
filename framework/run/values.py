"""Plain values against the types of a signature: what fits, what it becomes, and how a type is put into words."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import os
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

from framework.errors import did_you_mean
from framework.run.targets import target_of

SEQUENCES = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class MisfitError(ValueError):
    """A value does not fit its type; the message completes "got 3; ..."."""


class UnplainError(ValueError):
    """An object cannot be written as plain values."""


def origin(hint: Any) -> Any:
    """Return the class of a hint: list of `list[int]`, the hint itself where it has no brackets."""
    found: Any = typing.get_origin(hint)
    return hint if found is None else found


def is_union(hint: Any) -> bool:
    """Whether a hint is `A | B` or `Union[A, B]`."""
    return origin(hint) in (Union, types.UnionType)


def is_anything(hint: Any) -> bool:
    """Whether a hint says nothing about the value."""
    return hint in (Any, object) or isinstance(hint, typing.TypeVar)


def is_part(hint: Any) -> bool:
    """Whether a hint is a class whose objects are described by a mapping."""
    base = origin(hint)
    plain = (bool, int, float, str, bytes, type(None), Path, os.PathLike, *SEQUENCES, *MAPPINGS)
    return isinstance(base, type) and base not in plain and not issubclass(base, Enum)


def scalar(hint: Any, value: Any) -> Any:
    """Return a value as its type wants it: an int where a float is asked, a Path for text, a member for its name.

    Raises:
        MisfitError: It does not fit.
    """
    base = origin(hint)
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
        type(None): value is None,
    }
    if hint is None:
        base = type(None)
    if base is Literal:
        choices = typing.get_args(hint)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        raise MisfitError(f"give {describe(hint)}{did_you_mean(str(value), map(str, choices))}")
    if isinstance(base, type) and issubclass(base, Enum):
        for member in base:
            if value in (member.name, member.value) and not isinstance(value, bool):
                return member
        raise MisfitError(f"give {describe(hint)}{did_you_mean(str(value), [member.name for member in base])}")
    if base in (Path, os.PathLike):
        if not isinstance(value, (str, Path)):
            raise MisfitError(f"give {describe(hint)}")
        return Path(value)
    if base not in fits:
        # Callables, type variables with bounds and the like: the class itself has to look.
        return value
    if not fits[base]:
        quoted = "; put it in quotes" if base is str and isinstance(value, (bool, int, float)) else ""
        raise MisfitError(f"give {describe(hint)}{quoted}")
    if base is float:
        if not math.isfinite(value):
            raise MisfitError("give a finite number")
        return float(value)
    return value


def describe(hint: Any) -> str:
    """Put a type into words, for "give ..."."""
    base = origin(hint)
    arguments = [argument for argument in typing.get_args(hint) if argument is not Ellipsis]
    words: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "null",
        None: "null",
        Path: "a path",
        os.PathLike: "a path",
    }
    if is_union(hint):
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if base is Literal:
        return f"one of {', '.join('null' if choice is None else str(choice) for choice in arguments)}"
    if isinstance(base, type) and issubclass(base, Enum):
        return f"one of {', '.join(member.name for member in base)}"
    if base in SEQUENCES:
        return f"a list of {' and '.join(dict.fromkeys(map(_plural, arguments)))}" if arguments else "a list"
    if base in MAPPINGS:
        return "a mapping"
    if base in words:
        return words[base]
    if isinstance(base, type) and dataclasses.is_dataclass(base) and not inspect.isabstract(base):
        return f"a mapping of settings ({', '.join(field.name for field in dataclasses.fields(base) if field.init)})"
    return f"a mapping with the _target_ of a {target_of(base)}" if isinstance(base, type) else "a value"


def to_plain(value: Any) -> Any:
    """Write an object as an experiment file would: scalars, lists, mappings, parts with their `_target_`.

    Raises:
        UnplainError: It is none of these.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item) for item in value), key=str)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return {"_target_": target_of(type(value)), **{name: to_plain(item) for name, item in fields.items()}}
    raise UnplainError(f"{type(value).__name__} has no plain form")


def _plural(hint: Any) -> str:
    words = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths", bool: "true or false"}
    return words.get(hint, "parts" if is_part(hint) else "values")
