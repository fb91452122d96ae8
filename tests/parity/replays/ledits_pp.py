"""LEDITS++ as the authors' repository and as diffusers' pipeline do it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from framework.schedule import Schedule
from framework.step import Stream
from methods.implicit_masks import ImplicitMaskGuidance, MaskedConcept, Variant
from methods.ledits_pp import LEDITSPP, MultistepSDEInversion
from tests.parity.case import Case
from tests.parity.latent import LatentRun, network_of, rows
from tests.parity.replays.sega import concept_rows, concepts


@dataclass(frozen=True)
class AsRecorded(ImplicitMaskGuidance):
    """Takes concepts that never act."""

    def check(self, executed: int) -> list[str]:
        del executed
        return []


def replay_ledits_pp(case: Case, models: Path) -> dict[str, Tensor]:
    return _replay(case, models, "diffusers")


def replay_ledits_pp_repo(case: Case, models: Path) -> dict[str, Tensor]:
    return _replay(case, models, "repo")


def _replay(case: Case, models: Path, variant: Variant) -> dict[str, Tensor]:
    settings = case.settings
    source = case.prompts.get("source", "")
    inversion = MultistepSDEInversion(bool(settings.get("lower_order_final", True)))
    counts = dict(zip(case.prompts["editing_prompt"], case.input("in.num_edit_tokens").tolist(), strict=True))

    def run(edited: tuple[MaskedConcept, ...]) -> LatentRun:
        guidance = AsRecorded(
            edited,
            mask=_mask(case) if edited else "noise",
            source=float(settings.get("source_guidance_scale", 3.5)) if source else None,
            variant=variant,
        )
        module = LEDITSPP(
            network_of(case, models),
            steps=settings["num_steps"],
            inversion=inversion,
            guidance=guidance,
            reconstruct=False,
        )
        module.edit_schedule = _schedule(case, variant)
        uncond = case.input("in.emb_uncond")
        negative = case.input("in.emb_negative") if case.has("in.emb_negative") else uncond
        embedded = case.input("in.emb_source") if case.has("in.emb_source") else uncond
        conditions = {**rows(embedded, uncond, uncond, negative), **concept_rows(case)}
        made = LatentRun(module, conditions, {"edit-friendly levels": case.input("in.noise")}, source)
        made.ctx = replace(made.ctx, token_spans=lambda text: [(0, 0)] * counts[text])
        return made

    edited = concepts(case, MaskedConcept)
    if variant == "diffusers":  # which has no weights
        edited = tuple(replace(concept, weight=1.0) for concept in edited)
    edit = run(edited)
    record = edit.invert(case.input("in.z0"))
    edit.denoise(record)
    plain = run(())
    plain.denoise(record)
    assert record.latents is not None and record.noise_maps is not None
    trajectory, back = edit.seen.trajectory(Stream.TARGET), plain.seen.trajectory(Stream.TARGET)
    kept = settings.get("kept_steps", [])
    return {
        "out.zs": record.noise_maps,
        "out.x_start": record.latents[0],
        "out.recon_traj": back,
        "out.recon_last": back[-1],
        "out.edit_traj": trajectory,
        "out.edit_steps": trajectory[kept],
        "out.masks": torch.stack([step.found["masks"].transpose(0, 1) for step in edit.seen.denoised]),
        "out.sem_guidance": torch.stack([step.found["semantic_guidance"] for step in edit.seen.denoised]),
    }


def _mask(case: Case) -> str:
    if case.settings.get("use_intersect_mask"):
        return "intersection"
    return "attention" if case.settings.get("use_cross_attn_mask") else "noise"


def _schedule(case: Case, variant: Variant) -> Schedule:
    steps = list(case.settings["timesteps"])
    table = case.input("in.alphas_cumprod")
    if variant == "repo":
        return Schedule.from_alphas_cumprod(table, steps, final_alpha="first", stride=steps[-1])
    sigmas = case.input("in.sigmas")
    alpha = (1 + sigmas**2).rsqrt()
    t = torch.tensor([*steps, -1], dtype=torch.float64)
    return Schedule(t, alpha, sigmas * alpha, "epsilon", table)
