"""Metrics: one replay per task, since the cases of one folder are of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.parity.case import Case
from tests.parity.replays.noise_metrics import replay_noise_statistics, replay_regularisers
from tests.parity.replays.picture_metrics import replay_aggregate, replay_features, replay_pixel, replay_rle

TASKS: Mapping[str, Callable[[Case, Path], Mapping[str, Any]]] = {
    "aggregate": replay_aggregate,
    "features": replay_features,
    "noise_statistics": replay_noise_statistics,
    "pixel": replay_pixel,
    "regularisers": replay_regularisers,
    "rle": replay_rle,
}


def replay_metrics(case: Case, models: Path) -> Mapping[str, Any]:
    """Replay a case by its task."""
    task = case.settings["task"]
    if task not in TASKS:
        raise NotImplementedError(f"metrics task {task!r}")
    return TASKS[task](case, models)
