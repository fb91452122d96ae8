"""The DDIM family with other parts: every inversion and every editor under direct inversion, memory, two processes."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from framework.backbones import StableDiffusion
from framework.control import Control
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.inversion import Inversion
from framework.module import EditModule
from framework.network import Network
from framework.record import Record
from framework.step import COND, Condition, Latents, Row, Stream
from methods.concepts import Concept
from methods.cycle_diffusion import PosteriorInversion
from methods.ddim import DDIMInversion
from methods.direct_inversion import DirectDDIM, DirectInversion
from methods.edit_friendly import EditFriendlyInversion
from methods.ledits_pp import MultistepSDEInversion
from methods.masactrl import MutualSelfAttention
from methods.negative_prompt import NegativePromptInversion
from methods.noise_map_guidance import NMG, NoiseMapGuidance
from methods.null_text import NullText, NullTextInversion
from methods.prompt_to_prompt import PromptToPrompt
from methods.proximal import ProxEdit, ProximalGuidance
from methods.sega import SemanticGuidance
from tests.run.toy import Run, run_ranks, tree
from tests.small import MODELS, batch_of

Make = Callable[..., EditModule]
GUIDED = ClassifierFree(target=3.0, source=3.0, inversion=1.0)

BASES = [
    DDIMInversion(),
    NegativePromptInversion(DDIMInversion()),
    NullTextInversion(guidance_scale=3.0, inner_steps=1),
    EditFriendlyInversion(skip=1),
    PosteriorInversion(skip=1, eta=1.0),
    MultistepSDEInversion(),
]
EDITORS: dict[str, dict[str, Any]] = {
    "prompt-to-prompt": {"controls": [PromptToPrompt(self_max_positions=None)]},
    "masactrl": {"controls": [MutualSelfAttention(start_step=1)]},
    "proximal": {"guidance": ProximalGuidance(target=3.0, source=3.0, inversion_guidance=True)},
    "noise-map-guidance": {"guidance": NoiseMapGuidance(target=3.0, source=3.0, gradient_scale=50.0)},
    "semantic": {"guidance": SemanticGuidance([Concept("snow", warmup=0)], target=3.0)},
}


# Direct inversion


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
def test_direct_inversion_holds_the_source_of_every_inversion_with_a_trajectory(make: Make, base: Inversion) -> None:
    result = make(DirectDDIM, inversion=DirectInversion(base), guidance=GUIDED).edit(batch_of([0]))

    assert torch.equal(result.latents[Stream.SOURCE], result.record.z0)
    assert not result.failures


@pytest.mark.parametrize("editor", EDITORS)
def test_direct_inversion_holds_the_source_of_every_editor(make: Make, editor: str) -> None:
    module = make(DirectDDIM, **EDITORS[editor])

    result = module.edit(batch_of([0]))

    assert module.check() == []
    assert torch.equal(result.latents[Stream.SOURCE], result.record.z0)
    assert not torch.equal(result.latents[Stream.TARGET], result.record.z0)


def test_a_record_with_its_offsets_is_edited_again(make: Make, tmp_path: Path) -> None:
    module = make(DirectDDIM, recorded=True)
    straight = module.edit(batch_of([0]))
    straight.record.image(0).save(tmp_path / "inversion")

    again = module.edit(batch_of([0]), record=Record.load(tmp_path / "inversion"))

    assert again.inversion_evaluations.samples == 0
    assert torch.equal(again.latents[Stream.TARGET], straight.latents[Stream.TARGET])
    with pytest.raises(SettingsError, match="looks for 3"):
        make(DirectDDIM, recorded=True, steps=3).edit(batch_of([0]), record=straight.record)


def test_a_trajectory_off_the_schedule_is_refused_however_deep_it_lies(make: Make) -> None:
    nested = DirectInversion(NegativePromptInversion(DDIMInversion("input_level")))

    with pytest.raises(SettingsError, match=r"DirectInversion.*convention=input_level"):
        make(DirectDDIM, inversion=nested)


# Null-text


def test_embeddings_are_optimised_once_and_edit_as_often_as_one_likes(make: Make, tmp_path: Path) -> None:
    module = make(NullText)
    module.invert(batch_of([0])).image(0).save(tmp_path / "inversion")
    batches = [batch_of([0]), batch_of([0], images=batch_of([0]).images)]
    batches[1] = type(batches[1])(
        tuple(type(s)(s.id, s.image, s.source, "a castle") for s in batches[1].samples), batches[1].images,
        None, batches[1].frames, batches[1].notes,
    )  # fmt: skip

    results = [module.edit(batch, record=Record.load(tmp_path / "inversion")) for batch in batches]

    assert [result.evaluations.backward for result in results] == [0, 0]
    assert [result.inversion_evaluations.samples for result in results] == [0, 0]
    assert torch.equal(results[0].latents[Stream.SOURCE], results[1].latents[Stream.SOURCE])
    assert not torch.equal(results[0].latents[Stream.TARGET], results[1].latents[Stream.TARGET])


def test_embeddings_of_another_scale_are_refused_with_both_numbers(make: Make) -> None:
    record = make(NullText).invert(batch_of([0]))

    with pytest.raises(SettingsError, match=r"guidance_scale=3.0.* 5.0"):
        make(NullText, guidance=ClassifierFree(target=5.0, source=5.0)).edit(batch_of([0]), record=record)


@pytest.mark.parametrize("method", [NullText, ProxEdit])
def test_a_guidance_of_another_scale_is_refused_in_every_method(make: Make, method: type[EditModule]) -> None:
    guidance = ProximalGuidance(source=5.0)

    problems = make(method, guidance=guidance, inversion=NullTextInversion(guidance_scale=7.5)).check()

    assert any("ProximalGuidance" in p and "NullTextInversion" in p and "5.0" in p and "7.5" in p for p in problems)


# Memory of gradients


class Saved:
    """Counts the bytes that graphs hold at once."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def pack(self, value: Tensor) -> Any:
        box, size = _Box(value), value.nbytes
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(box, self._drop, size)
        return box

    def _drop(self, size: int) -> None:
        self.live -= size


class _Box:
    def __init__(self, value: Tensor) -> None:
        self.value = value


def held_by_graphs(module: EditModule) -> int:
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda box: box.value):
        module.edit(batch_of([0]))
    assert saved.live == 0
    return saved.peak


@pytest.mark.parametrize(("method", "more"), [(NMG, {}), (NullText, {"inner_steps": 1})])
def test_what_gradients_hold_does_not_depend_on_the_number_of_steps(
    make: Make,
    method: type[EditModule],
    more: dict[str, Any],
) -> None:
    few, many = (held_by_graphs(make(method, steps=steps, **more)) for steps in (2, 5))

    assert 0 < few == many


def test_checkpointing_holds_less_and_gives_the_same_edit(make: Make) -> None:
    thrifty = StableDiffusion(str(MODELS / "tiny-sd"), dtype="float64", gradient_checkpointing=True)
    modules = make(NMG, steps=2), make(NMG, steps=2, backbone=thrifty)
    kept, recomputed = (module.edit(batch_of([0])) for module in modules)

    torch.testing.assert_close(
        recomputed.latents[Stream.TARGET],
        kept.latents[Stream.TARGET],
        rtol=0,
        atol=1e-9 * float(kept.record.z0.abs().max()),
    )
    assert recomputed.evaluations == kept.evaluations
    assert held_by_graphs(modules[1]) < held_by_graphs(modules[0]) / 2


def test_checkpointing_under_a_gradient_through_controls_is_refused() -> None:
    backbone = StableDiffusion(str(MODELS / "tiny-sd"), dtype="float64", gradient_checkpointing=True)
    module = NMG(backbone, steps=2, controls=[PromptToPrompt(self_max_positions=None)])
    module.edit(batch_of([0]))  # Noise Map Guidance takes its gradient outside the controls

    class Everywhere(Control):
        def sites(self, sites: Any) -> Any:
            return sites

    row = Row(Stream.SOURCE, COND)
    conditions = {row: Condition(backbone.encode_prompt(["a cat"]).text)}
    z = torch.zeros(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    with (
        pytest.raises(SettingsError, match="gradient_checkpointing"),
        backbone.controlled([Everywhere()], [None]) as handle,
    ):
        Network(backbone, module.edit_schedule).at(0, conditions, handle)(Latents(source=z), [row])


# Processes


def test_gradients_with_frozen_weights_are_the_same_in_one_process_and_in_two(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (60 * index, 90, 200 - 50 * index)).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text("a cat\na dog\n")
    methods = {
        "null-text": {"_target_": "methods.null_text.NullText", "steps": 2, "inner_steps": 2},
        "nmg": {"_target_": "methods.noise_map_guidance.NMG", "steps": 2, "guidance": {"gradient_scale": 10.0}},
    }
    experiment = tmp_path / "gradients.yaml"
    values = {
        "backbone": {"_target_": "framework.backbones.StableDiffusion", "model": str(MODELS / "tiny-sd")},
        "data": {"_target_": "framework.data.Folder", "root": str(pictures), "batch_size": 2, "size": 64},
        "trainer": {"accelerator": "cpu", "devices": 1},
        "sweep": {"method": methods},
    }
    experiment.write_text(yaml.safe_dump(values))

    one = Run(experiment, tmp_path / "one")
    assert one.wait(600) == 0, one.said()
    two = run_ranks(experiment, tmp_path / "two", 2)
    assert [run.wait(600) for run in two] == [0, 0], [run.said() for run in two]

    alone, shared = (
        {k: v for k, v in tree(tmp_path / n).items() if "samples" in Path(k).parts} for n in ("one", "two")
    )
    assert alone == shared and sum(name.endswith("edit.png") for name in alone) == 6
    metas = [json.loads(content) for name, content in alone.items() if name.endswith("meta.json")]
    assert len(metas) == 6 and "backward" in json.dumps(metas[0])
