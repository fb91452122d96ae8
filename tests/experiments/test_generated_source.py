"""A picture that the model made, changed in its native and in its edit-friendly noise."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from PIL import Image

from framework.data.module import EditDataModule
from framework.run.config import load_config
from framework.run.sweep import build_all
from tests.run.toy import Run, write_pictures

VARIANTS = [f"{space}-{change}" for space in ("native", "friendly") for change in ("prompt", "flip", "shift")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The experiment in a world of one colour per picture, whose exact denoiser commutes with flips."""
    folder = tmp_path_factory.mktemp("generated")
    experiment = {
        "base": "generated_source",
        "backbone": {
            "_target_": "framework.backbones.GaussianMixture",
            "means": [-0.7, 0.1, 0.8],
            "variances": 0.01,
            "texts": {f"{word} {k}": [8, 1, 1] for word in ("source", "target") for k in range(2)},
        },
        "data": {
            "_target_": "framework.data.Folder",
            "root": str(write_pictures(folder / "pictures", 2)),
            "batch_size": 2,
            "size": [16, 16],
        },
        "callbacks": [{"_target_": "experiments.noise_space.pictures.GeneratedFigure", "shift": [2, 2], "scale": 1}],
        "sweep": {"method": {name: {"steps": 8} for name in VARIANTS}},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(experiment))
    run = Run(folder / "e.yaml", folder / "out")
    assert run.wait() == 0, run.said()
    return folder / "out"


def test_the_figure_shows_every_change_in_both_spaces_beside_the_source(root):
    with Image.open(root / "generated_source.png") as picture:
        assert picture.width > 1000
    assert set(json.loads((root / "generated_source.json").read_text())["psnr"]) == set(VARIANTS)


def test_a_flip_that_the_network_commutes_with_is_exact_in_native_noise(root):
    psnr = json.loads((root / "generated_source.json").read_text())["psnr"]

    assert psnr["native-flip"] > 50  # what eight bits of a picture leave


def test_edit_friendly_noise_carries_the_place_of_things_and_native_noise_does_not(tmp_path):
    """Flipped noise gives the flipped picture, so far as the noise and not the network decides where things are."""
    steps = [f"sweep.method.{space}-flip.steps=20" for space in ("native", "friendly")]
    changes = ["data.count=8", "data.batch_size=8", f"data.root={tmp_path}", *steps]
    experiments = dict(build_all(load_config("generated_source", changes)))
    (batch,) = EditDataModule(experiments["native-flip"].source, size=(64, 64)).batches()

    off = {}
    for space in ("native", "friendly"):
        result = experiments[f"{space}-flip"].module.edit(batch)
        pictures = torch.stack([edits[0] for edits in result.edits])
        off[space] = (pictures - torch.stack(list(result.source)).flip(-1)).square().mean((1, 2, 3))

    closer = off["friendly"] < off["native"]
    assert float(off["friendly"].mean()) < 0.8 * float(off["native"].mean())
    assert int(closer.sum()) >= 5
