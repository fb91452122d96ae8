"""Watching for values that are not finite, or explode, without waiting for the device at every step."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_GROWTH = 1000.0
"""A latent whose root mean square is so many times that of the clean latent (at least one) has exploded: at any level
of any schedule it stays within a few times that, and far below this bound nothing but saturated colours is left."""


class FiniteWatch:
    """Remembers, per image, where the first non-finite or exploded value appeared; read once, after the edit.

    Every look leaves small tensors on the device; nothing is copied to the host before `failures`.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[str, Tensor, Tensor]] = []
        self._limit: Tensor | None = None

    def watch_growth(self, z0: Tensor) -> None:
        """Let every later look at a latent also check its size against that of the clean one.

        Args:
            z0: Clean latents [rows, ...], one row per image and draw.
        """
        self._limit = LARGEST_GROWTH * _root_mean_square(z0).clamp(min=1.0)

    def look_at_latent(self, what: str, value: Tensor, *, step: int) -> None:
        """Check latents [rows, ...], also for having exploded."""
        self.look(what, value, step=step)
        if self._limit is not None:
            name, bad, _ = self._looks[-1]
            # Written so that a size that is not a number counts as bad in the other column alone.
            self._looks[-1] = (name, bad, _root_mean_square(value) > self._limit)

    def look(self, what: str, value: Tensor, *, step: int | None = None, draws: int = 1) -> None:
        """Check a tensor [rows, ...].

        Args:
            what: Its name in words.
            value: One row per image and draw.
            step: Interval of the schedule, for the message.
            draws: Repeat each row for so many draws (tensors with one row per image).
        """
        name = what if step is None else f"{what} at step {step}"
        bad = ~torch.isfinite(value.detach().flatten(1)).all(1)
        if draws > 1:
            bad = bad.repeat_interleave(draws)
        self._looks.append((name, bad, torch.zeros_like(bad)))

    def series(self, what: str, values: Tensor | None) -> None:
        """Check a tensor [steps, rows, ...], naming the first bad step of each row."""
        if values is not None:
            for step, value in enumerate(values):
                self.look(what, value, step=step)

    def failures(self, images: int, draws: int) -> dict[int, str]:
        """Return, for every image with a bad value in any draw, where the first one appeared and what was wrong."""
        if not self._looks:
            return {}
        shape = (len(self._looks), images, draws)
        infinite = torch.stack([bad for _, bad, _ in self._looks]).view(shape).any(2)
        exploded = torch.stack([large for _, _, large in self._looks]).view(shape).any(2)
        infinite, exploded = torch.stack([infinite, exploded]).cpu()
        found: dict[int, str] = {}
        for image in range(images):
            where = (infinite | exploded)[:, image].nonzero()
            if len(where):
                first = int(where[0])
                what = "is not finite" if infinite[first, image] else f"is {LARGEST_GROWTH:g} times too large"
                found[image] = (
                    f"{self._looks[first][0]} {what}; try float32 or another guidance scale, skip or number of steps."
                )
        return found


def _root_mean_square(value: Tensor) -> Tensor:
    # In float32 at least: the squares of float16 numbers overflow long before the numbers do.
    flat = value.detach().flatten(1)
    wide = flat if flat.dtype == torch.float64 else flat.float()
    return wide.square().mean(1).sqrt()
