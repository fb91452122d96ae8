"""Metrics: one replay per task, since the cases of one folder are of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.parity.case import Case
from tests.parity.replays.noise_metrics import replay_noise_statistics, replay_regularisers

TASKS: Mapping[str, Callable[[Case, Path], Mapping[str, Any]]] = {
    "noise_statistics": replay_noise_statistics,
    "regularisers": replay_regularisers,
}


def replay_metrics(case: Case, models: Path) -> Mapping[str, Any]:
    """Replay a case by its task."""
    task = case.settings["task"]
    if task not in TASKS:
        raise NotImplementedError(f"metrics task {task!r}")
    return TASKS[task](case, models)
