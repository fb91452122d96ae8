"""LEDITS as the authors' application does it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from framework.step import Stream
from methods.edit_friendly import EditFriendlyInversion
from methods.ledits import LEDITS
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.sega import concept_rows, semantic


def replay_ledits(case: Case, models: Path) -> dict[str, Tensor]:
    settings = case.settings
    schedule = case_schedule(case)
    inversion = EditFriendlyInversion(skip=int(settings["skip"]), eta=float(settings.get("eta", 1.0)))
    # The empty source prompt is inverted alone, whatever the scale.
    scale = float(settings.get("source_guidance_scale", 3.5)) if case.prompts["source"] else 0.0
    guidance = semantic(case, source=scale)
    module = LEDITS(
        network_of(case, models), steps=schedule.num_steps, inversion=inversion, guidance=guidance, reconstruct=False
    )
    module.edit_schedule = schedule
    emb = [case.input(f"in.emb_{name}") for name in ("source", "target", "uncond")]
    run = LatentRun(
        module,
        {**rows(*emb), **concept_rows(case)},
        {"edit-friendly levels": case.input("in.noise")},
        case.prompts["source"],
    )
    record = run.invert(case.input("in.z0"))
    run.denoise(record)
    assert record.latents is not None and record.noise_maps is not None
    return {
        "out.wts": record.latents[:, 0],
        "out.zs": record.noise_maps[:, 0],
        "out.edit_traj": run.seen.trajectory(Stream.TARGET),
        "out.sem_guidance": torch.stack([step.found["semantic_guidance"] for step in run.seen.denoised]),
    }
