"""What null-text, negative-prompt, proximal and direct inversion and Noise Map Guidance promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from framework.callback import EditCallback
from framework.data.sample import EditBatch
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.inversion import Inversion
from framework.module import EditModule
from framework.result import EditResult
from framework.step import UNCOND, Condition, Latents, Row, Step, Stream
from methods.cycle_diffusion import PosteriorInversion
from methods.ddim import DDIM, DDIMInversion
from methods.direct_inversion import DirectDDIM, DirectInversion
from methods.edit_friendly import EditFriendlyInversion
from methods.negative_prompt import NegativePrompt, NegativePromptInversion, interpolate_conditions, slerp
from methods.noise_map_guidance import NMG, NoiseMapGuidance
from methods.null_text import NullText, NullTextInversion
from methods.proximal import ProxEdit, ProximalGuidance
from methods.sdedit import NoInversion, SDEdit
from tests.small import batch_of

Make = Callable[..., EditModule]
GUIDED = ClassifierFree(target=5.0, source=5.0, inversion=1.0)


@pytest.fixture
def smooth(make: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Build methods on a closed form that is smooth in the latent and linear in the text."""

    def forward(z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        text = condition.text
        assert text is not None
        words = F.interpolate(text[:, :8].reshape(-1, 4, 8, 8).to(z), size=z.shape[-2:])
        return 0.5 * z.tanh() + 0.2 * words

    def build(method: type[EditModule], **settings: Any) -> EditModule:
        module = make(method, **settings)
        monkeypatch.setattr(module.backbone, "forward", forward)
        return module

    return build


class OneBatch(LightningDataModule):
    """A batch for a Trainer on the CPU."""

    def predict_dataloader(self) -> DataLoader[EditBatch]:
        return DataLoader([batch_of([0])], batch_size=None)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: EditBatch, device: torch.device, dataloader_idx: int) -> EditBatch:
        return batch


class Keeping(EditCallback):
    """Keeps results."""

    def __init__(self) -> None:
        self.results: list[EditResult] = []

    def on_edit_end(self, trainer: Any, module: Any, batch: EditBatch, result: EditResult) -> None:
        self.results.append(result)


class Watching(EditCallback):
    """Keeps the source row after every step."""

    def __init__(self) -> None:
        self.source: list[Tensor] = []

    def on_denoise_step(self, trainer: Any, module: Any, step: Step) -> None:
        self.source.append(step.z_next[Stream.SOURCE])


def misses(module: EditModule) -> list[float]:
    """Mean squared distance of the source row to the trajectory after every step."""
    watcher = Watching()
    record = module.edit(batch_of([0]), callbacks=[watcher]).record
    assert record.latents is not None
    return [float((z - pivot).square().mean()) for z, pivot in zip(watcher.source, record.latents[1:], strict=True)]


# Direct inversion


@pytest.mark.parametrize(
    "base", [DDIMInversion(), EditFriendlyInversion(skip=1), PosteriorInversion(skip=1, eta=1.0)], ids=repr
)
def test_direct_inversion_returns_the_source_latent_exactly(smooth: Make, base: Inversion) -> None:
    result = smooth(DirectDDIM, inversion=DirectInversion(base)).edit(batch_of([0, 1]))

    assert result.latents.source is not None
    assert torch.equal(result.latents.source, result.record.z0)


def test_recorded_offsets_and_overwriting_are_one_edit(smooth: Make) -> None:
    cheap = smooth(DirectDDIM).edit(batch_of([0]))
    published = smooth(DirectDDIM, recorded=True).edit(batch_of([0]))

    assert torch.equal(cheap.latents[Stream.TARGET], published.latents[Stream.TARGET])
    torch.testing.assert_close(published.latents[Stream.SOURCE], published.record.z0, rtol=0, atol=1e-10)
    assert published.evaluations.samples == cheap.evaluations.samples + 4 * 4


def test_offsets_of_its_own_hold_the_target_to_the_trajectory_too(smooth: Make) -> None:
    result = smooth(DirectDDIM, target="own").edit(batch_of([0]))

    torch.testing.assert_close(result.latents[Stream.TARGET], result.record.z0, rtol=0, atol=1e-10)


def test_an_offset_of_scale_zero_is_plain_ddim(smooth: Make) -> None:
    bare = smooth(DirectDDIM, scale=0.0, guidance=GUIDED)

    plain = smooth(DDIM, guidance=GUIDED, schedule=None)
    plain.edit_schedule = bare.edit_schedule

    assert torch.equal(bare.edit(batch_of([0])).latents[Stream.SOURCE], plain.edit(batch_of([0])).latents.source)


def test_smaller_and_rarer_offsets_leave_larger_misses(smooth: Make) -> None:
    totals = [sum(misses(smooth(DirectDDIM, **options))) for options in ({}, {"scale": 0.8}, {"scale": 0.4})]
    rare = misses(smooth(DirectDDIM, every=2))

    assert totals[0] == 0 < totals[1] < totals[2]
    assert rare[0] == rare[2] == 0 < rare[1]


# Negative-prompt inversion


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_the_source_row_under_negative_prompts_is_that_of_ddim_at_guidance_one(smooth: Make, scale: float) -> None:
    guided = smooth(NegativePrompt, guidance=ClassifierFree(target=scale, source=scale, inversion=1.0))
    plain = smooth(DDIM, guidance=ClassifierFree(target=1.0, source=1.0))
    plain.edit_schedule = guided.edit_schedule

    source = guided.edit(batch_of([0])).latents[Stream.SOURCE]

    torch.testing.assert_close(source, plain.edit(batch_of([0])).latents[Stream.SOURCE], rtol=0, atol=1e-11)


def test_one_ddim_record_serves_ddim_negative_prompt_and_direct_inversion(smooth: Make) -> None:
    record = smooth(DirectDDIM).invert(batch_of([0]))

    again = smooth(NegativePrompt).edit(batch_of([0]), record=record)
    straight = smooth(NegativePrompt).edit(batch_of([0]))

    assert torch.equal(again.latents[Stream.TARGET], straight.latents[Stream.TARGET])


def test_interpolation_runs_along_the_great_circle() -> None:
    a, b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]])

    half = slerp(a, b, 0.5)

    torch.testing.assert_close(half[0], torch.tensor([2.0, 2.0]) / 2**0.5)
    torch.testing.assert_close(half[1], torch.tensor([1.5, 1.5]))  # parallel rows: linear
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)


def test_pooled_features_are_interpolated_too() -> None:
    one = Condition(torch.eye(2)[None], torch.tensor([[1.0, 0.0]]))
    two = Condition(torch.eye(2).flip(0)[None], torch.tensor([[0.0, 1.0]]))

    mixed = interpolate_conditions(one, two, 1.0)

    assert mixed.pooled is not None and two.pooled is not None
    torch.testing.assert_close(mixed.pooled, two.pooled)


# Null-text inversion

PATIENT = {"inner_steps": 60, "learning_rate": 0.1, "tolerance": 0.0, "guidance": GUIDED}


def test_null_text_misses_the_trajectory_by_less_than_negative_prompts_at_every_step(smooth: Make) -> None:
    optimised, guessed = misses(smooth(NullText, **PATIENT)), misses(smooth(NegativePrompt))

    assert all(a < b for a, b in zip(optimised, guessed, strict=True)), (optimised, guessed)


def test_images_that_are_optimised_together_stop_by_themselves(smooth: Make) -> None:
    module = smooth(NullText, **{**PATIENT, "tolerance": 3e-3})
    together = module.edit(batch_of([0, 1, 2]))
    alone = [module.edit(batch_of([index])) for index in (0, 1, 2)]

    def taken(result: Any) -> Tensor:
        return (~result.record.own["null_text.losses"].isnan()).sum(2)

    steps = taken(together)
    assert len(set(steps[0].tolist())) > 1  # or the batch would show nothing
    assert torch.equal(steps, torch.cat([taken(result) for result in alone], 1))
    torch.testing.assert_close(
        together.record.own["null_text.embeddings"],
        torch.cat([result.record.own["null_text.embeddings"] for result in alone], 1),
        rtol=0,
        atol=1e-9,
    )
    assert together.evaluations.backward == int(steps.sum()) == sum(result.evaluations.backward for result in alone)
    assert together.evaluations.samples == sum(result.evaluations.samples for result in alone)


def test_a_loss_at_the_tolerance_is_the_last_one(smooth: Make) -> None:
    losses = smooth(NullText, **{**PATIENT, "tolerance": 3e-3}).invert(batch_of([0])).own["null_text.losses"][:, 0]

    for i, found in enumerate(losses):
        kept = found[~found.isnan()]
        assert (kept[:-1] >= 3e-3 + 2e-5 * i).all()
        assert len(kept) == len(found) or kept[-1] < 3e-3 + 2e-5 * i


def test_a_single_branch_leaves_the_target_its_own_negative_prompt(smooth: Make) -> None:
    module = smooth(NullText, inner_steps=1, single_branch=True)
    record = module.invert(batch_of([0]))
    rows = {Row(stream, UNCOND): Condition(torch.zeros(1, 77, 32)) for stream in (Stream.SOURCE, Stream.TARGET)}

    replaced = module.inversion.condition(record, 0, rows)

    assert replaced[Row(Stream.TARGET, UNCOND)] is rows[Row(Stream.TARGET, UNCOND)]
    assert torch.equal(replaced[Row(Stream.SOURCE, UNCOND)].text, record.own["null_text.embeddings"][0])  # type: ignore[arg-type]


# Proximal guidance


def test_thresholds_are_those_of_code_and_paper() -> None:
    d = torch.tensor([-3.0, -1.5, -0.5, 0.0, 0.5, 1.5, 3.0]).view(1, 1, 1, 7)
    one = torch.ones(1, 1, 1, 1)

    def prox(mode: str, variant: str) -> list[float]:
        return ProximalGuidance(mode=mode, variant=variant).prox(d, one).flatten().tolist()  # type: ignore[arg-type]

    assert prox("l0", "official") == [-2.0, -0.5, 0.0, 0.0, 0.0, 0.5, 2.0]
    assert prox("l1", "official") == [-1.0, 0.5, 0.0, 0.0, 0.0, 0.5, 1.0]
    assert prox("l0", "paper") == [-3.0, -1.5, 0.0, 0.0, 0.0, 1.5, 3.0]
    assert prox("l1", "paper") == prox("l0", "official")


def test_a_quantile_is_taken_over_its_scope_in_each_image() -> None:
    target = torch.arange(8.0).view(2, 1, 2, 2)
    found = {Stream.SOURCE: torch.zeros(2, 1, 2, 2), Stream.TARGET: target}

    def threshold(scope: str, stream: Stream = Stream.TARGET) -> list[float]:
        return ProximalGuidance(quantile=0.5, scope=scope).thresholds(found)[stream].flatten().tolist()  # type: ignore[arg-type]

    assert threshold("batch") == [0.0, 2.0]
    assert threshold("target") == threshold("target", Stream.SOURCE) == [1.5, 5.5]
    assert threshold("row", Stream.SOURCE) == [0.0, 0.0]


def test_an_edited_pixel_grows_by_the_dilation() -> None:
    d = torch.zeros(1, 1, 5, 5)
    d[0, 0, 2, 2] = -2.0

    grown = ProximalGuidance(dilation=1).edited(d, torch.ones(1, 1, 1, 1))

    assert grown[0, 0, 1:4, 1:4].all() and grown.sum() == 9
    assert ProximalGuidance(dilation=0).edited(d, torch.ones(1, 1, 1, 1)).sum() == 1


@pytest.mark.parametrize("pull", ["inversion_guidance", "reconstruction_guidance"])
def test_with_nothing_edited_a_whole_pull_returns_the_source(smooth: Make, pull: str) -> None:
    guidance = ProximalGuidance(threshold=1e9, rate=1.0, until=1001.0, **{pull: True})  # type: ignore[arg-type]

    result = smooth(ProxEdit, guidance=guidance).edit(batch_of([0]))

    noise = {"inversion_guidance": 0.0, "reconstruction_guidance": 0.05}[pull]  # the last level still has sigma a[0]
    torch.testing.assert_close(result.latents[Stream.TARGET], result.record.z0, rtol=0, atol=noise + 1e-10)


def test_without_a_mode_guidance_is_classifier_free(smooth: Make) -> None:
    proximal = smooth(ProxEdit, guidance=ProximalGuidance(target=5.0, source=5.0, mode="none")).edit(batch_of([0]))
    plain = smooth(NegativePrompt, guidance=GUIDED).edit(batch_of([0]))

    torch.testing.assert_close(proximal.latents[Stream.TARGET], plain.latents[Stream.TARGET], rtol=0, atol=1e-12)


def test_proximal_guidance_works_on_null_text_inversion(smooth: Make) -> None:
    inversion = NullTextInversion(inner_steps=2)

    result = smooth(ProxEdit, guidance=ProximalGuidance(inversion_guidance=True), inversion=inversion).edit(
        batch_of([0])
    )

    assert not result.failures and result.evaluations.backward == 8


# Noise Map Guidance


def test_the_approximation_is_exact_where_the_prediction_does_not_depend_on_the_latent(
    smooth: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(jacobian_free: bool) -> Any:
        module = smooth(NMG, guidance=NoiseMapGuidance(target=3.0, source=3.0, jacobian_free=jacobian_free))
        monkeypatch.setattr(module.backbone, "forward", lambda z, t, condition: torch.full_like(z, 0.7))
        return module.edit(batch_of([0]))

    exact, free = edit(False), edit(True)

    torch.testing.assert_close(free.latents[Stream.SOURCE], exact.latents[Stream.SOURCE], rtol=0, atol=1e-12)
    assert (exact.evaluations.backward, free.evaluations.backward) == (4, 0)


def test_noise_maps_hold_the_source_nearer_to_its_trajectory(smooth: Make) -> None:
    def miss(**scales: float) -> float:
        guidance = NoiseMapGuidance(target=5.0, source=5.0, **scales)
        module = smooth(NMG, steps=20, convention="next_step", guidance=guidance)
        return misses(module)[-1]

    assert miss(gradient_scale=50.0) < miss(gradient_scale=0.0)


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_the_gradient_is_that_of_the_mean_distance(smooth: Make, loss: str) -> None:
    module = smooth(NMG)
    guidance = NoiseMapGuidance(loss=loss)  # type: ignore[arg-type]
    level, level_next = module.edit_schedule.levels[1:3]
    generator = torch.Generator().manual_seed(0)
    z, aim = torch.randn(2, 2, 4, 8, 8, generator=generator, dtype=torch.float64)

    def predict(z: Latents, rows: Any, **options: Any) -> dict[Row, Tensor]:
        assert options == {"controlled": False}
        return {rows[0]: 0.5 * z[Stream.SOURCE].tanh()}

    found = guidance.noise_map_step(z, aim, level, level_next, predict)  # type: ignore[arg-type]

    residual = level_next.alpha / level.alpha * (z - level.sigma * found.eps) + level_next.sigma * found.eps - aim
    slope = {"l1": residual.sign(), "l2": 2 * residual, "smooth_l1": (residual / 1e-4).clamp(-1, 1)}[loss]
    inner = level_next.alpha / level.alpha
    jacobian = inner + (level_next.sigma - inner * level.sigma) * 0.5 * (1 - z.tanh() ** 2)
    torch.testing.assert_close(found.gradient, slope * jacobian / z[0].numel(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("convention", "reference", "index"),
    [
        ("input_level", "current", 2),
        ("next_step", "current", 1),
        ("next_step", "next", 2),
        ("input_level", "previous", 1),
    ],
)
def test_the_noise_map_is_found_by_its_level(smooth: Make, convention: str, reference: str, index: int) -> None:
    module = smooth(NMG, convention=convention, guidance=NoiseMapGuidance(reference=reference))  # type: ignore[arg-type]
    record = module.invert(batch_of([0]))
    assert record.latents is not None

    class OnSchedule:
        schedule = module.edit_schedule

    aim = module.guidance.aim(record, 1, OnSchedule())  # type: ignore[attr-defined]

    assert torch.equal(aim, record.latents[index])


def test_elements_replace_the_mean_over_the_latent(smooth: Make) -> None:
    mean = smooth(NMG, guidance=NoiseMapGuidance(target=3.0, source=3.0, gradient_scale=16.0)).edit(batch_of([0]))
    fixed = NoiseMapGuidance(target=3.0, source=3.0, gradient_scale=64.0, elements=4 * mean.record.z0[0].numel())

    result = smooth(NMG, guidance=fixed).edit(batch_of([0]))

    torch.testing.assert_close(result.latents[Stream.SOURCE], mean.latents[Stream.SOURCE], rtol=0, atol=1e-10)


# Gradients


@pytest.mark.parametrize("method", [NullText, NMG])
def test_no_graph_outlives_an_edit_and_no_weight_gets_a_gradient(make: Make, method: type[EditModule]) -> None:
    module = make(method, steps=2)

    result = module.edit(batch_of([0]))

    assert result.evaluations.backward > 0
    kept = [result.record.z0, result.record.latents, *result.record.own.values()]
    kept += [value for _, value in result.latents.items()]
    assert all(value is not None and value.grad_fn is None and not value.requires_grad for value in kept)
    assert all(weight.grad is None for weight in module.backbone.parameters())


@pytest.mark.parametrize("method", [NullText, NMG])
def test_inference_mode_is_refused_in_words(smooth: Make, method: type[EditModule]) -> None:
    module = smooth(method)
    part = {"NullText": "NullTextInversion", "NMG": "NoiseMapGuidance"}[method.__name__]

    with torch.inference_mode(), pytest.raises(SettingsError, match=f"{part} takes gradients.*inference"):
        module.edit(batch_of([0]))


@pytest.mark.parametrize("method", [NullText, NMG])
def test_gradients_work_under_a_trainer_without_inference_mode(smooth: Make, method: type[EditModule]) -> None:
    module, keeping = smooth(method), Keeping()
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", inference_mode=False, enable_checkpointing=False, callbacks=[keeping], **quiet)

    trainer.predict(module, datamodule=OneBatch(), return_predictions=False)

    (result,) = keeping.results
    assert torch.equal(result.latents[Stream.TARGET], module.edit(batch_of([0])).latents[Stream.TARGET])


# Bad input


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: NullTextInversion(guidance_scale=1.0), "guidance_scale=1.0.*null-text"),
        (lambda: NullTextInversion(inner_steps=0), "inner_steps=0"),
        (lambda: ProximalGuidance(quantile=1.2), "quantile=1.2"),
        (lambda: ProximalGuidance(mode="none", inversion_guidance=True), "mode=none.*inversion_guidance"),
        (lambda: DirectInversion(NoInversion()), "base=NoInversion keeps no trajectory"),
        (lambda: NegativePromptInversion(interpolation=1.5), "interpolation=1.5"),
        (lambda: NoiseMapGuidance(gradient_scale=-1.0), "gradient_scale=-1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_built(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build()


def test_guidance_at_one_is_refused_with_null_text(make: Make) -> None:
    with pytest.raises(SettingsError, match="null-text inversion"):
        make(NullText, guidance=ClassifierFree(target=7.5, source=1.0))


def test_references_without_a_trajectory_are_refused_with_both_names(make: Make) -> None:
    with pytest.raises(SettingsError, match=r"NoiseMapGuidance needs .* NoInversion"):
        make(SDEdit, guidance=NoiseMapGuidance())


def test_embeddings_for_another_scale_are_refused(make: Make) -> None:
    module = make(NullText, guidance=GUIDED, inversion=NullTextInversion(guidance_scale=7.5))

    assert any("5.0" in problem and "7.5" in problem for problem in module.check())


def test_equal_rows_share_an_evaluation_under_one_condition(smooth: Make) -> None:
    batch = batch_of([2])  # an empty source prompt

    result = smooth(DDIM, guidance=GUIDED).edit(batch)

    assert result.evaluations.samples - result.inversion_evaluations.samples == 4 * 3
