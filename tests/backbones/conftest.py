from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.backbones import StableDiffusion

TINY_SD = Path(__file__).parents[1] / "parity_data/models/tiny-sd"


@pytest.fixture(scope="session")
def tiny_sd_folder() -> Path:
    return TINY_SD


@pytest.fixture(scope="session")
def tiny_sd() -> StableDiffusion:
    """Float32; tests leave it as they found it."""
    backbone = StableDiffusion(str(TINY_SD))
    backbone.load()
    return backbone


@pytest.fixture(scope="session")
def tiny_sd_64() -> StableDiffusion:
    backbone = StableDiffusion(str(TINY_SD), dtype="float64")
    backbone.load()
    return backbone


@pytest.fixture
def changed_sd(tmp_path: Path) -> Callable[..., Path]:
    """Copy the tiny model with some json values replaced: changed_sd({"unet/config.json": {"in_channels": 9}})."""

    def change(changes: dict[str, dict[str, Any]] | None = None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(TINY_SD, folder, copy_function=shutil.copyfile)
        for name, values in (changes or {}).items():
            path = folder / name
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return folder

    return change
