"""Laws of SEGA, LEDITS and LEDITS++ on a denoiser in closed form, and of their masks and combinations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.backbones import GaussianMixture
from framework.callback import EditCallback
from framework.data.sample import EditBatch, EditSample, Frame
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.schedule import Level, Schedule
from framework.step import Stream
from methods.concepts import Concept, ConceptTable, quantile, threshold_at
from methods.implicit_masks import ImplicitMaskGuidance, MaskedConcept, attention_mask, noise_mask, smooth
from methods.ledits import LEDITS, StyleConcept
from methods.ledits_pp import LEDITSPP, ledits_pp_schedule, sde_step
from methods.sega import SEGA, SemanticGuidance, semantic_term

CAT, SNOW, NIGHT = (MaskedConcept(text, threshold=0.5) for text in ("cat", "snow", "night"))


def network() -> GaussianMixture:
    texts = {"cat": [9, 1, 1], "snow": [1, 9, 1], "night": [1, 1, 9], "caption": [3, 2, 1]}
    return GaussianMixture([-0.7, 0.1, 0.8], [0.05, 0.2, 0.1], texts=texts)


def batch(extras: Sequence[dict[str, Any]] = ({}, {}), target: str = "cat", masks: Any = None) -> EditBatch:
    count = len(extras)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))[:count] * 2 - 1
    samples = tuple(EditSample(f"{k}", Path("unused"), "caption", target, extra=e) for k, e in enumerate(extras))
    return EditBatch(samples, images, masks, (Frame((8, 8), (0, 0, 8, 8), (8, 8)),) * count, ((),) * count)


def target_of(module: EditModule, given: EditBatch | None = None, callbacks: Sequence[EditCallback] = ()) -> Any:
    return module.edit(given or batch(), callbacks=callbacks).latents[Stream.TARGET]


def sega(concepts: Sequence[Concept] = (), **settings: Any) -> SEGA:
    return SEGA(network(), steps=6, guidance=SemanticGuidance(concepts, **settings))


class Watching(EditCallback):
    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_denoise_step(self, trainer: Any, module: Any, step: Any) -> None:
        self.found.append({name: value.clone() for name, value in step.found.items()})


def table(**settings: Any) -> ConceptTable:
    """One image and two concepts."""
    defaults = {"scale": [1.0, 1.0], "threshold": [0.0, 0.0], "weight": [1.0, 1.0], "warmup": [0, 0]}
    values = {key: torch.tensor(value).view(2, 1) for key, value in {**defaults, **settings}.items()}
    cooldown = values.pop("cooldown", torch.full((2, 1), 2**31 - 1))
    return ConceptTable(present=torch.ones(2, 1, dtype=torch.bool), cooldown=cooldown, **values)


DIRECTIONS = torch.stack([torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), -1.0)])


def test_without_concepts_semantic_guidance_is_classifier_free_guidance() -> None:
    plain = SEGA(network(), steps=6, guidance=ClassifierFree(target=4.0))

    assert torch.equal(target_of(sega(target=4.0)), target_of(plain))


@pytest.mark.parametrize("silent", [{"scale": 0.0}, {"cooldown": 1, "warmup": 0, "scale": 0.0}, {"text": "caption"}])
def test_concepts_that_add_nothing_leave_classifier_free_guidance(silent: dict[str, Any]) -> None:
    concept = Concept(**{"text": "snow", "warmup": 2, "threshold": 0.5, **silent})
    given = batch([{}, {}])
    # a concept that says what the negative prompt says has no direction
    samples = tuple(EditSample(s.id, s.image, s.source, s.target, "caption") for s in given.samples)
    given = EditBatch(samples, given.images, None, given.frames, given.notes)

    guided = target_of(sega([concept], target=4.0), given)

    plain = target_of(SEGA(network(), steps=6, guidance=ClassifierFree(target=4.0)), given)
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-12)


def test_a_concept_and_its_reverse_move_the_picture_to_opposite_sides() -> None:
    plain = target_of(sega(target=1.0))

    there, away = (
        target_of(sega([Concept("night", reverse=r, warmup=1, threshold=0.0, scale=2.0)], target=1.0))
        for r in (False, True)
    )

    assert float(away.mean()) < float(plain.mean()) < float(there.mean())  # "night" is the brightest component


def test_all_rows_of_a_step_share_one_call() -> None:
    result = sega([CAT, SNOW, NIGHT]).edit(batch())

    assert result.evaluations.calls == 6
    assert result.evaluations.samples == 2 * 6 * (2 + 3)


def test_a_samples_own_concepts_replace_those_of_the_experiment() -> None:
    own = {"concepts": ["snow", {"text": "night", "scale": 3, "reverse": True, "warmup": 1}]}
    default = Concept(warmup=2, threshold=0.5)

    from_manifest = target_of(sega([CAT], default=default), batch([own, {}]))

    written = [Concept("snow", warmup=2, threshold=0.5), Concept("night", True, 3.0, 1, None, 0.5)]
    torch.testing.assert_close(from_manifest[:1], target_of(sega(written), batch([{}])), rtol=0, atol=1e-10)
    torch.testing.assert_close(from_manifest[1:], target_of(sega([CAT]), batch([{}, {}]))[1:], rtol=0, atol=1e-10)


def test_an_image_with_fewer_concepts_is_edited_as_if_alone() -> None:
    own = [{"concepts": [{"text": "snow", "warmup": 1}]}, {"concepts": ["cat", {"text": "night", "warmup": 4}]}]
    default = Concept(warmup=2, threshold=0.5)

    together = target_of(sega(default=default), batch(own))
    alone = target_of(sega(default=default), batch(own[:1]))

    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-10)


def test_while_some_concepts_warm_up_the_warm_ones_are_averaged_and_later_all_are_summed() -> None:
    concepts = table(warmup=[0, 1], weight=[2.0, 4.0])

    early, momentum = semantic_term(DIRECTIONS, concepts, 0, None, scale=0.5, decay=0.25)
    late, after = semantic_term(DIRECTIONS, concepts, 1, momentum, scale=0.5, decay=0.25)

    total = 2 * 3.0 + 4 * -1.0
    torch.testing.assert_close(early, torch.full((1, 1, 2, 2), 3.0))
    torch.testing.assert_close(momentum, torch.full((1, 1, 2, 2), 0.75 * total))
    with_momentum = total + 0.5 * 0.75 * total
    torch.testing.assert_close(late, torch.full((1, 1, 2, 2), with_momentum))
    torch.testing.assert_close(after, torch.full((1, 1, 2, 2), 0.25 * 0.75 * total + 0.75 * with_momentum))


def test_warm_concepts_that_have_cooled_down_give_zero_and_not_nan() -> None:
    concepts = table(warmup=[0, 9], cooldown=[2, 2**31 - 1])

    term, _ = semantic_term(DIRECTIONS, concepts, 5, None, scale=0.0, decay=0.0)

    assert not term.any()


def test_the_threshold_is_taken_per_image_and_channel() -> None:
    d = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    concepts = table(threshold=[0.75, 0.75], weight=[1.0, 0.0])

    term, _ = semantic_term(d, concepts, 0, None, scale=0.0, decay=0.0)

    assert (term.count_nonzero((2, 3)) == 16).all()


@pytest.mark.parametrize("q", [0.0, 0.3, 0.92, 0.999])
def test_quantiles_are_those_of_torch(q: float) -> None:
    x = torch.randn(3, 4, 57, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = torch.tensor([q, 0.5, 0.25], dtype=torch.float64)

    ours = quantile(x, ranks[:, None])

    theirs = torch.stack([torch.quantile(row, rank, dim=-1) for row, rank in zip(x, ranks, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_recorded_guidance_repeats_a_run_without_its_concepts() -> None:
    watching = Watching()
    first = target_of(sega([SNOW, NIGHT]), callbacks=[watching])

    recorded = torch.stack([found["semantic_guidance"] for found in watching.found])
    again = target_of(sega(recorded=recorded))

    torch.testing.assert_close(again, first, rtol=0, atol=1e-10)
    with pytest.raises(SettingsError, match="recorded holds 4 steps for 6"):
        sega(recorded=recorded[:4])


def test_where_the_target_repeats_the_caption_concepts_alone_edit() -> None:
    def ledits(pure: Any, target: str) -> Any:
        guidance = SemanticGuidance([SNOW], target=5.0, source=0.0, pure=pure)
        return target_of(LEDITS(network(), steps=6, skip=2, guidance=guidance), batch(target=target))

    torch.testing.assert_close(ledits("caption", "caption"), ledits("always", "cat"), rtol=0, atol=1e-10)
    assert torch.equal(ledits("caption", "cat"), ledits("never", "cat"))


def test_ledits_without_concepts_in_pure_mode_gives_the_source_back() -> None:
    guidance = SemanticGuidance(source=0.0, pure="always")
    module = LEDITS(network(), steps=6, skip=1, zero_last=False, guidance=guidance)

    result = module.edit(batch())

    torch.testing.assert_close(result.latents[Stream.TARGET], result.record.z0, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("steps", "final"), [(15, True), (5, False)])
@pytest.mark.parametrize("source", [None, 2.0])
def test_ledits_pp_of_the_authors_reconstructs_the_source(steps: int, final: bool, source: float | None) -> None:
    guidance = ImplicitMaskGuidance([SNOW], source=source)
    module = LEDITSPP(network(), steps=steps, lower_order_final=final, guidance=guidance)

    result = module.edit(batch())

    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-9)


def test_ledits_pp_without_concepts_gives_the_source_back_and_with_them_does_not() -> None:
    plain = LEDITSPP(network(), steps=15, guidance=ImplicitMaskGuidance()).edit(batch())
    edited = LEDITSPP(network(), steps=15, guidance=ImplicitMaskGuidance([NIGHT])).edit(batch())

    torch.testing.assert_close(plain.latents[Stream.TARGET], plain.record.z0, rtol=0, atol=1e-9)
    assert float((edited.latents[Stream.TARGET] - plain.record.z0).abs().mean()) > 0.01


def test_the_diffusers_variant_ends_at_the_clean_estimate_of_its_last_timestep() -> None:
    guidance = ImplicitMaskGuidance(variant="diffusers")
    result = LEDITSPP(network(), steps=6, variant="diffusers", guidance=guidance).edit(batch())

    assert result.record.zeroed == (5,)
    assert result.record.noise_maps is not None and not result.record.noise_maps[-1].any()
    assert result.latents[Stream.TARGET].isfinite().all()


def test_timesteps_of_ledits_pp_are_those_of_both_implementations() -> None:
    alphas = torch.linspace(0.999, 0.005, 1000)

    repo, diffusers = (ledits_pp_schedule(alphas, 30, 0.15, v).t.tolist() for v in ("repo", "diffusers"))  # type: ignore[arg-type]

    assert (repo[0], repo[-2], repo[-1], len(repo)) == (849, 1, 0, 31)
    assert (diffusers[0], diffusers[-2], len(diffusers)) == (841, 29, 31)


def test_the_solvers_step_keeps_the_noise_level_of_the_schedule() -> None:
    levels = [Level(900, 0.3, 0.91**0.5), Level(400, 0.8, 0.6)]
    schedule = Schedule(
        *(torch.tensor(column, dtype=torch.float64) for column in zip(*levels, strict=True)), form="epsilon"
    )
    x0, eps = torch.tensor([2.0]), torch.tensor([1.0])

    mean, std = sde_step(0.3 * x0 + 0.91**0.5 * eps, x0, 0, schedule, before=x0)

    # z_next = alpha_next x0 + noise of variance sigma_next^2, part kept from eps and part fresh
    kept = float(mean - 0.8 * x0)
    assert kept**2 + std**2 == pytest.approx(0.36)


def test_attention_masks_cover_what_a_concepts_words_attend_to() -> None:
    maps = torch.zeros(1, 2, 4, 4, 7)
    maps[0, 0, :2, :2, 1:3] = 0.5  # image 0: both words look at the upper left
    maps[0, 1, 2:, 2:, 1] = 0.5  # image 1: its only word at the lower right
    maps[0, :, :, 3, 5] = 9.0  # padding looks elsewhere and must not count

    masks = attention_mask(maps, torch.tensor([[2, 1]]), torch.tensor([[0.75, 0.75]]), (8, 8))

    expected = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    expected[0, 0, :4, :4] = expected[0, 1, 4:, 4:] = True
    assert torch.equal(masks, expected)


def test_noise_masks_hold_the_asked_share_for_all_channels() -> None:
    d = torch.randn(2, 3, 4, 10, 10, generator=torch.Generator().manual_seed(0))

    masks = noise_mask(d, torch.tensor([[0.9] * 3, [0.5] * 3]))

    assert masks.shape == (2, 3, 10, 10)
    assert masks.sum((2, 3)).tolist() == [[10] * 3, [50] * 3]


def test_smoothing_keeps_constants_and_spreads_a_point_by_the_authors_weights() -> None:
    point = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    point[0, 0, 2, 2] = 1

    spread = smooth(point)

    assert smooth(torch.full((1, 1, 5, 5), 0.3)).flatten().tolist() == pytest.approx([0.3] * 25)
    assert spread[0, 0, 2, 1:4].tolist() == pytest.approx([0.5761 * 0.2119, 0.5761**2, 0.5761 * 0.2119], abs=1e-4)


def test_a_user_mask_confines_the_edit() -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., :4] = 1
    guidance = ImplicitMaskGuidance([MaskedConcept("night", threshold=0.0)], user_mask=True)
    watching = Watching()

    target_of(LEDITSPP(network(), steps=4, guidance=guidance), batch(masks=masks), [watching])

    assert watching.found[0]["semantic_guidance"][..., :4].any()
    for found in watching.found:
        assert found["masks"].shape == (2, 1, 8, 8)
        assert not found["semantic_guidance"][..., 4:].any()


def test_a_user_mask_that_covers_nothing_is_warned_of_and_nothing_is_edited() -> None:
    masks = torch.ones(2, 1, 8, 8)
    masks[1] = 0
    guidance = ImplicitMaskGuidance([MaskedConcept("night", threshold=0.5)], user_mask=True)

    with pytest.warns(UserWarning, match="1 of 2 images covers nothing"):
        result = LEDITSPP(network(), steps=15, guidance=guidance).edit(batch(masks=masks))

    edit, z0 = result.latents[Stream.TARGET], result.record.z0
    torch.testing.assert_close(edit[1], z0[1], rtol=0, atol=1e-9)
    assert float((edit[0] - z0[0]).abs().mean()) > 0.01


def test_a_threshold_decides_in_float32() -> None:
    above = torch.tensor([1.0, 1.0 + 1e-12, 2.0], dtype=torch.float64)

    assert float(threshold_at(above, torch.tensor(0.5))) == 1.0
    assert float(quantile(above, torch.tensor(0.5))) == 1.0 + 1e-12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"warmup": 5, "cooldown": 3}, "cooldown=3"),
        ({"scale": -2.0}, "set reverse"),
    ],
)
def test_a_concept_that_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Concept("snow", **settings)


def test_concepts_that_would_never_act_are_refused_with_numbers() -> None:
    with pytest.raises(SettingsError, match="warms up for 10 steps, but only 6"):
        sega([Concept("snow")])
    with pytest.raises(SettingsError, match="warms up for 2 steps, but only 2"):
        LEDITS(network(), steps=6, skip=4, guidance=SemanticGuidance([StyleConcept("snow")]))
    with pytest.raises(SettingsError, match="have weight 0"):
        SemanticGuidance([Concept("snow", weight=0.0), Concept("cat", weight=0.0)])


@pytest.mark.parametrize(
    "own", ["snow", [3], [{"text": "snow", "scales": 3}], [{"text": "snow", "scale": "big"}], [""]]
)
def test_a_samples_concepts_that_cannot_work_are_refused_by_name(own: Any) -> None:
    with pytest.raises(SettingsError, match="sample '1'"):
        sega().edit(batch([{}, {"concepts": own}]))


def test_a_samples_concept_that_warms_up_too_long_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="warms up for 10 steps, but only 6"):
        sega().edit(batch([{}, {"concepts": ["snow"]}]))
