"""The experiments of published rows build with a small model and the bundled scenes in place of what is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from framework.run.build import Shared, build
from framework.run.config import load_config
from tests.small import MODELS

ROOT = Path(__file__).resolve().parents[2]
ROWS = sorted((ROOT / "experiments" / "pie_bench").glob("*.yaml"))
SMALL = {"StableDiffusion": "tiny-sd", "SD3": "tiny-sd3", "Flux": "tiny-flux"}
INSTEAD = ["data.root=package:experiments/shapes/scenes", "data.border=false"]
SHARED = Shared()


def _backbone(path: Path) -> str:
    return str(yaml.safe_load(path.read_text()).get("backbone", {}).get("_target_", "")).rpartition(".")[2]


@pytest.mark.parametrize("path", [path for path in ROWS if _backbone(path) in SMALL], ids=lambda path: path.stem)
def test_a_published_row_builds(path: Path) -> None:
    model = f"backbone.model={MODELS / SMALL[_backbone(path)]}"

    experiment = build(load_config(str(path), [model, *INSTEAD]), SHARED)

    assert len(experiment.source.samples()) == 8
