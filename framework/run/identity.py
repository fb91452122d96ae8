"""What decides a sample's results, its content, the settings, the model and the code."""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framework.run.files import bytes_digest, file_digest, json_line, plain

_DATA_WITHOUT_EFFECT = frozenset(
    {"root", "limit", "on_error", "max_failures", "num_workers", "allow_absolute", "strict", "max_pixels", "min_side"}
    | {"max_ratio"}
)
"""Data settings that say where samples lie, which there are and which of them fail, not what comes out."""

_KNOWN_BY_VERSION = frozenset({"framework", "lightning", "torch"})


@dataclass(frozen=True)
class Identity:
    """Everything that decides the results of a run apart from the samples.

    Attributes:
        settings: Resolved settings that change results, as plain values.
        model: Identity of the weights.
        code: Version of the project, and of every file that a part of the method or a callback was read from.
    """

    settings: dict[str, Any]
    model: Any
    code: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as they are written to disk."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    def key(self, sample_id: str, content: str) -> str:
        """Return the key of a sample: equal keys mean equal results."""
        return bytes_digest(json_line([self.as_dict(), sample_id, content]))


def settings_that_matter(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a resolved experiment what changes its results; devices, folders and failure policies do not."""
    data = resolved.get("data") or {}
    output = resolved.get("output") or {}
    return {
        **{key: plain(resolved.get(key)) for key in ("seed", "backbone", "method", "callbacks")},
        "data": plain({key: value for key, value in data.items() if key not in _DATA_WITHOUT_EFFECT}),
        "output": {"save": plain(output.get("save"))},
    }


def code_identity(parts: Iterable[object]) -> dict[str, str]:
    """Return the project's version, and for every part whose class lives outside the engine the hash of its file."""
    try:
        version = importlib.metadata.version("invedit")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    code = {"invedit": version}
    for kind in {kind for part in parts for kind in type(part).__mro__}:
        package = kind.__module__.partition(".")[0]
        if package in _KNOWN_BY_VERSION or package in sys.stdlib_module_names:
            continue
        try:
            file = Path(inspect.getfile(kind))
            # A user's file has a module name that depends on where it lies; its own name does not.
            code[kind.__module__ if "." in kind.__module__ else file.name] = file_digest(file)
        except (TypeError, OSError):
            code[kind.__module__] = "unknown"
    return code


def differences(before: Any, now: Any, place: str = "") -> list[str]:
    """List what differs between two trees of plain values, as "method.skip: 18 before, 24 now"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        for key in sorted({*before, *now}):
            inner = f"{place}.{key}" if place else str(key)
            found += differences(before.get(key, _Absent), now.get(key, _Absent), inner)
        return found
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [
            line for i, pair in enumerate(zip(before, now, strict=True)) for line in differences(*pair, f"{place}[{i}]")
        ]
    return [] if before == now else [f"{place}: {_show(before)} before, {_show(now)} now"]


class _Absent:
    """Stands for a key that is not there."""


def _show(value: Any) -> str:
    if value is _Absent:
        return "absent"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
