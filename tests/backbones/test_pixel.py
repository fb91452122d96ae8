from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from framework.backbones import PixelDiffusion
from framework.control import Control
from framework.errors import SettingsError
from framework.step import COND, Row, Rows, Stream

SMALL = {
    "sample_size": (16, 24),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pixel")
    torch.manual_seed(0)
    DDPMPipeline(UNet2DModel(**SMALL), DDPMScheduler()).save_pretrained(root / "ddpm")
    torch.manual_seed(0)
    DDIMPipeline(UNet2DModel(**SMALL), DDIMScheduler()).save_pretrained(root / "ddim")
    DDPMPipeline(UNet2DModel(**SMALL, out_channels=6), DDPMScheduler()).save_pretrained(root / "learned-variance")
    DDPMPipeline(UNet2DModel(**SMALL, out_channels=5), DDPMScheduler()).save_pretrained(root / "five")
    DDPMPipeline(UNet2DModel(**SMALL, num_class_embeds=10), DDPMScheduler()).save_pretrained(root / "classes")
    flat = root / "side-by-side"
    UNet2DModel.from_pretrained(root / "ddpm/unet").save_pretrained(flat)
    DDPMScheduler().save_config(flat)
    index = json.loads((root / "ddpm/model_index.json").read_text())
    (flat / "model_index.json").write_text(json.dumps(index))
    return root


def predict(backbone, z, t=900):
    return backbone(
        z.to(backbone.dtype), torch.full((len(z),), float(t), dtype=torch.float64), backbone.encode_prompt([""])
    )


@pytest.mark.parametrize("layout", ["ddpm", "ddim", "side-by-side"])
@torch.no_grad()
def test_every_layout_gives_the_stock_networks_prediction(folders, layout):
    backbone = PixelDiffusion(str(folders / layout))
    z = torch.randn(2, 3, 16, 24)

    stock = UNet2DModel.from_pretrained(folders / "ddpm/unet").eval()(z, torch.tensor(900)).sample

    assert torch.equal(predict(backbone, z), stock)


def test_the_configs_say_size_and_multiple_before_weights_are_read(folders):
    backbone = PixelDiffusion(str(folders / "ddpm"))

    assert (backbone.image_size, backbone.multiple, backbone.image_channels) == ((16, 24), 2, 3)
    assert not backbone.takes_text
    assert backbone.unet is None


def test_pictures_are_their_own_latents(folders):
    backbone = PixelDiffusion(str(folders / "ddpm"))
    images = torch.rand(2, 3, 16, 24) * 2 - 1

    assert torch.equal(backbone.decode_latent(backbone.encode_image(images)), images)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@torch.no_grad()
def test_every_dtype_runs_and_is_told_the_exact_time(folders, dtype):
    backbone = PixelDiffusion(str(folders / "ddpm"), dtype=dtype)
    told = []
    backbone.load()
    backbone.unet.time_proj.register_forward_pre_hook(lambda module, args: told.append(args[0]))

    output = predict(backbone, torch.randn(1, 3, 16, 24), t=999)

    assert output.dtype == backbone.dtype and output.isfinite().all()
    assert told[0].double().tolist() == [999.0]


@torch.no_grad()
def test_a_learned_variance_is_left_out(folders):
    backbone = PixelDiffusion(str(folders / "learned-variance"))
    z = torch.randn(1, 3, 16, 24)

    output = predict(backbone, z)

    assert torch.equal(output, backbone.unet(z, torch.tensor(900)).sample[:, :3])


@torch.no_grad()
def test_controls_reach_the_attention_of_pixel_networks(folders):
    backbone = PixelDiffusion(str(folders / "ddpm"), dtype="float64")
    z = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    calls = []

    class Note(Control):
        def sites(self, sites):
            return sites

        def wants_probabilities(self, site, i, state):
            return True

        def qkv(self, site, rows, q, k, v, i, state):
            calls.append((site, q.shape[2]))
            return q, k, v

    stock = predict(backbone, z)
    with backbone.controlled([Note()], [None]) as handle:
        handle.enter(Rows((Row(Stream.TARGET, COND),), (2,)), 0)
        output = predict(backbone, z)

    assert (output - stock).abs().max() < 1e-10
    assert calls == [(site, math.prod(site.size((16, 24)))) for site in backbone.sites()]
    assert [(site.place, site.kind, site.scale) for site in backbone.sites()] == [
        ("down", "self", 2),
        ("mid", "self", 2),
        ("up", "self", 2),
        ("up", "self", 2),
    ]


@pytest.mark.parametrize(
    ("folder", "words"), [("five", "takes 3 channels and gives 5"), ("classes", "one of 10 class labels")]
)
def test_networks_that_need_more_or_give_less_are_refused(folders, folder, words):
    with pytest.raises(SettingsError) as error:
        PixelDiffusion(str(folders / folder))

    assert words in str(error.value)


def test_a_text_to_image_model_is_refused_with_the_backbone_to_take(tiny_sd_folder):
    with pytest.raises(SettingsError, match="StableDiffusion reads text-to-image pipelines"):
        PixelDiffusion(str(tiny_sd_folder))


@torch.no_grad()
def test_an_older_layout_that_was_downloaded_runs_offline(folders, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--owner--old"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    shutil.copytree(folders / "side-by-side", home / "snapshots" / commit)
    z = torch.randn(1, 3, 16, 24)

    backbone = PixelDiffusion("owner/old", cache_dir=str(tmp_path))

    assert torch.equal(predict(backbone, z), predict(PixelDiffusion(str(folders / "ddpm")), z))
    assert backbone.identity["weights"] == commit


def test_missing_weights_are_named_in_either_layout(folders, tmp_path):
    for layout, place in (("ddpm", "unet/"), ("side-by-side", "")):
        folder = tmp_path / layout
        for name in (folders / layout).rglob("*.json"):
            path = folder / name.relative_to(folders / layout)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name.read_text())

        with pytest.raises(SettingsError, match=f"it has no {place}diffusion_pytorch_model.safetensors"):
            PixelDiffusion(str(folder)).load()
