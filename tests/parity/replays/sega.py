"""SEGA as diffusers' pipeline does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from framework.step import Row, Stream, concept
from methods.concepts import Concept
from methods.sega import SEGA, SemanticGuidance
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, rows, tiny_sd

AnyConcept = TypeVar("AnyConcept", bound=Concept)


def concepts(case: Case, kind: type[AnyConcept]) -> tuple[AnyConcept, ...]:
    """Read the edit concepts of a case; a setting is one value for all or a list."""
    settings = case.settings
    texts = case.prompts["editing_prompt"]
    found = []
    for k, text in enumerate(texts):

        def of(name: str, default: Any, k: int = k) -> Any:
            value = settings.get(name, default)
            return value[k] if isinstance(value, list) else default if value is None else value

        found.append(
            kind(
                text,
                reverse=of("reverse_editing_direction", False),
                scale=float(of("edit_guidance_scale", 5.0)),
                warmup=of("edit_warmup_steps", 10),
                cooldown=of("edit_cooldown_steps", None),
                threshold=float(of("edit_threshold", 0.9)),
                weight=float(of("edit_weights", 1.0)),
            )
        )
    return tuple(found)


def concept_rows(case: Case, images: int = 1) -> Mapping[Row, Tensor]:
    """Name the embeddings of the concepts."""
    embeddings = case.input("in.emb_concepts")
    return {Row(Stream.TARGET, concept(k)): e[None].expand(images, -1, -1) for k, e in enumerate(embeddings)}


def semantic(case: Case, **settings: Any) -> SemanticGuidance:
    """Build the guidance of a case."""
    return SemanticGuidance(
        concepts(case, Concept),
        target=float(case.settings["guidance_scale"]),
        momentum_scale=float(case.settings.get("edit_momentum_scale", 0.1)),
        momentum=float(case.settings.get("edit_mom_beta", 0.4)),
        **settings,
    )


def replay_sega(case: Case, models: Path) -> dict[str, Tensor]:
    schedule = case_schedule(case)
    module = SEGA(
        tiny_sd(models),
        steps=schedule.num_steps,
        eta=float(case.settings.get("eta", 0.0)),
        guidance=semantic(case),
    )
    module.edit_schedule = schedule
    start, target, uncond = (case.input(f"in.{name}") for name in ("x_T", "emb_target", "emb_uncond"))
    conditions = {**rows(target, target, uncond), **concept_rows(case, len(start))}
    run = LatentRun(module, conditions, {"start": start[None]})
    run.denoise(run.invert(torch.zeros_like(start)))
    return {
        "out.traj": run.seen.trajectory(Stream.TARGET),
        "out.sem_guidance": torch.stack([step.found["semantic_guidance"] for step in run.seen.denoised]),
    }
