"""What controls refuse before a run, what they say about a sample, and in which order they stand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from framework.backbones import StableDiffusion
from framework.control import Control, in_order
from framework.data.images import ImageLoader
from framework.data.sample import EditSample, RunLengthMask
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.rehearsal import rehearse
from framework.run.build import build
from framework.run.config import load_config
from framework.step import Latents, Stream
from methods.blended_latents import BlendedLatents
from methods.ddim import DDIM
from methods.local_blend import LocalBlend
from methods.masactrl import MutualSelfAttention
from methods.plug_and_play import FeatureInjection, PlugAndPlay
from methods.prompt_to_prompt import PromptToPrompt
from methods.sdedit import SDEdit
from methods.sega import SEGA
from methods.tokens_command import format_table, tokens
from methods.unified_attention import UnifiedAttention
from tests.small import MODELS, batch_of

GUIDANCE = ClassifierFree(target=3.0)
LONG = "b " * 80 + "dog"


@pytest.fixture(scope="module")
def unloaded() -> StableDiffusion:
    return StableDiffusion(str(MODELS / "tiny-sd"), dtype="float64")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    return path


def sample(picture: Path, source: str = "a cat", target: str = "a dog", name: str = "one", **more: Any) -> EditSample:
    return EditSample(name, picture, source, target, **more)


def problems(network: StableDiffusion, controls: list[Control], *samples: EditSample) -> list[str]:
    module = DDIM(network, steps=4, guidance=GUIDANCE, controls=controls)
    return rehearse(module, samples, ImageLoader((64, 64)))


CASES: list[tuple[Control, dict[str, Any], list[str]]] = [
    (PromptToPrompt(equalizer={"dgo": 2.0}), {}, ["'dgo' is not a word of 'a dog'", "did you mean 'dog'"]),
    (PromptToPrompt(cross={"cat": 0.5}), {}, ["'cat' is not a word of 'a dog'"]),
    (PromptToPrompt("replace"), {"target": "a big dog"}, ["has 2 words and 'a big dog' has 3", "edit='refine'"]),
    (PromptToPrompt(equalizer={"dog": 2.0}), {"target": LONG}, ["stands beyond the 75 tokens"]),
    (LocalBlend(), {}, ["there are no blend words"]),
    (LocalBlend([["cat"], ["bird"]], scale=1), {}, ["blend word: 'bird' is not a word"]),
    (LocalBlend(), {"target": LONG, "blend_source": "cat", "blend_target": "dog"}, ["blend word", "beyond the 75"]),
    (LocalBlend([["cat"], ["dog"]], scale=32), {}, ["LocalBlend chose no attention site"]),
    (MutualSelfAttention(start_step=5), {}, ["start_step=5", "[0, 4]"]),
    (MutualSelfAttention(step_list=[1, 4]), {}, ["step_list has 4", "[0, 3]"]),
    (MutualSelfAttention(layer_list=[16]), {}, ["layer 16", "[0, 15]"]),
    (MutualSelfAttention(masks="auto", source_words=["dog"], map_positions=64), {}, ["'dog' is not a word of 'a cat'"]),
    (MutualSelfAttention(masks="given"), {}, ["the samples have none"]),
    (
        MutualSelfAttention(masks="given"),
        {"mask": RunLengthMask((), border=False)},
        ["all 0 or all 1"],
    ),
    (BlendedLatents(), {}, ["BlendedLatents: the samples have no masks"]),
    (BlendedLatents(), {"mask": RunLengthMask((), border=False)}, ["a mask is empty", "widen it"]),
    (UnifiedAttention(local_words=["bird"]), {}, ["local words", "'bird'", "'a dog'"]),
    (UnifiedAttention(mutual_words=["dog"]), {}, ["mutual word", "'dog'", "no counterpart"]),
    (UnifiedAttention(), {"blend_source": "cat", "blend_target": "bird"}, ["local words", "'bird'"]),
    (UnifiedAttention(local_words=["dog"], scale=32), {}, ["scale=32", "[1, 2, 4"]),
    (UnifiedAttention(local_words=["dog"]), {"target": LONG}, ["within what the text encoder sees"]),
    (FeatureInjection(layer="up_blocks.1.resnets.9"), {}, ["up_blocks.1.resnets.9", "does not have"]),
]


@pytest.mark.parametrize(("control", "about", "words"), CASES)
def test_what_a_sample_does_not_allow_is_found_before_weights_load(
    control: Control, about: dict[str, Any], words: list[str], unloaded: StableDiffusion, picture: Path
) -> None:
    found = problems(unloaded, [control], sample(picture, **about))

    assert len(found) == 1
    for word in words:
        assert word in found[0]
    assert unloaded.unet is None and unloaded.text_encoder is None


def test_samples_that_suit_their_controls_have_no_problem(unloaded: StableDiffusion, picture: Path) -> None:
    one = sample(picture, blend_source="cat", blend_target="dog", mask=RunLengthMask((0, 2048), border=False))
    controls = [PromptToPrompt(blend_factor=2.0), LocalBlend(scale=1), MutualSelfAttention(masks="given")]

    assert problems(unloaded, controls, one) == []


def test_a_problem_names_its_samples_unless_all_have_it(unloaded: StableDiffusion, picture: Path) -> None:
    pair = [sample(picture), sample(picture, target="a big dog", name="two")]

    own = problems(unloaded, [PromptToPrompt("replace")], *pair)
    shared = problems(unloaded, [MutualSelfAttention(layer_list=[16])], *pair)

    assert len(own) == 1 and own[0].startswith("sample 'two': ")
    assert len(shared) == 1 and "sample" not in shared[0]


def test_an_experiment_with_such_a_sample_does_not_build(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a cat\na big dog\n")
    (tmp_path / "edit.yaml").write_text(f"""
backbone: {{_target_: framework.backbones.StableDiffusion, model: {MODELS / "tiny-sd"}}}
method:
  _target_: methods.ddim.DDIM
  steps: 4
  controls: [{{_target_: methods.prompt_to_prompt.PromptToPrompt, edit: replace}}]
data: {{_target_: framework.data.Folder, root: {tmp_path}}}
""")

    with pytest.raises(SettingsError, match="edit='refine'") as error:
        build(load_config(str(tmp_path / "edit.yaml"), []))

    assert "method.controls" in str(error.value)


@pytest.mark.parametrize("method", [SDEdit, SEGA])
@pytest.mark.parametrize("control", [PromptToPrompt(), LocalBlend(), MutualSelfAttention(), FeatureInjection()])
def test_methods_that_record_no_source_refuse_controls_that_need_one(
    method: Any, control: Control, unloaded: StableDiffusion
) -> None:
    with pytest.raises(SettingsError) as error:
        method(unloaded, controls=[control])

    message = str(error.value)
    assert type(control).__name__ in message and "a source row" in message and method.__name__ in message


def test_what_reads_edited_maps_comes_first_wherever_it_is_listed(unloaded: StableDiffusion) -> None:
    blend, edit, auto = LocalBlend(), PromptToPrompt(), MutualSelfAttention(masks="auto")

    assert in_order([edit, blend]) == in_order([blend, edit]) == (blend, edit)
    assert in_order([edit, auto, blend]) == (auto, blend, edit)
    assert DDIM(unloaded, steps=4, controls=[edit, blend]).controls == (blend, edit)


def described(picture: Path, **about: Any) -> Any:
    batch = batch_of([0])
    return replace(batch, samples=(sample(picture, **about),))


@pytest.fixture(scope="module")
def network(unloaded: StableDiffusion) -> StableDiffusion:
    backbone = StableDiffusion(str(MODELS / "tiny-sd"), dtype="float64")
    backbone.load()
    return backbone


def test_local_blend_gives_the_same_bits_before_and_behind_prompt_to_prompt(
    network: StableDiffusion, picture: Path
) -> None:
    blend = LocalBlend([["cat"], ["dog"]], threshold=0.6, start=0.0, scale=1)
    batch = described(picture, target="a red dog")

    def final(controls: list[Control]) -> Latents:
        return DDIM(network, steps=2, guidance=GUIDANCE, controls=controls).edit(batch).latents

    before, behind = final([blend, PromptToPrompt()]), final([PromptToPrompt(), blend])

    assert torch.equal(before[Stream.TARGET], behind[Stream.TARGET])


def test_the_mapping_and_the_blend_are_told_with_the_sample(network: StableDiffusion, picture: Path) -> None:
    controls = [PromptToPrompt(blend_factor=2.0), LocalBlend(scale=1, missing="unblended")]
    module = DDIM(network, steps=2, guidance=GUIDANCE, controls=controls)

    named = module.edit(described(picture, target="a red dog", blend_source="cat", blend_target="dog")).controls[0]
    unnamed = module.edit(described(picture, target="a red dog")).controls[0]

    rows = named["PromptToPrompt"]["target_tokens"]
    assert [(row["token"], row["own"], row["factor"]) for row in rows] == [("a", 0, 1), ("red", 1, 1), ("dog", 1, 2)]
    assert rows[0]["source"] == [{"position": 1, "token": "a", "weight": 1}]
    assert named["LocalBlend"] == {"blended": True, "words": [["cat"], ["dog"]]}
    assert unnamed["LocalBlend"]["blended"] is False and "no blend words" in unnamed["LocalBlend"]["reason"]
    json.dumps([named, unnamed])


def test_a_sample_without_blend_words_is_left_whole(network: StableDiffusion, picture: Path) -> None:
    batch = described(picture)
    blend = LocalBlend(scale=1, start=0.0, missing="unblended")

    blended = DDIM(network, steps=2, guidance=GUIDANCE, controls=[blend]).edit(batch).latents
    plain = DDIM(network, steps=2, guidance=GUIDANCE).edit(batch).latents

    torch.testing.assert_close(blended[Stream.TARGET], plain[Stream.TARGET], rtol=0, atol=1e-8)


class _Breaks(Control):
    def blend(self, z: Latents, z_next: Latents, i: int, state: Any) -> Latents:
        raise RuntimeError("in a step")


def test_after_an_exception_in_a_step_the_network_is_what_it_was(network: StableDiffusion, picture: Path) -> None:
    unet = network.unet
    processors = dict(unet.attn_processors)
    weights = {name: (parameter.data_ptr(), parameter._version) for name, parameter in unet.named_parameters()}
    controls = [PromptToPrompt(), LocalBlend([["cat"], ["dog"]], scale=1), MutualSelfAttention(), _Breaks()]

    with pytest.raises(RuntimeError, match="in a step"):
        PlugAndPlay(network, steps=4, controls=controls).edit(described(picture))

    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert weights == {name: (p.data_ptr(), p._version) for name, p in unet.named_parameters()}
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in unet.modules())


def test_the_command_prints_where_every_target_token_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    tokens.configure(parser)
    words = ["a red circle", "a red large circle", "--model", str(MODELS / "tiny-sd")]

    code = tokens.run(parser.parse_args(words))
    said = capsys.readouterr().out
    tokens.run(parser.parse_args([*words, "--json"]))
    table = json.loads(capsys.readouterr().out)

    assert code == 0
    assert said.strip() == format_table(table).strip()
    assert [line.split("<-")[1].strip() for line in said.splitlines()[1:]] == [
        "1 a", "2 red", "its own map", "3 circle",
    ]  # fmt: skip


def test_the_command_names_refine_where_words_cannot_be_replaced() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    tokens.configure(parser)

    with pytest.raises(SettingsError, match="edit='refine'"):
        tokens.run(parser.parse_args(["a cat", "a big cat", "--edit", "replace", "--model", str(MODELS / "tiny-sd")]))
