"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from framework.backbones import StableDiffusion
from framework.errors import SettingsError
from framework.run.build import build
from framework.run.config import load_config
from framework.step import Stream

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "parity_data" / "models" / "tiny-sd"
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_method_of_the_readme_pins_its_source_row(tmp_path: Path) -> None:
    code = next(block for block in _blocks("python") if block.startswith("# pinned.py"))
    (tmp_path / "pinned.py").write_text(code)
    overrides = [
        f"method._target_={tmp_path / 'pinned.py'}:PinnedSource",
        "method.steps=4",
        f"backbone.model={TINY}",
        "backbone.dtype=float64",
    ]

    experiment = build(load_config("ddim", overrides))
    module = experiment.module
    batch = module.batch(_picture(), source="a cat", target="a dog")
    result = module.edit(batch)

    assert len(code.splitlines()) <= 30
    assert torch.equal(result.latents[Stream.SOURCE], result.record.z0)


def test_the_five_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in _blocks("python") if "EditFriendlyDDPM" in block)
    monkeypatch.chdir(tmp_path)
    _picture().save("star.png")
    names: dict[str, Any] = {}

    def tiny(model: str) -> StableDiffusion:
        assert model == "shapes"
        return StableDiffusion(str(TINY))

    monkeypatch.setattr("framework.backbones.stable_diffusion.StableDiffusion", tiny)
    exec(compile(code.replace("steps=50, skip=18", "steps=3, skip=1"), "README.md", "exec"), names)

    shown = names["module"].edit(names["batch"], record=names["record"]).show()
    assert shown.width > 2 * shown.height


def test_the_experiment_of_the_readme_is_valid_but_for_what_only_its_reader_has(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(_blocks("yaml")[0])
    (tmp_path / "pictures").mkdir()
    _picture().save(tmp_path / "pictures" / "one.png")
    (tmp_path / "pictures" / "one.txt").write_text("a cat\na dog\n")
    overrides = [f"backbone.model={TINY}", f"data.root={tmp_path / 'pictures'}"]

    try:
        experiment = build(load_config(str(tmp_path / "my.yaml"), overrides))
    except SettingsError as error:
        pytest.fail("\n".join(error.problems))
    assert experiment.module.inversion.skip == 36


def test_every_picture_and_link_of_the_readme_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)

    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]

    assert not missing


def _picture() -> Image.Image:
    picture = Image.new("RGB", (512, 512), (30, 60, 200))
    picture.paste((220, 30, 30), (150, 150, 350, 350))
    return picture
