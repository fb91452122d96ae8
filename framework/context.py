"""What the parts of an edit may know about it, and where its randomness comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framework.schedule import Level, Schedule
from framework.step import Conditions, Latents, Segment, Step, Stream, Token

if TYPE_CHECKING:  # for annotations only
    from framework.record import Record

Draw = Callable[[str, int], Tensor]
"""Purpose and count -> [count, B, ...] standard normal draws."""


@dataclass(frozen=True)
class MovedPrompt:
    """A prompt whose features are moved along an edit direction, the difference of two sets' mean features.

    Attributes:
        text: The prompt itself.
        away, towards: Sentences about what is there, and about what shall be there; at least one each.
    """

    text: str
    away: tuple[str, ...]
    towards: tuple[str, ...]


Prompt = str | MovedPrompt
"""What a row of the network is conditioned on."""


@dataclass(frozen=True)
class Texts:
    """Prompts of a batch, one per image each; edit concepts and the like are in the samples' `extra`."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """One batch that is being inverted or edited.

    Attributes:
        schedule: The noise levels of the edit.
        conditions: Text (and more) for every block of rows.
        texts: The prompts themselves.
        streams: Streams of the denoising loop.
        draw: Standard normal draws, see `noise`.
        masks: [B, 1, h, w] at the latent's size in [0, 1], 1 = edit; None when no sample has a mask.
        extra: What the manifest says beside the known fields, per image.
        blend: Words of source and target prompt that the edit is about, as far as the samples name them, per image.
        token_spans: Prompt -> the characters that each of its tokens stands for; see `Backbone.token_spans`.
        tokens: Prompt -> its tokens; see `Backbone.tokens`.
        segments: Prompt -> the network's text positions by tokenizer; see `Backbone.segments`.
        on_invert_step: Tells the hooks about a step; returns latents that replace the result, or None.
        record: What the inversion found, when controls begin; None before.
    """

    schedule: Schedule
    conditions: Conditions
    texts: Texts
    streams: tuple[Stream, ...]
    draw: Draw
    masks: Tensor | None = None
    extra: Sequence[Mapping[str, object]] = ()
    blend: Sequence[tuple[str | None, str | None]] = ()
    token_spans: Callable[[str], Sequence[tuple[int, int]]] = field(default=lambda text: (), repr=False)
    tokens: Callable[[str], Sequence[Token]] = field(default=lambda text: (), repr=False)
    segments: Callable[[str], Sequence[Segment]] = field(default=lambda text: (), repr=False)
    on_invert_step: Callable[[Step], Latents | None] | None = field(default=None, repr=False)
    record: Record | None = field(default=None, repr=False)

    def noise(self, purpose: str, count: int) -> Tensor:
        """Draw standard normal noise that depends on the run's seed, the image and the purpose alone.

        Args:
            purpose: What it is for; equal words give equal noise.
            count: How many draws per image.

        Returns:
            [count, B, ...] in the latents' shape, dtype and device.
        """
        return self.draw(purpose, count)

    def invert_step(
        self,
        index: int,
        interval: int,
        levels: tuple[Level, Level],
        *,
        z: Tensor,
        z_next: Tensor,
        prediction: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Report one step of an inversion to the hooks and return the latent to go on with.

        Args:
            index: Position in the inversion's own loop, from 0.
            interval: Interval of the schedule, from 0 (noisiest).
            levels: Noise levels before and after the step.
            z, z_next, prediction: [B, ...] of the source.
            noise: [B, ...] noise map that was extracted, if any.
        """
        if self.on_invert_step is None:
            return z_next
        step = Step(
            index,
            self.schedule.num_steps,
            interval,
            *levels,
            Latents(source=z),
            Latents(source=z_next),
            Latents(source=prediction),
            noise,
            self.schedule,
        )
        replaced = self.on_invert_step(step)
        return z_next if replaced is None else replaced[Stream.SOURCE]


def seeded_draw(seed: int, ids: Sequence[str], shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Draw:
    """Return draws of one generator per (seed, id, purpose), made on the CPU in float32.

    An image's noise therefore depends neither on its batch nor on rank, number of ranks, device or resumption.

    Args:
        seed: Seed of the run.
        ids: One id per image (with the number of the draw where an image is drawn several times).
        shape: Shape of one latent, without the axis of images.
        device, dtype: Where the draws are moved to.
    """

    def draw(purpose: str, count: int) -> Tensor:
        rows = []
        for name in ids:
            digest = hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            rows.append(torch.randn(count, *shape, generator=generator))
        return torch.stack(rows, 1).to(device, dtype)

    return draw
