"""Reading a recorded case, and deciding whether a result meets what is expected."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

KEYS = {
    "method", "case", "source", "adapted", "model", "prompts", "settings", "conventions", "notes", "inputs", "expected",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One recorded case.

    Attributes:
        path: The json file.
        about: Its content.
        tensors: Content of the safetensors file beside it, as stored.
    """

    path: Path
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def method(self) -> str:
        return str(self.about["method"])

    @property
    def name(self) -> str:
        return str(self.about["case"])

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.about["settings"]  # type: ignore[no-any-return]

    @property
    def prompts(self) -> Mapping[str, Any]:
        return self.about["prompts"]  # type: ignore[no-any-return]

    @property
    def targets(self) -> list[str]:
        """Target prompts; one or several, or none."""
        target = self.prompts.get("target")
        return [] if target is None else [target] if isinstance(target, str) else list(target)

    @property
    def expected(self) -> Mapping[str, Mapping[str, Any]]:
        return self.about["expected"]  # type: ignore[no-any-return]

    @property
    def models(self) -> list[str]:
        model = self.about["model"]
        return [] if model is None else [model] if isinstance(model, str) else list(model)

    def has(self, name: str) -> bool:
        return name in self.about["inputs"]

    def input(self, name: str) -> Tensor:
        """Return an input tensor, floating-point ones in float64."""
        value = self.tensors[name]
        return value.double() if value.is_floating_point() else value

    def value(self, name: str) -> Any:
        """Return an input that is kept in the json."""
        return self.about["inputs"][name]["value"]

    def wanted(self, name: str) -> Any:
        """Return what is expected: a tensor, or the value of the json."""
        entry = self.expected[name]
        return entry["value"] if "value" in entry else self.tensors[name]


def find_cases(root: Path) -> list[Case]:
    """Read every case below a folder; links are followed. Files that are not cases are left alone."""
    cases = []
    for path in sorted(_json_files(root)):
        about = json.loads(path.read_text())
        if isinstance(about, dict) and set(about) >= KEYS:
            beside = path.with_suffix(".safetensors")
            cases.append(Case(path, about, load_file(beside) if beside.exists() else {}))
    return cases


def _json_files(root: Path) -> Iterator[Path]:
    import os

    if root.is_file():
        yield root
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder) / name for name in files if name.endswith(".json"))


@dataclass(frozen=True)
class Verdict:
    """How one expected entry was met.

    Attributes:
        error: Largest absolute difference; infinite where kinds, shapes or infinities disagree.
        tolerance: What was allowed, atol + rtol * max |expected|; the loosest one of a nested value.
        ok: Whether it was met everywhere (or in all but the allowed share of elements).
        reason: Why not, in words, where a number does not say it.
    """

    error: float
    tolerance: float
    ok: bool
    reason: str = ""


def compare(result: Any, wanted: Any, entry: Mapping[str, Any]) -> Verdict:
    """Compare a result with an expected entry by the rules of the cases."""
    if isinstance(wanted, Mapping) or (isinstance(wanted, list) and wanted and isinstance(wanted[0], Mapping)):
        return _compare_nested(result, wanted, entry)
    got, want = _numbers(result), _numbers(wanted)
    if got is None or want is None:
        same = got is None and want is None and result == wanted
        return Verdict(0.0 if same else math.inf, 0.0, same, "" if same else f"got {result!r}")
    return _compare_arrays(got, want, entry)


def _compare_arrays(got: NDArray[np.float64], want: NDArray[np.float64], entry: Mapping[str, Any]) -> Verdict:
    if got.shape != want.shape:
        return Verdict(math.inf, 0.0, False, f"shape {got.shape} instead of {want.shape}")
    finite = np.isfinite(want)
    largest = float(np.abs(want[finite]).max()) if finite.any() else 0.0
    tolerance = float(entry.get("atol", 0)) + float(entry.get("rtol", 0)) * largest
    odd = ~finite & ~((np.isnan(want) & np.isnan(got)) | (want == got))
    odd |= finite & ~np.isfinite(got)
    with np.errstate(invalid="ignore"):
        difference = np.where(finite & np.isfinite(got), np.abs(got - want), 0.0)
    broken = odd | (difference > tolerance)
    error = math.inf if odd.any() else float(difference.max(initial=0.0))
    allowed = float(entry.get("mismatch_fraction", 0)) * broken.size
    ok = int(broken.sum()) <= allowed
    return Verdict(error, tolerance, ok, "" if ok or not odd.any() else "not finite where a number is expected")


def _compare_nested(result: Any, wanted: Any, entry: Mapping[str, Any]) -> Verdict:
    if isinstance(wanted, Mapping):
        if not isinstance(result, Mapping) or set(result) != set(wanted):
            return Verdict(math.inf, 0.0, False, "keys differ")
        pairs = [(result[key], wanted[key]) for key in wanted]
    elif isinstance(wanted, list):
        if not isinstance(result, list) or len(result) != len(wanted):
            return Verdict(math.inf, 0.0, False, "length differs")
        pairs = list(zip(result, wanted, strict=True))
    else:
        return compare(result, wanted, entry)
    verdicts = [_compare_nested(got, want, entry) for got, want in pairs]
    worst = max(verdicts, key=lambda v: (not v.ok, v.error), default=Verdict(0.0, 0.0, True))
    tolerance = max((v.tolerance for v in verdicts), default=0.0)
    return Verdict(worst.error, tolerance, all(v.ok for v in verdicts), worst.reason)


def _numbers(value: Any) -> NDArray[np.float64] | None:
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if isinstance(value, (str, bool, int, float)) or value is None:
        number = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}.get(value) if isinstance(value, str) else value
        return None if number is None else np.asarray(float(number))
    if isinstance(value, (list, tuple)):
        parts = [_numbers(item) for item in value]
        if any(part is None for part in parts):
            return None
        shapes = {part.shape for part in parts if part is not None}
        return (
            np.stack([p for p in parts if p is not None]) if len(shapes) == 1 else (np.zeros(0) if not parts else None)
        )
    return np.asarray(value, dtype=np.float64)
