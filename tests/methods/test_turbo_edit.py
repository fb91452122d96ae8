"""What TurboEdit promises: its two ideas, each switched off, leave edit-friendly sampling."""

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
from framework.schedule import ddpm_posterior
from framework.step import Stream
from methods.edit_friendly import EditFriendlyDDPM
from methods.turbo_edit import ShiftedInversion, TurboEdit, few_timesteps


def network() -> GaussianMixture:
    texts = {"dark": [8, 1, 1], "light": [1, 1, 8]}
    return GaussianMixture([-0.7, 0.1, 0.8], [0.05, 0.2, 0.1], texts=texts)


def batch(count: int = 2) -> EditBatch:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))[:count] * 2 - 1
    samples = tuple(EditSample(f"{k}", Path("unused"), "dark", "light") for k in range(count))
    return EditBatch(samples, images, None, (Frame((8, 8), (0, 0, 8, 8), (8, 8)),) * count, ((),) * count)


def turbo(weight: float = 1.5, **settings: Any) -> TurboEdit:
    return TurboEdit(network(), guidance=ClassifierFree(target=weight, source=1.0), **settings)


def test_without_shift_weight_one_is_edit_friendly_sampling() -> None:
    module = turbo(1.0, shift=0, clip=None)
    plain = EditFriendlyDDPM(
        network(), steps=4, skip=0, zero_last=False, guidance=ClassifierFree(target=1.0, source=1.0)
    )
    plain.edit_schedule = module.edit_schedule

    edited, expected = (one.edit(batch()).latents for one in (module, plain))

    torch.testing.assert_close(edited[Stream.TARGET], expected[Stream.TARGET], rtol=0, atol=1e-10)
    torch.testing.assert_close(edited[Stream.SOURCE], expected[Stream.SOURCE], rtol=0, atol=1e-10)


def test_a_step_is_the_sum_of_the_cross_trajectory_and_the_weighted_cross_prompt_term() -> None:
    module, weight = turbo(1.7, clip=None), 1.7
    given = batch(1)
    result = module.edit(given)
    record, levels = result.record, module.edit_schedule.levels
    assert record.latents is not None

    def mean(z: Tensor, text: str, i: int) -> Tensor:
        t = torch.full((1,), levels[i].t)
        output = module.backbone(z, t, module.backbone.encode_prompt([text]))
        eps = module.backbone.to_form(output, z, levels[i].alpha, levels[i].sigma)
        return ddpm_posterior(z, eps, levels[i], levels[i + 1])[0]

    edit = record.latents[0]
    for i in range(4):
        across_paths = mean(edit, "dark", i) - mean(record.latents[i], "dark", i)
        across_prompts = mean(edit, "light", i) - mean(edit, "dark", i)
        edit = record.latents[i + 1] + across_paths + weight * across_prompts

    torch.testing.assert_close(result.latents[Stream.TARGET], edit, rtol=0, atol=1e-9)


def test_latents_are_drawn_at_the_shifted_levels_and_the_source_comes_back() -> None:
    result = turbo(clip=None).edit(batch())

    assert result.record.t.tolist() == [599, 399, 199, -1, -1]
    assert result.record.latents is not None
    # The shift from timestep 199 leaves the table.
    torch.testing.assert_close(result.record.latents[3], result.record.z0, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-9)


def test_the_last_map_is_clipped_and_no_other() -> None:
    free, clipped = (turbo(clip=clip).invert(batch()).noise_maps for clip in (None, 0.05))

    assert free is not None and clipped is not None
    assert torch.equal(free[:-1], clipped[:-1])
    size = clipped[-1].square().flatten(1).mean(1).sqrt()
    assert (size <= 0.05 + 1e-9).all() and (free[-1].square().flatten(1).mean(1).sqrt() > 0.05).all()


def test_a_stronger_weight_goes_further_towards_the_target() -> None:
    means = [float(turbo(w).edit(batch()).latents[Stream.TARGET].mean()) for w in (0.0, 1.0, 1.5)]

    assert means[0] < means[1] < means[2]  # "light" is the bright component


@pytest.mark.parametrize(("steps", "expected"), [(3, [799, 499, 199]), (4, [799, 599, 399, 199]), (1, [799])])
def test_timesteps_are_those_of_the_code(steps: int, expected: list[int]) -> None:
    assert few_timesteps(steps) == expected
    assert few_timesteps(10)[-1] == 99


@pytest.mark.parametrize(("settings", "words"), [({"shift": -1}, "shift=-1"), ({"clip": 0.0}, "clip=0.0")])
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        ShiftedInversion(**settings)
