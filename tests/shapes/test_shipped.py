from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from experiments.shapes.data import pixels
from experiments.shapes.pipeline import SHIPPED, generate, load_pipeline
from experiments.shapes.sample import sample_scene
from experiments.shapes.training import projection_of
from experiments.shapes.vae_training import psnr, round_trip


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline()


def test_all_weights_are_half_precision_safetensors_under_16_megabytes() -> None:
    from safetensors import safe_open

    files = sorted(SHIPPED.rglob("*.safetensors"))

    assert [file.parent.name for file in files] == ["text_encoder", "unet", "vae"]
    assert sum(file.stat().st_size for file in files) < 16_000_000
    for file in files:
        with safe_open(str(file), "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}


def test_the_scheduler_is_that_of_stable_diffusion_with_v_prediction(pipeline: StableDiffusionPipeline) -> None:
    config = pipeline.scheduler.config

    assert (config.prediction_type, config.beta_schedule, config.steps_offset) == ("v_prediction", "scaled_linear", 1)
    assert not config.set_alpha_to_one and not config.clip_sample


def test_prompts_have_32_positions(pipeline: StableDiffusionPipeline) -> None:
    assert pipeline.tokenizer.model_max_length == 32
    assert pipeline.text_encoder.config.max_position_embeddings == 32


def test_the_autoencoder_keeps_held_out_scenes_above_32_decibels(pipeline: StableDiffusionPipeline) -> None:
    images = pixels([sample_scene(95, index) for index in range(24)])

    assert psnr((round_trip(pipeline.vae, images) - images) / 2).mean() > 32


def test_latents_of_the_world_have_unit_variance(pipeline: StableDiffusionPipeline) -> None:
    images = pixels([sample_scene(95, index) for index in range(64)])

    latents = projection_of(pipeline.vae).encode(images) * pipeline.vae.config.scaling_factor

    assert latents.square().mean().item() == pytest.approx(1.0, abs=0.15)


def test_an_image_depends_on_its_seed_and_number_and_not_on_its_batch(pipeline: StableDiffusionPipeline) -> None:
    captions = ["a large solid red circle on a plain blue background"] * 2

    together = generate(pipeline, captions, seed=3, steps=2)
    apart = generate(pipeline, captions, seed=3, steps=2, batch=1)

    torch.testing.assert_close(together, apart, atol=1e-3, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.05


def test_the_card_and_the_record_state_samples_and_quality() -> None:
    record = json.loads((SHIPPED / "training.json").read_text())

    assert record["finished"] and record["samples"] >= 500_000
    assert f"{record['samples']:,}".replace(",", " ") in (SHIPPED / "README.md").read_text()
    assert record["quality"]["1_object"]["shape"] >= 0.6
