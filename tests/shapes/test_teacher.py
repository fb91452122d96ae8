"""A diffusion model as a flow's teacher: its predictions are velocities of the same noisy latents."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.shapes.denoising import SCHEDULER, Batch, signal_scales
from experiments.shapes.flow import FlowDenoising
from experiments.shapes.pipeline import SHIPPED_FLOW, load_pipeline
from experiments.shapes.settings import TeacherSettings, load_settings
from experiments.shapes.teacher import Teacher, load_teacher
from experiments.shapes.training import train
from framework.errors import SettingsError

YAML = Path("experiments/shapes/flow.yaml")


class Knowing(nn.Module):
    """A UNet that knows the latents behind what it sees, and so predicts v without error."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, noisy: Tensor, timesteps: Tensor, states: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert (timesteps == timesteps.round()).all(), "the levels asked for are those of whole timesteps"
        alpha = signal_scales()[timesteps.long()].view(-1, 1, 1, 1)
        return ((alpha * noisy - self.latents) / (1 - alpha**2).sqrt(),)


class Silent(nn.Module):
    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (tokens,)


def taught_by(unet: nn.Module, **settings: Any) -> Teacher:
    return Teacher(SimpleNamespace(unet=unet, text_encoder=Silent()), TeacherSettings(**settings))


def test_a_prediction_without_error_is_the_velocity_of_the_straight_path() -> None:
    latents, noise = torch.randn(2, 4, 16, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    alpha = signal_scales()[[200, 500, 800, 999]].double()
    sigma = (1 - alpha**2).sqrt() / (alpha + (1 - alpha**2).sqrt())
    teacher = taught_by(Knowing(latents))
    teacher.timesteps = lambda alpha: torch.tensor([200, 500, 800, 999])  # type: ignore[method-assign]

    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1))
    velocity = teacher.velocity(noisy, sigma, torch.zeros(4, 32))

    torch.testing.assert_close(velocity, noise - latents, rtol=0, atol=1e-4)


def test_timesteps_are_those_of_the_signal_scale_and_end_with_the_schedule() -> None:
    teacher, alphas = taught_by(nn.Identity()), signal_scales()

    torch.testing.assert_close(teacher.timesteps(alphas), torch.arange(1000.0), rtol=0, atol=1e-2)
    between = teacher.timesteps((alphas[400:401] + alphas[401:402]) / 2)
    torch.testing.assert_close(between, torch.tensor([400.5]), rtol=0, atol=1e-2)
    assert teacher.timesteps(torch.tensor([0.0, 1.0])).tolist() == [999.0, 0.0]


def test_the_share_rises_between_the_two_levels() -> None:
    teacher = taught_by(nn.Identity(), share=0.8, levels=[0.5, 0.75])

    share = teacher.share(torch.tensor([0.0, 0.5, 0.625, 0.75, 1.0]))

    torch.testing.assert_close(share, torch.tensor([0.0, 0.0, 0.4, 0.8, 0.8]))


def test_a_flow_learns_from_the_bundled_diffusion_model_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    settings = load_settings(
        YAML,
        [
            *("training.teacher.source=shipped", "training.parts_from=shipped", "training.text_steps=1"),
            *("model.transformer_width=16", "model.transformer_layers=1", "model.transformer_heads=2"),
            *("training.total_samples=4", "training.batch_size=2", "data.scenes=2000", "trainer.accelerator=cpu"),
            *("training.noise.uniform=0", "training.noise.centre=0.9", "training.noise.width=0.01"),
            f"output.dir={tmp_path}",
        ],
    )

    train(settings)

    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["samples"] == 4
    assert {name.split(".")[0] for name in kept["state_dict"]} == {"denoiser", "text_encoders"}


def test_the_target_is_the_teachers_in_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_pipeline(SHIPPED_FLOW)
    latents, noise, said = torch.randn(3, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor(pipeline.tokenizer(["a red circle"] * 2, padding="max_length").input_ids)
    batch = Batch(latents, noise, torch.zeros(2, 16, 16), tokens, torch.tensor([0.3, 0.9]))
    teacher = taught_by(nn.Identity(), share=0.25)
    monkeypatch.setattr(teacher, "velocity", lambda *_: said)
    settings = load_settings(YAML, ["training.region_weight=1.0"])
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
    monkeypatch.setattr(pipeline.transformer, "forward", lambda noisy, **_: (torch.zeros_like(noisy),))

    loss = FlowDenoising(settings, pipeline.transformer, encoders, None, None, teacher=teacher).loss(batch)

    own = noise - latents
    target = torch.stack([own[0], 0.75 * own[1] + 0.25 * said[1]])
    torch.testing.assert_close(loss, target.square().mean())


def test_a_teacher_must_be_a_diffusion_model_of_the_same_words_and_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = load_pipeline(SHIPPED_FLOW)
    tokenizer, vae = flow.tokenizer, flow.vae
    shipped = TeacherSettings(source="shipped")

    assert load_teacher(TeacherSettings(), tokenizer, vae) is None
    assert isinstance(load_teacher(shipped, tokenizer, vae), Teacher)
    with pytest.raises(SettingsError, match="no UNet"):
        load_teacher(TeacherSettings(source=str(SHIPPED_FLOW)), tokenizer, vae)
    with pytest.raises(SettingsError, match="another vocabulary"):
        load_teacher(shipped, SimpleNamespace(get_vocab=dict), vae)
    with monkeypatch.context() as other:
        other.setitem(SCHEDULER, "prediction_type", "epsilon")
        with pytest.raises(SettingsError, match="'prediction_type': 'v_prediction'"):
            load_teacher(shipped, tokenizer, vae)
    vae.register_to_config(scaling_factor=2 * vae.config.scaling_factor)
    with pytest.raises(SettingsError, match="other latents"):
        load_teacher(shipped, tokenizer, vae)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.teacher.share=1.5", "training.teacher.share=1.5 is not a share"),
        ("training.teacher.levels=[0.8,0.6]", "must be two rising noise levels"),
        ("model.kind=diffusion", "teaches flow models alone"),
    ],
)
def test_wrong_settings_of_a_teacher_are_refused(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(YAML, ["training.teacher.source=shipped", override])
