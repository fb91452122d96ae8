"""What observers of noise share: choosing the maps of each step, and remembering which steps they came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framework.callback import EditCallback
from framework.data.sample import EditBatch
from framework.errors import Checks
from framework.schedule import Level
from framework.statistics.series import CHOICES, NOISE_MAPS, RESIDUALS, Of, as_keys, left_out, predicted
from framework.step import Latents, Need, Step

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


class NoiseObserver(EditCallback):
    """Shows the maps of every step to `see`, once each, in the order in which they come up.

    Args:
        of: What is measured. "auto" takes the noise maps of a method that has them, and otherwise the predictions of
            the inversion (noise on diffusion, velocity on flow); "noise_maps" and "predictions" those in any case;
            "latents" the latents that the inversion passes through, by levels, the inverted noise at level 0;
            "residuals" what the inversion could not reach by itself (errors of noise or velocity), where a method
            records it. A method that does not invert is measured while it denoises. The measurement says which.
        unused: Measure also maps that the edit does not use (skipped steps).
    """

    def __init__(self, *, of: Of, unused: bool) -> None:
        checks = Checks(type(self).__name__)
        checks.one_of("of", of, CHOICES)
        checks.done()
        self.of = of
        self.unused = unused
        if of == "noise_maps":
            self.needs = frozenset({Need.NOISE_MAPS})  # type: ignore[misc]
        self.what = ""
        self._forget()

    @property
    def name(self) -> str:
        usual = type(self).usual  # type: ignore[attr-defined]
        return type(self).__name__ if self.of == usual else f"{type(self).__name__}-{self.of}"

    @property
    def _short(self) -> str:
        """Prefix of figures over all steps, empty for what this observer usually measures."""
        return self.name.partition("-")[2] and f"{self.of}_"

    def see(self, at: int, level: Level, values: Tensor) -> None:
        """Take the map [B, ...] of one step (or level); copy what must last.

        Args:
            at: Interval of the schedule, or level for latents.
            level: The noise level that the step begins with.
            values: A live tensor.
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what was collected since the last edit."""
        raise NotImplementedError

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        self._forget()

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        self._forget()

    def on_invert_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        self._inverted = True
        self._look(step)

    def on_denoise_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        if not self._inverted:
            self._look(step)

    def about(self, result: EditResult) -> tuple[dict[int, str], dict[str, Any]]:
        """Return the steps that are left out with their reasons, and what a measurement says about all of them."""
        excluded = left_out(result.record, unused=self.unused) if self.what == NOISE_MAPS else {}
        return excluded, {"of": self.what, "draws": result.draws, "excluded": as_keys(excluded)}

    def see_residuals(self, module: EditModule, result: EditResult) -> None:
        """Take the residuals of the record, which are known only when an edit ends."""
        if self.of == "residuals" and result.record.residuals is not None:
            self.what, self.steps = RESIDUALS, len(result.record.residuals)
            for i, values in enumerate(result.record.residuals):
                self.see(i, module.edit_schedule.levels[i], values)

    def _forget(self) -> None:
        self.what = ""
        self.steps = 0
        self._inverted = False
        self._first = True
        self.forget()

    def _look(self, step: Step) -> None:
        phase = "inversion" if self._inverted else "denoising"
        self.steps = step.schedule.num_steps
        if self.of == "residuals" or (self.of == "noise_maps" and step.noise is None):
            return
        if self.of == "latents":
            self.what, self.steps = f"latents of the {phase}", self.steps + 1
            down = step.level_next.sigma < step.level.sigma
            if self._first:
                self.see(step.interval + (not down), step.level, _main(step.z))
            self.see(step.interval + down, step.level_next, _main(step.z_next))
        elif self.of != "predictions" and step.noise is not None:
            self.what = NOISE_MAPS
            self.see(step.interval, step.level, step.noise)
        else:
            self.what = predicted(step.schedule.form, phase)
            self.see(step.interval, step.level, _main(step.prediction))
        self._first = False


def placed(steps: Sequence[int], found: Tensor, empty: Tensor) -> Tensor:
    """Copy values of steps to the host, each to its place.

    Args:
        steps: Step of each value.
        found: Values [len(steps), rows, ...].
        empty: [all steps, rows, ...] what a step without a value has, on the CPU; it is filled and returned.
    """
    empty[torch.tensor(steps)] = found.cpu()
    return empty


def times(levels: Sequence[tuple[int, Level]], steps: int) -> Tensor:
    """Return the time of every step, [steps] float64, NaN where there was none."""
    t = torch.full((steps,), torch.nan, dtype=torch.float64)
    for at, level in levels:
        t[at] = level.t
    return t


def _main(values: Latents) -> Tensor:
    """The source's tensor, or the target's where there is no source."""
    return values[values.streams()[0]]
