"""Noise maps of pictures, native against edit-friendly: what the experiment claims, in numbers."""

from __future__ import annotations

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from framework.data.module import EditDataModule
from framework.run.config import load_config
from framework.run.sweep import build_all
from framework.statistics.comoments import CoMoments
from framework.statistics.moments import Moments
from framework.statistics.pairs import measure_pairs
from tests.run.toy import Run, write_pictures

IMAGES, STEPS = 10, 100


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Variance [99] and correlation with the next map [98] of the maps of ten pictures, mean over pictures."""
    changes = [f"data.count={IMAGES}", f"data.batch_size={IMAGES}", f"data.root={tmp_path_factory.mktemp('shapes')}"]
    found = {}
    for name, experiment in build_all(load_config("noise_space_images", changes)):
        if name == "posterior":
            continue
        module = experiment.module
        (batch,) = EditDataModule(experiment.source, size=(64, 64)).batches()
        maps = module.invert(batch).noise_maps
        assert maps is not None and len(maps) == STEPS and maps.shape[1] == IMAGES
        variance = Moments.of(maps[:-1].flatten(0, 1)).variance.view(STEPS - 1, IMAGES)
        pairs = CoMoments.from_tensor(measure_pairs(maps[:-1])).pearson[..., 0, 1]
        found[name] = variance.mean(1), pairs.mean(1)
    return found


def test_native_maps_have_variance_one_and_independent_neighbours(measured):
    variance, correlation = measured["native"]

    values = IMAGES * 16 * 16 * 16
    assert float((variance - 1).abs().max()) < 5 * (2 / values) ** 0.5
    assert float(correlation.abs().max()) < 5 / values**0.5


def test_edit_friendly_maps_vary_more_at_every_step(measured):
    variance, _ = measured["edit-friendly"]

    assert float(variance.min()) > 3
    assert float(variance.mean()) > 8


def test_neighbours_of_edit_friendly_maps_are_correlated_near_minus_one_half(measured):
    _, correlation = measured["edit-friendly"]

    assert float(correlation.max()) < -0.3
    assert float(correlation.mean()) == pytest.approx(-0.5, abs=0.03)


def test_any_unconditional_pipeline_on_pixels_gives_the_figure(tmp_path):
    torch.manual_seed(0)
    small = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    DDPMPipeline(UNet2DModel(**small, **blocks), DDPMScheduler()).save_pretrained(tmp_path / "model")
    pictures = write_pictures(tmp_path / "pictures", 3)
    experiment = {
        "base": "noise_space_images",
        "backbone": {"_target_": "framework.backbones.PixelDiffusion", "model": str(tmp_path / "model")},
        "data": {"_target_": "framework.data.Folder", "root": str(pictures), "batch_size": 3},
        "sweep": {"method": {name: {"steps": 8} for name in ("native", "posterior", "edit-friendly")}},
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment))

    run = Run(tmp_path / "e.yaml", tmp_path / "out")

    assert run.wait() == 0, run.said()
    with Image.open(tmp_path / "out" / "noise_space_images.png") as picture:
        assert picture.width > 1000 and picture.height > 400
    states = {
        name: Moments.from_tensor(
            load_file(tmp_path / "out" / name / "statistics" / "NoiseStatistics.safetensors")["moments"]
        )
        for name in ("native", "edit-friendly")
    }
    assert bool((states["native"].variance[:-1] < states["edit-friendly"].variance[:-1]).all())
