"""Inverting and denoising with the same prediction is the identity."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.step import Stream
from methods.cycle_diffusion import CycleDiffusion
from methods.ddim import DDIM
from methods.edit_friendly import EditFriendlyDDPM
from tests.small import batch_of

Make = Callable[..., EditModule]


@pytest.mark.parametrize("eta_rule", ["official", "ddim"])
@pytest.mark.parametrize("eta", [0.3, 1.0, (1.0, 0.8, 0.5, 0.2)])
@pytest.mark.parametrize("skip", [0, 2])
def test_edit_friendly_maps_rebuild_the_source_exactly(make: Make, skip: int, eta: float, eta_rule: str) -> None:
    guidance = ClassifierFree(target=5.0, source=3.5)
    module = make(EditFriendlyDDPM, skip=skip, eta=eta, eta_rule=eta_rule, zero_last=False, guidance=guidance)

    result = module.edit(batch_of([0, 2]))

    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-9)


def test_with_the_last_map_zeroed_the_error_is_that_map(make: Make) -> None:
    kept = make(EditFriendlyDDPM, zero_last=False).edit(batch_of([0])).record
    module = make(EditFriendlyDDPM)

    result = module.edit(batch_of([0]))

    level, level_next = module.edit_schedule.levels[-2:]
    variance = (level_next.sigma / level.sigma) ** 2 * (1 - (level.alpha / level_next.alpha) ** 2)
    assert kept.noise_maps is not None
    error = result.record.z0 - result.latents[Stream.SOURCE]
    torch.testing.assert_close(error, variance**0.5 * kept.noise_maps[-1], rtol=0, atol=1e-9)
    assert result.record.zeroed == (3,)


def test_all_levels_in_one_call_equal_one_level_after_another(make: Make) -> None:
    batched = make(EditFriendlyDDPM).invert(batch_of([0, 1]))
    sequential = make(EditFriendlyDDPM, sequential=True).invert(batch_of([0, 1]))

    assert batched.noise_maps is not None and sequential.noise_maps is not None
    scale = float(sequential.noise_maps.abs().max())
    torch.testing.assert_close(batched.noise_maps, sequential.noise_maps, rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_native_maps_rebuild_the_source_exactly(make: Make, eta: float) -> None:
    result = make(CycleDiffusion, eta=eta, guidance=ClassifierFree(target=5.0, source=2.0)).edit(batch_of([0]))

    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-9)


def test_ddim_round_trips_exactly_where_the_prediction_does_not_change(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(DDIM, steps=7)
    monkeypatch.setattr(module.backbone, "forward", lambda z, t, condition: torch.full_like(z, 0.7))

    result = module.edit(batch_of([0]))

    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-10)


def test_the_ddim_round_trip_error_falls_with_the_number_of_steps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(steps: int) -> float:
        module = make(DDIM, steps=steps, guidance=ClassifierFree(target=1.0))
        # a prediction that is smooth in time and latent: that of standard normal data
        table = module.edit_schedule.alphas_cumprod
        monkeypatch.setattr(
            module.backbone,
            "forward",
            lambda z, t, condition: (1 - table[t.long()]).sqrt().view(-1, 1, 1, 1) * z.tanh(),
        )
        result = module.edit(batch_of([0]))
        return float((result.latents[Stream.SOURCE] - result.record.z0).abs().max())

    errors = [error(steps) for steps in (80, 160, 320)]

    ratios = [a / b for a, b in pairwise(errors)]
    assert all(1.7 < ratio < 2.4 for ratio in ratios), (errors, ratios)  # first order
