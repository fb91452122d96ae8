"""DiffEdit's mask and mix, and blended latents with any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.backbones import StableDiffusion
from framework.callback import EditCallback
from framework.data.sample import EditBatch
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.record import Record
from framework.step import Row, Step, Stream
from methods.blended_latents import BlendedLatents
from methods.ddim import DDIM, DDIMInversion
from methods.diffedit import DiffEdit, DiffEditGuidance
from methods.edit_friendly import EditFriendlyDDPM
from methods.infedit import InfEdit
from methods.sdedit import SDEdit
from tests.small import MODELS, batch_of

BASE = ClassifierFree(target=3.0, source=1.0, inversion=1.0)


class Steps(EditCallback):
    def __init__(self) -> None:
        self.seen: list[Step] = []

    def on_denoise_step(self, trainer: Any, module: Any, step: Step) -> None:
        self.seen.append(step)


class PatchNetwork:
    """Source and target prompt disagree inside a patch alone, by as much as the draw is large."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, z: Any, rows: Any, **options: Any) -> Mapping[Row, Tensor]:
        self.calls += 1
        x = z[Stream.SOURCE]
        patch = torch.zeros_like(x)
        patch[..., 2:4, 3:6] = 1
        return {row: x + patch * (row.stream is Stream.TARGET and row.branch == "cond") for row in rows}


def test_the_mask_is_where_the_prompts_disagree() -> None:
    schedule = DDIM(StableDiffusion(str(MODELS / "tiny-sd")), steps=4).edit_schedule
    z0 = torch.zeros(2, 4, 8, 8)
    record, drawn = Record.on(schedule, "any", z0), []

    class Ctx:
        def noise(self, purpose: str, count: int) -> Tensor:
            drawn.append((purpose, count))
            return torch.randn(count, *z0.shape, generator=torch.Generator().manual_seed(0))

    ctx: Any = Ctx()
    ctx.schedule = schedule
    network = PatchNetwork()

    mask = DiffEditGuidance(mask_maps=3).mask(network, record, ctx)  # type: ignore[arg-type]

    expected = torch.zeros(2, 1, 8, 8)
    expected[..., 2:4, 3:6] = 1
    assert torch.equal(mask, expected)
    assert (network.calls, drawn) == (3, [("mask", 3)])


def test_prompts_that_agree_edit_nothing(network: StableDiffusion) -> None:
    module = DiffEdit(network, steps=4, strength=0.75, guidance=DiffEditGuidance(3.0, mask_maps=2))
    batch = batch_of([0])
    same = replace(batch, samples=tuple(replace(sample, target=sample.source) for sample in batch.samples))

    result = module.edit(same)

    assert torch.equal(result.latents[Stream.TARGET], result.record.z0)


def test_outside_its_mask_the_edit_ends_as_the_picture(network: StableDiffusion) -> None:
    watcher = Steps()
    module = DiffEdit(network, steps=4, strength=0.75, guidance=DiffEditGuidance(3.0, mask_maps=2))

    result = module.edit(batch_of([0]), callbacks=[watcher])

    mask = watcher.seen[0].found["mask"].bool()
    assert 0 < int(mask.sum()) < mask.numel()
    outside = ~mask.expand_as(result.record.z0)
    assert torch.equal(result.latents[Stream.TARGET][outside], result.record.z0[outside])
    assert not torch.equal(result.latents[Stream.TARGET][~outside], result.record.z0[~outside])


def test_a_partial_inversion_is_the_end_of_a_whole_one(network: StableDiffusion) -> None:
    whole = DDIM(network, steps=4, inversion=DDIMInversion(skip=2)).edit(batch_of([0]))
    partial = DDIM(network, steps=4, inversion=DDIMInversion(skip=2, partial=True)).edit(batch_of([0]))

    assert whole.record.latents is not None and partial.record.latents is not None
    assert torch.equal(partial.record.latents[2:], whole.record.latents[2:])
    assert torch.equal(partial.latents[Stream.TARGET], whole.latents[Stream.TARGET])
    assert (whole.inversion_evaluations.samples, partial.inversion_evaluations.samples) == (4, 2)


def masked(count: int, *, empty: bool = False) -> EditBatch:
    batch = batch_of(range(count))
    masks = torch.zeros(count, 1, 64, 64)
    if not empty:
        for image in range(count):
            masks[image, :, 16 * image : 16 * image + 32, 16:48] = 1
    return replace(batch, masks=masks)


METHODS: list[tuple[type[EditModule], dict[str, Any], str]] = [
    (SDEdit, {"strength": 0.75}, "noised"),
    (DDIM, {}, "noised"),
    (DDIM, {}, "trajectory"),
    (EditFriendlyDDPM, {"skip": 1}, "trajectory"),
    (InfEdit, {}, "source"),
]


@pytest.mark.parametrize(("method", "settings", "background"), METHODS)
def test_outside_a_users_mask_every_method_ends_as_the_picture(
    network: StableDiffusion, method: Any, settings: dict[str, Any], background: Any
) -> None:
    settings = {**settings, "steps": 4, "guidance": BASE, "controls": [BlendedLatents(background)]}
    batch = masked(2)

    result = method(network, **settings).edit(batch)

    inside = torch.nn.functional.interpolate(batch.masks, size=result.record.z0.shape[-2:]) > 0  # type: ignore[arg-type]
    outside = ~inside.expand_as(result.record.z0)
    target = result.latents[Stream.TARGET]
    torch.testing.assert_close(target[outside], result.record.z0[outside], rtol=0, atol=1e-12)
    assert float((target - result.record.z0)[~outside].abs().max()) > 1e-3


def test_an_empty_window_leaves_every_bit(network: StableDiffusion) -> None:
    def final(*controls: BlendedLatents) -> Tensor:
        return DDIM(network, steps=2, guidance=BASE, controls=controls).edit(masked(1)).latents[Stream.TARGET]

    assert torch.equal(final(BlendedLatents(window=0.0)), final())


def test_the_background_of_an_image_does_not_depend_on_its_batch(network: StableDiffusion) -> None:
    module = SDEdit(network, steps=4, guidance=BASE, controls=[BlendedLatents()])
    both = masked(2)

    together = module.edit(both).latents[Stream.TARGET]
    one = replace(both, samples=both.samples[:1], images=both.images[:1], masks=both.masks[:1], frames=both.frames[:1])  # type: ignore[index]
    alone = module.edit(one).latents[Stream.TARGET]

    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-6 * float(alone.abs().max()))


@pytest.mark.parametrize(
    ("batch", "words"), [(batch_of([0]), ["no masks"]), (masked(1, empty=True), ["a mask is empty", "widen"])]
)
def test_masks_that_cannot_work_are_refused(network: StableDiffusion, batch: EditBatch, words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        DDIM(network, steps=2, guidance=BASE, controls=[BlendedLatents()]).edit(batch)

    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DiffEditGuidance(mask_scale=1.0), ["mask_scale=1.0", "more than 1"]),
        (lambda: DiffEditGuidance(mask_ratio=0.0), ["mask_ratio=0.0"]),
        (lambda: DiffEditGuidance(mask_strength=1.5), ["mask_strength=1.5", "[0, 1]"]),
        (lambda: DiffEditGuidance(mask_maps=0), ["mask_maps=0"]),
        (lambda: DiffEditGuidance(mix="before"), ["mix='before'", "arrived"]),  # type: ignore[arg-type]
        (lambda: BlendedLatents("picture"), ["background='picture'", "noised"]),  # type: ignore[arg-type]
        (lambda: BlendedLatents(window=(0.5, 1.5)), ["[0, 1]"]),
    ],
)
def test_settings_that_cannot_work_are_refused(build: Any, words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        build()

    for word in words:
        assert word in str(error.value)


def test_a_mask_level_beyond_the_schedule_is_refused_when_built(network: StableDiffusion) -> None:
    with pytest.raises(SettingsError, match="less than one of 4 steps"):
        DiffEdit(network, steps=4, strength=1.0, guidance=DiffEditGuidance(mask_strength=0.1))
