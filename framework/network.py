"""The one place that calls the network: names rows, splits large calls, counts evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from framework.backbones.base import Backbone, ControlHandle
from framework.control import Control
from framework.errors import SettingsError
from framework.schedule import Level, Schedule
from framework.step import COND, Condition, Conditions, Latents, Predictions, Row, Rows, Stream


@dataclass
class Evaluations:
    """Network evaluations, counted where the network is called.

    Attributes:
        calls: Forward passes, whatever their batch.
        samples: Rows evaluated; classifier-free guidance of one image counts 2.
        backward: Rows through which gradients were taken.
    """

    calls: int = 0
    samples: int = 0
    backward: int = 0

    def __sub__(self, other: Evaluations) -> Evaluations:
        return Evaluations(self.calls - other.calls, self.samples - other.samples, self.backward - other.backward)

    def copy(self) -> Evaluations:
        """Return the counts as they are now."""
        return Evaluations(self.calls, self.samples, self.backward)

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return {"calls": self.calls, "samples": self.samples, "backward": self.backward}


class Network:
    """A backbone's network on one schedule.

    Args:
        backbone: Where the rows go.
        schedule: Levels that step indices mean.
        max_rows: Most rows of one call; larger calls are split by images (or by levels). None: no limit for a step,
            `default_rows` for evaluations over many levels.
        total: Counted as well, beyond the edit that this network is for.
    """

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        max_rows: int | None = None,
        total: Evaluations | None = None,
    ) -> None:
        self.backbone = backbone
        self.schedule = schedule
        self.max_rows = max_rows
        self.evaluations = Evaluations()
        self._total = total
        self._fits: int | None = None

    def on(self, schedule: Schedule) -> Network:
        """Return this network on another schedule; both count as one."""
        other = copy(self)
        other.schedule = schedule
        return other

    def at(self, i: int, conditions: Conditions, handle: ControlHandle | None = None) -> BoundNetwork:
        """Bind to interval i, with its conditions and with controls if a handle is given."""
        return BoundNetwork(self, i, self.schedule.levels[i], conditions, handle)

    def at_levels(self, levels: Sequence[int], conditions: Conditions) -> BoundNetwork:
        """Bind to several levels at once, for latents [n B, ...] whose level is the slower axis."""
        return BoundNetwork(self, levels[0], [self.schedule.levels[i] for i in levels], conditions, None)

    def default_rows(self, z: Tensor) -> int:
        """Rows per call that keep the activations of a call over many levels bounded: 2^18 elements of latents."""
        return self.max_rows or max(1, 2**18 // max(1, z[0].numel()))

    def evaluate(self, z: Tensor, t: Tensor, condition: Condition, *, divisible: bool = True) -> Tensor:
        """Evaluate rows in one call, or in halves where the device has no memory for all of them.

        Args:
            z, t, condition: Rows of the call.
            divisible: False where rows must stay together because controls look from one to another.

        Raises:
            torch.OutOfMemoryError: One row, or rows that must stay together, do not fit.
        """
        rows = z.shape[0]
        if divisible and self._fits is not None and rows > self._fits:
            parts = [slice(start, start + self._fits) for start in range(0, rows, self._fits)]
            return torch.cat([self._forward(z[p], t[p], condition.map(partial(_take, part=p))) for p in parts])
        try:
            return self._forward(z, t, condition)
        except torch.OutOfMemoryError:
            if rows == 1 or not divisible:
                raise
            self._fits = (rows + 1) // 2
        torch.cuda.empty_cache()
        return self.evaluate(z, t, condition)

    def _forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Call the network once and count it. The only line of the project that does."""
        output: Tensor = self.backbone(z.to(self.backbone.dtype), t, condition)
        has_grad = torch.is_grad_enabled() and (z.requires_grad or condition.requires_grad)
        for counter in (self.evaluations, self._total):
            if counter is not None:
                counter.calls += 1
                counter.samples += z.shape[0]
                counter.backward += z.shape[0] * has_grad
        return output.to(z.dtype)


class BoundNetwork:
    """The network of one step; see `framework.guidance.StepNetwork`."""

    def __init__(
        self,
        network: Network,
        i: int,
        level: Level | Sequence[Level],
        conditions: Conditions,
        handle: ControlHandle | None,
    ) -> None:
        self.network = network
        self.i = i
        self.level = level
        self.conditions = conditions
        self.handle = handle

    def __call__(
        self,
        z: Latents,
        rows: Sequence[Row],
        *,
        level: Level | None = None,
        controlled: bool = True,
        stage: int = 0,
        scales: Mapping[Stream, float] | None = None,
        moved: Mapping[Row, Tensor] | None = None,
    ) -> Predictions:
        """Predict blocks of rows; see `StepNetwork`.

        Blocks of one stream that have been given one and the same condition are evaluated once, under the conditional
        name, wherever no control could treat them differently: in calls without controls, and for the source, which
        controls only read.
        """
        handle = self.handle if controlled else None
        wanted = rows
        if handle is not None:
            rows = [*rows, *(row for row in handle.companions(rows, self.i) if row.stream in z.streams())]
        moved = moved or {}
        alias = {**self._aliases(rows, handle is not None), **{row: row for row in rows if row in moved}}
        rows = list(dict.fromkeys(alias.values()))
        blocks = [moved[row] if row in moved else z[row.stream] for row in rows]
        images = min(block.shape[0] for block in blocks)
        limit = self.network.max_rows
        per_call = images if limit is None or not isinstance(self.level, Level) else max(1, limit // len(rows))
        parts: list[Mapping[Row, Tensor]] = []
        for start in range(0, images, per_call):
            part = slice(start, start + per_call) if per_call < images else slice(None)
            conditions = [self._condition(row, scales).map(partial(_take, part=part)) for row in rows]
            names = Rows(tuple(rows), tuple(block[part].shape[0] for block in blocks), start, stage)
            parts.append(self._call([block[part] for block in blocks], names, conditions, level or self.level, handle))
        whole = parts[0] if len(parts) == 1 else {row: torch.cat([part[row] for part in parts]) for row in rows}
        return {row: whole[alias[row]] for row in wanted}

    def _aliases(self, rows: Sequence[Row], controlled: bool) -> dict[Row, Row]:
        """Name, for every block, the block that is evaluated for it."""
        alias: dict[Row, Row] = {}
        for row in rows:
            named = Row(row.stream, COND)
            free = not controlled or row.stream is Stream.SOURCE
            same = free and named in rows and self.conditions[row] is self.conditions[named]
            alias[row] = named if same else row
        return alias

    def state_of(self, control: Control) -> Any:
        """Return the state of an installed control; see `StepNetwork`."""
        assert self.handle is not None
        return self.handle.states[self.handle.controls.index(control)]

    def _condition(self, row: Row, scales: Mapping[Stream, float] | None) -> Condition:
        condition = self.conditions[row]
        if scales is not None and self.network.backbone.guided_by == "embedding":
            condition = condition.told(scales[row.stream])
        if isinstance(self.level, Level):
            return condition
        return condition.repeat(len(self.level))

    def _call(
        self,
        blocks: Sequence[Tensor],
        rows: Rows,
        conditions: Sequence[Condition],
        level: Level | Sequence[Level],
        handle: ControlHandle | None,
    ) -> dict[Row, Tensor]:
        z = torch.cat(list(blocks)) if len(blocks) > 1 else blocks[0]
        t, alpha, sigma = self._levels(z, level, len(blocks))
        if handle is not None:
            handle.enter(rows, self.i)
        try:
            controlled = handle is not None and any(handle.active)
            if controlled and self.network.backbone.recomputes and torch.is_grad_enabled() and z.requires_grad:
                raise SettingsError(
                    [
                        f"gradient_checkpointing of {type(self.network.backbone).__name__} computes activations again "
                        "without the controls through which this gradient is taken; leave it off for this method."
                    ]
                )
            output = self.network.evaluate(z, t, Condition.cat(conditions), divisible=not controlled)
        finally:
            if handle is not None:
                handle.leave()
        predictions = self.network.backbone.to_form(output, z, alpha, sigma)
        return dict(zip(rows.blocks, torch.split(predictions, list(rows.counts)), strict=True))

    @staticmethod
    def _levels(
        z: Tensor, level: Level | Sequence[Level], blocks: int
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return time per row, and scales that broadcast against the rows."""
        if isinstance(level, Level):
            return torch.full((z.shape[0],), level.t, dtype=torch.float64, device=z.device), level.alpha, level.sigma
        per_block = z.shape[0] // blocks
        table = (
            torch.tensor([*level], dtype=torch.float64).repeat_interleave(per_block // len(level), 0).repeat(blocks, 1)
        )
        shape = (-1, *([1] * (z.ndim - 1)))
        table = table.to(z.device)
        return table[:, 0], table[:, 1].to(z.dtype).view(shape), table[:, 2].to(z.dtype).view(shape)


def _take(x: Tensor, part: slice) -> Tensor:
    return x[part]
