"""Semantic guidance: edit concepts as sparse directions in the noise prediction.

Brack, Friedrich, Hintersdorf, Struppek, Schramowski, Kersting: SEGA: Instructing Text-to-Image Models using Semantic
Guidance (NeurIPS 2023, arXiv 2301.12247), Eq. 3 to 8.

    d_c = +-scale_c (eps_c - eps_u)
    E_c = d_c where |d_c| is at or above its own quantile threshold_c, per channel; else 0
    M   = sum_c weight_c E_c + momentum_scale v          v <- momentum v + (1 - momentum) M
    eps = eps_u + target (eps_p - eps_u) + (M when all concepts are warm, else the weighted mean of the warm E_c)

The authors' code differs from the paper and is what is followed: weights are normalised only while some concepts are
still cold, the threshold is taken per channel, momentum includes itself, and it builds up during warm-up. Departures:
where all warm concepts have cooled down their code divides zero by zero, here the term is zero; each image counts
its own concepts only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.data.sample import EditSample
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State, StepNetwork, guided, guided_rows
from framework.inversion import Inversion
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import ScheduleOptions
from framework.step import UNCOND, Latents, Row, Stream, concept, latents
from methods.concepts import (
    Concept,
    ConceptTable,
    concept_prompts,
    concepts_of,
    per_image,
    table_of,
    threshold_at,
    warmup_problems,
)
from methods.sdedit import NoInversion

Pure = Literal["never", "caption", "always"]

_DEFAULT = Concept()


@dataclass(frozen=True)
class SemanticState:
    """What semantic guidance carries from step to step.

    Attributes:
        concepts: Settings of the concepts of every image.
        plain: [B] True where the target prompt takes no part ("pure SEGA"); None where it always does.
        momentum: [B, C, H, W], or None before the first step.
        first: Interval of the first step, from which warm-up counts.
        guidance: [B, C, H, W] semantic term of the last step.
    """

    concepts: ConceptTable
    plain: Tensor | None = None
    momentum: Tensor | None = None
    first: int | None = None
    guidance: Tensor | None = None


@dataclass(frozen=True)
class SemanticGuidance(Guidance):
    """Classifier-free guidance of the target plus any number of edit concepts, all rows in one network call.

    A sample may bring its own concepts in the field `concepts` of the manifest, a list of texts or of mappings with the
    fields of `Concept`; they replace those given here.

    Attributes:
        concepts: Edit concepts of every image that brings none.
        target: Scale of the target prompt, at least 0. With 0 the prompt takes no part.
        source: Scale of the source row while denoising; 0 is the empty prompt.
        inversion: Scale while inverting; None takes `source`.
        momentum_scale: Share of the momentum that is added, at least 0 (paper 0.1 to 0.5).
        momentum: Decay of the momentum in [0, 1) (paper 0.4 to 0.6).
        pure: Whether the target prompt is left out ("pure SEGA"): never, always, or where it says the same as the
            source prompt ("caption").
        default: Settings of a sample's concepts where it does not name them.
        own_concepts: Whether a sample's own concepts replace those given here; False ignores them.
        recorded: [executed steps, B or 1, C, H, W] semantic terms of an earlier run (`Step.found`), added on top.
    """

    concepts: Sequence[Concept] = ()
    target: float = 7.5
    source: float = 1.0
    inversion: float | None = None
    momentum_scale: float = 0.1
    momentum: float = 0.4
    pure: Pure = "never"
    default: Concept = _DEFAULT
    own_concepts: bool = True
    recorded: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        checks = Checks("guidance")
        for name in ("target", "source", "momentum_scale"):
            checks.between(name, getattr(self, name), 0, float("inf"))
        if self.inversion is not None:
            checks.between("inversion", self.inversion, 0, float("inf"))
        checks.between("momentum", self.momentum, 0, 0.999, "paper 0.4 to 0.6")
        checks.one_of("pure", self.pure, ("never", "caption", "always"))
        concepts_of({}, self.concepts, self.default, checks)
        checks.done()

    def check(self, executed: int) -> list[str]:
        """Refuse concepts that would never become warm, and a recording that ends before the edit."""
        problems = warmup_problems(self.concepts, executed)
        if self.recorded is not None and len(self.recorded) < executed:
            problems.append(
                f"recorded holds {len(self.recorded)} steps for {executed} executed ones; give a recording of as many."
            )
        return problems

    def prompts(self, samples: Sequence[EditSample]) -> Mapping[Row, Sequence[str]]:
        """Return one block of prompts per concept; images with fewer concepts have the empty prompt there."""
        return concept_prompts(samples, self.concepts, self.default, own=self.own_concepts)

    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Predict with the source prompt alone; concepts act in the edit only."""
        return ClassifierFree(source=self.source, inversion=self.inversion).invert(z, network, ctx)

    def begin(self, ctx: Context) -> SemanticState:
        """Bring the settings of all concepts to the device, and decide where the target prompt is left out."""
        concepts = table_of(ctx, self.concepts, self.default, own=self.own_concepts)
        if self.pure != "caption":
            return SemanticState(concepts)
        pairs = zip(ctx.texts.source, ctx.texts.target, strict=True)
        same = [source.strip() == target.strip() for source, target in pairs]
        return SemanticState(concepts, torch.tensor(same, device=concepts.scale.device))

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, SemanticState]:
        """Guide every stream by its prompt and the target also by its concepts."""
        del record
        now: SemanticState = state
        first = i if now.first is None else now.first
        if now.first is None:
            now.concepts.warn_of_late(ctx.schedule.num_steps - i)
        target = 0.0 if self.pure == "always" else self.target
        scales = {Stream.SOURCE: self.source, Stream.TARGET: target, Stream.LAYOUT: self.source}
        count = now.concepts.count
        rows = [row for stream in z.streams() for row in guided_rows(stream, scales[stream])]
        if count or now.plain is not None:
            rows = list(dict.fromkeys([*rows, Row(Stream.TARGET, UNCOND)]))
        rows += [Row(Stream.TARGET, concept(c)) for c in range(count)]
        predictions = network(z, rows)
        results: dict[Stream, Tensor] = {
            s: guided(predictions, s, scales[s]) for s in z.streams() if s is not Stream.TARGET
        }
        base = guided(predictions, Stream.TARGET, target)
        if now.plain is not None:
            base = torch.where(now.plain.view(-1, 1, 1, 1), predictions[Row(Stream.TARGET, UNCOND)], base)
        momentum, term = now.momentum, torch.zeros_like(base)
        if count:
            uncond = predictions[Row(Stream.TARGET, UNCOND)]
            estimates = torch.stack([predictions[Row(Stream.TARGET, concept(c))] for c in range(count)])
            term, momentum = semantic_term(
                now.concepts.directions(estimates, uncond),
                now.concepts,
                i - first,
                momentum,
                scale=self.momentum_scale,
                decay=self.momentum,
            )
        if self.recorded is not None:
            term = term + self.recorded[i - first].to(term)
        results[Stream.TARGET] = base + term
        return latents(results), replace(now, momentum=momentum, first=first, guidance=term)

    def found(self, state: State) -> Mapping[str, Tensor]:
        """Return the semantic term of the last step as `semantic_guidance`."""
        return {} if state.guidance is None else {"semantic_guidance": state.guidance}


def semantic_term(
    d: Tensor, concepts: ConceptTable, n: int, momentum: Tensor | None, *, scale: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Combine the directions of all concepts at one step.

    Args:
        d: [K, B, C, H, W] scaled and signed directions.
        concepts: Their settings.
        n: Executed steps so far, from 0.
        momentum: [B, C, H, W] momentum, or None for zero.
        scale: Share of the momentum that is added.
        decay: Decay of the momentum.

    Returns:
        The semantic term and the next momentum, [B, C, H, W] each.

    Source: SEGA Eq. 5 to 8 as in diffusers' SemanticStableDiffusionPipeline.
    """
    size = d.abs()
    threshold = threshold_at(size.flatten(3), concepts.threshold[..., None])
    kept = torch.where(size >= threshold[..., None, None], d, 0)
    warm, cold = concepts.warm(n), concepts.cold(n)
    weight = concepts.weight * ~concepts.cooled(n)
    total = (per_image(weight, d) * kept).sum(0)
    if momentum is not None:
        total = total + scale * momentum
    carried = (1 - decay) * total if momentum is None else decay * momentum + (1 - decay) * total
    partial = weight * warm
    sum_of = partial.sum(0)
    mean = (per_image(partial / torch.where(sum_of > 0, sum_of, 1), d) * kept).sum(0)
    term = torch.where(cold.any(0).view(-1, 1, 1, 1), mean, total)
    return term, carried


@dataclass(frozen=True)
class PureNoise(NoInversion):
    """Starts at noise and does not look at the source: generation."""

    def record(self, z0: Tensor, predict: Any, ctx: Context) -> Record:
        """Draw the start; the network is not asked."""
        record = super().record(z0, predict, ctx)
        return replace(record, own={**record.own, "sdedit.start": ctx.noise("start", 1)})


class SEGA(EditModule):
    """Generation from noise, steered by edit concepts. The source picture gives its size only.

    Defaults are the authors': 50 DDIM steps, guidance 7.5, concepts of scale 5 from step 10 on, threshold 0.9.
    """

    references = (
        Reference(
            "SEGA: Instructing Text-to-Image Models using Semantic Guidance",
            "Brack, Friedrich, Hintersdorf, Struppek, Schramowski, Kersting",
            "NeurIPS 2023",
            "https://arxiv.org/abs/2301.12247",
            "https://github.com/ml-research/semantic-image-editing (d284e44); compared with diffusers' pipeline",
            "Apache-2.0 (diffusers)",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        eta: float = 0.0,
        guidance: Guidance = SemanticGuidance(),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            eta: Stochasticity of the sampler in [0, 1].
            guidance: Scale of the prompt, and the concepts.
            inversion: Replaces the start from noise; `eta` then has no effect.
            schedule: Conventions of the schedule; the clean end is a[0].
            **common: See `CommonSettings`.
        """
        inversion = inversion or PureNoise(0, eta)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
