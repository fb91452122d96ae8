"""The experiments of published rows build with a small model and the bundled scenes in place of what is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from framework.run.build import Shared, build
from framework.run.config import load_config

ROOT = Path(__file__).resolve().parents[2]
ROWS = sorted((ROOT / "experiments" / "pie_bench").glob("*.yaml"))
INSTEAD = [
    f"backbone.model={ROOT / 'tests' / 'parity_data' / 'models' / 'tiny-sd'}",
    "data.root=package:experiments/shapes/scenes",
    "data.border=false",
]
SHARED = Shared()


def _on_stable_diffusion(path: Path) -> bool:
    return str(yaml.safe_load(path.read_text()).get("backbone", {}).get("_target_", "")).endswith(".StableDiffusion")


@pytest.mark.parametrize("path", [path for path in ROWS if _on_stable_diffusion(path)], ids=lambda path: path.stem)
def test_a_published_row_builds(path: Path) -> None:
    experiment = build(load_config(str(path), INSTEAD), SHARED)

    assert len(experiment.source.samples()) == 8
