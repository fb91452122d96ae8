"""Training of the flow transformer: what it computes is what the exported pipeline will compute."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0

from experiments.shapes.denoising import Batch
from experiments.shapes.flow import BiasedJointAttention, FlowDenoising, build_transformer, text_states
from experiments.shapes.pipeline import generate, load_pipeline
from experiments.shapes.settings import ModelSettings, Settings, load_settings
from experiments.shapes.training import train
from framework.backbones import SD3

YAML = Path("experiments/shapes/flow.yaml")
TINY = [
    *("model.transformer_width=16", "model.transformer_layers=2", "model.transformer_heads=2"),
    *("model.text_width=16", "model.text_heads=2", "model.second_text_width=8", "training.parts_from=scratch"),
    *("data.scenes=2000", "training.batch_size=2", "training.text_steps=1", "training.vae_steps=1"),
    *("training.warm_up=4", "training.log_samples=4", "trainer.accelerator=cpu"),
]


def tiny(folder: Path, name: str, samples: int, *more: str) -> Settings:
    places = [f"output.dir={folder / name}", f"data.cache={folder / 'cache'}", f"training.total_samples={samples}"]
    return load_settings(YAML, [*TINY, *places, *more])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline of a run that was continued once."""
    folder = tmp_path_factory.mktemp("flow")
    train(tiny(folder, "run", 4))
    return train(tiny(folder, "run", 8))


@pytest.fixture(scope="module")
def pipeline(exported: Path) -> StableDiffusion3Pipeline:
    return load_pipeline(exported)  # type: ignore[no-any-return]


def transformer(blocks: int = 2) -> Any:
    """A transformer with random weights everywhere, also where training starts from zero."""
    model = ModelSettings(
        kind="flow", transformer_width=16, transformer_layers=blocks, transformer_heads=2, text_width=8,
        second_text_width=8,
    )  # fmt: skip
    torch.manual_seed(0)
    network = build_transformer(model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.double()


def inputs(text: torch.Tensor) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 16, 16, 16, dtype=torch.float64),
        "encoder_hidden_states": text,
        "pooled_projections": torch.randn(2, 16, dtype=torch.float64),
        "timestep": torch.tensor([300.0, 800.0], dtype=torch.float64),
        "return_dict": False,
    }


def test_an_untrained_transformer_predicts_nothing() -> None:
    model = ModelSettings(kind="flow", transformer_width=16, transformer_heads=2, text_width=8, second_text_width=8)

    (output,) = build_transformer(model).double()(**inputs(torch.randn(2, 5, 16, dtype=torch.float64)))

    assert output.abs().max() == 0


def test_attention_in_training_is_that_of_the_library() -> None:
    network, text = transformer(), torch.randn(2, 5, 16, dtype=torch.float64)
    network.set_attn_processor(JointAttnProcessor2_0())
    (theirs,) = network(**inputs(text))

    network.set_attn_processor(BiasedJointAttention())
    (ours,) = network(**inputs(text))

    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("number", [1, 7, 40])
def test_one_blank_token_with_raised_scores_is_many(number: int) -> None:
    network = transformer()
    text, blank = torch.randn(2, 5, 16, dtype=torch.float64), torch.zeros(2, 1, 16, dtype=torch.float64)
    network.set_attn_processor(JointAttnProcessor2_0())
    (many,) = network(**inputs(torch.cat([text, blank.expand(-1, number, -1)], 1)))

    network.set_attn_processor(BiasedJointAttention())
    bias = torch.zeros(2, 1, 1, 64 + 6, dtype=torch.float64)
    bias[..., -1] = torch.tensor(float(number)).log()
    (one,) = network(**inputs(torch.cat([text, blank], 1)), joint_attention_kwargs={"attention_mask": bias})

    torch.testing.assert_close(one, many, rtol=0, atol=1e-6 * float(many.abs().max()))


def test_the_loss_is_that_of_the_velocity_between_latent_and_noise(pipeline: StableDiffusion3Pipeline) -> None:
    settings = load_settings(YAML, [*TINY, "training.region_weight=1.0"])
    network = copy.deepcopy(pipeline.transformer)
    module = FlowDenoising(settings, network, [pipeline.text_encoder, pipeline.text_encoder_2], None, None)
    torch.manual_seed(2)
    latents, noise = torch.randn(2, 3, 16, 16, 16)
    tokens = torch.tensor(pipeline.tokenizer(["a red circle"] * 3, padding="max_length").input_ids)
    # The third level in a row of three numbers of blanks: none, so that the plain network can be asked.
    levels = torch.tensor([0.30000, 0.60003, 0.90000])
    batch = Batch(latents, noise, torch.zeros(3, 16, 16), tokens, levels)
    assert ((levels * 1e5).long() % 3).tolist() == [0, 0, 0]

    with torch.no_grad():
        loss = module.loss(batch)
        states, pooled = text_states([pipeline.text_encoder, pipeline.text_encoder_2], tokens)
        sigma = levels.view(-1, 1, 1, 1)
        velocity = pipeline.transformer((1 - sigma) * latents + sigma * noise, states, pooled, levels * 1000).sample

    torch.testing.assert_close(loss, (velocity - (noise - latents)).square().mean(), rtol=1e-4, atol=0)


def test_text_is_what_the_pipeline_makes_of_it(pipeline: StableDiffusion3Pipeline) -> None:
    caption = "a large solid red circle on a plain blue background"
    states, _, pooled, _ = pipeline.encode_prompt(
        caption, None, None, do_classifier_free_guidance=False, max_sequence_length=3
    )
    tokens = torch.tensor(pipeline.tokenizer([caption], padding="max_length").input_ids)

    with torch.no_grad():
        ours, ends = text_states([pipeline.text_encoder, pipeline.text_encoder_2], tokens)

    torch.testing.assert_close(states[:, :32], ours)
    torch.testing.assert_close(pooled, ends)
    assert states.shape[1] == 35 and states[:, 32:].abs().max() == 0


def test_the_exported_folder_is_a_pipeline_and_a_backbone(exported: Path, pipeline: StableDiffusion3Pipeline) -> None:
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    backbone = SD3(str(exported), max_sequence_length=8)
    backbone.load()
    z = torch.randn(1, 16, 16, 16)
    condition = backbone.encode_prompt(["a red circle"])
    states, _, pooled, _ = pipeline.encode_prompt(
        "a red circle", None, None, do_classifier_free_guidance=False, max_sequence_length=8
    )

    with torch.no_grad():
        ours = backbone(z, torch.tensor([500.0]), condition)
        theirs = pipeline.transformer(z, states, pooled, torch.tensor([500.0])).sample

    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert backbone.image_size == (64, 64)
    assert generate(pipeline, ["a red circle"], seed=0, steps=2).shape == (1, 3, 64, 64)


def test_a_run_goes_on_from_its_samples_and_keeps_both_text_encoders(exported: Path) -> None:
    kept = torch.load(exported.parent / "last.ckpt", weights_only=True)

    assert kept["samples"] == 8 and kept["global_step"] == 4
    owners = {name.split(".")[0] for name in kept["averages"]}
    assert owners == {"denoiser", "text_encoders"}
    assert {name.split(".")[1] for name in kept["averages"] if name.startswith("text")} == {"0", "1"}


def test_training_starts_again_from_an_exported_pipeline(exported: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    still = [
        "training.learning_rate=1e-12",
        "training.matrix_rate=1e-12",
        f"data.cache={exported.parent.parent / 'cache'}",
    ]

    again = train(tiny(tmp_path, "again", 4, f"training.start_from={exported}", *still))

    files = sorted(path.relative_to(exported) for path in exported.rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        before, after = load_file(exported / file), load_file(again / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_at_rate_zero_text_encoders_stay_as_they_are(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    settings = tiny(tmp_path, "frozen", 4, "training.text_rate=0")

    train(settings)

    before = load_file(tmp_path / "frozen" / "parts" / "text_encoder" / "model.safetensors")
    after = torch.load(tmp_path / "frozen" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, after[f"text_encoders.0.{name}"]) for name, value in before.items())
