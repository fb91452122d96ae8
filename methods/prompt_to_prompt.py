"""Prompt-to-Prompt: the target keeps the source's attention where and while it should keep the source's layout.

Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or: Prompt-to-Prompt Image Editing with Cross Attention Control (ICLR
2023, arXiv 2208.01626), section 3.2, in the form of the authors' null-text notebook (google/prompt-to-prompt).

    P = Edit(P_source, P_target)        cross-attention of the conditional target rows, word by word while in its window
    replace     P_source M              M maps words to words (prompts of equally many words)
    refine      P_source M + P_target (1 - a)     a = 1 where a target token is aligned with a source token
    reweight    Edit * c                c scales the maps of chosen words

and P = P_source for self-attention. All of this is linear in the two P with matrices on the side of the text, so that

    P V = P_source (A V) + P_target (B V)

is two fused attentions (one where A or B vanish), and self-attention is fused attention with the source's queries and
keys: no map is ever formed. Rows of an edited map need not sum to 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from framework.context import Context
from framework.control import Attend, Control
from framework.errors import Checks, SettingsError
from framework.step import COND, Need, Row, Rows, Site, Stream
from methods.control_rows import Executed, images_of, row_pairs, with_rows
from methods.token_alignment import (
    Window,
    WordRule,
    positions_of,
    refinement_matrix,
    replacement_mapper,
    token_table,
    window_bounds,
    word_positions,
    word_windows,
)

Edit = Literal["replace", "refine", "reweight"]


@dataclass(frozen=True)
class WordMaps:
    """How the maps of B targets come from those of their sources; CPU, float64.

    Attributes:
        mapper: [B, L, L], source positions to target positions.
        own: [B, L], share of the target's own map in the edited one.
        equalizer: [B, L], factors of the edited maps.
        windows: [B, N + 1, L], 1 where and when a position is edited.
    """

    mapper: Tensor
    own: Tensor
    equalizer: Tensor
    windows: Tensor

    def matrices(self, step: int) -> tuple[Tensor, Tensor]:
        """A [B, L, L] and the diagonal of B [B, L] of one executed step; see the head of this file."""
        window = self.windows[:, step]
        scale = window * self.equalizer
        return self.mapper * scale[:, None, :], self.own * scale + 1 - window


@dataclass
class PromptToPromptState:
    """One edit: its maps, and the matrices of the running step on the network's device."""

    maps: WordMaps
    edited: Sequence[bool]
    self_window: tuple[int, int]
    self_sites: frozenset[Site]
    executed: Executed = field(default_factory=Executed)
    step: int | None = None
    ours: Tensor | None = None
    theirs: Tensor | None = None

    def replaces(self, i: int) -> bool:
        """Whether self-attention is the source's in interval i."""
        return self.self_window[0] <= self.executed.step(i) < self.self_window[1]

    def edits(self, i: int) -> bool:
        """Whether any word's map is edited in interval i."""
        step = self.executed.step(i)
        return step < len(self.edited) and self.edited[step]

    def matrices(self, i: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """A [B, L, L] and B [B, L, 1], or None where it vanishes, in dtype and on the device of `like`."""
        step = self.executed.step(i)
        if self.step != step or self.theirs is None or self.theirs.dtype != like.dtype:
            theirs, ours = self.maps.matrices(step)
            self.step, self.theirs = step, theirs.to(like)
            self.ours = ours[..., None].to(like) if ours.count_nonzero() else None
        return self.theirs, self.ours


@dataclass(frozen=True)
class PromptToPrompt(Control):
    """Prompt-to-Prompt attention control of every target by its source.

    Windows are shares of all N steps, counted from the first step that is executed.

    Attributes:
        edit: "replace" (prompts of equally many words), "refine" (any change of words), or "reweight" (the source's
            maps, scaled; the prompts should be the same).
        cross: Window of cross-attention: f for [0, f], a pair, or word of the target -> either (`default_` for all
            other words, by default all steps). Bounds are int(share * (N + 1)). Authors: 0.8; PIE-Bench 0.4.
        self_attention: Window of self-attention, bounds int(share * N). Authors: 0.4 to 0.7; PIE-Bench 0.6.
        equalizer: Word of the target -> factor of its map, any sign. A sample's own "equalizer" comes before.
        blend_factor: Factor of the map of the target word that a sample says the edit is about (its blended word);
            samples without one, or whose prompt does not have it, are not reweighted. PIE-Bench 2.
        self_max_positions: Self-attention with more positions is left alone (authors 32 * 32, in the oldest notebook
            16 * 16); None for a quarter of the latent's.
        word_rule: How words are found among tokens, see `methods.token_alignment.WordRule`.
        fix_tail: See `replacement_mapper`.
    """

    edit: Edit = "refine"
    cross: Window | Mapping[str, Window] = 0.8
    self_attention: Window = 0.4
    equalizer: Mapping[str, float] = field(default_factory=dict)
    blend_factor: float = 1.0
    self_max_positions: int | None = 1024
    word_rule: WordRule = "lengths"
    fix_tail: bool = False

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE})
    streams: ClassVar[tuple[Stream, ...]] = (Stream.SOURCE,)

    def __post_init__(self) -> None:
        checks = Checks("PromptToPrompt")
        checks.one_of("edit", self.edit, ("replace", "refine", "reweight"))
        checks.one_of("word_rule", self.word_rule, ("lengths", "offsets"))
        named = self.cross if isinstance(self.cross, Mapping) else {"": self.cross}
        for word, window in named.items():
            check_window(checks, f"cross[{word!r}]" if word else "cross", window)
        check_window(checks, "self_attention", self.self_attention)
        for word, factor in self.equalizer.items():
            checks.between(f"equalizer[{word!r}]", factor, -float("inf"), float("inf"))
        checks.between("blend_factor", self.blend_factor, -float("inf"), float("inf"))
        if self.self_max_positions is not None:
            checks.between("self_max_positions", self.self_max_positions, 1, float("inf"))
        checks.done()

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> PromptToPromptState:
        """Align the prompts of every image.

        Raises:
            SettingsError: A word is not in its prompt, "replace" has prompts of different lengths, or no layer has
                self-attention of the allowed size.
        """
        steps = ctx.schedule.num_steps
        limit = latent[0] * latent[1] // 4 if self.self_max_positions is None else self.self_max_positions
        sizes = {site: site.size(latent) for site in sites if site.kind == "self"}
        small = frozenset(site for site, (rows, columns) in sizes.items() if rows * columns <= limit)
        window = window_bounds(self.self_attention, steps)
        if window[0] < window[1] and sizes and not small:
            least = min(rows * columns for rows, columns in sizes.values())
            raise SettingsError(
                [
                    f"PromptToPrompt: self_max_positions={limit} leaves no self-attention, whose smallest maps have "
                    f"{least} positions here; give at least {least}, or self_attention=0."
                ]
            )
        maps = self.word_maps(ctx)
        edited = maps.windows.amax((0, 2)) > 0
        return PromptToPromptState(maps, edited.tolist(), window, small)

    def word_maps(self, ctx: Context, images: Sequence[int] | None = None) -> WordMaps:
        """Build mappers, equalizers and windows of all images, or of some; see `begin`."""
        text = ctx.conditions[Row(Stream.TARGET, COND)].text
        if text is None:
            raise SettingsError(["PromptToPrompt needs a network that is conditioned on a prompt's tokens."])
        length, steps = text.shape[1], ctx.schedule.num_steps
        mappers, owns, equalizers, windows = [], [], [], []
        for b in range(len(ctx.texts.target)) if images is None else images:
            source, target = ctx.texts.source[b], ctx.texts.target[b]
            mapper, own = self._mapper(source, target, ctx, length)
            tokens = ctx.tokens(target)
            equalizer = torch.ones(length, dtype=torch.float64)
            for word, factor in self._factors(ctx, b).items():
                equalizer[positions_of(target, word, tokens, length, self.word_rule, "equalizer")] = factor
            mappers.append(mapper)
            owns.append(own)
            equalizers.append(equalizer)
            windows.append(word_windows(target, self.cross, steps, tokens, length, rule=self.word_rule))
        return WordMaps(torch.stack(mappers), torch.stack(owns), torch.stack(equalizers), torch.stack(windows))

    def _factors(self, ctx: Context, image: int) -> dict[str, float]:
        """Return the factors of one image's words, the sample's own last."""
        target = ctx.texts.target[image]
        word = ctx.blend[image][1] if image < len(ctx.blend) else None
        known = bool(word) and bool(word_positions(target, str(word), ctx.tokens(target), self.word_rule))
        factors = {str(word): self.blend_factor} if known and self.blend_factor != 1 else {}
        own = ctx.extra[image].get("equalizer", {}) if image < len(ctx.extra) else {}
        return {**factors, **self.equalizer, **_mapping(own)}

    def describe(self, ctx: Context, image: int) -> Mapping[str, Any]:
        """Say how the words of one image's prompts correspond; see `token_table`."""
        maps = self.word_maps(ctx, [image])
        source, target = ctx.texts.source[image], ctx.texts.target[image]
        table = token_table(ctx.tokens(source), ctx.tokens(target), maps.mapper[0], maps.own[0], maps.equalizer[0])
        return {"edit": self.edit, "target_tokens": table}

    def _mapper(self, source: str, target: str, ctx: Context, length: int) -> tuple[Tensor, Tensor]:
        """Return the mapper [L, L] and the share of the target's own map [L]."""
        if self.edit == "reweight":
            return torch.eye(length, dtype=torch.float64), torch.zeros(length, dtype=torch.float64)
        if self.edit == "replace":
            mapper = replacement_mapper(source, target, ctx.tokens, length, rule=self.word_rule, fix_tail=self.fix_tail)
            return mapper, torch.zeros(length, dtype=torch.float64)
        return refinement_matrix(source, target, ctx.tokens, length)

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Act at all cross-attention, and at self-attention where it is small enough."""
        return [site for site in sites if site.kind in ("self", "cross")]

    def active(self, i: int, state: Any) -> bool:
        """Act while some window is open."""
        now: PromptToPromptState = state
        return now.edits(i) or now.replaces(i)

    def attention(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, i: int, state: Any
    ) -> Tensor:
        """Attend as the source does, for the conditional rows of the target; see the head of this file."""
        now: PromptToPromptState = state
        pairs = row_pairs(rows, (COND,))
        wanted = now.edits(i) if site.kind == "cross" else now.replaces(i) and site in now.self_sites
        if not pairs or not wanted:
            return attend(q, k, v)
        ((target, source),) = pairs
        by_source = (with_rows(q, (target, q[source])), with_rows(k, (target, k[source])))
        if site.kind == "self":
            return attend(*by_source, v)
        theirs, ours = now.matrices(i, v)
        images = images_of(rows, target)
        first = attend(*by_source, with_rows(v, (target, theirs[images, None] @ v[target])))
        if ours is None:
            return first
        second = attend(q, k, with_rows(v, (target, ours[images, None] * v[target])))
        return with_rows(first, (target, first[target] + second[target]))


def check_window(checks: Checks, name: str, window: Window) -> None:
    """Require a share of the steps, or two in ascending order."""
    pair = (0.0, window) if isinstance(window, (int, float)) else tuple(window)
    if not checks.require(len(pair) == 2, f"{name}={window} is not a window; give one share of the steps, or two."):
        return
    fits = [checks.between(name, share, 0, 1, "a share of the steps, not a number of steps") for share in pair]
    if all(fits):
        checks.require(pair[0] <= pair[1], f"{name}={window} ends before it begins; give the earlier share first.")


def _mapping(value: object) -> Mapping[str, float]:
    if not isinstance(value, Mapping):
        raise SettingsError([f"a sample's equalizer is {value!r}; give an object of words and factors."])
    return {str(word): float(factor) for word, factor in value.items()}
