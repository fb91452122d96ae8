from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from experiments.shapes.data import cached
from experiments.shapes.denoising import Batches, Denoising, learning_rate, object_weights, signal_scales
from experiments.shapes.settings import Settings, TrainingSettings, load_settings
from experiments.shapes.training import train

YAML = Path("experiments/shapes/unet.yaml")
TINY = [
    *("model.unet_widths=[8,8,8]", "model.unet_heads=[1,1,1]", "model.text_width=16", "model.text_heads=2"),
    *("data.scenes=2000", "training.batch_size=2", "training.text_steps=1", "training.vae_steps=1"),
    *("training.warm_up=4", "training.log_samples=4", "trainer.accelerator=cpu"),
]


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


def tiny(folder: Path, name: str, samples: int, *more: str) -> Settings:
    places = [f"output.dir={folder / name}", f"data.cache={folder / 'cache'}", f"training.total_samples={samples}"]
    return load_settings(YAML, [*TINY, *places, *more])


def averages(folder: Path, name: str) -> dict[str, torch.Tensor]:
    kept = torch.load(folder / name / "last.ckpt", weights_only=True)
    return {**kept["averages"], **{f"now.{key}": value for key, value in kept["state_dict"].items()}}


def test_a_run_that_was_killed_goes_on_to_the_same_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(folder, "whole", 12))
    # What is trained before the denoiser is shared: this test is not about it.
    shutil.copytree(folder / "whole" / "parts", folder / "killed" / "parts")
    steps = Denoising.training_step

    def dies(self: Denoising, batch: object, index: int) -> torch.Tensor:
        if self.global_step == 4:
            raise StoppedError
        return steps(self, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoising, "training_step", dies)
    with pytest.raises(StoppedError):
        train(tiny(folder, "killed", 12, "training.checkpoint_samples=6"))
    assert torch.load(folder / "killed" / "last.ckpt", weights_only=True)["samples"] == 6
    monkeypatch.undo()
    train(tiny(folder, "killed", 12))

    whole, resumed = averages(folder, "whole"), averages(folder, "killed")
    assert whole.keys() == resumed.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []


def test_training_starts_again_from_an_exported_pipeline_with_a_fresh_optimiser(folder: Path) -> None:
    exported = train(tiny(folder, "first", 4))

    again = train(tiny(folder, "second", 4, f"training.start_from={exported}"))

    states = torch.load(folder / "second" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {state["step"] for state in states.values() if "step" in state} == {2}
    assert (again / "model_index.json").exists()


def test_a_batch_is_determined_by_its_step_and_rank(folder: Path) -> None:
    from experiments.shapes.data import Captioner
    from experiments.shapes.training import prepare, projection_of

    settings = tiny(folder, "whole", 12)
    parts = prepare(settings)
    cache = cached(folder / "cache", projection_of(parts.vae), seed=1, count=2000)

    def draw(start: int, rank: int) -> tuple[torch.Tensor, ...]:
        data = Batches(
            cache,
            Captioner(parts.tokenizer),
            settings.training,
            seed=0,
            rank=rank,
            ranks=2,
            start=start,
            samples=4 * start,
        )
        stream = iter(data)
        return [next(stream) for _ in range(5 - start)][-1]

    assert all(torch.equal(a, b) for a, b in zip(draw(0, 1), draw(3, 1), strict=True))
    assert not torch.equal(draw(0, 1).latents, draw(0, 0).latents)  # type: ignore[attr-defined]


def test_the_rate_rises_stays_and_falls_to_zero_by_samples_seen() -> None:
    recipe = TrainingSettings(total_samples=1000, warm_up=100, decay=0.4)

    assert learning_rate(49, recipe) == pytest.approx(0.5)
    assert learning_rate(300, recipe) == learning_rate(599, recipe) == 1.0
    assert learning_rate(800, recipe) == pytest.approx(0.5)
    assert learning_rate(1000, recipe) == pytest.approx(0.0)


def test_weights_of_the_loss_have_mean_one_and_favour_objects_and_their_surroundings() -> None:
    regions = torch.zeros(1, 16, 16)
    regions[0, 8, 8] = 0.1

    weights = object_weights(regions, 4.0)

    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights > weights[0, 0, 0, 0]).sum() == 9
    assert weights[0, 0, 7, 9] / weights[0, 0, 0, 0] == pytest.approx(4.0)


def test_training_follows_the_noise_levels_of_the_exported_scheduler() -> None:
    from diffusers import DDIMScheduler

    from experiments.shapes.denoising import SCHEDULER

    theirs = DDIMScheduler(**SCHEDULER).alphas_cumprod.sqrt()

    torch.testing.assert_close(signal_scales(), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.decay=1.4", r"training.decay=1.4 is not a share; give a number in \[0, 1\]"),
        ("training.optimiser=sgd", "choose muon or adamw"),
        ("model.kind=gan", "model.kind='gan' is not known; choose diffusion or flow"),
        ("model.transformer_heads=5", "does not divide by its 5 heads"),
        ("training.parts_from=hub", "choose scratch or shipped"),
        ("trainer.max_steps=5", "trainer.max_steps is set by the training itself"),
        ("training.totl_samples=5", "unknown key training.totl_samples; did you mean 'total_samples'"),
        ("lerning=5", "unknown key lerning"),
        ("data.scenes=10", "give at least 2000"),
    ],
)
def test_wrong_settings_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(YAML, [override])
