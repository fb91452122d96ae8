"""The guided prediction that inversions are given: guidance, network, conditions and state bound together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from framework.backbones.base import ControlHandle
from framework.context import Context
from framework.control import Control
from framework.guidance import Guidance, State, StepNetwork
from framework.network import Network
from framework.record import Record
from framework.schedule import Level
from framework.step import Conditions, Latents, Predictions, Row, Stream


class _Told:
    """A step's network that is told another level than the step's own, or is called once more in the same step."""

    def __init__(self, network: StepNetwork, level: Level | None, stage: int = 0) -> None:
        self._network, self._level, self._stage = network, level, stage

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
        level, stage = level or self._level, stage or self._stage
        return self._network(z, rows, level=level, controlled=controlled, stage=stage, scales=scales, moved=moved)

    def state_of(self, control: Control) -> Any:
        return self._network.state_of(control)


class SourcePrediction:
    """Predicts for the source while it is being inverted; see `framework.inversion.RecordPredict`."""

    def __init__(self, guidance: Guidance, network: Network, ctx: Context, handle: ControlHandle | None = None) -> None:
        self._guidance, self._network, self._ctx, self._handle = guidance, network, ctx, handle

    def __call__(self, z: Latents, i: int, *, level: Level | None = None, stage: int = 0) -> Latents:
        """Predict at level i, or telling the network another level."""
        network = self._network.at(i, self._ctx.conditions, self._handle)
        return self._guidance.invert(z, _Told(network, level, stage), self._ctx)

    @contextmanager
    def watched(self, control: Control, state: Any) -> Iterator[SourcePrediction]:
        """Let a control see the calls of the prediction that this context gives."""
        with self._network.backbone.controlled([control], [state]) as handle:
            yield SourcePrediction(self._guidance, self._network, self._ctx, handle)

    def rows(
        self,
        z: Latents,
        i: int,
        rows: Sequence[Row],
        *,
        conditions: Conditions | None = None,
        level: Level | None = None,
    ) -> Predictions:
        """Predict single blocks of rows without guidance."""
        network = self._network.at(i, self._ctx.conditions if conditions is None else conditions)
        return network(z, rows, level=level)

    def denoising(
        self, z: Latents, i: int, record: Record, conditions: Conditions, *, level: Level | None = None
    ) -> Latents:
        """Predict as a denoising step from this record would, without controls and with a fresh state."""
        bound = self._network.at(i, conditions)
        network = bound if level is None else _Told(bound, level)
        return self._guidance.predict(z, i, network, record, self._guidance.begin(self._ctx), self._ctx)[0]

    def at_levels(self, z: Tensor, levels: Sequence[int]) -> Tensor:
        """Predict for independent latents [n, B, ...] at n levels, in calls of bounded size."""
        images = z.shape[1]
        per_call = max(1, self._network.default_rows(z[0]) // images)
        predictions = torch.empty_like(z)
        for start in range(0, len(levels), per_call):
            part = levels[start : start + per_call]
            network = self._network.at_levels(part, self._ctx.conditions)
            rows = Latents(source=z[start : start + len(part)].flatten(0, 1))
            source = self._guidance.invert(rows, network, self._ctx).source
            assert source is not None
            predictions[start : start + len(part)] = source.view(len(part), *z.shape[1:])
        return predictions


class StepPrediction:
    """Predicts for every stream of one denoising step, and keeps the guidance's state and last result."""

    def __init__(
        self,
        guidance: Guidance,
        network: Network,
        record: Record,
        ctx: Context,
        *,
        i: int,
        conditions: Conditions,
        handle: ControlHandle,
        state: State,
    ) -> None:
        self._guidance, self._record, self._ctx = guidance, record, ctx
        self._network = network.at(i, conditions, handle)
        self._i = i
        self.state = state
        self.last: Latents | None = None

    def prepare(self, z: Latents) -> Latents:
        """Let the guidance move the latents before the step."""
        z, self.state = self._guidance.prepare(z, self._i, self._network, self._record, self.state, self._ctx)
        return z

    def correct(self, z: Latents, z_next: Latents) -> Latents:
        """Let the guidance move the latents after the step."""
        return self._guidance.correct(z, z_next, self._i, self._record, self.state, self._ctx)

    def __call__(self, z: Latents, i: int, *, level: Level | None = None, stage: int = 0) -> Latents:
        """Predict at this step, or telling the network another level (midpoints)."""
        network = _Told(self._network, level, stage) if stage or level is not None else self._network
        self.last, self.state = self._guidance.predict(z, i, network, self._record, self.state, self._ctx)
        return self.last
