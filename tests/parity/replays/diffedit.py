"""DiffEdit as diffusers' pipeline does it: mask, partial inversion, masked edit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from framework.step import UNCOND, Row, Stream
from methods.ddim import DDIMInversion
from methods.diffedit import MASK_NEGATIVE, DiffEdit, DiffEditGuidance
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows


def replay_diffedit(case: Case, models: Path) -> dict[str, Tensor]:
    settings = case.settings
    executed, steps = list(settings["timesteps"]), int(settings["num_steps"])
    skip = steps - len(executed)
    guidance = DiffEditGuidance(
        target=max(1.0, float(settings.get("guidance_scale", 7.5))),
        inversion=max(1.0, float(settings.get("inversion_guidance_scale", 7.5))),
        mask_maps=int(settings.get("num_maps_per_mask", 10)),
        mask_strength=float(settings.get("mask_encode_strength", 0.5)),
        mask_ratio=float(settings.get("mask_thresholding_ratio", 3.0)),
        mask_scale=float(settings.get("mask_guidance_scale", 7.5)),
        mix="left",
        exchanged=True,
    )
    module = DiffEdit(
        network_of(case, models), steps=steps, guidance=guidance, inversion=DDIMInversion(skip=skip, partial=True)
    )
    stride = 1000 // steps
    # What is skipped is noisier than what the case names; the mask may lie there.
    skipped = [min(999, executed[0] + stride * k) for k in range(skip, 0, -1)]
    module.edit_schedule = case_schedule(case, [*skipped, *executed])
    source, target = case.input("in.emb_source"), case.input("in.emb_target")
    conditions = rows(source, target, case.input("in.emb_source_negative"), case.input("in.emb_negative"))
    conditions[MASK_NEGATIVE] = case.input("in.emb_target_negative")
    assert Row(Stream.SOURCE, UNCOND) in conditions
    run = LatentRun(module, conditions, {"mask": case.input("in.mask_noise")[:, None]})
    record = run.invert(case.input("in.z0"))
    run.denoise(record)
    assert record.latents is not None
    return {
        "out.mask": run.seen.denoised[0].found["mask"][:, 0].to(torch.uint8),
        "out.inverted": record.latents[skip:-1, 0],
        "out.edit_traj": run.seen.trajectory(Stream.TARGET)[:, 0],
    }
