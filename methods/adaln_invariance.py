"""AdaLN invariance control and value injection: what the target's row borrows from the source's in a joint transformer.

Xu, Jiang, Hu, Luo, et al.: Unveil Inversion and Invariance in Flow Transformer for Versatile Image Editing (CVPR 2025,
arXiv 2411.15843). In every block but the last, at the text positions p that source and target prompt share,

    AdaLN(text features)_target[p] <- AdaLN(text features)_source[map(p)]

after normalisation, scale and shift, and before queries, keys and values are formed from them; the gate and what
follows attention stay the target's own. The copied features carry the modulation by the source's pooled text. Value
injection takes the source's values at all positions instead, for the first few steps.

Source: FTEdit (442ef0f), whose "attention" control passes queries and keys through. The code counts to SD3.5-large's
37 blocks; here it is all but the last. The last block normalises the text in another way, as it has no text output.
FLUX has no official version; there the same is done in the double-stream blocks and, at the text's positions, in the
single-stream blocks: experimental.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from framework.context import Context
from framework.control import Control
from framework.errors import Checks
from framework.step import COND, Need, Rows, Segment, Site
from methods.control_rows import Executed, images_of, row_pairs, with_rows
from methods.token_alignment import aligned_ids, window_bounds

Pad = Literal["own_position", "source_padding"]


def token_map(source: Sequence[Segment], target: Sequence[Segment], pad: Pad) -> tuple[list[int], list[int]]:
    """Map every text position of a target prompt to the source's, tokenizer by tokenizer.

    Global alignment of token ids with start and end tokens; prompts are cut to what the encoder sees. Padding positions
    of the target take the source's feature of the same position, also where the source has a word there, so that words
    that an edit deletes leak back in; "source_padding" gives those the source's first padding position instead (its
    end token where it has no padding).

    Args:
        source, target: The network's text positions under the two prompts; see `Backbone.segments`.
        pad: What padding positions take.

    Returns:
        The source position of every target position, -1 for tokens that the source does not have, and 1 where there
        is one, [L] each.
    """
    positions: list[int] = []
    shared: list[int] = []
    for x, y in zip(source, target, strict=True):
        mapper, kept = aligned_ids(x.ids, y.ids, y.length)
        if pad == "source_padding":
            padding = min(len(x.ids), x.length - 1)
            mapper = [max(p, padding) if k >= len(y.ids) else p for k, p in enumerate(mapper)]
        positions += [p if p < 0 else y.start + p for p in mapper]
        shared += kept
    return positions, shared


class _Maps(NamedTuple):
    """Token maps of a batch: source position and whether there is one, [B, L] each; steps of the schedule; text."""

    positions: Tensor
    shared: Tensor
    steps: int
    text: int


@dataclass(frozen=True)
class AdaLNInvariance(Control):
    """Gives the target the source's modulated text features for the words that both prompts have.

    Attributes:
        steps: Share f of the steps, [0, f] or [from, to], counted on the whole schedule, in [0, 1]; paper default 1.
        pad: What the target's padding positions take; see `token_map`. "own_position" is the authors'.
    """

    steps: float | Sequence[float] = 1.0
    pad: Pad = "own_position"

    needs: ClassVar = frozenset({Need.SOURCE})

    def __post_init__(self) -> None:
        checks = Checks("AdaLNInvariance")
        check_window(checks, "steps", self.steps)
        checks.one_of("pad", self.pad, get_args(Pad))
        checks.done()

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> _Maps:
        """Align the prompts of every image."""
        del latent
        pairs = zip(ctx.texts.source, ctx.texts.target, strict=True)
        maps = [token_map(ctx.segments(source), ctx.segments(target), self.pad) for source, target in pairs]
        positions, shared = (torch.tensor([both[k] for both in maps]) for k in (0, 1))
        text = max((site.text for site in sites), default=0)
        encoded = next(iter(ctx.conditions.values())).text
        where = "cpu" if encoded is None else encoded.device
        return _Maps(positions.clamp(min=0).to(where), shared.bool().to(where), ctx.schedule.num_steps, text)

    def describe(self, ctx: Context, image: int) -> Mapping[str, Any]:
        """Return the token map of one image, -1 for new tokens."""
        source, target = ctx.segments(ctx.texts.source[image]), ctx.segments(ctx.texts.target[image])
        positions, _ = token_map(source, target, self.pad)
        return {"token_map": positions}

    def layers(self, names: Sequence[str]) -> Collection[str]:
        """Choose the text's adaptive norm of every block but one without text output, and FLUX's single blocks."""
        double = [name for name in names if name.endswith(".norm1_context")]
        single = [name for name in names if re.fullmatch(r"single_transformer_blocks\.\d+\.norm", name)]
        return [*double, *single] if single else double[:-1]

    def active(self, i: int, state: Any) -> bool:
        """Act inside the window of the schedule's steps."""
        maps: _Maps = state
        start, end = window_bounds(_pair(self.steps), maps.steps)
        return start <= i < end

    def output(self, layer: str, rows: Rows, x: Tensor, i: int, state: Any) -> Tensor:
        """Exchange the shared words' features in the target's conditional rows."""
        del layer, i
        maps: _Maps = state
        pairs = row_pairs(rows, (COND,))
        if not pairs:
            return x
        ((target, source),) = pairs
        images = images_of(rows, target)
        text = slice(0, maps.text)  # FLUX's single blocks carry the picture behind the text
        index = maps.positions[images, :, None].expand(-1, -1, x.shape[-1])
        borrowed = x[source][:, text].gather(1, index)
        own = x[target]
        words = torch.where(maps.shared[images, :, None], borrowed, own[:, text])
        return with_rows(x, (target, torch.cat([words, own[:, maps.text :]], 1)))


@dataclass(frozen=True)
class ValueInjection(Control):
    """Gives the target the source's values in joint attention, of text and picture, in all blocks but the last.

    Attributes:
        steps: Share of the steps, in [0, 1], counted from the first executed one (the authors' counter is not advanced
            over skipped steps); 0.15 for PIE-Bench, 0.1 for poses, 0 for written text.
    """

    steps: float = 0.15

    needs: ClassVar = frozenset({Need.SOURCE})

    def __post_init__(self) -> None:
        checks = Checks("ValueInjection")
        check_window(checks, "steps", self.steps)
        checks.done()

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> tuple[Executed, int]:
        """Count from the first executed step."""
        del sites, latent
        return Executed(), ctx.schedule.num_steps

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Choose joint attention of all blocks but the last."""
        return [site for site in sites if site.kind == "joint"][:-1]

    def active(self, i: int, state: Any) -> bool:
        """Act in the first steps."""
        executed, steps = state
        return bool(executed.step(i) < int(self.steps * steps))

    def qkv(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, i: int, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange the values of the target's conditional rows."""
        del site, i, state
        return q, k, with_rows(v, *((target, v[source]) for target, source in row_pairs(rows, (COND,))))


def check_window(checks: Checks, name: str, window: float | Sequence[float]) -> None:
    """Refuse a window of steps that is not [from, to] with 0 <= from <= to <= 1."""
    if not isinstance(window, (int, float)) and len(window) != 2:
        checks.require(False, f"{name}={list(window)} is no window; give a share of the steps or [from, to].")
        return
    start, end = _pair(window)
    checks.require(
        0 <= start <= end <= 1, f"{name}={window} is no part of the steps; give [from, to] with 0 <= from <= to <= 1."
    )


def _pair(window: float | Sequence[float]) -> tuple[float, float]:
    return (0.0, float(window)) if isinstance(window, (int, float)) else (float(window[0]), float(window[1]))
