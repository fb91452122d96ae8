"""SEGA as diffusers' pipeline does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from framework.step import Row, Stream, concept
from methods.concepts import Concept
from methods.sega import SEGA, SemanticGuidance
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows

AnyConcept = TypeVar("AnyConcept", bound=Concept)


@dataclass(frozen=True)
class AsRecorded(SemanticGuidance):
    """Takes concepts that never become warm: they hold back the phase in which all concepts are summed."""

    def check(self, executed: int) -> list[str]:
        del executed
        return []


@dataclass(frozen=True)
class RecordedConcept(Concept):
    """May end before it begins: it never acts, but adds to the momentum for as long as it has not ended."""

    def __post_init__(self) -> None:
        pass


def concepts(case: Case, kind: type[AnyConcept]) -> tuple[AnyConcept, ...]:
    """Read the edit concepts of a case; a setting is one value for all or a list.

    A negative scale turns the direction round, and a negative weight counts as none.
    """
    settings = case.settings
    texts = case.prompts["editing_prompt"]
    found = []
    for k, text in enumerate(texts):

        def of(name: str, default: Any, k: int = k) -> Any:
            value = settings.get(name, default)
            return value[k] if isinstance(value, list) else default if value is None else value

        scale = float(of("edit_guidance_scale", 5.0))
        found.append(
            kind(
                text or "(empty)",  # a name only; the embeddings are given
                reverse=bool(of("reverse_editing_direction", False)) != (scale < 0),
                scale=abs(scale),
                warmup=of("edit_warmup_steps", kind().warmup),
                cooldown=of("edit_cooldown_steps", None),
                threshold=float(of("edit_threshold", 0.9)),
                weight=max(0.0, float(of("edit_weights", 1.0))),
            )
        )
    return tuple(found)


def concept_rows(case: Case, images: int = 1) -> Mapping[Row, Tensor]:
    """Name the embeddings of the concepts."""
    embeddings = case.input("in.emb_concepts")
    return {Row(Stream.TARGET, concept(k)): e[None].expand(images, -1, -1) for k, e in enumerate(embeddings)}


def semantic(case: Case, **settings: Any) -> SemanticGuidance:
    """Build the guidance of a case; at a scale up to 1 the authors' pipeline predicts with the main prompt alone."""
    scale = float(case.settings.get("guidance_scale", 7.5))
    return AsRecorded(
        concepts(case, RecordedConcept) if scale > 1 else (),
        target=max(1.0, scale),
        momentum_scale=float(case.settings.get("edit_momentum_scale", 0.1)),
        momentum=float(case.settings.get("edit_mom_beta", 0.4)),
        **settings,
    )


def replay_sega(case: Case, models: Path) -> dict[str, Tensor]:
    schedule = case_schedule(case)
    module = SEGA(
        network_of(case, models),
        steps=schedule.num_steps,
        eta=float(case.settings.get("eta", 0.0)),
        guidance=semantic(case),
    )
    module.edit_schedule = schedule
    start, target, uncond = (case.input(f"in.{name}") for name in ("x_T", "emb_target", "emb_uncond"))
    uncond = uncond.expand(len(start), -1, -1)
    conditions = {**rows(target, target, uncond), **concept_rows(case, len(start))}
    run = LatentRun(module, conditions, {"start": start[None]})
    run.denoise(run.invert(torch.zeros_like(start)))
    return {
        "out.traj": run.seen.trajectory(Stream.TARGET),
        "out.sem_guidance": torch.stack([step.found["semantic_guidance"] for step in run.seen.denoised]),
    }
