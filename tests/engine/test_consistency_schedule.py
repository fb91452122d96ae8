"""Schedules of consistency models, and explicit lists of timesteps."""

from __future__ import annotations

import pytest

from framework.errors import SettingsError
from framework.schedule import Schedule, ScheduleOptions

CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def timesteps(steps: int, **options: object) -> list[int]:
    schedule = Schedule.from_scheduler(CONFIG, steps, ScheduleOptions(final_alpha="one", **options))  # type: ignore[arg-type]
    assert schedule.levels[-1][1:] == (1.0, 0.0)
    return [int(level.t) for level in schedule.levels[:-1]]


@pytest.mark.parametrize("steps", [1, 4, 7, 12, 15, 50])
def test_consistency_spacing_is_that_of_the_consistency_scheduler(steps: int) -> None:
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(**CONFIG)
    scheduler.set_timesteps(steps, original_inference_steps=50)

    assert timesteps(steps, spacing="consistency") == scheduler.timesteps.tolist()


def test_timesteps_may_be_given_one_by_one() -> None:
    assert timesteps(4, timesteps=[999, 759, 519, 279]) == [999, 759, 519, 279]


@pytest.mark.parametrize(
    ("steps", "options", "words"),
    [
        (51, {"spacing": "consistency"}, ["steps=51", "50"]),
        (3, {"timesteps": [999, 500]}, ["2 timesteps", "steps=3"]),
        (2, {"timesteps": [500, 999]}, ["noisiest first"]),
        (2, {"timesteps": [1000, 999]}, ["1000 steps"]),
        (2, {"spacing": "consistancy"}, ["did you mean 'consistency'"]),
    ],
)
def test_lists_that_cannot_work_are_refused(steps: int, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        timesteps(steps, **options)

    for word in words:
        assert word in str(error.value)
