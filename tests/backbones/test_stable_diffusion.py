from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from framework.backbones import StableDiffusion
from framework.errors import SettingsError
from framework.schedule import eps_to_x0

LONG = "one two three four five six seven eight nine ten " * 8


def stock_embedding(backbone, text):
    tokens = backbone.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return backbone.text_encoder(tokens.input_ids)[0]


def test_the_constructor_reads_configs_and_no_weights(tiny_sd_folder, tmp_path):
    for name in tiny_sd_folder.rglob("*.json"):
        path = tmp_path / name.relative_to(tiny_sd_folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, path)

    backbone = StableDiffusion(str(tmp_path))

    assert (backbone.image_size, backbone.multiple, backbone.latent_channels) == ((512, 512), 8, 4)
    assert (backbone.prediction_type, backbone.form, backbone.takes_text) == ("epsilon", "epsilon", True)
    assert len(backbone.sites()) == 32
    assert backbone.schedule(20).num_steps == 20


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@torch.no_grad()
def test_every_dtype_loads_and_runs(tiny_sd_folder, dtype):
    backbone = StableDiffusion(str(tiny_sd_folder), dtype=dtype)
    wide = torch.float64 if dtype == "float64" else torch.float32

    z = backbone.encode_image(torch.rand(2, 3, 32, 48) * 2 - 1)
    condition = backbone.encode_prompt(["a cat", ""])
    output = backbone(z.to(backbone.dtype), torch.tensor([10.0, 900.0], dtype=torch.float64), condition)
    pictures = backbone.decode_latent(z)

    assert (z.dtype, tuple(z.shape)) == (wide, (2, 4, 4, 6))
    assert output.dtype == condition.text.dtype == backbone.dtype == getattr(torch, dtype)
    assert (pictures.dtype, tuple(pictures.shape)) == (torch.float32, (2, 3, 32, 48))
    assert output.isfinite().all() and pictures.isfinite().all()


def test_parts_are_frozen_submodules_in_evaluation_mode(tiny_sd):
    assert set(dict(tiny_sd.named_children())) == {"unet", "vae", "text_encoder"}
    assert not any(parameter.requires_grad for parameter in tiny_sd.parameters())
    assert not any(module.training for module in tiny_sd.children())


def test_loading_twice_keeps_the_first_weights(tiny_sd):
    before = tiny_sd.unet

    tiny_sd.load()

    assert tiny_sd.unet is before


def test_loading_moves_nobody_elses_random_numbers(tiny_sd_folder):
    state = torch.random.get_rng_state()

    StableDiffusion(str(tiny_sd_folder)).load()

    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_backbone_that_was_moved_before_it_loads_says_where_it_is(tiny_sd_folder):
    backbone = StableDiffusion(str(tiny_sd_folder))
    assert backbone.device.type == "cpu"

    backbone.to("meta")

    assert backbone.device.type == "meta"


@torch.no_grad()
def test_the_network_is_called_as_the_stock_pipeline_calls_it(tiny_sd):
    z = torch.randn(2, 4, 8, 8)
    condition = tiny_sd.encode_prompt(["a", "b"])

    ours = tiny_sd(z, torch.tensor([981.0, 981.0], dtype=torch.float64), condition)

    stock = tiny_sd.unet(z, torch.tensor(981), encoder_hidden_states=condition.text).sample
    assert torch.equal(ours, stock)


@torch.no_grad()
def test_rows_may_have_different_times(tiny_sd_64):
    z = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    condition = tiny_sd_64.encode_prompt(["a", "b"])

    both = tiny_sd_64(z, torch.tensor([1.0, 981.0]), condition)

    for row, t in enumerate((1.0, 981.0)):
        alone = tiny_sd_64(z[row : row + 1], torch.tensor([t]), condition.map(lambda x, row=row: x[row : row + 1]))
        assert (both[row] - alone[0]).abs().max() < 1e-10


@torch.no_grad()
def test_prompts_have_the_stock_embeddings_whatever_else_is_in_the_batch(tiny_sd):
    texts = ["a cat", "", "a dog on a mat", LONG]

    together = tiny_sd.encode_prompt(texts).text

    for row, text in enumerate(texts):
        assert torch.equal(together[row : row + 1], stock_embedding(tiny_sd, text))


def test_only_so_many_embeddings_are_kept_and_the_last_used_stay(tiny_sd):
    for number in range(70):
        tiny_sd.encode_prompt(["", f"prompt {number}"])

    assert len(tiny_sd._prompts) == 64
    assert "" in tiny_sd._prompts and "prompt 69" in tiny_sd._prompts and "prompt 0" not in tiny_sd._prompts


def test_embeddings_made_in_inference_mode_can_be_differentiated(tiny_sd):
    with torch.inference_mode():
        text = tiny_sd.encode_prompt(["made in inference mode"]).text
        cached = tiny_sd._prompts["made in inference mode"]

    assert not cached.is_inference()
    assert text.shape == (1, 77, 32)


@pytest.mark.parametrize(("words", "seen"), [("a " * 90, 75), ("a " * 75, 75), ("a " * 76, 75), ("a a", 2), ("", 0)])
def test_the_unseen_tail_of_a_prompt_is_what_the_text_encoder_ignores(tiny_sd, words, seen):
    tail = tiny_sd.truncated(words)

    head = words.strip()[: -len(tail)] if tail else words
    count = len(tiny_sd.tokenizer(head)["input_ids"]) - 2
    assert count == seen
    assert bool(tail) == (len(words.split()) > 75)
    assert torch.equal(stock_embedding(tiny_sd, head), stock_embedding(tiny_sd, words))


def test_the_unseen_tail_keeps_its_spelling(tiny_sd):
    assert tiny_sd.truncated("a " * 75 + "Zürich, BY Night") == "Zürich, BY Night"


def test_the_length_of_prompts_comes_from_the_checkpoint(changed_sd):
    backbone = StableDiffusion(str(changed_sd({"tokenizer/tokenizer_config.json": {"model_max_length": 20}})))

    assert backbone.max_tokens == 20
    assert backbone.encode_prompt(["a cat"]).text.shape == (1, 20, 32)
    assert backbone.truncated("a " * 19) == "a"


def test_a_tokenizer_without_a_limit_takes_the_text_encoders(changed_sd):
    backbone = StableDiffusion(str(changed_sd({"tokenizer/tokenizer_config.json": {"model_max_length": 10**30}})))

    assert backbone.max_tokens == 77


@torch.no_grad()
def test_latents_are_the_scaled_mode_of_the_posterior(tiny_sd):
    images = torch.rand(1, 3, 32, 32) * 2 - 1

    z = tiny_sd.encode_image(images)

    assert torch.equal(z, tiny_sd.vae.encode(images).latent_dist.mode() * 0.18215)
    assert torch.equal(tiny_sd.encode_image(images), z)


@torch.no_grad()
def test_a_given_draw_samples_the_posterior(tiny_sd):
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    noise = torch.randn(3, 4, 4, 4)

    z = tiny_sd.encode_image(images, noise=noise)

    posterior = tiny_sd.vae.encode(images).latent_dist
    torch.testing.assert_close(z, (posterior.mean + posterior.std * noise) * 0.18215)


@torch.no_grad()
def test_scale_and_shift_of_latents_come_from_the_config(tiny_sd, monkeypatch):
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    usual = tiny_sd.encode_image(images)
    picture = tiny_sd.decode_latent(usual)
    monkeypatch.setitem(tiny_sd.vae_config, "scaling_factor", 0.5)
    monkeypatch.setitem(tiny_sd.vae_config, "shift_factor", 0.25)

    z = tiny_sd.encode_image(images)

    torch.testing.assert_close(z, (usual / 0.18215 - 0.25) * 0.5)
    torch.testing.assert_close(tiny_sd.decode_latent(z), picture)


@torch.no_grad()
def test_latents_may_be_normalised_per_channel(tiny_sd, monkeypatch):
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    raw = tiny_sd.encode_image(images) / 0.18215
    picture = tiny_sd.decode_latent(raw * 0.18215)
    monkeypatch.setitem(tiny_sd.vae_config, "latents_mean", mean)
    monkeypatch.setitem(tiny_sd.vae_config, "latents_std", std)

    z = tiny_sd.encode_image(images)

    expected = (raw - torch.tensor(mean).view(4, 1, 1)) * 0.18215 / torch.tensor(std).view(4, 1, 1)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(tiny_sd.decode_latent(z), picture)


@pytest.mark.parametrize(("upcast", "expected"), [(True, torch.float32), (False, torch.float16)])
def test_the_autoencoder_is_upcast_where_its_config_says_so(changed_sd, upcast, expected):
    backbone = StableDiffusion(str(changed_sd({"vae/config.json": {"force_upcast": upcast}})), dtype="float16")

    backbone.load()

    assert (backbone.vae.dtype, backbone.unet.dtype, backbone.dtype) == (expected, torch.float16, torch.float16)


def test_the_text_encoder_of_a_float64_network_stays_in_float32_unless_asked(tiny_sd_64, tiny_sd, tiny_sd_folder):
    wide = StableDiffusion(str(tiny_sd_folder), dtype="float64", text_dtype="float64")

    embeddings = [backbone.encode_prompt(["a cat"]).text for backbone in (tiny_sd, tiny_sd_64, wide)]

    assert [text.dtype for text in embeddings] == [torch.float32, torch.float64, torch.float64]
    assert torch.equal(embeddings[0].double(), embeddings[1])
    assert 0 < (embeddings[1] - embeddings[2]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_every_prediction_type_means_what_it_means_to_the_stock_scheduler(changed_sd, tiny_sd_64, kind):
    change = {"scheduler/scheduler_config.json": {"prediction_type": kind}}
    backbone = StableDiffusion(str(changed_sd(change)))
    scheduler = DDIMScheduler.from_config(backbone.scheduler_config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)
    z = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    i = 4
    level = backbone.schedule(10).levels[i]

    output = tiny_sd_64(z, torch.full((1,), level.t), tiny_sd_64.encode_prompt(["a cat"]))
    eps = backbone.to_form(output, z, level.alpha, level.sigma)

    stock = scheduler.step(output, scheduler.timesteps[i], z).pred_original_sample
    assert int(scheduler.timesteps[i]) == level.t
    assert (eps_to_x0(z, eps, alpha=level.alpha, sigma=level.sigma) - stock).abs().max() < 1e-12


def test_identity_tells_weights_and_dtypes_apart_but_not_places(changed_sd, tiny_sd_folder):
    folder = changed_sd()
    here, there = StableDiffusion(str(tiny_sd_folder)), StableDiffusion(str(folder))
    assert {**here.identity, "model": ""} == {**there.identity, "model": ""}
    assert here.identity != StableDiffusion(str(tiny_sd_folder), dtype="float64").identity

    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")

    changed = StableDiffusion(str(folder)).identity
    assert changed["weights"] != here.identity["weights"]
    assert changed["configs"] == here.identity["configs"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet/config.json": {"in_channels": 9}}, "takes 9 channels and gives 4"),
        ({"unet/config.json": {"addition_embed_type": "text_time"}}, "addition_embed_type=text_time"),
        ({"unet/config.json": {"class_embed_type": "timestep"}}, "class_embed_type=timestep"),
        ({"model_index.json": {"text_encoder_2": ["transformers", "CLIPTextModel"]}}, "another family (SDXL)"),
        ({"model_index.json": {"unet": ["diffusers", "UNet2DModel"]}}, "PixelDiffusion reads unconditional"),
        ({"model_index.json": {"vae": ["diffusers", "AsymmetricAutoencoderKL"]}}, "runs AutoencoderKL"),
        ({"scheduler/scheduler_config.json": {"prediction_type": "flow"}}, "give one of epsilon, v_prediction, sample"),
        ({"scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "rectified flow"),
    ],
)
def test_a_model_of_another_family_is_refused_by_its_configs(changed_sd, changes, words):
    with pytest.raises(SettingsError) as error:
        StableDiffusion(str(changed_sd(changes)))

    assert words in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "float8"}, "dtype='float8' is not allowed"),
        ({"dtype": "flaot32"}, "did you mean 'float32'"),
        ({"text_dtype": "int8"}, "text_dtype='int8' is not allowed"),
        ({"revision": "main"}, "belongs to a hub id"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny_sd_folder, settings, words):
    with pytest.raises(SettingsError) as error:
        StableDiffusion(str(tiny_sd_folder), **settings)

    assert words in str(error.value)


def test_moving_the_backbone_drops_embeddings_that_were_kept(tiny_sd_folder):
    backbone = StableDiffusion(str(tiny_sd_folder))
    backbone.encode_prompt(["a cat"])

    holder = nn.Sequential(backbone)
    holder.to("cpu")

    assert not backbone._prompts
