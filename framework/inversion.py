"""Inversion: recording a source and stepping with the record, one object since neither means much alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from framework.context import Context
from framework.control import Control
from framework.guidance import Guidance, State
from framework.record import Record
from framework.schedule import Form, Level, Schedule
from framework.step import Conditions, Latents, Need, Predictions, Row, Site, Stream


class Predict(Protocol):
    """The guided prediction, as an inversion sees it."""

    def __call__(self, z: Latents, i: int, *, level: Level | None = None, stage: int = 0) -> Latents:
        """Predict for the streams of z.

        Args:
            z: Latents, [B, ...] per stream; the source alone while recording.
            i: Interval of the schedule, 0 the noisiest.
            level: What the network is told, where it differs from level i of the schedule.
            stage: Position of this call among those of its step (a solver's midpoint is 1), for controls.

        Returns:
            Guided predictions, in the schedule's form.
        """
        ...


class RecordPredict(Predict, Protocol):
    """The source's guided prediction while recording, which may be asked at many levels at once."""

    def watched(self, control: Control, state: Any) -> AbstractContextManager[RecordPredict]:
        """Return a context in which the calls of the prediction that it gives pass through a control.

        For inversions that keep features of the source; the prediction itself stays as it is.
        """
        ...

    def at_levels(self, z: Tensor, levels: Sequence[int]) -> Tensor:
        """Predict for latents that do not depend on each other, in a few large network calls.

        Args:
            z: [n, B, ...] source latents.
            levels: n indices of schedule levels, one for each entry of z.

        Returns:
            [n, B, ...] guided predictions.
        """
        ...

    def rows(
        self,
        z: Latents,
        i: int,
        rows: Sequence[Row],
        *,
        conditions: Conditions | None = None,
        level: Level | None = None,
    ) -> Predictions:
        """Predict single blocks of rows without guidance, for inversions that optimise or compare them.

        Args:
            z: Latents of all streams that `rows` names.
            i: Interval of the schedule.
            rows: Blocks to evaluate in one call.
            conditions: Replace the edit's own (null-text embeddings); may require gradients.
            level: What the network is told instead of level i.
        """
        ...

    def denoising(
        self, z: Latents, i: int, record: Record, conditions: Conditions, *, level: Level | None = None
    ) -> Latents:
        """Predict as a denoising step from `record` would, without controls, for inversions that record its errors.

        Args:
            z: Latents of the streams to predict for.
            i: Interval of the schedule.
            record: What is known of the source so far.
            conditions: Conditions of the step.
            level: What the network is told instead of level i.
        """
        ...


class Inversion(ABC):
    """Records a source and steps with the record. Stateless: settings only.

    Class attributes:
        forms: Forms of prediction that its maths is written for.
        needs: What it asks of the other parts.
        has_source: Whether a source row walked back from the record reproduces the source.
        makes_source: Whether it makes the source itself (z0 of the record), whatever the batch's picture is.
    """

    forms: ClassVar[tuple[Form, ...]] = ("epsilon",)
    needs: ClassVar[frozenset[Need]] = frozenset()
    streams: ClassVar[tuple[Stream, ...]] = ()
    has_source: ClassVar[bool] = True
    makes_source: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """Name that this inversion's records carry; only records of the same kind are stepped with."""
        return type(self).__name__

    def provides(self) -> frozenset[Need]:
        """Return what a record of this inversion holds for others; default nothing."""
        return frozenset()

    def check(self, schedule_steps: int) -> list[str]:
        """Return the problems of using this inversion with so many steps (a skip that leaves none, ...)."""
        del schedule_steps
        return []

    def executed(self, schedule_steps: int) -> int:
        """Return how many of so many steps an edit runs (skip, strength); default all."""
        return schedule_steps

    def recorded_steps(self, schedule_steps: int) -> int:
        """Return how many intervals its records have levels for (one less than levels); default all."""
        return schedule_steps

    def feature_bytes(self, sites: Sequence[Site], latent: Sequence[int], steps: int, itemsize: int) -> int:
        """Return how many bytes of the network's features a record keeps per image; default none.

        Args:
            sites: All attention sites of the network.
            latent: Rows and columns of the latent.
            steps: Steps of the schedule.
            itemsize: Bytes per number of the network's dtype.
        """
        del sites, latent, steps, itemsize
        return 0

    def suits(self, guidance: Guidance) -> list[str]:
        """Return the problems of denoising its records with this guidance, each with both names; default none."""
        del guidance
        return []

    def unfit(self, record: Record) -> list[str]:
        """Return why a record cannot be stepped with; default its having been made by another kind of inversion."""
        if record.kind == self.kind:
            return []
        return [f"it was made by {record.kind}, but this edit steps with {self.kind}; invert again."]

    @abstractmethod
    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Run the inversion and tell the hooks about its steps.

        Args:
            z0: [B, ...] clean latents.
            predict: The source's guided prediction.
            ctx: The edit; its `noise` is the only randomness.
        """

    def first(self, record: Record, schedule: Schedule) -> int:
        """Return the interval with which denoising begins (skip, strength); default 0."""
        del record, schedule
        return 0

    @abstractmethod
    def start(self, record: Record, ctx: Context) -> Latents:
        """Return where denoising begins, one latent per stream of `ctx.streams`."""

    def begin(self, record: Record, ctx: Context) -> State:
        """Return the solver's state at the start of denoising; default None."""
        del record, ctx
        return None

    def condition(self, record: Record, i: int, conditions: Conditions) -> Conditions:
        """Return the conditions of interval i (null-text replaces the unconditional text); default unchanged."""
        del record, i
        return conditions

    @abstractmethod
    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Denoise by one interval with the record.

        Args:
            record: What `record` returned.
            i: Interval of the schedule.
            z: Latents of all streams.
            predict: Guided prediction, bound to this step.
            state: What the previous step returned, or `begin`'s.
            ctx: The edit.

        Returns:
            Latents after the step, and the next state.
        """

    def noise(self, record: Record, i: int) -> Tensor | None:
        """Return the noise map injected in interval i, for the hooks; default the record's."""
        return None if record.noise_maps is None else record.noise_maps[i]


@dataclass(frozen=True)
class InversionAround(Inversion):
    """An inversion that adds to another; what it does not override is the other's.

    Attributes:
        base: The other inversion.
    """

    base: Inversion

    def __post_init__(self) -> None:
        # What a part declares per class depends here on what it is built around.
        for name in ("needs", "streams"):
            own, inner = getattr(type(self), name), getattr(self.base, name)
            object.__setattr__(self, name, type(own)(dict.fromkeys((*own, *inner))))
        for name in ("forms", "has_source"):
            object.__setattr__(self, name, getattr(self.base, name))
        object.__setattr__(self, "makes_source", type(self).makes_source or self.base.makes_source)

    @property
    def kind(self) -> str:
        """Name of the base's records; an inversion that records more than its base overrides it."""
        return self.base.kind

    def provides(self) -> frozenset[Need]:
        """Return what the base provides."""
        return self.base.provides()

    def check(self, schedule_steps: int) -> list[str]:
        """Return the base's problems."""
        return self.base.check(schedule_steps)

    def executed(self, schedule_steps: int) -> int:
        """Run as many steps as the base."""
        return self.base.executed(schedule_steps)

    def recorded_steps(self, schedule_steps: int) -> int:
        """Record as many intervals as the base."""
        return self.base.recorded_steps(schedule_steps)

    def feature_bytes(self, sites: Sequence[Site], latent: Sequence[int], steps: int, itemsize: int) -> int:
        """Keep what the base keeps."""
        return self.base.feature_bytes(sites, latent, steps, itemsize)

    def suits(self, guidance: Guidance) -> list[str]:
        """Return the base's problems."""
        return self.base.suits(guidance)

    def unfit(self, record: Record) -> list[str]:
        """Return the problems of this kind, and the base's where both have one kind of record."""
        return super().unfit(record) or (self.base.unfit(record) if self.base.kind == self.kind else [])

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Record as the base does."""
        return self.base.record(z0, predict, ctx)

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin where the base does."""
        return self.base.first(record, schedule)

    def start(self, record: Record, ctx: Context) -> Latents:
        """Start where the base does."""
        return self.base.start(record, ctx)

    def begin(self, record: Record, ctx: Context) -> State:
        """Return the base's state."""
        return self.base.begin(record, ctx)

    def condition(self, record: Record, i: int, conditions: Conditions) -> Conditions:
        """Return the base's conditions."""
        return self.base.condition(record, i, conditions)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Step as the base does."""
        return self.base.step(record, i, z, predict, state, ctx)

    def noise(self, record: Record, i: int) -> Tensor | None:
        """Return the base's noise map."""
        return self.base.noise(record, i)
