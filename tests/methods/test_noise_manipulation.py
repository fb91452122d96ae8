"""Shift, flip and colour of noise maps, on a denoiser in closed form that commutes with shifts and flips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.backbones import GaussianMixture
from framework.data.sample import EditBatch, EditSample, Frame
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.inversion import Inversion
from framework.result import EditResult
from framework.step import Stream
from methods.cycle_diffusion import PosteriorInversion
from methods.ddim import DDIMInversion
from methods.edit_friendly import EditFriendlyDDPM, EditFriendlyInversion
from methods.ledits_pp import MultistepSDEInversion
from methods.noise_manipulation import Colour, Manipulated

BASES = [EditFriendlyInversion(skip=2), PosteriorInversion(skip=2, eta=1.0), MultistepSDEInversion()]


def equivariant() -> GaussianMixture:
    """A mixture of pictures of equal pixels; the prompt decides which one is likely."""
    return GaussianMixture([-0.7, 0.1, 0.8], [0.05, 0.2, 0.1], texts={"dark": [8, 1, 1], "light": [1, 1, 8]})


def batch(masks: Tensor | None = None, source: str = "dark", target: str = "light") -> EditBatch:
    images = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(1)) * 2 - 1
    samples = tuple(EditSample(f"{k}", Path("unused"), source, target) for k in range(2))
    return EditBatch(samples, images, masks, (Frame((8, 10), (0, 0, 8, 10), (8, 10)),) * 2, ((),) * 2)


def edit(inversion: Inversion, given: EditBatch | None = None, **settings: Any) -> EditResult:
    scales = settings.pop("guidance", ClassifierFree(target=2.0, source=1.5))
    module = EditFriendlyDDPM(equivariant(), steps=8, inversion=inversion, guidance=scales, **settings)
    return module.edit(given or batch())


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
def test_shifting_all_maps_shifts_the_result_of_an_equivariant_network(base: Inversion) -> None:
    plain = edit(base).latents[Stream.TARGET]

    shifted = edit(Manipulated(base, shift=(2, -3), border="circular")).latents[Stream.TARGET]

    torch.testing.assert_close(shifted, plain.roll((2, -3), (-2, -1)), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", (-1,)), ("vertical", (-2,)), ("both", (-2, -1))])
@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
def test_flipping_all_maps_flips_the_result_of_an_equivariant_network(base: Inversion, flip: Any, axes: Any) -> None:
    plain = edit(base).latents[Stream.TARGET]

    flipped = edit(Manipulated(base, flip=flip)).latents[Stream.TARGET]

    torch.testing.assert_close(flipped, plain.flip(axes), rtol=0, atol=1e-9)


def test_the_source_row_walks_back_to_the_picture_as_it_was() -> None:
    base = EditFriendlyInversion(skip=0, zero_last=False)

    result = edit(Manipulated(base, shift=(1, 4), flip="vertical"))

    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-9)


def test_with_the_sources_own_prompt_the_source_itself_is_shifted() -> None:
    base = EditFriendlyInversion(skip=0, zero_last=False)
    same = batch(source="dark", target="dark")

    result = edit(
        Manipulated(base, shift=(0, 3), border="circular"), same, guidance=ClassifierFree(target=1.0, source=1.0)
    )

    expected = result.record.z0.roll(3, -1)
    torch.testing.assert_close(result.latents[Stream.TARGET], expected, rtol=0, atol=1e-9)


def test_one_record_is_edited_under_any_manipulation() -> None:
    base = EditFriendlyInversion(skip=2)
    module = EditFriendlyDDPM(equivariant(), steps=8, inversion=Manipulated(base, flip="horizontal"))
    record = EditFriendlyDDPM(equivariant(), steps=8, inversion=base).invert(batch())

    reused, straight = module.edit(batch(), record=record), module.edit(batch())

    assert reused.inversion_evaluations.samples == 0
    assert torch.equal(reused.latents[Stream.TARGET], straight.latents[Stream.TARGET])


def test_fresh_noise_stands_where_a_shift_uncovers_and_nowhere_else() -> None:
    x, fresh = torch.arange(30.0).view(5, 6), torch.full((5, 6), -1.0)

    moved = Manipulated(EditFriendlyInversion(), shift=(2, -1)).moved(x, fresh)

    assert (moved[:2] == -1).all() and (moved[:, -1:] == -1).all()
    torch.testing.assert_close(moved[2:, :-1], x[:-2, 1:], rtol=0, atol=0)


def test_the_uncovered_border_is_new_in_the_result_and_the_same_in_every_run() -> None:
    inversion = Manipulated(EditFriendlyInversion(skip=2), shift=(0, 4))

    first, second = (edit(inversion).latents[Stream.TARGET] for _ in range(2))
    around = edit(Manipulated(EditFriendlyInversion(skip=2), shift=(0, 4), border="circular")).latents[Stream.TARGET]

    assert torch.equal(first, second)
    assert float((first - around)[..., :4].abs().mean()) > 0.05


def test_the_colour_term_is_the_distance_to_the_wanted_value_inside_the_mask() -> None:
    x0 = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1

    pixel = Colour([1.0, 0.0, -1.0], strength=0.5).term(x0, mask)
    mean = Colour([1.0, 0.0, -1.0], strength=0.5, projection="mean").term(x0, mask)

    wanted = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(pixel[:, :, :2], 0.5 * (wanted - x0)[:, :, :2])
    area = x0[:, :, :2].mean((2, 3), keepdim=True)
    torch.testing.assert_close(mean[:, :, :2], (0.5 * (wanted - area)).expand(-1, -1, 2, 4))
    assert not pixel[:, :, 2:].any() and not mean[:, :, 2:].any()


@pytest.mark.parametrize("projection", ["pixel", "mean"])
def test_colour_moves_the_region_towards_its_value(projection: Any) -> None:
    masks = torch.zeros(2, 1, 8, 10)
    masks[..., :5] = 1
    base = EditFriendlyInversion(skip=0, zero_last=False)
    plain = edit(base, batch(masks)).latents[Stream.TARGET][..., :5]

    colour = Colour([0.9, -0.9, 0.0], strength=0.5, projection=projection)
    result = edit(Manipulated(base, colour=colour), batch(masks)).latents[Stream.TARGET][..., :5]

    wanted = torch.tensor([0.9, -0.9], dtype=result.dtype).view(1, 2, 1, 1)
    before, after = ((x[:, :2].mean((2, 3), keepdim=True) - wanted).abs() for x in (plain, result))
    assert (after < before).all()


def test_colour_acts_in_its_window_alone() -> None:
    colour = Colour([0.0], window=(0.3, 0.8))

    assert [i for i in range(10) if colour.acts(i, 10)] == [3, 4, 5, 6, 7]


def test_several_draws_reconstruct_the_image_and_edit_it_differently() -> None:
    result = edit(EditFriendlyInversion(skip=2, zero_last=False), draws=3)

    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-9)
    edits = result.latents[Stream.TARGET].view(2, 3, 3, 8, 10)
    distances = [(edits[:, a] - edits[:, b]).abs().mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(distances) > 1e-3


def test_what_cannot_be_manipulated_is_refused_in_words() -> None:
    with pytest.raises(SettingsError, match="DDIMInversion has no noise maps"):
        Manipulated(DDIMInversion())
    with pytest.raises(SettingsError, match="moves all 8 rows"):
        edit(Manipulated(EditFriendlyInversion(skip=2), shift=(8, 0)))
    with pytest.raises(SettingsError, match="1 values for latents of 3 channels"):
        edit(Manipulated(EditFriendlyInversion(skip=2), colour=Colour([0.5])))
    with pytest.raises(SettingsError, match="two ascending shares"):
        Colour([0.5], window=(0.8, 0.2))


def test_a_mask_that_covers_nothing_is_warned_of() -> None:
    masks = torch.ones(2, 1, 8, 10)
    masks[1] = 0

    with pytest.warns(UserWarning, match="1 of 2 images covers nothing"):
        edit(Manipulated(EditFriendlyInversion(skip=2), colour=Colour([0.5, 0.5, 0.5])), batch(masks))
