"""Local blend: outside the region that chosen words attend to, the edit is the source.

Hertz et al.: Prompt-to-Prompt (ICLR 2023, arXiv 2208.01626), section 4 "Local editing", in the form of the authors'
null-text notebook. After every step

    map   = sum over steps of the maps of the words, mean over heads and layers
    mask  = [max-pooled map / its maximum > threshold], joined with the source's mask
    z     = z_source + mask (z_target - z_source)

The words' columns come out of the attention itself: indicator columns beside the values, [V, w] -> [P V, P w].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.context import Context
from framework.control import Attend, Control
from framework.errors import Checks, SettingsError
from framework.step import COND, Latents, Need, Row, Rows, Site, Stream
from methods.control_rows import Executed, images_of, row_pairs
from methods.token_alignment import WordRule, positions_of

Words = Sequence[Sequence[str] | str]
"""Words of the source prompt and words of the target prompt."""

_COLUMNS = 8
"""Columns added to the values; fused kernels want widths in multiples of 8."""


@dataclass
class LocalBlendState:
    """Maps of one edit.

    Attributes:
        words: [B, 2, L, K] indicators of words; axis 1 source and target, axis 3 words and excluded words.
        blended: [B] booleans, which images have a region; the others are left whole.
        start: Executed steps without blend.
        steps: N.
        latent: Rows and columns of the latents.
        several: Whether more than one layer is read.
        now: Maps of the running step by first image and site, [images, 2, K, rows, columns].
        total: [B, 2, K, rows, columns] sum over steps.
        executed: Counts the steps.
        last: First image and site of the last call.
    """

    words: Tensor
    blended: Tensor
    start: int
    steps: int
    latent: tuple[int, int]
    several: bool
    now: dict[tuple[int, Site], Tensor] = field(default_factory=dict)
    total: Tensor | None = None
    executed: Executed = field(default_factory=Executed)
    last: tuple[int, Site] | None = None

    def add_step(self) -> None:
        """Add the running step's maps to the sum, mean over layers."""
        if not self.now:
            return
        parts = []
        for first in sorted({first for first, _ in self.now}):
            parts.append(torch.stack([maps for key, maps in self.now.items() if key[0] == first]).mean(0))
        maps = torch.cat(parts)
        self.total = maps if self.total is None else self.total + maps
        self.now.clear()
        self.last = None


@dataclass(frozen=True)
class LocalBlend(Control):
    """Keeps the edit inside the region of some words.

    It sees the maps as other controls leave them, and therefore stands around those wherever it is listed.

    Attributes:
        words: Words of the source and words of the target that mark the region; None takes every sample's own
            "blend_words", or the words that it says the edit is about (blended words of PIE-Bench).
        exclude: The same for a region that is taken out again ("substruct words" of the authors), or None.
        threshold: Share of the maximum above which a position belongs to the words, in [0, 1].
        exclude_threshold: The same for the excluded words.
        start: Share of the steps without blend, int(start * N) steps; 1 never blends.
        scale: Layers whose maps are this many times smaller than the latents, per side, are read.
        missing: What becomes of a sample without blend words, or whose prompts do not have them: "refuse", or
            "unblended" (left whole, as PIE-Bench's scripts do with an empty blended word; noted with the sample).
        word_rule: See `methods.token_alignment.WordRule`.
    """

    words: Words | None = None
    exclude: Words | None = None
    threshold: float = 0.3
    exclude_threshold: float = 0.3
    start: float = 0.2
    scale: int = 4
    missing: Literal["refuse", "unblended"] = "refuse"
    word_rule: WordRule = "lengths"

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE})
    streams: ClassVar[tuple[Stream, ...]] = (Stream.SOURCE,)

    @property
    def outermost(self) -> bool:
        """Whether it stands around other controls: always."""
        return True

    def __post_init__(self) -> None:
        checks = Checks("LocalBlend")
        for name in ("threshold", "exclude_threshold", "start"):
            checks.between(name, getattr(self, name), 0, 1)
        checks.one_of("scale", self.scale, (1, 2, 4, 8, 16, 32))
        checks.one_of("missing", self.missing, ("refuse", "unblended"))
        checks.one_of("word_rule", self.word_rule, ("lengths", "offsets"))
        for name in ("words", "exclude"):
            value = getattr(self, name)
            two = value is None or (not isinstance(value, str) and len(value) == 2 and all(value))
            checks.require(two, f"{name}={value!r} is not two lists; give words of the source and words of the target.")
        checks.done()

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> LocalBlendState:
        """Find the words of every image.

        Raises:
            SettingsError: An image has no words, or a word is not in its prompt or beyond what the encoder sees.
        """
        text = ctx.conditions[Row(Stream.TARGET, COND)].text
        if text is None:
            raise SettingsError(["LocalBlend needs a network that is conditioned on a prompt's tokens."])
        images, length = len(ctx.texts.target), text.shape[1]
        words = torch.zeros(images, 2, length, 1 if self.exclude is None else 2)
        blended = torch.ones(images, dtype=torch.bool)
        for b in range(images):
            try:
                words[b] = self._indicators(ctx, b, length)
            except SettingsError:
                if self.missing == "refuse":
                    raise
                blended[b] = False
        steps = ctx.schedule.num_steps
        return LocalBlendState(words, blended, int(self.start * steps), steps, latent, len(self.sites(sites)) > 1)

    def _indicators(self, ctx: Context, image: int, length: int) -> Tensor:
        """Mark the words of one image, [2, L, K]; see `LocalBlendState.words`."""
        wanted = [self._words_of(ctx, image), *([] if self.exclude is None else [self.exclude])]
        words = torch.zeros(2, length, len(wanted))
        for kind, lists in enumerate(wanted):
            prompts = (ctx.texts.source[image], ctx.texts.target[image])
            for row, (prompt, entries) in enumerate(zip(prompts, lists, strict=True)):
                for word in _listed(entries):
                    found = positions_of(prompt, word, ctx.tokens(prompt), length, self.word_rule, "blend word")
                    words[row, found, kind] = 1
        return words

    def describe(self, ctx: Context, image: int) -> Mapping[str, Any]:
        """Say by which words one image is blended, or why it is not."""
        text = ctx.conditions[Row(Stream.TARGET, COND)].text
        assert text is not None
        try:
            self._indicators(ctx, image, text.shape[1])
        except SettingsError as error:
            return {"blended": False, "reason": error.problems[0]}
        return {"blended": True, "words": [list(entry) for entry in map(_listed, self._words_of(ctx, image))]}

    def _words_of(self, ctx: Context, image: int) -> Words:
        words: Any = self.words
        if words is None and image < len(ctx.extra):
            words = ctx.extra[image].get("blend_words")
        if words is None and image < len(ctx.blend):
            words = ctx.blend[image]
        if not isinstance(words, Sequence) or isinstance(words, str) or len(words) != 2 or not all(words):
            raise SettingsError(
                [
                    f"LocalBlend: there are no blend words (got {words!r}); give words=[source words, target words], "
                    '"blend_words" in the manifest, or missing=unblended.'
                ]
            )
        return words

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Read cross-attention of encoder and decoder at one scale."""
        return [s for s in sites if s.kind == "cross" and s.place in ("down", "up") and s.scale == self.scale]

    def active(self, i: int, state: Any) -> bool:
        """Read from the first step on, unless there is never a blend."""
        now: LocalBlendState = state
        return now.start < now.steps and now.executed.step(i) >= 0

    def attention(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, i: int, state: Any
    ) -> Tensor:
        """Attend with indicator columns beside the values, and keep what comes out of them."""
        del i
        now: LocalBlendState = state
        pairs = row_pairs(rows, (COND,))
        if not pairs:
            return attend(q, k, v)
        ((target, source),) = pairs
        images = images_of(rows, target)
        key = (rows.first_image, site)
        if now.several and now.last == key:
            raise SettingsError(
                [
                    "LocalBlend stands behind a control that attends twice and would see unedited maps; put it first, "
                    "as in controls=[LocalBlend(...), PromptToPrompt(...)]."
                ]
            )
        now.last = key
        kinds = now.words.shape[-1]
        now.words = now.words.to(v)
        columns = v.new_zeros(v.shape[0], v.shape[2], _COLUMNS)
        for number, block in enumerate((source, target)):
            columns[block, :, :kinds] = now.words[images, number]
        wide = attend(q, k, torch.cat([v, columns[:, None].expand(-1, v.shape[1], -1, -1)], -1))
        maps = wide[..., v.shape[-1] : v.shape[-1] + kinds]
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(1).transpose(1, 2)
        both = torch.stack([maps[source], maps[target]], 1)
        now.now[key] = both.reshape(*both.shape[:-1], *site.size(now.latent))
        return wide[..., : v.shape[-1]]

    def blend(self, z: Latents, z_next: Latents, i: int, state: Any) -> Latents:
        """Put the source back outside the region."""
        del z
        now: LocalBlendState = state
        step = now.executed.step(i)
        now.add_step()
        if step < now.start or now.total is None:
            return z_next
        source, target = z_next[Stream.SOURCE], z_next[Stream.TARGET]
        mask = self.region(now.total[:, :, 0], self.threshold, source, pool=True)[:, 1]
        if self.exclude is not None:
            mask &= ~self.region(now.total[:, :, 1], self.exclude_threshold, source, pool=False)[:, 1]
        now.blended = now.blended.to(mask.device)
        mask |= ~now.blended[:, None, None, None]
        return z_next.with_stream(Stream.TARGET, source + mask.to(source) * (target - source))

    def region(self, maps: Tensor, threshold: float, latent: Tensor, *, pool: bool) -> Tensor:
        """Threshold maps of words [B, 2, rows, columns] into masks of latents.

        Args:
            maps: Sums over steps, source and target.
            threshold: Share of the maximum.
            latent: [B, C, H, W], for its size.
            pool: Widen by one position to every side first.

        Returns:
            [B, 2, 1, H, W] booleans, the source's mask and its union with the target's.
        """
        if pool:
            maps = F.max_pool2d(maps, 3, 1, 1)
        maps = F.interpolate(maps, size=latent.shape[-2:])
        # Words that attend to nothing (all weights 0) have no region: 0 / 0 is not above any threshold.
        masks = maps / maps.amax((-2, -1), keepdim=True) > threshold
        return torch.stack([masks[:, 0], masks[:, 0] | masks[:, 1]], 1)[:, :, None]


def _listed(entry: Sequence[str] | str) -> Sequence[str]:
    return [entry] if isinstance(entry, str) else entry
