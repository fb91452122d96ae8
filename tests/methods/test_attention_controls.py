"""Prompt-to-Prompt, local blend, MasaCtrl and Plug-and-Play on a small network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.backbones import StableDiffusion
from framework.control import Control
from framework.data.sample import EditBatch
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.step import COND, UNCOND, Row, Rows, Stream, Token
from methods.control_rows import row_pairs, with_rows
from methods.ddim import DDIM, DDIMInversion
from methods.local_blend import LocalBlend
from methods.masactrl import MutualSelfAttention, _apart
from methods.plug_and_play import FeatureInjection, FineInversion, OnTrajectory, PlugAndPlay
from methods.prompt_to_prompt import PromptToPrompt
from methods.token_alignment import replacement_mapper, word_positions
from tests.small import prompts

GUIDANCE = ClassifierFree(target=3.0, source=1.0)


CAT_TO_DOG = prompts(("a photo of a cat", "a photo of a dog"))


def edited(network: StableDiffusion, controls: Sequence[Control], batch: EditBatch = CAT_TO_DOG, **more: Any) -> Tensor:
    module = DDIM(network, steps=2, guidance=GUIDANCE, controls=controls, **more)
    return module.edit(batch).latents[Stream.TARGET]


@pytest.fixture(scope="module")
def plain(network: StableDiffusion) -> Tensor:
    return edited(network, [])


NOTHING_TO_DO = {
    "PromptToPrompt": [PromptToPrompt(cross=0.0, self_attention=0.0)],
    "LocalBlend": [LocalBlend([["cat"], ["dog"]], start=1.0)],
    "MutualSelfAttention": [MutualSelfAttention(start_step=2)],
    "FeatureInjection": [FeatureInjection(features=0.0, attention_share=0.0)],
}


@pytest.mark.parametrize("name", NOTHING_TO_DO)
def test_controls_whose_windows_are_empty_leave_every_bit(name: str, network: StableDiffusion, plain: Tensor) -> None:
    assert torch.equal(edited(network, NOTHING_TO_DO[name]), plain)


ACTING: dict[str, list[Control]] = {
    "PromptToPrompt": [PromptToPrompt("replace", cross=1.0, self_attention=1.0)],
    "LocalBlend": [LocalBlend([["cat"], ["dog"]], threshold=0.6, start=0.0, scale=1), PromptToPrompt()],
    "MutualSelfAttention": [MutualSelfAttention(start_step=0)],
    "FeatureInjection": [FeatureInjection()],
}


@pytest.mark.parametrize("name", ACTING)
def test_controls_that_act_change_the_edit_and_leave_the_source(
    name: str, network: StableDiffusion, plain: Tensor
) -> None:
    before = {key: id(processor) for key, processor in network.unet.attn_processors.items()}
    without = DDIM(network, steps=2, guidance=GUIDANCE).edit(CAT_TO_DOG).latents

    final = DDIM(network, steps=2, guidance=GUIDANCE, controls=ACTING[name]).edit(CAT_TO_DOG).latents

    assert float((final[Stream.TARGET] - plain).abs().max()) > 1e-3
    torch.testing.assert_close(final[Stream.SOURCE], without[Stream.SOURCE], rtol=0, atol=1e-9)
    assert {key: id(processor) for key, processor in network.unet.attn_processors.items()} == before


@pytest.mark.parametrize("edit", ["replace", "refine", "reweight"])
def test_with_equal_prompts_and_scales_the_edit_is_the_source_row(edit: Any, network: StableDiffusion) -> None:
    module = DDIM(network, steps=2, guidance=ClassifierFree(target=2.0, source=2.0), controls=[PromptToPrompt(edit)])

    final = module.edit(prompts(("a photo of a cat", "a photo of a cat"))).latents

    torch.testing.assert_close(final[Stream.TARGET], final[Stream.SOURCE], rtol=0, atol=1e-7)


def test_every_image_of_a_batch_has_its_own_mapper_also_when_calls_are_split(network: StableDiffusion) -> None:
    pairs = [("a photo of a cat", "a photo of a red cat"), ("a house by the sea", "a castle by the sea")]
    controls = [PromptToPrompt(), MutualSelfAttention(start_step=1)]

    together = edited(network, controls, prompts(*pairs))
    split = edited(network, controls, prompts(*pairs), max_rows=3)

    alone = edited(network, controls, prompts(pairs[0]))
    scale = 1e-6 * float(together.abs().max())
    torch.testing.assert_close(together, split, rtol=0, atol=scale)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=scale)


def test_processors_are_back_after_an_exception_in_a_step(network: StableDiffusion) -> None:
    class Fails(FeatureInjection):
        def output(self, layer: str, rows: Rows, x: Tensor, i: int, state: Any) -> Tensor:
            raise RuntimeError("inside the network")

    before = {key: id(processor) for key, processor in network.unet.attn_processors.items()}

    with pytest.raises(RuntimeError, match="inside the network"):
        edited(network, [PromptToPrompt(), Fails()])

    assert {key: id(processor) for key, processor in network.unet.attn_processors.items()} == before
    assert not [name for name, module in network.unet.named_modules() if module._forward_hooks]


@pytest.mark.parametrize(
    ("controls", "pair", "words"),
    [
        ([PromptToPrompt(equalizer={"dogg": 2.0})], ("a cat", "a dog"), ["'dogg'", "did you mean 'dog'", "a, dog"]),
        ([PromptToPrompt(cross={"bird": 0.5})], ("a cat", "a dog"), ["'bird'", "a dog"]),
        ([PromptToPrompt("replace")], ("a cat", "a red cat"), ["2 words", "3", "edit='refine'"]),
        ([LocalBlend([["cat"], ["bird"]], scale=1)], ("a cat", "a dog"), ["blend word", "'bird'"]),
        ([LocalBlend(scale=1)], ("a cat", "a dog"), ["no blend words", "blend_words"]),
        (
            [LocalBlend([["cat"], ["x"]], scale=1)],
            ("a cat", "b " * 80 + "x"),
            ["beyond the"],
        ),
        ([MutualSelfAttention(start_step=0, start_layer=16)], ("a cat", "a dog"), ["layer 16", "[0, 15]"]),
        ([MutualSelfAttention(step_list=[2])], ("a cat", "a dog"), ["step_list has 2", "[0, 1]"]),
        ([MutualSelfAttention(start_step=3)], ("a cat", "a dog"), ["start_step=3", "2 steps", "[0, 2]"]),
        ([MutualSelfAttention(start_step=0, masks="given")], ("a cat", "a dog"), ["the samples have none"]),
        ([FeatureInjection(first_site=16)], ("a cat", "a dog"), ["first_site=16", "[0, 15]"]),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(
    controls: list[Control], pair: tuple[str, str], words: list[str], network: StableDiffusion
) -> None:
    with pytest.raises(SettingsError) as error:
        edited(network, controls, prompts(pair))

    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PromptToPrompt(cross=1.4), ["cross=1.4", "[0, 1]"]),
        (lambda: PromptToPrompt(cross={"dog": 40}), ["cross['dog']=40", "not a number of steps"]),
        (lambda: PromptToPrompt(self_attention=(0.8, 0.2)), ["ends before it begins"]),
        (lambda: PromptToPrompt("swap"), ["edit='swap'", "refine"]),  # type: ignore[arg-type]
        (lambda: LocalBlend([["cat"]]), ["not two lists"]),
        (lambda: MutualSelfAttention(masks="given", source_mask=torch.zeros(4, 4)), ["give both"]),
        (
            lambda: MutualSelfAttention(
                masks="given", source_mask=torch.ones(4, 4), target_mask=torch.full((4, 4), 0.5)
            ),
            ["all 0 or all 1", "other than 0 and 1"],
        ),
        (lambda: FeatureInjection(features=40), ["features=40", "share of the steps"]),
        (lambda: OnTrajectory(_Nothing()), ["keeps its latents"]),
    ],
)
def test_settings_out_of_range_are_refused_when_built(build: Any, words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        build()

    for word in words:
        assert word in str(error.value)


class _Nothing(DDIMInversion):
    def provides(self) -> frozenset[Any]:
        return frozenset()


def test_the_source_may_be_kept_on_the_latents_of_its_inversion(network: StableDiffusion) -> None:
    module = DDIM(network, steps=2, guidance=GUIDANCE, inversion=OnTrajectory())

    result = module.edit(CAT_TO_DOG)
    base = DDIM(network, steps=2, guidance=GUIDANCE).edit(CAT_TO_DOG)

    assert result.record.kind == base.record.kind
    assert torch.equal(result.latents[Stream.TARGET], base.latents[Stream.TARGET])
    error, plain_error = (float((r.latents[Stream.SOURCE] - r.record.z0).abs().max()) for r in (result, base))
    assert error < plain_error


def test_a_fine_inversion_in_the_edits_own_steps_is_ddim_inversion(network: StableDiffusion) -> None:
    plain = DDIM(network, steps=4, guidance=GUIDANCE).edit(CAT_TO_DOG)
    fine = DDIM(network, steps=4, guidance=GUIDANCE, inversion=FineInversion(4)).edit(CAT_TO_DOG)

    assert torch.equal(fine.record.latents, plain.record.latents)  # type: ignore[arg-type]
    assert torch.equal(fine.latents[Stream.TARGET], plain.latents[Stream.TARGET])


def test_plug_and_play_may_invert_in_more_steps_than_it_edits(network: StableDiffusion) -> None:
    result = PlugAndPlay(network, steps=2, inversion_steps=10, guidance=GUIDANCE).edit(CAT_TO_DOG)
    all_levels = DDIM(network, steps=10, guidance=GUIDANCE).invert(CAT_TO_DOG)

    assert result.record.t.tolist()[:2] == [501.0, 1.0]
    assert result.inversion_evaluations.samples == 6  # timesteps 1 to 501, by hundreds
    assert result.record.latents is not None and all_levels.latents is not None
    torch.testing.assert_close(result.record.latents[0], all_levels.latents[4], rtol=0, atol=1e-9)
    with pytest.raises(SettingsError, match="multiple of the edit's steps"):
        PlugAndPlay(network, steps=4, inversion_steps=10)


def test_mask_coordinates_equal_attention_under_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 6, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    masks = torch.tensor([[[1, 0, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0]]], dtype=torch.float64)

    wide = torch.nn.functional.scaled_dot_product_attention(*_apart(q, k, masks, [slice(1, 2)]), v)

    seen = masks[0, 1][:, None] == masks[0, 0][None]
    allowed = torch.stack([torch.ones_like(seen), seen, torch.ones_like(seen)])[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    torch.testing.assert_close(wide, expected, rtol=0, atol=1e-12)


def test_a_side_without_positions_is_looked_at_alike_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    masks = torch.tensor([[[0, 0, 0, 0], [0, 1, 0, 0]]], dtype=torch.float64)

    wide = torch.nn.functional.scaled_dot_product_attention(*_apart(q, k, masks, [slice(0, 1)]), v)

    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(wide[:, :, 1], v.mean(2), rtol=0, atol=1e-9)
    torch.testing.assert_close(wide[:, :, [0, 2, 3]], plain[:, :, [0, 2, 3]], rtol=0, atol=1e-9)


def test_a_source_evaluated_under_one_branch_serves_both_of_the_target() -> None:
    both = (Row(Stream.TARGET, UNCOND), Row(Stream.TARGET, COND))
    rows = Rows((Row(Stream.SOURCE, UNCOND), *both), (2, 2, 2))

    assert row_pairs(rows) == [(slice(2, 4), slice(0, 2)), (slice(4, 6), slice(0, 2))]


def test_replaced_rows_are_new_tensors() -> None:
    x = torch.arange(4.0)

    y = with_rows(x, (slice(2, 3), torch.tensor([9.0])), (slice(0, 1), torch.tensor([8.0])))

    assert y.tolist() == [8, 1, 9, 3] and x.tolist() == [0, 1, 2, 3]


def _letters(text: str) -> list[Token]:
    """Tokens of two characters that do not cross spaces."""
    starts = [i for i, c in enumerate(text) if c != " " and (i - (text.rfind(" ", 0, i) + 1)) % 2 == 0]
    spans = [(i, i + 1 if text[i + 1 : i + 2] in ("", " ") else i + 2) for i in starts]
    return [Token(hash(text[a:b]) % 999, text[a:b], a, b) for a, b in spans]


def test_offsets_find_phrases_in_any_case_and_without_punctuation() -> None:
    text = "An Oil  painting, of oil"

    assert word_positions(text, "oil painting", _letters(text), "offsets") == [2, 3, 4, 5, 6, 7]
    assert word_positions(text, "oil painting", _letters(text)) == []
    assert word_positions(text, 0, _letters(text), "offsets") == [1]


def test_the_mapper_of_one_token_to_two_shares_its_mass_and_may_fix_the_tail() -> None:
    pair = ("a ox on", "a bird on")

    slip = replacement_mapper(*pair, _letters, 10)
    fixed = replacement_mapper(*pair, _letters, 10, fix_tail=True)

    assert slip[2, 2:4].tolist() == fixed[2, 2:4].tolist() == [0.5, 0.5]
    assert slip[4, 4] == 1 and fixed[3, 4] == 1 and fixed[4, 4] == 0
