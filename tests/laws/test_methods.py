"""Laws that hold for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.backbones import StableDiffusion
from framework.callback import EditCallback
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.record import Record
from framework.step import Latents, Step, Stream
from methods.ddim import DDIMInversion
from tests.few_steps import FEW_STEPS, method_classes
from tests.small import batch_of

Make = Callable[..., EditModule]


def test_every_method_is_tried_here() -> None:
    assert {method.__name__ for method in method_classes()} == set(FEW_STEPS)


def test_with_guidance_one_and_equal_prompts_edit_and_reconstruction_are_one(
    method: type[EditModule], make: Make
) -> None:
    # Null-text refuses guidance 1 and makes any other hold; direct inversion corrects the source alone, unless told;
    # Plug-and-Play takes the source from the inversion's latents, unless told, and so does two-stage inversion.
    scale = 1.5 if method.__name__ == "NullText" else 1.0
    both_rows: dict[str, dict[str, Any]] = {
        "DirectDDIM": {"target": "source", "recorded": True},
        "PlugAndPlay": {"inversion": DDIMInversion()},
        "TwoStage": {"compensate": "both"},
    }
    module = make(method, guidance=ClassifierFree(target=scale, source=scale), **both_rows.get(method.__name__, {}))
    batch = batch_of([0])
    same = replace(batch, samples=tuple(replace(sample, target=sample.source) for sample in batch.samples))

    final = module.edit(same).latents

    if final.source is not None:
        torch.testing.assert_close(final[Stream.TARGET], final[Stream.SOURCE], rtol=0, atol=1e-9)
    else:
        assert not module.inversion.has_source


def test_an_image_does_not_depend_on_its_batch(method: type[EditModule], make: Make) -> None:
    module = make(method)

    together = module.edit(batch_of([0, 1, 2])).latents[Stream.TARGET]
    alone = torch.cat([module.edit(batch_of([index])).latents[Stream.TARGET] for index in (0, 1, 2)])

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6 * float(alone.abs().max()))


def test_an_image_does_not_depend_on_the_order_of_its_batch(method: type[EditModule], make: Make) -> None:
    module = make(method)

    forwards = module.edit(batch_of([0, 1])).latents[Stream.TARGET]
    backwards = module.edit(batch_of([1, 0])).latents[Stream.TARGET]

    torch.testing.assert_close(forwards, backwards.flip(0), rtol=0, atol=1e-6 * float(forwards.abs().max()))


def test_editing_twice_gives_the_same_bits(method: type[EditModule], make: Make) -> None:
    module, other = make(method), make(method, seed=5)

    first = module.edit(batch_of([0]))
    other.edit(batch_of([1]))
    second = module.edit(batch_of([0]))

    assert torch.equal(first.latents[Stream.TARGET], second.latents[Stream.TARGET])


def test_nothing_is_drawn_from_the_global_generator(method: type[EditModule], make: Make) -> None:
    module = make(method)
    before = torch.get_rng_state()

    module.edit(batch_of([0]))

    assert torch.equal(before, torch.get_rng_state())


def test_splitting_large_calls_changes_nothing_but_rounding(method: type[EditModule], make: Make) -> None:
    whole = make(method).edit(batch_of([0, 1, 2]))
    split = make(method, max_rows=2).edit(batch_of([0, 1, 2]))

    scale = float(whole.latents[Stream.TARGET].abs().max())
    torch.testing.assert_close(whole.latents[Stream.TARGET], split.latents[Stream.TARGET], rtol=0, atol=1e-6 * scale)
    assert split.evaluations.samples == whole.evaluations.samples
    assert split.evaluations.calls > whole.evaluations.calls


def test_a_record_is_a_value_that_edits_again_without_inverting(
    method: type[EditModule], make: Make, tmp_path: Path
) -> None:
    module = make(method)
    batch = batch_of([0])
    straight = module.edit(batch)

    module.invert(batch).image(0).save(tmp_path / "inversion")
    again = module.edit(batch, record=Record.load(tmp_path / "inversion"))

    assert torch.equal(again.latents[Stream.TARGET], straight.latents[Stream.TARGET])
    assert again.inversion_evaluations.samples == 0


def test_the_first_of_several_draws_is_the_only_one_of_one(method: type[EditModule], make: Make) -> None:
    one = make(method).edit(batch_of([0, 1]))
    three = make(method, draws=3).edit(batch_of([0, 1]))

    assert [len(edits) for edits in three.edits] == [3, 3]
    scale = float(one.latents[Stream.TARGET].abs().max())
    torch.testing.assert_close(three.latents[Stream.TARGET][::3], one.latents[Stream.TARGET], rtol=0, atol=1e-6 * scale)


class _Counting(EditCallback):
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.steps: list[Step] = []

    def on_edit_start(self, trainer: Any, module: Any, batch: Any) -> None:
        self.seen.append("start")

    def on_invert_step(self, trainer: Any, module: Any, step: Step) -> None:
        self.seen.append("invert")

    def on_denoise_step(self, trainer: Any, module: Any, step: Step) -> None:
        self.seen.append("denoise")
        self.steps.append(step)

    def on_edit_end(self, trainer: Any, module: Any, batch: Any, result: Any) -> None:
        self.seen.append("end")


def test_hooks_come_in_order_and_show_every_step(method: type[EditModule], make: Make) -> None:
    watcher = _Counting()

    result = make(method).edit(batch_of([0]), callbacks=[watcher])

    assert watcher.seen[0] == "start" and watcher.seen[-1] == "end"
    order = [word for word in watcher.seen if word in ("invert", "denoise")]
    assert order == sorted(order, key=["invert", "denoise"].index)
    steps = watcher.steps
    assert [step.index for step in steps] == list(range(steps[0].total))
    # pix2pix-zero moves the target between steps; the source shows that nothing is left out.
    stream = Stream.SOURCE if method.__name__ == "Pix2PixZero" else Stream.TARGET
    assert all(torch.equal(a.z_next[stream], b.z[stream]) for a, b in pairwise(steps))
    assert torch.equal(steps[-1].z_next[Stream.TARGET], result.latents[Stream.TARGET])


def test_watching_changes_nothing(method: type[EditModule], make: Make) -> None:
    plain = make(method).edit(batch_of([0]))
    watched = make(method).edit(batch_of([0]), callbacks=[_Counting()])

    assert torch.equal(plain.latents[Stream.TARGET], watched.latents[Stream.TARGET])


def test_what_the_methods_hook_returns_replaces_the_result(method: type[EditModule], make: Make) -> None:
    class Halting(method):  # type: ignore[valid-type,misc]
        def on_denoise_step(self, step: Step) -> Latents:
            return step.z

    Halting.__name__ = method.__name__
    watcher = _Counting()

    make(Halting).edit(batch_of([0]), callbacks=[watcher])

    assert all(torch.equal(step.z[Stream.TARGET], step.z_next[Stream.TARGET]) for step in watcher.steps)


def test_network_and_weights_are_left_as_they_were_found(method: type[EditModule], make: Make) -> None:
    module = make(method)
    unet: Any = module.backbone.unet if isinstance(module.backbone, StableDiffusion) else module.backbone.transformer
    processors = dict(unet.attn_processors)
    weights = {name: (parameter.data_ptr(), parameter._version) for name, parameter in unet.named_parameters()}

    class Failing(EditCallback):
        def on_denoise_step(self, trainer: Any, module: Any, step: Step) -> None:
            raise RuntimeError("in the middle")

    module.edit(batch_of([0]))
    with pytest.raises(Exception, match="in the middle"):
        module.edit(batch_of([0]), callbacks=[Failing()])

    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert weights == {name: (p.data_ptr(), p._version) for name, p in unet.named_parameters()}
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in unet.modules())


def test_a_value_that_is_not_finite_fails_its_own_image_only(method: type[EditModule], make: Make) -> None:
    batch = batch_of([0, 1])
    images = batch.images.clone()
    images[1, 0, 5, 5] = float("nan")

    result = make(method).edit(replace(batch, images=images))
    alone = make(method).edit(batch_of([0]))

    assert set(result.failures) == {1}
    assert "encoded image" in result.failures[1]
    assert result.edits[1] == [] and len(result.edits[0]) == 1
    torch.testing.assert_close(result.edits[0][0], alone.edits[0][0], rtol=0, atol=1e-4)


def test_evaluations_equal_the_formula(method: type[EditModule], make: Make) -> None:
    guidance = ClassifierFree(target=5.0, source=2.0, inversion=2.0)
    images, steps = 2, 4
    name = method.__name__
    family = (
        "DDIM",
        "DirectDDIM",
        "MasaCtrl",
        "PlugAndPlay",
        "NMG",
        "NegativePrompt",
        "NullText",
        "ProxEdit",
    )
    family += ("TurboEdit", "Pix2PixZero")
    # Midpoints: two calls of a step, or one more than steps where the last midpoint is reused; K = 2 iterations.
    flows = {"EulerFlow": (4, 4), "RFSolver": (8, 8), "FireFlow": (5, 5), "TwoStage": (12, 4), "RFInversion": (5, 4)}
    executed = 4 if name in (*family, "LEDITSPP", "SEGA", "FlowAlign") else 3
    inverted = (
        4
        if name in (*family, "EditFriendlyDDPM", "LEDITS", "LEDITSPP")
        else {"CycleDiffusion": 3, "DiffEdit": 3, "UniEditFlow": 4}.get(name, 0)
    )
    inverted, executed = flows.get(name, (inverted, executed))
    source_rows = {"SDEdit": 0, "SEGA": 0, "NegativePrompt": 1, "ProxEdit": 1, "TurboEdit": 1}.get(name, 2)
    optimised = 2 * 4 if name == "NullText" else 0
    found = optimised + 2 * 4 if optimised else 0  # with the conditional prediction, and the one with the result
    assert steps == FEW_STEPS[method.__name__]["steps"]

    result = make(method, guidance=guidance).edit(batch_of([0, 1]))

    assert result.inversion_evaluations.samples == images * (2 * inverted + found)
    assert result.evaluations.samples - result.inversion_evaluations.samples == images * executed * (2 + source_rows)
    assert result.evaluations.calls - result.inversion_evaluations.calls == executed
    assert result.evaluations.backward == images * optimised
