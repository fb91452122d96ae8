"""Schedules against what diffusers' schedulers visit, and the step maths against closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from framework.errors import SettingsError
from framework.schedule import (
    Level,
    Schedule,
    ScheduleOptions,
    ddim_step,
    ddpm_posterior,
    eps_to_v_prediction,
    eps_to_velocity,
    eps_to_x0,
    euler_step,
    v_prediction_to_eps,
    velocity_to_eps,
    velocity_to_x0,
    x0_to_eps,
    x0_to_velocity,
)

CONFIG = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "set_alpha_to_one": False,
}  # fmt: skip


def _level(abar: float) -> Level:
    return Level(0.0, abar**0.5, (1 - abar) ** 0.5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 7, 50, 999])
def test_timesteps_are_those_of_the_diffusers_scheduler(spacing: str, steps: int) -> None:
    scheduler = DDIMScheduler(**CONFIG, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)

    schedule = Schedule.from_scheduler({**CONFIG, "timestep_spacing": spacing}, steps)

    assert schedule.t[:-1].tolist() == scheduler.timesteps.tolist()


def test_one_ddim_step_is_the_schedulers_own() -> None:
    scheduler = DDIMScheduler(**CONFIG, clip_sample=False)
    scheduler.set_timesteps(8)
    schedule = Schedule.from_scheduler(CONFIG, 8)
    z, eps = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)

    for i, t in enumerate(scheduler.timesteps):
        ours = ddim_step(z, eps, schedule.levels[i], schedule.levels[i + 1])
        theirs = scheduler.step(eps, t, z, eta=0.0).prev_sample

        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_last_level_follows_the_final_alpha() -> None:
    first = Schedule.from_scheduler(CONFIG, 10, ScheduleOptions(final_alpha="first"))
    one = Schedule.from_scheduler(CONFIG, 10, ScheduleOptions(final_alpha="one"))

    assert first.sigma[-1] > 0
    assert one.sigma[-1] == 0 and one.alpha[-1] == 1


def test_a_schedule_without_signal_is_refused_with_a_remedy() -> None:
    with pytest.raises(SettingsError, match="leading"):
        Schedule.from_alphas_cumprod(torch.tensor([0.9, 0.5, 0.0]), [2, 1, 0])


@pytest.mark.parametrize("steps", [0, -4, 10001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(SettingsError, match=f"steps={steps}"):
        Schedule.from_scheduler(CONFIG, steps)


def test_ddim_with_a_constant_prediction_is_undone_by_its_reverse() -> None:
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    a, b = _level(0.9), _level(0.3)

    there = ddim_step(z, eps, a, b)

    torch.testing.assert_close(ddim_step(there, eps, b, a), z)


def test_the_posterior_is_the_textbook_one_at_eta_one() -> None:
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    abar, abar_next = 0.3, 0.5
    alpha, beta = abar / abar_next, 1 - abar / abar_next
    x0 = (z - (1 - abar) ** 0.5 * eps) / abar**0.5
    mean = abar_next**0.5 * beta / (1 - abar) * x0 + alpha**0.5 * (1 - abar_next) / (1 - abar) * z

    ours, std = ddpm_posterior(z, eps, _level(abar), _level(abar_next))

    torch.testing.assert_close(ours, mean)
    assert std**2 == pytest.approx((1 - abar_next) / (1 - abar) * beta)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_two_rules_of_eta_agree_at_its_ends(eta: float) -> None:
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64)

    official, one = ddpm_posterior(z, eps, _level(0.3), _level(0.5), eta=eta, rule="official")
    ddim, other = ddpm_posterior(z, eps, _level(0.3), _level(0.5), eta=eta, rule="ddim")

    torch.testing.assert_close(official, ddim)
    assert one == other


def test_the_two_rules_of_eta_differ_between_its_ends() -> None:
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64)

    official, _ = ddpm_posterior(z, eps, _level(0.3), _level(0.5), eta=0.5, rule="official")
    ddim, _ = ddpm_posterior(z, eps, _level(0.3), _level(0.5), eta=0.5, rule="ddim")

    assert not torch.allclose(official, ddim)


def test_conversions_undo_each_other() -> None:
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    alpha, sigma = 0.8, 0.6

    torch.testing.assert_close(x0_to_eps(z, eps_to_x0(z, eps, alpha=alpha, sigma=sigma), alpha=alpha, sigma=sigma), eps)
    v = eps_to_v_prediction(z, eps, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(v_prediction_to_eps(z, v, alpha=alpha, sigma=sigma), eps)
    velocity = eps_to_velocity(z, eps, sigma=0.4)
    torch.testing.assert_close(velocity_to_eps(z, velocity, sigma=0.4), eps)


def test_v_prediction_and_velocity_are_different_conversions() -> None:
    z, v = torch.randn(2, 3, 4, dtype=torch.float64)

    assert not torch.allclose(v_prediction_to_eps(z, v, alpha=0.6, sigma=0.8), velocity_to_eps(z, v, sigma=0.8))


def test_velocity_points_from_the_image_to_noise() -> None:
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    sigma = 0.3
    z = (1 - sigma) * x0 + sigma * eps

    torch.testing.assert_close(velocity_to_x0(z, eps - x0, sigma=sigma), x0)
    torch.testing.assert_close(x0_to_velocity(z, x0, sigma=sigma), eps - x0)
    there = euler_step(z, eps - x0, Level(0, 1 - sigma, sigma), Level(0, 0.1, 0.9))
    torch.testing.assert_close(there, 0.1 * x0 + 0.9 * eps)


def test_noising_everywhere_is_noising_level_by_level() -> None:
    schedule = Schedule.from_scheduler(CONFIG, 6)
    z0, noise = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(6, 2, 4, 8, 8, dtype=torch.float64)

    everywhere = schedule.add_noise_everywhere(z0, noise)

    for i in range(6):
        torch.testing.assert_close(everywhere[i], schedule.add_noise(z0, noise[i], i))
