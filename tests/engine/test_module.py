"""The module outside of any method: what it refuses, what it reports, and how it stands failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from framework.backbones import GaussianMixture
from framework.callback import EditCallback, Measurement
from framework.control import Control
from framework.data.sample import EditBatch, EditSample, Frame
from framework.errors import SettingsError
from framework.hooks import CallbackError, Hooks
from framework.module import EditModule
from framework.result import FailedBatch
from framework.step import Latents, Need, Step, Stream
from methods import DDIM, EditFriendlyDDPM, SDEdit


def _backbone(kind: Any = "diffusion") -> GaussianMixture:
    return GaussianMixture([0.0, 1.0], 0.5, texts={"low": [1, 0], "high": [0, 1]}, kind=kind)


def _batch(count: int = 2) -> EditBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    samples = tuple(EditSample(f"s{i}", Path("unused"), "low", "high") for i in range(count))
    frame = Frame((8, 8), (0, 0, 8, 8), (8, 8))
    return EditBatch(samples, images, None, (frame,) * count, ((),) * count)


def test_prompts_move_the_edit_towards_their_component() -> None:
    result = DDIM(_backbone(), steps=50).edit(_batch())

    assert float(result.latents[Stream.SOURCE].mean()) < 0.6 < 0.8 < float(result.latents[Stream.TARGET].mean())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": -4}, "steps=-4"),
        ({"steps": 10001}, "steps=10001"),
        ({"draws": 0}, "draws=0"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"skip": 50}, "skip=50 leaves no step"),
        ({"skip": -1}, "skip=-1"),
    ],
)
def test_settings_out_of_range_are_named_with_what_is_allowed(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        EditFriendlyDDPM(_backbone(), **{"steps": 50, "skip": 0, **settings})


@pytest.mark.parametrize("eta", [-0.1, 0.0, 1.5, float("nan")])
def test_an_eta_without_noise_maps_is_refused(eta: float) -> None:
    with pytest.raises(SettingsError, match="eta"):
        EditFriendlyDDPM(_backbone(), eta=eta)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_a_guidance_scale_must_be_a_finite_number(scale: float) -> None:
    from framework.guidance import ClassifierFree

    with pytest.raises(SettingsError, match="target="):
        ClassifierFree(target=scale)


def test_a_diffusion_method_on_a_flow_model_is_refused_with_both_names() -> None:
    problems = DDIM(_diffusion_schedule_of_flow(), steps=5).check()

    assert len(problems) == 1
    assert "DDIMInversion" in problems[0] and "GaussianMixture" in problems[0] and "velocity" in problems[0]


def _diffusion_schedule_of_flow() -> GaussianMixture:
    return _backbone("flow")


def test_sdedit_runs_on_diffusion_and_on_flow() -> None:
    for kind in ("diffusion", "flow"):
        module = SDEdit(_backbone(kind), steps=10, strength=0.5)
        assert not module.check()
        assert torch.isfinite(module.edit(_batch()).latents[Stream.TARGET]).all()


@dataclass(frozen=True)
class _WantsMaps(EditCallback):
    needs: ClassVar = frozenset({Need.NOISE_MAPS})


def test_a_need_that_nobody_meets_is_named_with_both_sides() -> None:
    problems = DDIM(_backbone(), steps=5).check([_WantsMaps()])

    assert len(problems) == 1
    assert "_WantsMaps needs noise maps" in problems[0] and "DDIMInversion of DDIM" in problems[0]
    assert not EditFriendlyDDPM(_backbone(), steps=5, skip=0).check([_WantsMaps()])


class _SomeControl(Control):
    def qkv(self, site: Any, rows: Any, q: Tensor, k: Tensor, v: Tensor, i: int, state: Any) -> Any:
        return q, k, v


def test_a_control_on_a_network_without_attention_is_refused() -> None:
    problems = DDIM(_backbone(), steps=5, controls=[_SomeControl()]).check()

    assert any("_SomeControl" in problem and "GaussianMixture" in problem for problem in problems)


def test_the_record_of_another_inversion_or_number_of_steps_is_refused() -> None:
    ddim, friendly = DDIM(_backbone(), steps=5), EditFriendlyDDPM(_backbone(), steps=5, skip=0)
    record = ddim.invert(_batch())

    with pytest.raises(SettingsError, match="DDIMInversion"):
        friendly.edit(_batch(), record=record)
    with pytest.raises(SettingsError, match="5 steps"):
        DDIM(_backbone(), steps=7).edit(_batch(), record=record)
    with pytest.raises(SettingsError, match="2 images for 1"):
        ddim.edit(_batch(1), record=record)


class _Breaking(EditCallback):
    def on_denoise_step(self, trainer: Any, module: EditModule, step: Step) -> None:
        raise KeyError("somewhere")


def test_a_callback_that_raises_is_named_with_its_hook() -> None:
    with pytest.raises(CallbackError, match=r"_Breaking.on_denoise_step raised KeyError"):
        DDIM(_backbone(), steps=3).edit(_batch(), callbacks=[_Breaking()])


class _OneTooFew(EditCallback):
    def on_edit_end(self, trainer: Any, module: EditModule, batch: EditBatch, result: Any) -> Sequence[Measurement]:
        return [Measurement()]


def test_a_callback_must_measure_every_sample() -> None:
    with pytest.raises(CallbackError, match="1 measurements for 2"):
        DDIM(_backbone(), steps=3).edit(_batch(), callbacks=[_OneTooFew()])


class _Remembering(EditCallback):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def on_edit_failed(self, trainer: Any, module: EditModule, batch: EditBatch, reason: str) -> None:
        self.reasons.append(reason)


def test_a_batch_that_fails_as_a_whole_is_reported_and_the_run_goes_on() -> None:
    module, watcher = DDIM(_backbone(), steps=3), _Remembering()
    module._hooks = Hooks(module, [_Breaking(), watcher], None)

    outcome = module.predict_step(_batch(), 0)

    assert isinstance(outcome, FailedBatch)
    assert "_Breaking" in outcome.reason
    assert watcher.reasons == [outcome.reason]


def test_a_call_without_memory_is_halved_and_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DDIM(_backbone(), steps=3).edit(_batch(5))
    module = DDIM(_backbone(), steps=3)
    sizes: list[int] = []
    forward = module.backbone.forward

    def small(z: Tensor, t: Tensor, condition: Any) -> Tensor:
        sizes.append(z.shape[0])
        if z.shape[0] > 3:
            raise torch.OutOfMemoryError("no memory")
        return forward(z, t, condition)

    monkeypatch.setattr(module.backbone, "forward", small)
    halved = module.edit(_batch(5))

    assert torch.equal(plain.latents[Stream.TARGET], halved.latents[Stream.TARGET])
    assert sum(size > 3 for size in sizes) <= 4  # it learns what fits


def test_an_image_that_does_not_fit_alone_fails_its_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DDIM(_backbone(), steps=3)
    module._hooks = Hooks(module, [], None)

    def none(z: Tensor, t: Tensor, condition: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(module.backbone, "forward", none)

    assert "no memory" in module.predict_step(_batch(), 0).reason


def test_a_picture_of_one_colour_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DDIM(_backbone(), steps=3)
    fine = module.edit(_batch())
    monkeypatch.setattr(module.backbone, "decode_latent", lambda z: torch.full_like(z, -1.0))

    black = module.edit(_batch())

    assert fine.notes == [(), ()]
    assert all("every pixel has the same value" in notes[0] for notes in black.notes)


def test_no_step_is_built_when_nobody_looks() -> None:
    module = DDIM(_backbone(), steps=3)

    hooks = Hooks(module, [_Remembering()], None)

    assert not hooks.wants_denoise_steps and not hooks.wants_invert_steps


def test_a_step_knows_its_clean_estimate() -> None:
    steps: list[Step] = []

    class Keeping(EditCallback):
        def on_denoise_step(self, trainer: Any, module: EditModule, step: Step) -> None:
            steps.append(step)

    DDIM(_backbone(), steps=3).edit(_batch(), callbacks=[Keeping()])

    step = steps[1]
    x0: Tensor = step.x0()[Stream.TARGET]
    noised = step.level.alpha * x0 + step.level.sigma * step.prediction[Stream.TARGET]
    torch.testing.assert_close(noised, step.z[Stream.TARGET])


@pytest.mark.parametrize(("factor", "words"), [(1e6, "1000 times too large"), (float("nan"), "not finite")])
def test_a_latent_that_explodes_fails_its_image_alone_and_names_the_step(factor: float, words: str) -> None:
    class Exploding(DDIM):
        def on_denoise_step(self, step: Step) -> Latents | None:
            if step.interval != 3:
                return None
            target = step.z_next[Stream.TARGET].clone()
            target[1] *= factor
            return step.z_next.with_stream(Stream.TARGET, target)

    result = Exploding(_backbone(), steps=5).edit(_batch())

    assert set(result.failures) == {1}
    assert result.failures[1].startswith(f"the target latent at step 3 is {words}")
    assert len(result.edits[0]) == 1 and result.edits[1] == []
