"""What an edit knows about its samples, put together: prompts by row, conditions, tokens, masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from framework.backbones.base import Backbone
from framework.context import Context, Draw, Prompt, Texts
from framework.data.sample import EditSample
from framework.guidance import Guidance
from framework.schedule import Schedule
from framework.step import COND, UNCOND, Condition, Latents, Row, Step, Stream


def context_of(
    samples: Sequence[EditSample],
    condition: Callable[[Sequence[Prompt]], Condition],
    *,
    backbone: Backbone,
    guidance: Guidance,
    schedule: Schedule,
    streams: Sequence[Stream],
    draw: Draw,
    masks: Tensor | None = None,
    on_invert_step: Callable[[Step], Latents | None] | None = None,
) -> Context:
    """Put together what the parts of an edit may know about its samples.

    Args:
        samples: One per row of latents; a sample of several draws is repeated.
        condition: Prompts, one per sample -> their condition.
        backbone: Whose tokens these are.
        guidance: Which may have prompts of its own.
        schedule, streams, draw, masks, on_invert_step: See `Context`.
    """
    texts = Texts(
        tuple(sample.source for sample in samples),
        tuple(sample.target for sample in samples),
        tuple(sample.negative for sample in samples),
    )
    empty = ("",) * len(samples)
    rows: dict[Row, Sequence[Prompt]] = {
        Row(Stream.SOURCE, COND): texts.source,
        Row(Stream.SOURCE, UNCOND): empty,
        Row(Stream.TARGET, COND): texts.target,
        Row(Stream.TARGET, UNCOND): texts.negative,
        Row(Stream.LAYOUT, COND): texts.source,
        Row(Stream.LAYOUT, UNCOND): empty,
        **guidance.prompts(samples),
    }
    # Rows with equal prompts share one condition, by which the network knows that it need not evaluate both.
    shared = {tuple(prompts): condition(prompts) for prompts in rows.values()}
    return Context(
        schedule=schedule,
        conditions={row: shared[tuple(prompts)] for row, prompts in rows.items()},
        texts=texts,
        streams=tuple(streams),
        draw=draw,
        masks=masks,
        extra=[sample.extra for sample in samples],
        blend=[(sample.blend_source, sample.blend_target) for sample in samples],
        token_spans=backbone.token_spans,
        tokens=backbone.tokens,
        segments=backbone.segments,
        on_invert_step=on_invert_step,
    )


def latent_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Bring masks [B, 1, H, W] of pictures to the rows and columns of latents, by the nearest pixel."""
    return F.interpolate(masks, size=tuple(size), mode="nearest")
