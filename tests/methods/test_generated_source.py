"""Sources that the model makes itself, on a denoiser in closed form: native and edit-friendly noise of one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from framework.backbones import GaussianMixture
from framework.data.sample import EditBatch, EditSample, Frame
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.statistics.moments import Moments
from framework.step import Stream
from methods.cycle_diffusion import PosteriorInversion
from methods.ddim import DDIMInversion
from methods.edit_friendly import EditFriendlyDDPM, EditFriendlyInversion
from methods.generated_source import GeneratedSource
from methods.noise_manipulation import Manipulated

WHOLE = EditFriendlyInversion(skip=0)
"""As the authors have it: the last map is zero, so that inverting a picture loses its last noise."""
EXACT = [
    EditFriendlyInversion(skip=0, zero_last=False),
    EditFriendlyInversion(skip=3, zero_last=False),
    PosteriorInversion(skip=0, eta=1.0),
]


def batch(source: str = "dark", target: str = "dark", side: int = 12) -> EditBatch:
    samples = tuple(EditSample(f"{k}", Path("unused"), source, target) for k in range(3))
    frames = (Frame((side, side), (0, 0, side, side), (side, side)),) * 3
    return EditBatch(samples, torch.zeros(3, 3, side, side), None, frames, ((),) * 3)


def module(inversion: GeneratedSource | Manipulated, scale: float = 1.5, **settings: Any) -> EditFriendlyDDPM:
    world = GaussianMixture([-0.7, 0.1, 0.8], [0.05, 0.2, 0.1], texts={"dark": [8, 1, 1], "light": [1, 1, 8]})
    guidance = ClassifierFree(target=scale, source=scale)
    return EditFriendlyDDPM(world, inversion=inversion, guidance=guidance, **{"steps": 10, **settings})


@pytest.mark.parametrize("native", [True, False], ids=["native", "inverted"])
@pytest.mark.parametrize("base", EXACT, ids=["edit-friendly", "skip", "posterior"])
def test_the_prompt_of_the_source_gives_the_source_back(base: Any, native: bool) -> None:
    made = module(GeneratedSource(base, native=native))

    result = made.edit(batch())

    torch.testing.assert_close(result.latents[Stream.TARGET], result.record.z0, rtol=0, atol=1e-9)


def test_the_native_noise_is_standard_normal_and_the_inverted_noise_of_the_same_picture_is_not() -> None:
    native, inverted = (module(GeneratedSource(WHOLE, native=native), steps=40) for native in (True, False))

    records = [made.invert(batch(side=32)) for made in (native, inverted)]

    assert torch.equal(records[0].z0, records[1].z0)
    variances = [Moments.of(record.noise_maps[:-1].flatten(1)).variance for record in records]
    # 9216 values per step: a variance has the standard error sqrt(2 / n).
    assert float((variances[0] - 1).abs().max()) < 5 * (2 / 9216) ** 0.5
    assert float(variances[1].min()) > 2


@pytest.mark.parametrize("native", [True, False])
def test_the_path_of_the_record_is_the_samplers(native: bool) -> None:
    made = module(GeneratedSource(WHOLE, native=native))

    record = made.invert(batch())

    assert record.latents is not None and torch.equal(record.latents[-1], record.z0)
    assert record.zeroed == (9,) and not record.noise_maps[9].any()


def test_another_prompt_changes_the_picture_unless_the_prompt_is_kept() -> None:
    def edited(**settings: Any) -> torch.Tensor:
        made = module(GeneratedSource(WHOLE, native=True, **settings))
        result = made.edit(batch(target="light"))
        return result.latents[Stream.TARGET] - result.record.z0

    assert float(edited().abs().mean()) > 0.1
    assert float(edited(keep_prompt=True).abs().max()) < 1e-9


@pytest.mark.parametrize("native", [True, False], ids=["native", "inverted"])
def test_flipping_the_noise_of_an_equivariant_network_flips_the_source(native: bool) -> None:
    inversion = Manipulated(GeneratedSource(EXACT[0], native=native, keep_prompt=True), flip="horizontal")

    result = module(inversion).edit(batch(target="light"))

    torch.testing.assert_close(result.latents[Stream.TARGET], result.record.z0.flip(-1), rtol=0, atol=1e-9)


def test_the_picture_of_the_batch_decides_nothing_but_the_size() -> None:
    made = module(GeneratedSource(WHOLE, native=True))
    other = batch()
    other.images.fill_(0.5)

    assert torch.equal(made.invert(batch()).z0, made.invert(other).z0)


def test_an_inversion_without_noise_maps_is_refused() -> None:
    with pytest.raises(SettingsError, match="DDIMInversion has no noise maps to sample with"):
        GeneratedSource(DDIMInversion(), native=True)
