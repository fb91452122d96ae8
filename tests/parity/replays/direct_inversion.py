"""Direct inversion: offsets of both prompts as the authors record them, and the edit in its cheap form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.step import Stream
from methods.direct_inversion import DirectDDIM
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, rows, tiny_sd


def replay_direct_inversion(case: Case, models: Path) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    variant = settings.get("variant", "full")
    if settings.get("control"):
        raise NotImplementedError("attention control")
    if variant not in ("full", "skip"):
        raise NotImplementedError(f"variant={variant!r}")
    every = int(settings["skip_step"]) if variant == "skip" else 1
    source, *targets = case.input("in.emb_prompts").split(1)
    inverting = float(settings.get("inversion_guidance_scale", 1.0))

    def run_to(target: Tensor, **options: Any) -> LatentRun:
        module = DirectDDIM(
            tiny_sd(models),
            steps=int(settings["num_steps"]),
            every=every,
            guidance=ClassifierFree(target=scale, source=scale, inversion=inverting),
            **options,
        )
        module.edit_schedule = case_schedule(case)
        return LatentRun(module, rows(source, target, case.input("in.emb_uncond")), {})

    offsets: list[Tensor] = []
    walked: list[Tensor] = []
    for target in targets:
        recorded = run_to(target, recorded=True).invert(case.input("in.z0"))
        run = run_to(target)
        record = run.invert(case.input("in.z0"))
        run.denoise(record)
        if not offsets:
            offsets.append(recorded.own["direct_inversion.source"])
            walked.append(run.seen.trajectory(Stream.SOURCE))
        offsets.append(recorded.own["direct_inversion.target"])
        walked.append(run.seen.trajectory(Stream.TARGET))
    assert record.latents is not None
    return {
        "out.inversion_traj": record.latents.flip(0)[:, 0],
        "out.offsets": torch.cat(offsets, 1),
        "out.edit_traj": torch.cat(walked, 1),
    }
