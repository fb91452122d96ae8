"""Noise analysis on flows: inverted noise, velocities, their residuals and trajectories, as on diffusion."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callbacks import NoiseCorrelation, NoiseStatistics, NoiseStructure, SourceDrift, Trajectory
from framework.backbones import SD3, GaussianMixture
from framework.callback import EditCallback
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.statistics.moments import Moments
from framework.step import Stream
from methods.direct_inversion import DirectDDIM
from methods.euler_flow import EulerFlow
from methods.rf_solver import RFSolver
from methods.two_stage import TwoStage
from tests.small import batch_of


def measured(module: EditModule, observer: EditCallback) -> Any:
    """What an observer says of one edit, and the edit."""
    result = module.edit(batch_of([0]), callbacks=[observer])
    return result.measurements[0][observer.name], result


@pytest.mark.parametrize("method", [EulerFlow, RFSolver, TwoStage])
def test_the_inverted_noise_is_the_first_of_the_latents(flow_network: SD3, method: Any) -> None:
    found, result = measured(method(flow_network, steps=3), NoiseStatistics(of="latents"))

    moments = Moments.from_tensor(found.tensors["moments"])
    expected = result.record.latents[0].var(correction=0)
    assert found.values["of"] == "latents of the inversion"
    torch.testing.assert_close(moments.variance.flatten()[0], expected, rtol=1e-9, atol=0)
    assert moments.variance.numel() == 4 and found.tensors["t"].tolist()[0] == 1000


@pytest.mark.parametrize("observer", [NoiseStatistics, NoiseCorrelation, NoiseStructure])
def test_velocities_of_the_inversion_are_measured(flow_network: SD3, observer: Any) -> None:
    found, _ = measured(EulerFlow(flow_network, steps=3), observer(of="predictions"))

    assert found.values["of"] == "predicted velocity of the inversion"
    assert any(bool(value.isfinite().any()) for value in found.tensors.values())


def test_residuals_of_two_stage_inversion_are_errors_of_velocity(flow_network: SD3) -> None:
    module = TwoStage(flow_network, steps=3, recorded=True, controls=[], guidance=ClassifierFree(2.0, 2.0, 1.0))

    found, result = measured(module, NoiseStatistics(of="residuals"))

    record, levels = result.record, module.edit_schedule.levels
    offsets = record.own["direct_inversion.source"]
    for i in range(3):
        step = levels[i + 1].sigma - levels[i].sigma
        torch.testing.assert_close(record.residuals[i] * step, offsets[i], rtol=0, atol=1e-12)
    assert found.values["of"] == "residuals"
    variance = Moments.from_tensor(found.tensors["moments"]).variance.flatten()
    torch.testing.assert_close(variance, record.residuals.flatten(1).var(1, correction=0), rtol=1e-9, atol=0)
    torch.testing.assert_close(result.latents[Stream.SOURCE], record.z0, rtol=0, atol=1e-6)


def test_residuals_of_direct_inversion_are_errors_of_noise() -> None:
    """With the noise prediction moved by its residual the step meets the trajectory."""
    network = GaussianMixture([-1.0, 1.0], 0.3, shape=(3, 64, 64))
    module = DirectDDIM(network, steps=4, recorded=True, guidance=ClassifierFree(1.0))
    result = module.edit(batch_of([0]))
    record, levels = result.record, module.edit_schedule.levels

    assert record.residuals is not None and record.latents is not None
    for i in range(4):
        a, b = levels[i], levels[i + 1]
        moved = (b.sigma - b.alpha * a.sigma / a.alpha) * record.residuals[i]
        torch.testing.assert_close(moved, record.own["direct_inversion.source"][i], rtol=0, atol=1e-9)


def test_trajectories_and_drift_of_a_flow_are_followed(flow_network: SD3) -> None:
    path, result = measured(EulerFlow(flow_network, steps=3), Trajectory(save=True, previews="none"))
    drift, edited = measured(EulerFlow(flow_network, steps=3), SourceDrift())

    assert any(
        torch.is_tensor(value) and value.shape[-3:] == result.record.z0.shape[1:] for value in path.tensors.values()
    )
    error = (edited.latents[Stream.SOURCE] - edited.record.z0).square().mean().sqrt()
    assert drift.values["final"] == pytest.approx(float(error), rel=1e-9)
