"""pix2pix-zero: edit directions, regularised inversion, cross-attention guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.backbones import StableDiffusion
from framework.callback import EditCallback
from framework.context import MovedPrompt
from framework.data.sample import EditBatch
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.prompts import PromptCache
from framework.record import Record
from framework.statistics.regularisers import kl_divergence
from framework.step import COND, UNCOND, Need, Row, Step, Stream
from methods.ddim import DDIM, DDIMInversion
from methods.direct_inversion import DirectInversion
from methods.noise_map_guidance import NoiseMapGuidance
from methods.pix2pix_zero import CrossAttentionGuidance, Pix2PixZero
from methods.prompt_to_prompt import PromptToPrompt
from methods.regularised_inversion import RegularisedInversion
from tests.small import batch_of

BASE = ClassifierFree(target=3.0, source=3.0, inversion=1.0)


def zero(network: StableDiffusion, **settings: Any) -> Pix2PixZero:
    guidance = CrossAttentionGuidance(BASE, amount=1e-3)
    return Pix2PixZero(network, **{"steps": 4, "guidance": guidance, "repeats": 0, **settings})


class Steps(EditCallback):
    def __init__(self) -> None:
        self.seen: list[Step] = []

    def on_denoise_step(self, trainer: Any, module: Any, step: Step) -> None:
        self.seen.append(step)


def with_extra(batch: EditBatch, **extra: Any) -> EditBatch:
    return replace(batch, samples=tuple(replace(sample, extra=extra) for sample in batch.samples))


def test_a_direction_is_the_difference_of_two_sets_means(network: StableDiffusion) -> None:
    away, towards = ("a cat", "a photo of a cat", "cats"), ("a dog", "a dog on the grass")

    found = PromptCache(network).condition([MovedPrompt("a cat asleep", away, towards)], torch.device("cpu")).text

    def mean(texts: tuple[str, ...]) -> torch.Tensor:
        return torch.cat([network.encode_prompt([text]).text for text in texts]).mean(0, keepdim=True)  # type: ignore[misc]

    expected = network.encode_prompt(["a cat asleep"]).text + mean(towards) - mean(away)  # type: ignore[operator]
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_sentences_come_from_the_sample_before_the_settings_before_the_prompts() -> None:
    guidance = CrossAttentionGuidance(source_sentences=["one cat"], target_sentences=["one dog"])
    batch = batch_of([0])
    own = with_extra(batch, source_sentences=["cats"], target_sentences=["dogs", "a dog"], caption="an animal")
    row = Row(Stream.TARGET, COND)

    of_sample = guidance.prompts(own.samples)
    of_settings = guidance.prompts(batch.samples)[row]
    of_prompts = CrossAttentionGuidance().prompts(batch.samples)

    assert of_sample[row] == [MovedPrompt("an animal", ("cats",), ("dogs", "a dog"))]
    assert of_sample[Row(Stream.SOURCE, COND)] == ["an animal"] == of_sample[Row(Stream.TARGET, UNCOND)]
    assert of_settings == [MovedPrompt("a photo of a cat", ("one cat",), ("one dog",))]
    assert of_prompts[row] == [MovedPrompt("a photo of a cat", ("a photo of a cat",), ("a photo of a dog",))]


def test_without_rates_the_regularised_inversion_is_ddim_inversion(network: StableDiffusion) -> None:
    plain = DDIM(network, steps=4, inversion=DDIMInversion("next_step")).invert(batch_of([0]))
    idle = RegularisedInversion("next_step", auto_correlation_rate=0.0, kl_rate=0.0)

    same = DDIM(network, steps=4, inversion=idle).invert(batch_of([0]))

    assert plain.latents is not None and same.latents is not None
    assert torch.equal(plain.latents, same.latents)


def test_regularised_predictions_are_nearer_to_a_standard_normal(network: StableDiffusion) -> None:
    def divergence(inversion: DDIMInversion) -> torch.Tensor:
        record = DDIM(network, steps=4, inversion=inversion).invert(batch_of([0]))
        assert record.predictions is not None
        return kl_divergence(record.predictions[:, 0])

    plain = divergence(DDIMInversion(keep_predictions=True))
    whiter = divergence(RegularisedInversion("next_step", keep_predictions=True, repeats=5, rolls=1))

    assert float(whiter.max()) < float(plain.max()) / 4


def test_offsets_lie_in_the_inner_half_of_each_level_and_belong_to_the_image(network: StableDiffusion) -> None:
    inversion = RegularisedInversion(repeats=20, rolls=5)
    module = zero(network)
    pictures = torch.zeros(2, 4, 16, 16, dtype=torch.float64)

    def offsets(*images: int) -> torch.Tensor:
        _, ctx = module.prepare(batch_of(images), _no_hooks(module))
        wide = replace(ctx, draw=lambda purpose, count: ctx.draw(purpose, count).repeat(1, 1, 1, 2, 2))
        return inversion.shifts(pictures[: len(images)], 3, wide)

    both = offsets(0, 1)

    assert both.shape == (2, 20, 5, 4, 2)
    assert (int(both[..., 0].min()), int(both[..., 0].max())) == (1, 7)
    assert (int(both[..., 1].min()), int(both[..., 1].max())) == (1, 3)
    assert torch.equal(both[1:], offsets(1)) and not torch.equal(both[0], both[1])


def _no_hooks(module: Pix2PixZero) -> Any:
    from framework.hooks import Hooks

    return Hooks(module, (), None)


def test_the_authors_path_leaves_out_two_levels_and_its_record_is_edited_again(
    network: StableDiffusion, tmp_path: Path
) -> None:
    module, batch = zero(network), batch_of([0])
    straight = module.edit(batch)

    module.invert(batch).image(0).save(tmp_path / "inversion")
    again = module.edit(batch, record=Record.load(tmp_path / "inversion"))

    assert straight.inversion_evaluations.samples == 2
    assert straight.record.t.tolist() == [750.0, 500.0, 250.0]
    assert torch.equal(again.latents[Stream.TARGET], straight.latents[Stream.TARGET])


@pytest.mark.parametrize(("carry", "moves"), [("uncond", False), ("cond", True), ("shared", True)])
def test_in_the_first_step_the_unconditional_half_has_nothing_to_follow(
    network: StableDiffusion, carry: Any, moves: bool
) -> None:
    watcher = Steps()
    module = zero(network, guidance=CrossAttentionGuidance(BASE, amount=1e-3, carry=carry))

    start = module.edit(batch_of([0]), callbacks=[watcher]).record.latents

    assert start is not None
    first, second = (step.z[Stream.TARGET] for step in watcher.seen[:2])
    assert (float((first - start[0]).abs().max()) > 1e-9) is moves
    assert float((second - watcher.seen[0].z_next[Stream.TARGET]).abs().max()) > 1e-9


def test_evaluations_are_counted_with_their_gradients(network: StableDiffusion) -> None:
    result = zero(network).edit(batch_of([0]))
    plain = zero(network, guidance=CrossAttentionGuidance(BASE, amount=0.0)).edit(batch_of([0]))

    # The source's caption is its negative text, so that its two rows are one.
    assert plain.evaluations.samples - plain.inversion_evaluations.samples == 4 * 3
    assert result.evaluations.samples - result.inversion_evaluations.samples == 4 * (3 + 1 + 2)
    assert (plain.evaluations.backward, result.evaluations.backward) == (0, 4 * 2)


def test_the_source_row_is_not_touched(network: StableDiffusion) -> None:
    guided = zero(network).edit(batch_of([0])).latents
    plain = zero(network, guidance=CrossAttentionGuidance(BASE, amount=0.0)).edit(batch_of([0])).latents

    torch.testing.assert_close(guided[Stream.SOURCE], plain[Stream.SOURCE], rtol=0, atol=1e-9)
    assert float((guided[Stream.TARGET] - plain[Stream.TARGET]).abs().max()) > 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": CrossAttentionGuidance(NoiseMapGuidance(target=3.0, source=3.0, gradient_scale=10.0), 1e-3)},
        {"inversion": DirectInversion(RegularisedInversion("pix2pix_zero_all", repeats=0))},
        {"controls": [PromptToPrompt()]},
    ],
    ids=["noise-map-guidance", "direct", "p2p"],
)
def test_it_combines_with_other_guidances_inversions_and_controls(
    network: StableDiffusion, settings: dict[str, Any]
) -> None:
    before = {name: id(processor) for name, processor in network.unet.attn_processors.items()}
    settings = {"inversion": DDIMInversion(), **settings}

    acting = zero(network, **settings).edit(batch_of([0]))

    assert bool(acting.latents[Stream.TARGET].isfinite().all())
    assert {name: id(processor) for name, processor in network.unet.attn_processors.items()} == before


def test_processors_are_back_after_an_exception_while_the_gradient_is_taken(
    network: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: id(processor) for name, processor in network.unet.attn_processors.items()}

    def fails(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("in the gradient")

    monkeypatch.setattr(torch.autograd, "grad", fails)
    with pytest.raises(RuntimeError, match="in the gradient"):
        zero(network).edit(batch_of([0]))

    assert {name: id(processor) for name, processor in network.unet.attn_processors.items()} == before


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CrossAttentionGuidance(ClassifierFree(target=1.0)), ["target=1.0", "more than 1"]),
        (lambda: CrossAttentionGuidance(source_sentences=["a cat"]), ["give both"]),
        (lambda: CrossAttentionGuidance(source_sentences="a", target_sentences="b"), ["list of sentences"]),
        (lambda: CrossAttentionGuidance(amount=-1), ["amount=-1"]),
        (lambda: CrossAttentionGuidance(carry="both"), ["carry='both'", "shared"]),  # type: ignore[arg-type]
        (lambda: RegularisedInversion(rolls=0), ["rolls=0"]),
        (lambda: RegularisedInversion(kl_rate=-1), ["kl_rate=-1"]),
        (lambda: DirectInversion(RegularisedInversion()), ["keeps no trajectory"]),
    ],
)
def test_settings_that_cannot_work_are_refused(build: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        build()

    for word in words:
        assert word in str(error.value)


def test_only_a_path_over_all_levels_is_a_trajectory_for_others() -> None:
    assert Need.TRAJECTORY not in RegularisedInversion().provides()
    assert Need.TRAJECTORY in RegularisedInversion("pix2pix_zero_all").provides()
