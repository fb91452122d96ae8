"""InfEdit: virtual inversion in closed form, and what unified attention control keeps and changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from framework.backbones import StableDiffusion
from framework.callback import EditCallback
from framework.control import Control
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.step import COND, UNCOND, Row, Rows, Site, Stream, Token
from methods.infedit import InfEdit, VirtualInversion
from methods.prompt_to_prompt import PromptToPrompt
from methods.unified_attention import UnifiedAttention, UnifiedState
from methods.unified_words import unified_words
from tests.small import MODELS, prompts

GUIDANCE = ClassifierFree(target=3.0, source=1.0)


CAT_TO_DOG = prompts(("a photo of a cat", "a photo of a red dog"))


def infedit(network: StableDiffusion, controls: Sequence[Control] = (), **settings: Any) -> InfEdit:
    return InfEdit(network, **{"steps": 3, "guidance": GUIDANCE, "controls": controls, **settings})


@pytest.mark.parametrize("start_from", ["noise", "source"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_source_reproduces_itself_along_its_recorded_path(
    network: StableDiffusion, eta: float, start_from: Any
) -> None:
    class Path(EditCallback):
        def on_denoise_step(self, trainer: Any, module: Any, step: Any) -> None:
            assert step.record.latents is not None
            torch.testing.assert_close(step.z_next.source, step.record.latents[step.interval + 1], rtol=0, atol=1e-10)

    result = infedit(network, eta=eta, start_from=start_from, strength=0.7).edit(CAT_TO_DOG, callbacks=[Path()])

    assert torch.equal(result.latents[Stream.SOURCE], result.record.z0)
    assert result.inversion_evaluations.samples == 0


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_what_the_network_predicts_whatever_the_prompt_cancels(
    network: StableDiffusion, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "forward", lambda z, t, condition: torch.full_like(z, 0.7))

    final = infedit(network, eta=eta).edit(CAT_TO_DOG).latents

    torch.testing.assert_close(final[Stream.TARGET], final[Stream.SOURCE], rtol=0, atol=1e-8)


def test_one_step_adds_the_difference_of_the_predictions(
    network: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_prompt(z: Tensor, t: Tensor, condition: Any) -> Tensor:
        return condition.text.mean((1, 2)).view(-1, 1, 1, 1).expand_as(z)

    monkeypatch.setattr(network, "forward", by_prompt)
    source, target, empty = (float(network.encode_prompt([p]).text.mean()) for p in ("a cat", "a dog", ""))  # type: ignore[union-attr]
    module = infedit(network, steps=1, guidance=ClassifierFree(target=3.0, source=1.0))

    result = module.edit(prompts(("a cat", "a dog")))

    level = module.edit_schedule.levels[0]
    change = empty + 3.0 * (target - empty) - source
    expected = result.record.z0 - level.sigma / level.alpha * change
    torch.testing.assert_close(result.latents[Stream.TARGET], expected, rtol=0, atol=1e-9)


def test_a_record_tells_the_draws_and_the_path_of_the_source(network: StableDiffusion) -> None:
    record = infedit(network, strength=0.7).invert(CAT_TO_DOG)

    assert record.unused == (0,) and record.zeroed == (0, 2)
    assert record.latents is not None and record.noise_maps is not None
    level = infedit(network).edit_schedule.levels[2]
    forward = level.alpha * record.z0 + level.sigma * record.noise_maps[1]
    torch.testing.assert_close(record.latents[2], forward, rtol=0, atol=1e-12)


def words_of(network: StableDiffusion, source: str, target: str, **settings: Any) -> Any:
    features = tuple(network.encode_prompt([text]).text[0] for text in (source, target))  # type: ignore[index]
    return unified_words(source, target, network.tokens, features, **settings)  # type: ignore[arg-type]


def test_an_exchanged_word_takes_the_map_of_the_old_one(network: StableDiffusion) -> None:
    source, target = "a photo of a cat", "a photo of a dog"
    old, new = network.tokens(source), network.tokens(target)

    found = words_of(network, source, target)

    cat, dog = (range(5, len(tokens) + 1) for tokens in (old, new))
    inherited = [int(found.mapper[n]) for n in dog if found.aligned[n]]
    assert len(inherited) == 1 and inherited[0] in cat
    assert found.mapper[:5].tolist() == list(range(5))


def test_local_and_mutual_words_are_marked_in_the_target(network: StableDiffusion) -> None:
    target = "a photo of a red dog on the grass"

    found = words_of(network, "a photo of a cat on the grass", target, local=["red dog"], mutual=["grass"])

    tokens = network.tokens(target)

    def at(word: str) -> list[int]:
        begin = target.index(word)
        return [n for n, token in enumerate(tokens, 1) if begin <= token.start < begin + len(word)]

    assert found.local.nonzero().flatten().tolist() == at("red dog")
    assert found.mutual.nonzero().flatten().tolist() == at("grass")


SITE = Site("cross", "cross", "up", 0, 0, 0, 1)
SELF = Site("self", "self", "up", 1, 0, 0, 1)
BLOCKS = tuple(Row(s, b) for b in (UNCOND, COND) for s in (Stream.SOURCE, Stream.TARGET, Stream.LAYOUT))


def attention_parts(keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, 2, n, 8, generator=generator, dtype=torch.float64) for n in (4, keys, keys))  # type: ignore[return-value]


def state_of(mapper: Tensor, own: Tensor | None) -> UnifiedState:
    return UnifiedState(mapper, own, [0.1, 0.2, 0.5, 0.9, 1.0], (2, 2), None)


@pytest.mark.parametrize(("cross_source", "block"), [("source", 3), ("layout", 5)])
def test_cross_attention_of_the_target_is_refined_by_another_branch(cross_source: Any, block: int) -> None:
    q, k, v = attention_parts(3)
    # target token 0 from source token 1, token 1 is new, token 2 from itself
    mapper = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 0, 1]]], dtype=torch.float64)
    own = torch.tensor([[[0.0], [1], [0]]], dtype=torch.float64)
    control = UnifiedAttention(cross_source=cross_source, cross=0.5, local_words=[])

    out = control.attention(
        SITE, Rows(BLOCKS, (1,) * 6), q, k, v, scaled_dot_product_attention, 1, state_of(mapper, own)
    )

    maps = (q @ k.mT / 8**0.5).softmax(-1)
    refined = torch.stack([maps[block, ..., 1], maps[4, ..., 1], maps[block, ..., 2]], -1)
    expected = maps @ v
    expected[4] = refined @ v[4]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    later = control.attention(
        SITE, Rows(BLOCKS, (1,) * 6), q, k, v, scaled_dot_product_attention, 2, state_of(mapper, own)
    )
    torch.testing.assert_close(later, maps @ v, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("i", "queries", "keys", "values"),
    [
        (0, [0, 0, 0, 3, 3, 3], [0, 0, 0, 3, 3, 3], [0, 1, 0, 3, 4, 3]),
        (1, [0, 1, 1, 3, 4, 4], [0, 1, 0, 3, 4, 3], [0, 1, 0, 3, 4, 3]),
    ],
)
def test_self_attention_is_the_sources_early_and_mutual_late(
    i: int, queries: list[int], keys: list[int], values: list[int]
) -> None:
    q, k, v = attention_parts(4)
    control = UnifiedAttention(self_attention=0.5, local_words=[])

    out = control.attention(
        SELF, Rows(BLOCKS, (1,) * 6), q, k, v, scaled_dot_product_attention, i, state_of(torch.zeros(0), None)
    )

    torch.testing.assert_close(out, scaled_dot_product_attention(q[queries], k[keys], v[values]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cross", "self_attention", "refined", "kept"),
    [(0.7, 0.5, 8, 5), (1.0, 1.0, 12, 11), (0.0, 0.0, 0, 0)],
)
def test_windows_count_a_step_by_its_beginning(cross: float, self_attention: float, refined: int, kept: int) -> None:
    control = UnifiedAttention(cross=cross, self_attention=self_attention)

    assert sum(control.refines(i, 12) for i in range(12)) == refined
    assert sum(control.keeps(i, 12) for i in range(12)) == kept


def test_empty_windows_without_words_leave_every_bit(network: StableDiffusion) -> None:
    idle = UnifiedAttention(cross=0.0, self_attention=0.0, local_words=[])

    final = infedit(network, [idle]).edit(CAT_TO_DOG).latents

    assert torch.equal(final[Stream.TARGET], infedit(network).edit(CAT_TO_DOG).latents[Stream.TARGET])
    assert final.layout is None


@pytest.mark.parametrize(
    "control",
    [
        UnifiedAttention(local_words=["dog"], scale=1),
        UnifiedAttention(cross_source="source", local_words=[], mutual_words=["photo"], scale=1),
        PromptToPrompt(),
    ],
    ids=["layout", "source", "p2p"],
)
def test_controls_change_the_edit_and_leave_source_and_network(network: StableDiffusion, control: Control) -> None:
    before = {name: id(processor) for name, processor in network.unet.attn_processors.items()}
    plain = infedit(network).edit(CAT_TO_DOG).latents[Stream.TARGET]

    result = infedit(network, [control]).edit(CAT_TO_DOG)

    assert float((result.latents[Stream.TARGET] - plain).abs().max()) > 1e-3
    assert torch.equal(result.latents[Stream.SOURCE], result.record.z0)
    assert {name: id(processor) for name, processor in network.unet.attn_processors.items()} == before


def test_processors_are_back_after_an_exception_in_a_step(network: StableDiffusion) -> None:
    class Fails(UnifiedAttention):
        def masks(self, *arguments: Any) -> Any:
            raise RuntimeError("inside a blend")

    before = {name: id(processor) for name, processor in network.unet.attn_processors.items()}

    with pytest.raises(RuntimeError, match="inside a blend"):
        infedit(network, [Fails(local_words=["dog"], scale=1)]).edit(CAT_TO_DOG)

    assert {name: id(processor) for name, processor in network.unet.attn_processors.items()} == before


def test_every_image_has_its_own_words_also_when_calls_are_split(network: StableDiffusion) -> None:
    pairs = [("a photo of a cat", "a photo of a red dog"), ("a house by the sea", "a castle by the sea")]
    batch = prompts(*pairs)
    own = ([["cat"], ["dog"]], [["house"], ["castle"]])
    samples = [replace(s, extra={"blend_words": words}) for s, words in zip(batch.samples, own, strict=True)]
    batch = replace(batch, samples=tuple(samples))
    controls = [UnifiedAttention(scale=1, local_threshold=0.5)]

    together = infedit(network, controls).edit(batch).latents[Stream.TARGET]
    split = infedit(network, controls, max_rows=5).edit(batch).latents[Stream.TARGET]

    one = replace(batch, samples=batch.samples[:1], images=batch.images[:1], frames=batch.frames[:1])
    alone = infedit(network, controls).edit(one).latents[Stream.TARGET]
    scale = 1e-6 * float(together.abs().max())
    torch.testing.assert_close(together, split, rtol=0, atol=scale)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=scale)


def test_the_sources_unconditional_row_is_evaluated_while_others_look_at_it(network: StableDiffusion) -> None:
    def rows(**windows: float) -> int:
        control = UnifiedAttention(local_words=[], cross_source="source", **windows)
        return infedit(network, [control], steps=4).edit(CAT_TO_DOG).evaluations.samples

    assert rows(cross=1.0, self_attention=0.0) == 4 * 3
    assert rows(cross=1.0, self_attention=0.75) == 4 * 3 + 2


def test_the_mapping_is_told_for_the_sample(network: StableDiffusion) -> None:
    result = infedit(network, [UnifiedAttention(local_words=["dog"], scale=1)]).edit(CAT_TO_DOG)

    told = result.controls[0]["UnifiedAttention"]["target_tokens"]
    assert told[0] == {"position": 1, "token": "a", "source": "a"}
    assert any(row.get("local") for row in told)


def test_a_consistency_checkpoint_with_a_guidance_embedding_runs(tmp_path: Path) -> None:
    folder = tmp_path / "lcm"
    shutil.copytree(MODELS / "tiny-sd", folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "time_cond_proj_dim": 8}))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    width = weights["time_embedding.linear_1.weight"].shape[1]
    save_file({**weights, "time_embedding.cond_proj.weight": torch.zeros(width, 8)}, file, {"format": "pt"})
    scheduler = folder / "scheduler" / "scheduler_config.json"
    about = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**about, "_class_name": "LCMScheduler", "original_inference_steps": 50}))

    final = infedit(StableDiffusion(str(folder), dtype="float64"), steps=2).edit(CAT_TO_DOG).latents

    same = infedit(StableDiffusion(str(MODELS / "tiny-sd"), dtype="float64"), steps=2).edit(CAT_TO_DOG).latents
    assert torch.equal(final[Stream.TARGET], same[Stream.TARGET])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: UnifiedAttention(cross=1.4), ["cross=1.4", "[0, 1]", "share of the steps"]),
        (lambda: UnifiedAttention(self_attention=-0.1), ["self_attention=-0.1", "[0, 1]"]),
        (lambda: UnifiedAttention(local_threshold=2), ["local_threshold=2"]),
        (lambda: UnifiedAttention(cross_source="target"), ["cross_source='target'", "layout"]),  # type: ignore[arg-type]
        (lambda: UnifiedAttention(local_words="dog"), ["give a list"]),
        (lambda: VirtualInversion(eta=1.5), ["eta=1.5", "[0, 1]"]),
        (lambda: VirtualInversion(start_from="image"), ["start_from='image'", "source"]),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        build()

    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_unified_attention_refuses_an_unguided_target_when_built(network: StableDiffusion, scale: float) -> None:
    with pytest.raises(SettingsError, match="guided above 1"):
        infedit(network, [UnifiedAttention()], guidance=ClassifierFree(target=scale))


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (UnifiedAttention(local_words=["bird"], scale=1), ["local words", "'bird'", "a photo of a red dog"]),
        (UnifiedAttention(local_words=["dgo"], scale=1), ["did you mean 'dog'"]),
        (UnifiedAttention(local_words=[], mutual_words=["red"], scale=1), ["mutual word", "counterpart"]),
        (UnifiedAttention(local_words=["dog"], scale=16), ["scale=16", "give one of"]),
    ],
)
def test_words_and_layers_that_are_not_there_are_refused(
    network: StableDiffusion, control: Control, words: list[str]
) -> None:
    with pytest.raises(SettingsError) as error:
        infedit(network, [control]).edit(CAT_TO_DOG)

    for word in words:
        assert word in str(error.value)


def test_a_sample_whose_own_words_are_missing_may_be_left_unblended(network: StableDiffusion) -> None:
    batch = prompts(("a photo of a cat", "a photo of a red dog"), blend_words=["cat", "bird"])

    with pytest.raises(SettingsError, match="'bird'"):
        infedit(network, [UnifiedAttention(scale=1)]).edit(batch)
    left = infedit(network, [UnifiedAttention(scale=1, missing="unblended")]).edit(batch)

    without = infedit(network, [UnifiedAttention(scale=1, local_words=[])]).edit(batch)
    assert torch.equal(left.latents[Stream.TARGET], without.latents[Stream.TARGET])


def test_tokens_beyond_the_encoders_sight_are_no_local_words() -> None:
    def tokens(text: str) -> list[Token]:
        return [Token(ord(word), word, n, n + 1) for n, word in enumerate(text.split())]

    features = (torch.ones(6, 4), torch.ones(6, 4))
    with pytest.raises(SettingsError, match="text encoder sees"):
        unified_words("a b c d", "a b c d e f", tokens, features, local=["f"])
