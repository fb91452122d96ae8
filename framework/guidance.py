"""Guidance: from latents to one prediction per stream; it owns its network calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from framework.context import Context, Prompt
from framework.control import Control
from framework.data.sample import EditSample
from framework.errors import Checks
from framework.record import Record
from framework.schedule import Level
from framework.step import COND, UNCOND, Latents, Need, Predictions, Row, Stream, latents

State = Any
"""What a part carries from one step to the next; only the part itself looks inside."""


class StepNetwork(Protocol):
    """The network, bound to one step: its time, conditions and active controls."""

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
        """Predict blocks of rows in one call.

        Args:
            z: Latents of all streams that `rows` names.
            rows: Blocks to evaluate, in this order.
            level: What the network is told instead of this step's own level.
            controlled: False runs the network without controls (gradient passes).
            stage: Position of this call among those of its step; see `Rows.stage`.
            scales: Guidance scale that each stream's rows are told, by networks that are told one; others ignore it.
            moved: Latents of single blocks, where they are not their stream's.

        Returns:
            Prediction of every block, [B, ...] each, in the schedule's form and the latents' dtype.
        """
        ...

    def state_of(self, control: Control) -> Any:
        """Return this edit's state of a control that the guidance brought along; see `Guidance.controls`."""
        ...


class Guidance(ABC):
    """How predictions under several prompts become one. Stateless: settings only."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Predict for the source while it is being inverted.

        Args:
            z: Latents with the source stream alone; images may be repeated over several levels.
            network: Call as `network(z, rows)`.
            ctx: The edit.

        Returns:
            Predictions with the source stream.
        """

    def prompts(self, samples: Sequence[EditSample]) -> Mapping[Row, Sequence[Prompt]]:
        """Return prompts of further blocks of rows (edit concepts), or in place of the samples' own; default none.

        Args:
            samples: One per row.

        Returns:
            Row -> one prompt per sample.
        """
        del samples
        return {}

    def controls(self) -> Sequence[Control]:
        """Return controls of its own, installed beside the edit's while denoising (to read attention); default none."""
        return ()

    def check(self, executed: int) -> list[str]:
        """Return the problems of using this guidance in an edit of so many steps (a warm-up that never ends, ...)."""
        del executed
        return []

    def found(self, state: State) -> Mapping[str, Tensor]:
        """Return what the last step found out, for hooks: masks, terms of a sum, [B, ...] each; default nothing."""
        del state
        return {}

    def begin(self, ctx: Context) -> State:
        """Return the state with which a denoising loop starts."""
        del ctx
        return None

    def prepare(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Move the latents before the step's prediction (Noise Map Guidance, pix2pix-zero); default identity."""
        del i, network, record, ctx
        return z, state

    @abstractmethod
    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Predict for every stream of a denoising step.

        Args:
            z: Latents of all streams, [B, ...] each.
            i: Interval of the schedule, 0 the noisiest.
            network: Call as `network(z, rows)`; several calls are allowed.
            record: What the inversion found.
            state: What this guidance returned at the previous prediction, or `begin`'s.
            ctx: The edit.

        Returns:
            Guided predictions with the streams of z, and the next state.
        """

    def correct(self, z: Latents, z_next: Latents, i: int, record: Record, state: State, ctx: Context) -> Latents:
        """Move the latents after the step, before controls blend them (proximal guidance); default identity.

        Args:
            z, z_next: Latents before and after the step.
            i: Interval of the schedule.
            record: What the inversion found.
            state: What this step's prediction returned.
            ctx: The edit.
        """
        del z, i, record, state, ctx
        return z_next


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance, u + w (c - u), with its own scale for source, target and inversion.

    At scale 1 only the conditional rows are evaluated, at scale 0 only the unconditional ones; a source whose prompt is
    its unconditional one (empty for the whole batch, or by negative-prompt inversion) is evaluated once.

    Attributes:
        target: Scale of the edit, at least 0.
        source: Scale of the source row while denoising (and of the layout row), at least 0.
        inversion: Scale while inverting; None takes `source`.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance (2022), Eq. 6 in the form of scale 1 = conditional.
    """

    target: float = 7.5
    source: float = 1.0
    inversion: float | None = None

    def __post_init__(self) -> None:
        checks = Checks("guidance")
        hint = "1 is no guidance; usual values are 1 to 15"
        checks.between("target", self.target, 0, float("inf"), hint)
        checks.between("source", self.source, 0, float("inf"), hint)
        if self.inversion is not None:
            checks.between("inversion", self.inversion, 0, float("inf"), hint)
        checks.done()

    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Predict with the source prompt at the scale of the inversion."""
        del ctx
        scale = self.source if self.inversion is None else self.inversion
        return classifier_free(z, network, {Stream.SOURCE: scale})

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Predict for every stream with its own scale, all rows in one call."""
        del i, record, ctx
        return classifier_free(z, network, self.scales()), state

    def scales(self) -> dict[Stream, float]:
        """Return the scale of every stream while denoising."""
        return {Stream.SOURCE: self.source, Stream.TARGET: self.target, Stream.LAYOUT: self.source}


def classifier_free(z: Latents, network: StepNetwork, scales: Mapping[Stream, float]) -> Latents:
    """Guide every stream of z by its scale in one network call; see `ClassifierFree`."""
    rows = [row for stream in z.streams() for row in guided_rows(stream, scales[stream])]
    predictions = network(z, rows)
    return latents({stream: guided(predictions, stream, scales[stream]) for stream in z.streams()})


def guided_rows(stream: Stream, scale: float) -> list[Row]:
    """Name the rows that guidance of this scale has to evaluate."""
    branches = {1.0: [COND], 0.0: [UNCOND]}.get(float(scale), [UNCOND, COND])
    return [Row(stream, branch) for branch in branches]


def guided(predictions: Predictions, stream: Stream, scale: float) -> Tensor:
    """Combine the rows of one stream, u + scale (c - u)."""
    if scale == 1:
        return predictions[Row(stream, COND)]
    uncond = predictions[Row(stream, UNCOND)]
    if scale == 0:
        return uncond
    return uncond + scale * (predictions[Row(stream, COND)] - uncond)


@dataclass(frozen=True)
class EmbeddedGuidance(Guidance):
    """Guidance of a distilled network that is told the scale (FLUX.1-dev): one row per stream, no unconditional one.

    Attributes:
        target: Scale that the edit's rows are told, at least 0.
        source: Scale that the source row is told while denoising, at least 0.
        inversion: Scale while inverting; None takes `source`.
        invert_with: Prompt while inverting; "empty" for methods that keep the source's words out of its noise.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GUIDANCE_EMBEDDING})

    target: float = 3.5
    source: float = 1.0
    inversion: float | None = None
    invert_with: Literal["source", "empty"] = "source"

    def __post_init__(self) -> None:
        checks = Checks("guidance")
        hint = "FLUX uses 1 to invert and 2 to 6 to edit"
        checks.between("target", self.target, 0, float("inf"), hint)
        checks.between("source", self.source, 0, float("inf"), hint)
        if self.inversion is not None:
            checks.between("inversion", self.inversion, 0, float("inf"), hint)
        checks.one_of("invert_with", self.invert_with, ("source", "empty"))
        checks.done()

    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Predict for the source, told the scale of the inversion."""
        del ctx
        scale = self.source if self.inversion is None else self.inversion
        row = Row(Stream.SOURCE, COND if self.invert_with == "source" else UNCOND)
        return Latents(source=network(z, [row], scales={Stream.SOURCE: scale})[row])

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Predict for every stream under its own prompt, all rows in one call."""
        del i, record, ctx
        rows = {stream: Row(stream, COND) for stream in z.streams()}
        scales = {Stream.SOURCE: self.source, Stream.TARGET: self.target, Stream.LAYOUT: self.source}
        predictions = network(z, list(rows.values()), scales=scales)
        return latents({stream: predictions[row] for stream, row in rows.items()}), state


GuidedBy = Literal["rows", "embedding", "nothing"]
"""How guidance reaches a network: unconditional rows beside the conditional ones, a scale it is told, or not at all."""


def usual_guidance(
    guided_by: GuidedBy, *, target: float, source: float = 1.0, inversion: float | None = None
) -> ClassifierFree | EmbeddedGuidance:
    """Build the guidance of a method at its usual scales for a network that takes guidance in one way or another.

    A network that is guided by nothing (FLUX.1-schnell) is evaluated under the prompts alone, whatever the scales; an
    `inversion` scale of 0 means the empty prompt where rows are guided, and the scale 0 where it is told.
    """
    if guided_by == "embedding":
        return EmbeddedGuidance(target, source, inversion)
    if guided_by == "nothing":
        return ClassifierFree(1.0, 1.0, 1.0)
    return ClassifierFree(target, source, inversion)
