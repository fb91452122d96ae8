"""The guidance of LEDITS++: edit concepts that act inside implicit masks.

Brack et al., LEDITS++ (CVPR 2024, arXiv 2311.16711), section 4.2 and 4.3.

    d_c = +-scale_c (eps_c - eps_u)          eps = eps_u + sum of weight_c mask_c d_c over the active concepts
    noise mask        sum over channels of |d_c| at or above its quantile threshold_c
    attention mask    cross-attention of the concept's tokens, smoothed, at or above its quantile threshold_c

There is no main prompt, no momentum and no normalisation. One mask holds for all channels. Attention is read from the
very call that predicts, at the layers of a quarter of the latent's side (2 down and 3 up in Stable Diffusion 1).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.context import Context
from framework.control import Control
from framework.data.sample import EditSample
from framework.errors import Checks, SettingsError
from framework.guidance import Guidance, State, StepNetwork, classifier_free, guided, guided_rows
from framework.record import Record
from framework.step import UNCOND, Latents, Row, Rows, Site, Stream, concept, latents
from methods.concepts import (
    Concept,
    ConceptTable,
    concept_prompts,
    concepts_of,
    per_image,
    quantile,
    table_of,
    threshold_at,
    warmup_problems,
    warn_of_empty,
)

Variant = Literal["repo", "diffusers"]
Mask = Literal["noise", "attention", "intersection"]

INTERSECTS_FROM = 800
"""Timestep up to which diffusers intersects the masks; above it takes the attention mask alone."""


@dataclass(frozen=True)
class MaskedConcept(Concept):
    """A concept with the defaults of LEDITS++: scale 5 from the first step on, threshold 0.9."""

    warmup: int = 0


_DEFAULT = MaskedConcept()


@dataclass
class Maps:
    """Attention that the concepts' rows pay to their text in one call.

    Attributes:
        sums: (concept, first image) -> [images, queries, text positions], summed over layers and heads.
        heads: The same keys -> how many heads were summed.
        size: Rows and columns of the maps.
    """

    latent: tuple[int, int]
    sums: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    heads: dict[tuple[int, int], int] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)

    def clear(self) -> None:
        """Forget the maps of the call before."""
        self.sums, self.heads = {}, {}

    def mean(self, count: int) -> Tensor:
        """Return the mean over layers and heads, [K, B, rows, columns, text positions]."""
        means = []
        for k in range(count):
            keys = sorted(key for key in self.sums if key[0] == k)
            means.append(torch.cat([self.sums[key] / self.heads[key] for key in keys]))
        stacked = torch.stack(means)
        return stacked.view(*stacked.shape[:2], *self.size, stacked.shape[-1])


@dataclass(frozen=True)
class ConceptMaps(Control):
    """Reads the cross-attention of the concepts' rows; changes nothing.

    Attributes:
        scale: Side of the latent divided by the side of the maps that are read.
    """

    scale: int = 4

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> Maps:
        """Return an empty collection."""
        del ctx, sites
        return Maps(latent)

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Choose the cross-attention of the way down and up at this scale."""
        return [s for s in sites if s.kind == "cross" and s.place in ("down", "up") and s.scale == self.scale]

    def wants_probabilities(self, site: Site, i: int, state: Any) -> bool:
        """Read at every step."""
        del site, i, state
        return True

    def probabilities(self, site: Site, rows: Rows, p: Tensor, i: int, state: Maps) -> Tensor:
        """Add the maps of this layer."""
        del i
        state.size = site.size(state.latent)
        k = 0
        while (part := rows.of(Stream.TARGET, concept(k))) is not None:
            key = (k, rows.first_image)
            total = p[part].sum(1)
            state.sums[key] = state.sums[key] + total if key in state.sums else total
            state.heads[key] = state.heads.get(key, 0) + p.shape[1]
            k += 1
        return p


@dataclass(frozen=True)
class MaskState:
    """What the guidance carries from step to step.

    Attributes:
        concepts: Settings of the concepts of every image.
        tokens: [K, B] number of tokens of each concept; None where no attention is read.
        first: Interval of the first step, from which warm-up counts.
        masks: [B, K, h, w] masks of the last step in {0, 1}, 0 for inactive concepts.
        parts: The masks that were intersected, by name, same shape; empty where there is one only.
        guidance: [B, C, h, w] sum of the concepts' terms of the last step.
    """

    concepts: ConceptTable
    tokens: Tensor | None = None
    first: int | None = None
    masks: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    guidance: Tensor | None = None


@dataclass(frozen=True)
class ImplicitMaskGuidance(Guidance):
    """Edit concepts inside implicit masks, all rows in one network call.

    A sample may bring its own concepts in the field `concepts` of the manifest, a list of texts or of mappings with the
    fields of `Concept`; they replace those given here. The target prompt takes no part; a negative prompt stands in for
    the empty one in the edit.

    Attributes:
        concepts: Edit concepts of every image that brings none.
        mask: What confines a concept: its noise estimate, its attention, or both. Default of the authors' code is
            "noise", of diffusers "intersection".
        source: Scale of the source prompt in the inversion and the source row (usual 3.5); None is the empty prompt.
        variant: Whose conventions; "diffusers" takes the attention mask alone above timestep 800, has no weights, and
            exchanges the two estimates of the source, c + scale (u - c).
        user_mask: Confine all concepts to the sample's mask as well.
        map_scale: Side of the latent divided by the side of the attention maps.
        default: Settings of a sample's concepts where it does not name them.
        own_concepts: Whether a sample's own concepts replace those given here; False ignores them.
    """

    concepts: Sequence[MaskedConcept] = ()
    mask: Mask = "noise"
    source: float | None = None
    variant: Variant = "repo"
    user_mask: bool = False
    map_scale: int = 4
    default: MaskedConcept = _DEFAULT
    own_concepts: bool = True

    def __post_init__(self) -> None:
        checks = Checks("guidance")
        checks.one_of("mask", self.mask, ("noise", "attention", "intersection"))
        checks.one_of("variant", self.variant, ("repo", "diffusers"))
        if self.source is not None:
            checks.between("source", self.source, 0, float("inf"), "usual 3.5")
        checks.between("map_scale", self.map_scale, 1, 64, "4 for Stable Diffusion 1")
        concepts_of({}, self.concepts, self.default, checks)
        weighted = [item.weight for item in self.concepts if item.weight != 1]
        checks.require(
            self.variant == "repo" or not weighted,
            f"weight={weighted[:1]} is not part of variant=diffusers; use variant=repo, or put it into the scale.",
        )
        checks.done()

    def controls(self) -> Sequence[Control]:
        """Return the reader of attention, where a mask needs it."""
        return () if self.mask == "noise" else (ConceptMaps(self.map_scale),)

    def check(self, executed: int) -> list[str]:
        """Refuse concepts that would never become warm."""
        return warmup_problems(self.concepts, executed)

    def prompts(self, samples: Sequence[EditSample]) -> Mapping[Row, Sequence[str]]:
        """Return one block of prompts per concept; images with fewer concepts have the empty prompt there."""
        return concept_prompts(samples, self.concepts, self.default, own=self.own_concepts)

    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Predict with the empty prompt, or with the source prompt at its scale."""
        del ctx
        return classifier_free(z, network, {Stream.SOURCE: self._source_scale()})

    def _source_scale(self) -> float:
        if self.source is None:
            return 0.0
        # c + scale (u - c) in the form u + scale' (c - u).
        return self.source if self.variant == "repo" else 1 - self.source

    def begin(self, ctx: Context) -> MaskState:
        """Bring settings and token counts to the device; warn of user masks that cover nothing."""
        concepts = table_of(ctx, self.concepts, self.default, own=self.own_concepts)
        if self.user_mask and ctx.masks is not None:
            warn_of_empty(ctx.masks)
        if self.mask == "noise" or not concepts.count:
            return MaskState(concepts)
        counts = [[len(ctx.token_spans(text)) for text in texts] for texts in concepts.texts]
        words = [text for texts in concepts.texts for text in texts]
        blind = [text for text in words if not ctx.token_spans(text)]
        if blind:
            raise SettingsError([f"concept {blind[0]!r} has no tokens in this network to attend to; give mask=noise."])
        padded = [row + [0] * (concepts.count - len(row)) for row in counts]
        return MaskState(concepts, torch.tensor(padded).T.to(concepts.scale.device))

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, MaskState]:
        """Guide the source by its prompt and the target by its concepts."""
        del record
        now: MaskState = state
        first = i if now.first is None else now.first
        if now.first is None:
            now.concepts.warn_of_late(ctx.schedule.num_steps - i)
        count, scale = now.concepts.count, self._source_scale()
        others = [stream for stream in z.streams() if stream is not Stream.TARGET]
        rows = [row for stream in others for row in guided_rows(stream, scale)]
        rows += [Row(Stream.TARGET, UNCOND), *(Row(Stream.TARGET, concept(k)) for k in range(count))]
        maps: Maps | None = network.state_of(self.controls()[0]) if self.controls() else None
        if maps is not None:
            maps.clear()
        predictions = network(z, rows)
        results: dict[Stream, Tensor] = {stream: guided(predictions, stream, scale) for stream in others}
        uncond = predictions[Row(Stream.TARGET, UNCOND)]
        masks, parts, term = None, {}, torch.zeros_like(uncond)
        if count:
            estimates = torch.stack([predictions[Row(Stream.TARGET, concept(k))] for k in range(count)])
            d = now.concepts.directions(estimates, uncond)
            if self.user_mask and ctx.masks is not None:
                d = d * ctx.masks
            intersect = self.variant == "repo" or ctx.schedule.levels[i].t <= INTERSECTS_FROM
            acting = now.concepts.acting(i - first)[..., None, None]
            parts = {name: acting & part for name, part in self._masks(d, now, maps, intersect=intersect).items()}
            masks = torch.stack(list(parts.values())).all(0)
            weight = now.concepts.weight if self.variant == "repo" else now.concepts.present.to(d.dtype)
            term = (per_image(weight, d) * masks[:, :, None] * d).sum(0)
            masks, *kept = (part.transpose(0, 1).to(d.dtype) for part in (masks, *parts.values()))
            parts = dict(zip(parts, kept, strict=True)) if len(parts) > 1 else {}
        results[Stream.TARGET] = uncond + term
        return latents(results), replace(now, first=first, masks=masks, parts=parts, guidance=term)

    def _masks(self, d: Tensor, now: MaskState, maps: Maps | None, *, intersect: bool) -> dict[str, Tensor]:
        """Return the masks that are to be intersected, [K, B, h, w] each, True = edit."""
        threshold = now.concepts.threshold
        if self.mask == "noise":
            return {"noise_masks": noise_mask(d, threshold)}
        assert maps is not None and now.tokens is not None
        means = maps.mean(now.concepts.count).to(d.dtype)
        masks = {"attention_masks": attention_mask(means, now.tokens, threshold, d.shape[-2:])}
        if self.mask == "intersection" and intersect:
            masks["noise_masks"] = noise_mask(d, threshold)
        return masks

    def found(self, state: State) -> Mapping[str, Tensor]:
        """Return `semantic_guidance` [B, C, h, w] and `masks` [B, K, h, w] of the last step, and what was intersected.

        With an intersection, `noise_masks` and `attention_masks` are its two sides.
        """
        found = {"semantic_guidance": state.guidance, "masks": state.masks, **state.parts}
        return {name: value for name, value in found.items() if value is not None}


def noise_mask(d: Tensor, threshold: Tensor) -> Tensor:
    """Where a concept's direction is largest, over all channels.

    Args:
        d: [K, B, C, h, w] directions.
        threshold: [K, B] quantiles in [0, 1).

    Returns:
        [K, B, h, w], True at and above the quantile over the pixels.
    """
    size = d.abs().sum(2)
    return size >= threshold_at(size.flatten(2), threshold)[..., None, None]


def attention_mask(maps: Tensor, tokens: Tensor, threshold: Tensor, size: Sequence[int]) -> Tensor:
    """Where the picture attends most to a concept's words.

    Args:
        maps: [K, B, rows, columns, text positions] attention probabilities.
        tokens: [K, B] number of tokens, which stand at positions 1 to that number.
        threshold: [K, B] quantiles in [0, 1).
        size: Rows and columns of the latent.

    Returns:
        [K, B, h, w], True at and above the quantile over the map, nearest neighbour to the latent's size.
    """
    position = torch.arange(maps.shape[-1], device=maps.device)
    words = (position >= 1) & (position <= tokens[..., None])
    heat = smooth((maps * words[:, :, None, None]).sum(-1))
    # The authors take float32 for quantiles of directions only; a map's neighbours are often closer than float32 tells.
    mask = heat >= quantile(heat.flatten(2), threshold)[..., None, None]
    return F.interpolate(mask.to(maps.dtype), size=tuple(size), mode="nearest") > 0


def smooth(x: Tensor) -> Tensor:
    """Weighted mean over 3 x 3 neighbours of [K, B, rows, columns], reflected at the border.

    Weights 1 : e : 1 per axis, an effective sigma of 0.707; the authors' code names 0.5 but divides by twice that.
    """
    side = math.exp(-1)
    weights = x.new_tensor([side, 1.0, side]) / (1 + 2 * side)
    padded = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (weights[:, None] * weights)[None, None]).view(x.shape)
