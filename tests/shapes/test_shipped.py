"""The two bundled pipelines as they lie in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

from experiments.shapes import flow
from experiments.shapes.data import pixels
from experiments.shapes.pipeline import SHIPPED, SHIPPED_FLOW, generate, load_pipeline
from experiments.shapes.sample import sample_scene
from experiments.shapes.training import projection_of
from experiments.shapes.vae_training import psnr, round_trip

WEIGHTS = {
    SHIPPED: ["text_encoder", "unet", "vae"],
    SHIPPED_FLOW: ["text_encoder", "text_encoder_2", "transformer", "vae"],
}


@pytest.fixture(scope="module", params=WEIGHTS, ids=lambda folder: folder.name)
def pipeline(request: pytest.FixtureRequest) -> Any:
    return load_pipeline(request.param)


def record_of(folder: Path) -> Any:
    return json.loads((folder / "training.json").read_text())


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)
def test_all_weights_are_half_precision_safetensors_under_16_megabytes(folder: Path) -> None:
    from safetensors import safe_open

    files = sorted(folder.rglob("*.safetensors"))

    assert [file.parent.name for file in files] == WEIGHTS[folder]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 16_000_000
    for file in files:
        with safe_open(str(file), "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}


def test_the_scheduler_is_that_of_stable_diffusion_with_v_prediction() -> None:
    pipeline = load_pipeline(SHIPPED)
    config = pipeline.scheduler.config

    assert isinstance(pipeline, StableDiffusionPipeline)
    assert (config.prediction_type, config.beta_schedule, config.steps_offset) == ("v_prediction", "scaled_linear", 1)
    assert not config.set_alpha_to_one and not config.clip_sample


def test_the_flow_is_in_the_layout_of_stable_diffusion_3_without_t5() -> None:
    pipeline = load_pipeline(SHIPPED_FLOW)

    assert isinstance(pipeline, StableDiffusion3Pipeline)
    assert pipeline.text_encoder_3 is None and pipeline.tokenizer_3 is None
    assert {name: pipeline.scheduler.config[name] for name in flow.SCHEDULER} == flow.SCHEDULER
    assert pipeline.vae.config.shift_factor == 0


def test_prompts_have_32_positions(pipeline: Any) -> None:
    for name in (name for name in pipeline.components if name.startswith("tokenizer") and name != "tokenizer_3"):
        assert getattr(pipeline, name).model_max_length == 32
        assert getattr(pipeline, name.replace("tokenizer", "text_encoder")).config.max_position_embeddings == 32


def test_the_autoencoder_keeps_held_out_scenes_above_32_decibels(pipeline: Any) -> None:
    images = pixels([sample_scene(95, index) for index in range(24)])

    assert psnr((round_trip(pipeline.vae, images) - images) / 2).mean() > 32


def test_latents_of_the_world_have_unit_variance(pipeline: Any) -> None:
    images = pixels([sample_scene(95, index) for index in range(64)])

    latents = projection_of(pipeline.vae).encode(images) * pipeline.vae.config.scaling_factor

    assert latents.square().mean().item() == pytest.approx(1.0, abs=0.15)


def test_an_image_depends_on_its_seed_and_number_and_not_on_its_batch(pipeline: Any) -> None:
    captions = ["a large solid red circle on a plain blue background"] * 2

    together = generate(pipeline, captions, seed=3, steps=2)
    apart = generate(pipeline, captions, seed=3, steps=2, batch=1)

    torch.testing.assert_close(together, apart, atol=1e-3, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("folder", "samples", "shape"),
    [(SHIPPED, 500_000, 0.6), (SHIPPED_FLOW, 300_000, 0.6)],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_the_card_and_the_record_state_samples_and_quality(folder: Path, samples: int, shape: float) -> None:
    record, card = record_of(folder), (folder / "README.md").read_text()

    assert record["finished"] and record["samples"] >= samples
    assert f"{record['samples']:,}".replace(",", " ") in card
    quality = record["quality"]["1_object"]
    assert quality["shape"] >= shape
    assert f"| shape | {100 * quality['shape']:.1f} %" in card
