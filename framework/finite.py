"""Watching for values that are not finite without waiting for the device at every step."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteWatch:
    """Remembers, per image, where the first non-finite value appeared; read once, after the edit.

    Every look leaves one small tensor on the device; nothing is copied to the host before `failures`.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[str, Tensor]] = []

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
        self._looks.append((name, bad.repeat_interleave(draws) if draws > 1 else bad))

    def series(self, what: str, values: Tensor | None) -> None:
        """Check a tensor [steps, rows, ...], naming the first bad step of each row."""
        if values is not None:
            for step, value in enumerate(values):
                self.look(what, value, step=step)

    def failures(self, images: int, draws: int) -> dict[int, str]:
        """Return, for every image with a non-finite value in any draw, where the first one appeared."""
        if not self._looks:
            return {}
        bad = torch.stack([look for _, look in self._looks]).view(len(self._looks), images, draws).any(2).cpu()
        found: dict[int, str] = {}
        for image in range(images):
            where = bad[:, image].nonzero()
            if len(where):
                name = self._looks[int(where[0])][0]
                found[image] = f"{name} is not finite; try float32 or another guidance scale, skip or number of steps."
        return found
