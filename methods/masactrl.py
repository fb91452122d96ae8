"""MasaCtrl: the target keeps its own layout and takes its content from the source, by mutual self-attention.

Cao, Wang, Qi, Shan, Qie, Zheng: MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and
Editing (ICCV 2023, arXiv 2304.08465), section 3.2, and 3.3 for the masks.

    self-attention of the target from step S and layer L on:    softmax(q_target k_source^T / sqrt(d)) v_source

separately in the unconditional and the conditional rows. With masks a target position inside the target's mask looks
only at source positions inside the source's mask, and one outside only at those outside. Both are one fused attention:
the masks become coordinates of queries and keys whose product is 0 where they agree and far below 0 where they do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.backbones.base import Backbone
from framework.context import Context
from framework.control import Attend, Control
from framework.errors import Checks, SettingsError
from framework.guidance import ClassifierFree, Guidance
from framework.inversion import Inversion
from framework.module import CommonSettings, EditModule
from framework.reference import Reference
from framework.schedule import ScheduleOptions
from framework.step import COND, Need, Rows, Site, Stream
from methods.control_rows import Executed, images_of, row_pairs, with_rows
from methods.ddim import DDIMInversion
from methods.token_alignment import positions_of

Masks = Literal["none", "given", "auto"]

_APART = 3e4
"""How far masks that disagree push a logit down before the scale of attention: exp of it is 0, and float16 holds it."""
_COORDINATES = 8
"""Coordinates added for the masks; fused kernels want widths in multiples of 8, two are used."""


@dataclass
class MutualState:
    """One edit.

    Attributes:
        layers: Self-attention layers that are controlled.
        readers: Cross-attention layers whose maps make automatic masks.
        latent: Rows and columns of the latents.
        given: Source's and target's mask, [B or 1, 1, h, w] each, if they are given.
        words: [B, 2, L] indicators of the words of automatic masks, source and target.
        maps: Maps read so far in the running network call, [images, 2, rows, columns].
        last: Index of the last layer that was called.
    """

    layers: frozenset[Site]
    readers: frozenset[Site]
    latent: tuple[int, int]
    given: tuple[Tensor, Tensor] | None = None
    words: Tensor | None = None
    maps: list[Tensor] = field(default_factory=list)
    last: int = -1
    executed: Executed = field(default_factory=Executed)


@dataclass(frozen=True)
class MutualSelfAttention(Control):
    """Mutual self-attention control.

    Steps and layers count from 0: steps from the first that is executed, layers as transformer blocks in the order in
    which they are called (16 in Stable Diffusion 1 and 2).

    Attributes:
        start_step: S, first controlled step (paper 4 of 50).
        start_layer: L, first controlled layer; None takes the depth of the paper's layer 10 of 16.
        step_list: Explicit list that replaces `start_step`, or None.
        layer_list: Explicit list that replaces `start_layer`, or None.
        masks: "none"; "given" (`source_mask` and `target_mask`, or the sample's mask for both); "auto" (from the
            cross-attention to `source_words` and `target_words`).
        source_mask, target_mask: [h, w] or [B, 1, h, w] of 0 and 1, any size.
        source_words, target_words: Words of the prompts, or text positions (the start token is 0), for "auto".
        threshold: Share of a map's range from which a position belongs to the words, in (0, 1] (paper 0.1).
        map_positions: Positions of the cross-attention maps that are read (paper 16 x 16 = 256).
    """

    start_step: int = 4
    start_layer: int | None = None
    step_list: Sequence[int] | None = None
    layer_list: Sequence[int] | None = None
    masks: Masks = "none"
    source_mask: Tensor | None = field(default=None, compare=False, repr=False)
    target_mask: Tensor | None = field(default=None, compare=False, repr=False)
    source_words: Sequence[str | int] = (1,)
    target_words: Sequence[str | int] = (1,)
    threshold: float = 0.1
    map_positions: int = 256

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE})
    streams: ClassVar[tuple[Stream, ...]] = (Stream.SOURCE,)

    @property
    def outermost(self) -> bool:
        """Whether it stands around other controls: where it reads maps."""
        return self.masks == "auto"

    @property
    def wants_masks(self) -> bool:
        """Whether it looks at the samples' masks."""
        return self.masks == "given" and self.source_mask is None

    def __post_init__(self) -> None:
        checks = Checks("MutualSelfAttention")
        checks.between("start_step", self.start_step, 0, float("inf"))
        if self.start_layer is not None:
            checks.between("start_layer", self.start_layer, 0, float("inf"))
        for name in ("step_list", "layer_list"):
            for value in getattr(self, name) or ():
                checks.between(name, value, 0, float("inf"))
        checks.one_of("masks", self.masks, ("none", "given", "auto"))
        checks.between("threshold", self.threshold, 1e-6, 1, "paper 0.1")
        alone = (self.source_mask is None) != (self.target_mask is None)
        checks.require(not alone, "one of source_mask and target_mask is missing; give both, or neither.")
        stray = self.source_mask is not None and self.masks != "given"
        checks.require(not stray, f"masks={self.masks!r} does not look at source_mask; give masks='given'.")
        for name in ("source_mask", "target_mask"):
            mask = getattr(self, name)
            if mask is not None:
                problem = _mask_problem(mask)
                checks.require(not problem, f"{name} {problem}")
        checks.done()

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> MutualState:
        """Choose layers and prepare masks.

        Raises:
            SettingsError: Step or layer out of range, no mask, an empty mask, or a word that is not in its prompt.
        """
        steps = ctx.schedule.num_steps
        checks = Checks("MutualSelfAttention")
        checks.require(
            self.start_step <= steps or self.step_list is not None,
            f"start_step={self.start_step}, but the edit has {steps} steps; give one in [0, {steps}].",
        )
        for step in self.step_list or ():
            checks.require(
                step < steps, f"step_list has {step}, but the edit has {steps}; give steps in [0, {steps - 1}]."
            )
        checks.done()
        state = MutualState(frozenset(self._controlled(sites)), frozenset(), latent)
        if self.masks == "given":
            state.given = self._given(ctx)
        elif self.masks == "auto":
            state.readers = frozenset(s for s in sites if s.kind == "cross" and self._read(s, latent))
            if not state.readers:
                sizes = sorted({math.prod(s.size(latent)) for s in sites if s.kind == "cross"})
                raise SettingsError(
                    [
                        f"MutualSelfAttention: no cross-attention has map_positions={self.map_positions} for these "
                        f"images; give one of {', '.join(map(str, sizes))}."
                    ]
                )
            state.words = self._indicators(ctx)
        return state

    def _read(self, site: Site, latent: tuple[int, int]) -> bool:
        return math.prod(site.size(latent)) == self.map_positions

    def _controlled(self, sites: Sequence[Site]) -> list[Site]:
        own = [site for site in sites if site.kind == "self"]
        first = len(own) * 10 // 16 if self.start_layer is None else self.start_layer
        wanted = [first, *range(first, len(own))] if self.layer_list is None else self.layer_list
        beyond = [layer for layer in wanted if layer >= len(own)]
        if beyond and own:
            raise SettingsError(
                [
                    f"MutualSelfAttention: layer {beyond[0]} is beyond the {len(own)} self-attention layers of this "
                    f"network; give layers in [0, {len(own) - 1}]."
                ]
            )
        return [site for site in own if site.order in set(wanted)]

    def _given(self, ctx: Context) -> tuple[Tensor, Tensor]:
        pair = (self.source_mask, self.target_mask)
        if self.source_mask is None:
            if ctx.masks is None:
                raise SettingsError(
                    ["MutualSelfAttention: masks='given', but the samples have none; give masks, or masks='auto'."]
                )
            pair = (ctx.masks.round(), ctx.masks.round())
        images = len(ctx.texts.target)
        shaped = []
        for mask in pair:
            assert mask is not None
            problem = _mask_problem(mask) or ("" if mask.ndim == 2 or mask.shape[0] == images else "fits other images.")
            if problem:
                raise SettingsError([f"MutualSelfAttention: a mask {problem}"])
            shaped.append(mask.float().expand(images, 1, *mask.shape[-2:]))
        return shaped[0], shaped[1]

    def _indicators(self, ctx: Context) -> Tensor:
        some = next(condition.text for condition in ctx.conditions.values() if condition.text is not None)
        length = some.shape[1]
        words = torch.zeros(len(ctx.texts.target), 2, length)
        for b, prompts in enumerate(zip(ctx.texts.source, ctx.texts.target, strict=True)):
            for row, (prompt, wanted) in enumerate(zip(prompts, (self.source_words, self.target_words), strict=True)):
                for word in wanted:
                    if isinstance(word, int) and not 0 <= word < length:
                        raise SettingsError(
                            [f"MutualSelfAttention: no text position {word}; give one in [0, {length - 1}]."]
                        )
                    found = (
                        [word]
                        if isinstance(word, int)
                        else positions_of(prompt, word, ctx.tokens(prompt), length, "lengths", "mask word")
                    )
                    words[b, row, found] = 1
        return words

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Act at the controlled layers; read cross-attention where masks are automatic."""
        chosen = self._controlled(sites)
        return [s for s in sites if s in chosen or (self.masks == "auto" and s.kind == "cross")]

    def active(self, i: int, state: Any) -> bool:
        """Act in the controlled steps."""
        now: MutualState = state
        step = now.executed.step(i)
        return step >= self.start_step if self.step_list is None else step in self.step_list

    def attention(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, i: int, state: Any
    ) -> Tensor:
        """Let the target's queries look at the source's keys and values; see the head of this file."""
        del i
        now: MutualState = state
        if site.index <= now.last:
            now.maps.clear()
        now.last = site.index
        if site.kind == "cross":
            return self._look(site, rows, q, k, v, attend, now) if site in now.readers else attend(q, k, v)
        pairs = row_pairs(rows)
        k = with_rows(k, *((target, k[source]) for target, source in pairs))
        v = with_rows(v, *((target, v[source]) for target, source in pairs))
        if not pairs:
            return attend(q, k, v)
        images = images_of(rows, pairs[0][0])
        masks = self._masks(now, images, site.size(now.latent))
        return attend(q, k, v) if masks is None else attend(*_apart(q, k, masks, [target for target, _ in pairs]), v)

    def _look(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, now: MutualState
    ) -> Tensor:
        """Attend with an indicator column beside the values, and keep the words' maps that come out of it."""
        assert now.words is not None
        pairs = row_pairs(rows, (COND,))
        if not pairs:
            return attend(q, k, v)
        ((target, source),) = pairs
        now.words = now.words.to(v)
        columns = v.new_zeros(v.shape[0], v.shape[2], _COORDINATES)
        for number, block in enumerate((source, target)):
            columns[block, :, 0] = now.words[images_of(rows, target), number]
        wide = attend(q, k, torch.cat([v, columns[:, None].expand(-1, v.shape[1], -1, -1)], -1))
        maps = wide[..., v.shape[-1]]
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(1)
        both = torch.stack([maps[source], maps[target]], 1)
        now.maps.append(both.reshape(*both.shape[:-1], *site.size(now.latent)))
        return wide[..., : v.shape[-1]]

    def _masks(self, now: MutualState, images: slice, size: tuple[int, int]) -> Tensor | None:
        """Source's and target's mask of these images at a layer, [images, 2, positions] of 0 and 1, or None."""
        if now.given is not None:
            return torch.stack([F.interpolate(mask[images], size=size).flatten(1) for mask in now.given], 1)
        if not now.maps:
            return None
        maps = torch.stack(now.maps).mean(0)
        low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
        maps = F.interpolate((maps - low) / (high - low), size=size)
        return (maps.flatten(2) >= self.threshold).to(maps)


def _apart(q: Tensor, k: Tensor, masks: Tensor, blocks: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Add coordinates by which queries see only keys whose mask agrees with theirs.

    Args:
        q, k: [rows, heads, positions, width].
        masks: [images, 2, positions] of 0 and 1, of keys and of queries.
        blocks: Rows that are concerned, one per image each; others see everything.

    Returns:
        q and k with a larger width, q scaled so that the logits of what is seen stay what they were.
    """
    width, heads = q.shape[-1], q.shape[1]
    shown, looking = masks.to(device=q.device, dtype=q.dtype).unbind(1)
    some = (shown.amax(1, keepdim=True), 1 - shown.amin(1, keepdim=True))
    # Where no position is left to look at (a mask may vanish at a small layer) all count alike, as in the code.
    answered = looking * some[0] + (1 - looking) * some[1]
    queries = q.new_zeros(q.shape[0], q.shape[2], _COORDINATES)
    keys = k.new_zeros(k.shape[0], k.shape[2], _COORDINATES)
    for block in blocks:
        queries[block, :, 0], queries[block, :, 1] = looking, 1 - looking
        keys[block, :, 0], keys[block, :, 1] = -_APART * (1 - shown), -_APART * shown
        q = with_rows(q, (block, q[block] * answered[:, None, :, None]))
    wider = math.sqrt((width + _COORDINATES) / width)
    return tuple(
        torch.cat([x, extra[:, None].expand(-1, heads, -1, -1)], -1) for x, extra in ((q * wider, queries), (k, keys))
    )  # type: ignore[return-value]


def _mask_problem(mask: Tensor) -> str:
    """Say what is wrong with a mask; empty if it can be used."""
    if mask.ndim not in (2, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
        return f"has shape {tuple(mask.shape)}; give [h, w] or [B, 1, h, w]."
    flat = mask.reshape(-1, mask.shape[-2] * mask.shape[-1])
    if not bool(((flat == 0) | (flat == 1)).all()):
        return "has values other than 0 and 1; threshold it first."
    if not bool((flat.amin(1) < flat.amax(1)).all()):
        return "is all 0 or all 1, so that one side would see nothing; give a mask of a part, or masks='none'."
    return ""


class MasaCtrl(EditModule):
    """DDIM inversion, then denoising with mutual self-attention from a step and a layer on.

    Defaults are the authors': 50 steps, guidance 7.5 of source and edit, control from step 4 and layer 10 of 16. They
    invert real images under the empty prompt; here a sample's source prompt is used, which may be empty.
    """

    references = (
        Reference(
            "MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing",
            "Cao, Wang, Qi, Shan, Qie, Zheng",
            "ICCV 2023",
            "https://arxiv.org/abs/2304.08465",
            "https://github.com/TencentARC/MasaCtrl",
            "Apache-2.0",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        start_step: int = 4,
        start_layer: int | None = None,
        masks: Masks = "none",
        guidance: Guidance = ClassifierFree(target=7.5, source=7.5, inversion=1.0),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first", steps_offset=0),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            start_step, start_layer, masks: See `MutualSelfAttention`.
            guidance: Scales of inversion, source row and edit.
            inversion: Replaces DDIM inversion.
            schedule: Conventions of the schedule; the authors start the timesteps at 0 and end at a[0].
            **common: See `CommonSettings`; further controls come after mutual self-attention.
        """
        mutual = MutualSelfAttention(start_step=start_step, start_layer=start_layer, masks=masks)
        common["controls"] = (mutual, *common.get("controls", ()))
        inversion = inversion or DDIMInversion()
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
