"""MasaCtrl on DDIM inversion: plain, with given masks, with automatic masks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.step import Stream
from methods.ddim import DDIM
from methods.plug_and_play import OnTrajectory
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.prompt_to_prompt import mutual_controls


def replay_masactrl(case: Case, models: Path) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    inversion = OnTrajectory() if settings.get("use_inversion_latents") else None
    masks = {"source_mask": "in.mask_s", "target_mask": "in.mask_t"}
    given = {name: case.input(tensor) for name, tensor in masks.items() if case.has(tensor)}
    controls = mutual_controls(case, **given) if settings.get("control") else []

    def run_with(source: str, scale_of_inversion: float) -> LatentRun:
        module = DDIM(
            network_of(case, models),
            steps=int(settings["num_steps"]),
            guidance=ClassifierFree(target=scale, source=scale, inversion=scale_of_inversion),
            inversion=inversion,
            controls=controls,
        )
        module.edit_schedule = case_schedule(case)
        return LatentRun(module, rows(*(case.input(f"in.emb_{name}") for name in (source, "target", "uncond"))), {})

    inverting = run_with("inversion", float(settings["inversion_guidance_scale"]))
    record = inverting.invert(case.input("in.z0"))
    assert record.latents is not None
    run = run_with("source", 1.0)
    final = run.denoise(record)
    return {
        "out.inversion_traj": record.latents.flip(0)[:, 0],
        "out.target_traj": torch.cat([record.latents[:1, 0], run.seen.trajectory(Stream.TARGET)[:, 0]]),
        "out.source_final": final[Stream.SOURCE],
        "out.pred_x0_last_target": run.seen.denoised[-1].x0()[Stream.TARGET],
    }
