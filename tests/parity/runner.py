"""Replaying cases and reporting them."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.parity.case import Case, compare
from tests.parity.replays import REPLAYS

Replay = Callable[[Case, Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Line:
    """One row of the report: a case and one of its expected tensors."""

    method: str
    case: str
    tensor: str
    error: float | None
    tolerance: float | None
    ok: bool
    reason: str = ""


def replay(case: Case, models: Path) -> list[Line]:
    """Replay one case and compare every expected entry."""

    def failed(reason: str) -> list[Line]:
        return [Line(case.method, case.name, name, None, None, False, reason) for name in case.expected] or [
            Line(case.method, case.name, "-", None, None, False, reason)
        ]

    function = REPLAYS.get(case.method)
    if function is None:
        return failed("no replay")
    missing = [name for name in case.models if not (models / name).is_dir()]
    if missing:
        return failed(f"model {', '.join(missing)} is missing in {models}")
    if not case.expected:
        return failed("the case expects nothing")
    try:
        results = function(case, models)
    except NotImplementedError as problem:
        return failed(f"no replay: {problem}")
    except Exception:
        return failed("raised " + traceback.format_exc(limit=-3).strip())
    lines = []
    for name, entry in case.expected.items():
        if name not in results:
            lines.append(
                Line(case.method, case.name, name, None, None, False, "not compared: the replay has no such result")
            )
            continue
        verdict = compare(results[name], case.wanted(name), entry)
        error = None if math.isinf(verdict.error) else verdict.error
        lines.append(Line(case.method, case.name, name, error, verdict.tolerance, verdict.ok, verdict.reason))
    return lines


def run(cases: Sequence[Case], models: Path, *, as_json: bool = False, write: Callable[[str], Any] = print) -> int:
    """Replay all cases, report as it goes, and return the exit code."""
    passed = failed = 0
    for case in cases:
        for line in replay(case, models):
            passed, failed = passed + line.ok, failed + (not line.ok)
            write(json.dumps(asdict(line)) if as_json else _row(line))
    if not cases:
        write("no case was found")
    write(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


def _row(line: Line) -> str:
    error = "-" if line.error is None else f"{line.error:.3g}"
    tolerance = "-" if line.tolerance is None else f"{line.tolerance:.3g}"
    state = "ok" if line.ok else "FAILED"
    note = f"  {line.reason}" if line.reason else ""
    return f"{line.method:<26} {line.case:<26} {line.tensor:<34} {error:>10} {tolerance:>10}  {state}{note}"
