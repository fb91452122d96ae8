"""Step hooks leave numbers on the device: they run on tensors that have no values to look at."""

from __future__ import annotations

import pytest
import torch

from callbacks.noise_correlation import NoiseCorrelation
from callbacks.noise_statistics import NoiseStatistics
from callbacks.trajectory import Trajectory
from framework.step import Latents, Step
from tests.callbacks.world import GaussianPictures


def steps(total: int = 5):
    schedule = GaussianPictures().schedule(total)
    for i in range(total):
        z = torch.empty(2, 3, 8, 8, device="meta")
        levels = schedule.levels[i], schedule.levels[i + 1]
        both = Latents(target=z, source=z)
        yield Step(i, total, i, *levels, both, both, both, z, schedule)


@pytest.mark.parametrize(
    "callback",
    [
        NoiseStatistics(),
        NoiseStatistics(of="predictions"),
        NoiseStatistics(of="latents"),
        NoiseCorrelation(),
        Trajectory(save=True),
    ],
    ids=lambda callback: callback.name,
)
def test_nothing_is_read_back_in_a_step(callback):
    for step in steps():
        callback.on_invert_step(None, None, step)
    for step in steps():
        callback.on_denoise_step(None, None, step)


def test_reading_a_value_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(1, device="meta").item()
