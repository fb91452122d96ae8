"""Unified attention control: source, layout and target attend to each other.

Xu, Huang, Pan, Ma, Chai: Inversion-Free Image Editing with Natural Language (CVPR 2024, arXiv 2312.04965), section 3.3,
in the form of the authors' code (sled-group/InfEdit eaac91e). With r = (i + 1) / N the share of steps begun,

    self    r <  self_attention     q, k of all three branches the source's; v = (v_s, v_t, v_s)
            r >= self_attention     the layout asks with the target's q for the source's k and v
    cross   r <= cross              P_t = refine(P_x, P_t)     P_x of the layout (benchmark) or the source (demo)

so that the target begins in the source's structure, and the layout branch holds the source's content in the target's
structure. refine takes the columns of aligned words from P_x and the others from P_t; like Prompt-to-Prompt's edit it
is linear in both: two fused attentions. After each step, masks M from the maps of words choose the branch:

    z_t = z_t where M(local words) else z_m,   then z_s where M(mutual words),   at the last blend z_m where M(both)
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
from framework.guidance import Guidance
from framework.step import COND, UNCOND, Latents, Need, Row, Rows, Site, Stream
from methods.control_rows import Executed, images_of, with_rows
from methods.unified_words import Tracked, UnifiedWords, own_words, tracked_tokens, unified_words

_COLUMNS = 8
"""Columns added to the values come in multiples of this, which fused kernels want."""
_FLOOR = 0.15
"""Of the local mask's threshold, divided by alpha: at noisy levels no position is local (authors' code)."""


@dataclass
class UnifiedState:
    """One edit.

    Attributes:
        mapper: [B, L, L], source positions to target positions, the A of the edited map.
        own: [B, L, 1], diagonal of B; None where every token takes another branch's map.
        alphas: Signal of the levels, for the threshold's floor.
        latent: Rows and columns of the latents.
        tracked: Tokens whose maps are read; None where nothing is blended.
        now: Maps of the running step by first image and site, [images, 2, K, rows, columns], of source and layout.
        total: Sums over steps, mean over layers.
    """

    mapper: Tensor
    own: Tensor | None
    alphas: Sequence[float]
    latent: tuple[int, int]
    tracked: Tracked | None
    executed: Executed = field(default_factory=Executed)
    now: dict[tuple[int, Site], Tensor] = field(default_factory=dict)
    total: Tensor | None = None

    @property
    def steps(self) -> int:
        """N, skipped steps included."""
        return len(self.alphas) - 1

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


@dataclass(frozen=True)
class UnifiedAttention(Control):
    """Unified attention control with its three branches and local blend.

    The authors set both windows by one number: 1 for colours, 0.9 materials, 0.7 objects and style, 0.3 shape and pose,
    0 to add, remove, or exchange the background.

    Attributes:
        cross_source: Whose maps refine the target's: "layout" (benchmark script, published numbers) or "source" (demo).
        cross: Share of the steps with refined cross-attention; a step that begins before its end counts.
        self_attention: Share of the steps with the source's self-attention; 1 leaves the last step out.
        local_words: Words of the target that the edit is about; None takes every sample's own (the second of its
            "blend_words", or its blended word), or none where it has none.
        mutual_words: Words that source and target share and that stay as they are.
        local_threshold, mutual_threshold: Share of a map's maximum above which a position belongs to the words.
            Benchmark 0.55 and 0.6, demo 0.6 for both.
        missing: What becomes of a sample whose own words are not in its prompt: "refuse", or "unblended".
        scale: Layers whose maps are this many times smaller than the latents, per side, are read.
        crossed: See `unified_words`.

    Source: `app_infedit.py` and `run_pie_bench.py`, which differ in `cross_source`.
    """

    cross_source: Literal["layout", "source"] = "layout"
    cross: float = 0.7
    self_attention: float = 0.7
    local_words: Sequence[str] | None = None
    mutual_words: Sequence[str] = ()
    local_threshold: float = 0.55
    mutual_threshold: float = 0.6
    missing: Literal["refuse", "unblended"] = "refuse"
    scale: int = 4
    crossed: bool = True

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE})
    streams: ClassVar[tuple[Stream, ...]] = (Stream.SOURCE, Stream.LAYOUT)

    def __post_init__(self) -> None:
        checks = Checks("UnifiedAttention")
        checks.one_of("cross_source", self.cross_source, ("layout", "source"))
        checks.one_of("missing", self.missing, ("refuse", "unblended"))
        for name in ("cross", "self_attention"):
            checks.between(name, getattr(self, name), 0, 1, "a share of the steps, not a number of steps")
        for name in ("local_threshold", "mutual_threshold"):
            checks.between(name, getattr(self, name), 0, 1, "a share of a map's maximum")
        for name in ("local_words", "mutual_words"):
            checks.require(
                not isinstance(getattr(self, name), str), f"{name}={getattr(self, name)!r} is a word; give a list."
            )
        checks.one_of("scale", self.scale, (1, 2, 4, 8, 16, 32))
        checks.done()
        if not self.looks_at_layout:
            object.__setattr__(self, "streams", (Stream.SOURCE,))

    @property
    def blends(self) -> bool:
        """Whether words can choose between branches."""
        return self.local_words is None or bool(self.local_words) or bool(self.mutual_words)

    @property
    def looks_at_layout(self) -> bool:
        """Whether the layout branch can reach the target."""
        return self.blends or (self.cross > 0 and self.cross_source == "layout")

    def check(self, guidance: Guidance) -> list[str]:
        """Refuse a target without guidance."""
        scale = getattr(guidance, "target", None)
        if not isinstance(scale, (int, float)) or scale > 1:
            return []
        return [
            f"UnifiedAttention needs a target guided above 1, and {type(guidance).__name__} has target={scale}: the "
            "unconditional rows that it relates to each other would be missing; give more (benchmark 2.3)."
        ]

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> UnifiedState:
        """Align the prompts of every image.

        Raises:
            SettingsError: A word is not in its prompt, or no layer has maps of the chosen scale.
        """
        words = [self.words(ctx, image) for image in range(len(ctx.texts.target))]
        mapper = torch.stack([entry.matrix() for entry in words])
        own = 1 - torch.stack([entry.aligned for entry in words])
        tracked = tracked_tokens(words)
        if tracked is not None and sites and not self._readers(sites):
            scales = sorted({site.scale for site in sites if site.kind == "cross" and site.place != "mid"})
            raise SettingsError(
                [f"UnifiedAttention: no cross-attention has scale={self.scale}; give one of {scales}, or no words."]
            )
        return UnifiedState(
            mapper,
            own[..., None] if own.count_nonzero() else None,
            [level.alpha for level in ctx.schedule.levels],
            latent,
            tracked,
        )

    def words(self, ctx: Context, image: int) -> UnifiedWords:
        """Align the prompts of one image; see `unified_words`."""
        of_source, of_target = (ctx.conditions[Row(stream, COND)].text for stream in (Stream.SOURCE, Stream.TARGET))
        if of_source is None or of_target is None:
            raise SettingsError(["UnifiedAttention needs a network that is conditioned on a prompt's tokens."])

        def align(local: Sequence[str]) -> UnifiedWords:
            source, target = ctx.texts.source[image], ctx.texts.target[image]
            pair = (of_source[image], of_target[image])
            return unified_words(
                source, target, ctx.tokens, pair, local=local, mutual=self.mutual_words, crossed=self.crossed
            )

        if self.local_words is not None:
            return align(self.local_words)
        try:
            return align(own_words(ctx, image))
        except SettingsError:
            if self.missing == "refuse":
                raise
            return align(())

    def describe(self, ctx: Context, image: int) -> Mapping[str, Any]:
        """Say which source token every target token takes its map from, and which are local or mutual."""
        found = self.words(ctx, image)
        source = {n: token.text for n, token in enumerate(ctx.tokens(ctx.texts.source[image]), 1)}
        rows = []
        for n, token in enumerate(ctx.tokens(ctx.texts.target[image])[: len(found.mapper) - 2], 1):
            come_from = int(found.mapper[n])
            row: dict[str, Any] = {"position": n, "token": token.text, "source": source.get(come_from)}
            rows.append(row | {name: True for name in ("local", "mutual") if getattr(found, name)[n]})
        return {"target_tokens": rows}

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Act at all self- and cross-attention, whatever its size."""
        return [site for site in sites if site.kind in ("self", "cross")]

    def _readers(self, sites: Sequence[Site]) -> list[Site]:
        return [site for site in sites if self._reads(site)]

    def _reads(self, site: Site) -> bool:
        return site.kind == "cross" and site.place in ("down", "up") and site.scale == self.scale

    def refines(self, i: int, steps: int) -> bool:
        """Whether interval i has the target's cross-attention refined."""
        return self.cross > 0 and self.cross >= (i + 1) / steps

    def keeps(self, i: int, steps: int) -> bool:
        """Whether interval i has the source's self-attention everywhere."""
        return (i + 1) / steps < self.self_attention

    def active(self, i: int, state: Any) -> bool:
        """Act while a window is open, and as long as there is a layout branch."""
        now: UnifiedState = state
        return self.looks_at_layout or self.refines(i, now.steps) or self.keeps(i, now.steps)

    def companions(self, rows: Sequence[Row], i: int, state: Any) -> Sequence[Row]:
        """Ask for the source's unconditional rows where others attend with their queries, keys or values."""
        now: UnifiedState = state
        streams = (Stream.TARGET, Stream.LAYOUT) if self.keeps(i, now.steps) else (Stream.LAYOUT,)
        return [Row(Stream.SOURCE, UNCOND)] if any(Row(stream, UNCOND) in rows for stream in streams) else []

    def attention(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, i: int, state: Any
    ) -> Tensor:
        """Attend as the step's share demands; see the head of this file."""
        now: UnifiedState = state
        if site.kind == "self":
            return attend(*self._self_qkv(rows, q, k, v, keep=self.keeps(i, now.steps)))
        target, source = _block(rows, Stream.TARGET, COND), _block(rows, Stream.SOURCE, COND)
        layout = _block(rows, Stream.LAYOUT, COND)
        other = source if self.cross_source == "source" else layout
        refines = self.refines(i, now.steps) and other is not None
        if target is None or source is None or not (refines or self._reads(site)):
            return attend(q, k, v)
        images = images_of(rows, target)
        values, theirs = v, v
        if refines:
            assert other is not None
            mapper = now.mapper[images, None].to(v)
            theirs = with_rows(v, (target, mapper @ v[target]))
            if now.own is None:
                values = with_rows(v, (target, torch.zeros_like(v[target])))
            else:
                values = with_rows(v, (target, now.own[images, None].to(v) * v[target]))
        if self._reads(site) and now.tracked is not None and layout is not None:
            out = self._looked(site, rows, q, k, values, attend, now, (source, target, layout))
        elif refines and now.own is None:
            assert other is not None
            return attend(with_rows(q, (target, q[other])), with_rows(k, (target, k[other])), theirs)
        else:
            out = attend(q, k, values)
        if not refines:
            return out
        assert other is not None
        refined = attend(with_rows(q, (target, q[other])), with_rows(k, (target, k[other])), theirs)
        return with_rows(out, (target, out[target] + refined[target]))

    def _self_qkv(self, rows: Rows, q: Tensor, k: Tensor, v: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange queries, keys and values among the branches, conditional and unconditional rows alike."""
        asked: list[tuple[slice, Tensor]] = []
        keys: list[tuple[slice, Tensor]] = []
        values: list[tuple[slice, Tensor]] = []
        for branch in (UNCOND, COND):
            source, target = _block(rows, Stream.SOURCE, branch), _block(rows, Stream.TARGET, branch)
            layout = rows.of(Stream.LAYOUT, branch)
            if source is None or target is None:
                continue
            if keep and rows.of(Stream.TARGET, branch) is not None:
                asked.append((target, q[source]))
                keys.append((target, k[source]))
            if layout is not None:
                asked.append((layout, q[source] if keep else q[target]))
                keys.append((layout, k[source]))
                values.append((layout, v[source]))
        return with_rows(q, *asked), with_rows(k, *keys), with_rows(v, *values)

    def _looked(
        self,
        site: Site,
        rows: Rows,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Attend,
        now: UnifiedState,
        blocks: tuple[slice, slice, slice],
    ) -> Tensor:
        """Attend with the tracked tokens' columns beside the values, and keep the refined maps that come out."""
        assert now.tracked is not None
        source, target, layout = blocks
        images = images_of(rows, target)
        count = now.tracked.marks.shape[-1]
        columns = v.new_zeros(v.shape[0], v.shape[2], -(-count // _COLUMNS) * _COLUMNS)
        columns[target, :, :count] = now.tracked.own[images].to(v)
        for block in (source, layout):
            columns[block, :, :count] = now.tracked.theirs[images].to(v)
        wide = attend(q, k, torch.cat([v, columns[:, None].expand(-1, v.shape[1], -1, -1)], -1))
        maps = wide[..., v.shape[-1] : v.shape[-1] + count]
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(1).transpose(1, 2)
        refined = torch.stack([maps[source] + maps[target], maps[layout] + maps[target]], 1)
        now.now[(rows.first_image, site)] = refined.reshape(*refined.shape[:-1], *site.size(now.latent))
        return wide[..., : v.shape[-1]]

    def blend(self, z: Latents, z_next: Latents, i: int, state: Any) -> Latents:
        """Choose the branch of every position, from the second executed step on; the last result stays as it is."""
        del z
        now: UnifiedState = state
        step = now.executed.step(i)
        now.add_step()
        if step == 0 or i == now.steps - 1 or now.total is None or now.tracked is None:
            return z_next
        source, target, layout = (z_next[stream] for stream in (Stream.SOURCE, Stream.TARGET, Stream.LAYOUT))
        local, mutual, both = self.masks(now, i, target)
        local = local | ~now.tracked.has_local.to(local.device)[:, None, None, None]
        target = torch.where(mutual, source, torch.where(local, target, layout))
        if i == now.steps - 2:
            target = torch.where(both, layout, target)
        return z_next.with_stream(Stream.TARGET, target)

    def masks(self, now: UnifiedState, i: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Threshold the maps of words: local, mutual but not local, and both; [B, 1, H, W] booleans each."""
        assert now.tracked is not None and now.total is not None
        marks = now.tracked.marks.to(now.total)[..., None, None]

        def mask(branch: int, kind: int, threshold: float) -> Tensor:
            strongest = (now_total[:, branch] * marks[:, kind]).amax(1, keepdim=True)
            maps = F.interpolate(strongest, size=like.shape[-2:])
            # Without any such word this is 0 / 0, which is above no threshold.
            return maps / maps.amax((-2, -1), keepdim=True) > threshold

        now_total = now.total
        local = max(self.local_threshold, _FLOOR / now.alphas[i])
        return mask(1, 0, local), mask(0, 1, self.mutual_threshold), mask(1, 2, self.local_threshold)


def _block(rows: Rows, stream: Stream, branch: str) -> slice | None:
    """Find a stream's rows of a branch, or of the other one where the stream is evaluated under one only."""
    return rows.of(stream, branch) or rows.of(stream, UNCOND if branch == COND else COND)
