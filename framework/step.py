"""What one step of an inversion or an edit sees: named rows, latents by stream, places in the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from framework.schedule import Level, Schedule, prediction_to_x0

if TYPE_CHECKING:  # upward, for annotations only
    from framework.record import Record


class Need(Enum):
    """What a part or a callback asks of the parts that it is combined with."""

    SOURCE = "a source row beside the target"
    TRAJECTORY = "the latents of the inversion"
    NOISE_MAPS = "noise maps"
    PREDICTIONS = "predictions kept by the inversion"
    ATTENTION = "attention probabilities"
    GRAD = "gradients through the network"
    FEATURES = "attention features kept by the inversion"
    GUIDANCE_EMBEDDING = "a network that is told its guidance scale"


class Stream(Enum):
    """What a latent is for: the source being walked back, the edit, or InfEdit's layout branch."""

    SOURCE = "source"
    TARGET = "target"
    LAYOUT = "layout"


COND = "cond"
"""Branch of a stream's own prompt."""
UNCOND = "uncond"
"""Branch of a stream's empty or negative prompt."""


def concept(index: int) -> str:
    """Name the branch of the index-th edit concept (semantic guidance)."""
    return f"concept-{index}"


class Token(NamedTuple):
    """One token of a prompt.

    Attributes:
        id: Number in the tokenizer's vocabulary.
        text: What this token alone decodes to, without surrounding spaces.
        start, end: Characters of the prompt that it stands for.
    """

    id: int
    text: str
    start: int
    end: int


class Segment(NamedTuple):
    """The part of a network's text positions that one tokenizer fills.

    Attributes:
        start: First position.
        length: Positions, padding included.
        ids: Numbers of a prompt's tokens in it, start and end tokens included, padding left out; at most `length`.
    """

    start: int
    length: int
    ids: tuple[int, ...]


class Row(NamedTuple):
    """Name of a block of batch rows: one stream under one prompt, one row per image."""

    stream: Stream
    branch: str


@dataclass(frozen=True)
class Rows:
    """Which rows of a network call are what. Blocks follow each other, each with one row per latent of its stream.

    Attributes:
        blocks: Names of the blocks in the order of the batch.
        counts: Rows in each block.
        first_image: Index within the batch of the image of each block's first row (above 0 where a call is split).
        stage: Position of this call among the calls of its step, from 0 (a solver's second call is 1).
    """

    blocks: tuple[Row, ...]
    counts: tuple[int, ...]
    first_image: int = 0
    stage: int = 0

    @property
    def total(self) -> int:
        """Number of rows of the call."""
        return sum(self.counts)

    def of(self, stream: Stream, branch: str) -> slice | None:
        """Return where a block lies in the batch, or None if the call has no such block."""
        start = 0
        for block, count in zip(self.blocks, self.counts, strict=True):
            if block == (stream, branch):
                return slice(start, start + count)
            start += count
        return None


@dataclass(frozen=True)
class Latents:
    """One tensor per stream, each [B, ...] with one row per image; streams that take no part are None."""

    target: Tensor | None = None
    source: Tensor | None = None
    layout: Tensor | None = None

    def __getitem__(self, stream: Stream) -> Tensor:
        value: Tensor | None = getattr(self, stream.value)
        if value is None:
            raise KeyError(f"no {stream.value} stream among {[s.value for s in self.streams()]}")
        return value

    def streams(self) -> tuple[Stream, ...]:
        """Return the streams that take part, source first."""
        order = (Stream.SOURCE, Stream.TARGET, Stream.LAYOUT)
        return tuple(stream for stream in order if getattr(self, stream.value) is not None)

    def items(self) -> Iterator[tuple[Stream, Tensor]]:
        """Iterate over streams and their tensors."""
        return ((stream, self[stream]) for stream in self.streams())

    def map(self, function: Callable[..., Tensor], *others: Latents) -> Latents:
        """Apply a function stream by stream; `others` must have the same streams."""
        return latents(
            {stream: function(value, *(other[stream] for other in others)) for stream, value in self.items()}
        )

    def with_stream(self, stream: Stream, value: Tensor) -> Latents:
        """Return a copy in which one stream is replaced."""
        return replace(self, **{stream.value: value})


def latents(streams: Mapping[Stream, Tensor]) -> Latents:
    """Build Latents from a mapping."""
    return Latents(**{stream.value: value for stream, value in streams.items()})


def same_start(z: Tensor, streams: Sequence[Stream]) -> Latents:
    """Let every stream start at the same latent."""
    return latents(dict.fromkeys(streams, z))


@dataclass(frozen=True)
class Condition:
    """What conditions the network, one row per image. Tensors may be None for networks that take none.

    Attributes:
        text: [B, L, D] token features.
        pooled: [B, P] pooled text features (SDXL, SD3, FLUX).
        extra: Further row-wise tensors by the backbone's own names (time ids, guidance embeddings).
    """

    text: Tensor | None = None
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] | None = None

    def told(self, scale: float) -> Condition:
        """Return a copy that tells the network a guidance scale, one number per row under the name "guidance"."""
        assert self.text is not None
        scales = torch.full(self.text.shape[:1], scale, dtype=torch.float32, device=self.text.device)
        return replace(self, extra={**(self.extra or {}), "guidance": scales})

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are taken with respect to any of the tensors."""
        values = (self.text, self.pooled, *(self.extra or {}).values())
        return any(value is not None and value.requires_grad for value in values)

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to every tensor."""
        extra = None if self.extra is None else {key: function(value) for key, value in self.extra.items()}
        return Condition(
            None if self.text is None else function(self.text),
            None if self.pooled is None else function(self.pooled),
            extra,
        )

    def repeat(self, times: int) -> Condition:
        """Repeat the block of rows `times` times, [B, ...] -> [times B, ...]."""
        return self.map(lambda x: x.repeat(times, *([1] * (x.ndim - 1))))

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Join row-wise; all must have the same fields."""

        def join(values: Sequence[Any]) -> Tensor | None:
            return None if values[0] is None else torch.cat(list(values))

        first = conditions[0].extra
        extra = None if first is None else {key: torch.cat([(c.extra or {})[key] for c in conditions]) for key in first}
        return Condition(join([c.text for c in conditions]), join([c.pooled for c in conditions]), extra)


Conditions = Mapping[Row, Condition]
"""Condition of every block of rows that a guidance may ask for."""

Predictions = Mapping[Row, Tensor]
"""Prediction of every block of rows of a call, in the schedule's form."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an inversion or of denoising, as hooks see it. Tensors are live: copy what must last, change nothing.

    Attributes:
        index: Position in this loop, from 0.
        total: Length of this loop.
        interval: Interval of the schedule, from 0 (noisiest) to T - 1, in both directions.
        level, level_next: Noise levels before and after the step.
        z, z_next: Latents before and after.
        prediction: Guided prediction used for the update, in the schedule's form (epsilon or velocity).
        noise: [B, ...] noise map extracted or injected at this step, or None.
        schedule: The schedule that the loop runs on.
        record: What the inversion found, while denoising; None while inverting.
        found: What the guidance found out, by name, [B, ...] each (masks, semantic guidance); empty while inverting.
    """

    index: int
    total: int
    interval: int
    level: Level
    level_next: Level
    z: Latents
    z_next: Latents
    prediction: Latents
    noise: Tensor | None
    schedule: Schedule
    record: Record | None = None
    found: Mapping[str, Tensor] = field(default_factory=dict)

    def x0(self) -> Latents:
        """Compute the clean estimates of this step."""
        return self.z.map(lambda z, p: prediction_to_x0(z, p, self.level, self.schedule.form), self.prediction)


SiteKind = Literal["self", "cross", "joint"]
Place = Literal["down", "mid", "up", "joint", "single"]


@dataclass(frozen=True)
class Site:
    """One attention layer of a network, by the order in which it is called.

    Attributes:
        name: Dotted name of the attention module in the network.
        kind: Attention of the picture to itself, to the text, or both jointly.
        place: Part of the network.
        index: Position among all attention layers in call order, from 0.
        order: Position among the layers of the same kind in call order, from 0 (the papers' layer numbers).
        block: Index of the resolution stage within its place, from 0 in call order.
        scale: Side of the latent divided by the side of this layer's map (1, 2, 4, ...).
        text: Text positions among this layer's queries and keys; 0 where text comes in as keys alone, or not at all.
        text_first: Whether those positions come before the picture's.
        width: Channels of queries, keys and values, all heads together; 0 where the network does not say.
    """

    name: str
    kind: SiteKind
    place: Place
    index: int
    order: int
    block: int
    scale: int
    text: int = 0
    text_first: bool = False
    width: int = 0

    @property
    def text_part(self) -> slice:
        """Where the text's positions lie in joint queries, keys and values."""
        return slice(0, self.text) if self.text_first or not self.text else slice(-self.text, None)

    @property
    def image_part(self) -> slice:
        """Where the picture's positions lie in queries, keys and values."""
        return slice(self.text, None) if self.text_first or not self.text else slice(0, -self.text)

    def size(self, latent: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of this layer's map for a latent of the given rows and columns (rounded up per halving)."""
        rows, columns = latent[-2], latent[-1]
        scale = self.scale
        while scale > 1:
            rows, columns, scale = (rows + 1) // 2, (columns + 1) // 2, scale // 2
        return rows, columns
