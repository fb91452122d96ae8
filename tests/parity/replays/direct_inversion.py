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
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.prompt_to_prompt import optional_controls, with_prompts


def replay_direct_inversion(case: Case, models: Path) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    variant = settings.get("variant", "full")
    if variant not in ("full", "skip"):
        raise NotImplementedError(f"variant={variant!r}")
    every = int(settings["skip_step"]) if variant == "skip" else 1
    source, *targets = case.input("in.emb_prompts").split(1)
    inverting = float(settings.get("inversion_guidance_scale", 1.0))

    def run_to(number: int, target: Tensor, text: str, **options: Any) -> LatentRun:
        module = DirectDDIM(
            network_of(case, models),
            steps=int(settings["num_steps"]),
            every=every,
            guidance=ClassifierFree(target=scale, source=scale, inversion=inverting),
            controls=optional_controls(case, number),
            **options,
        )
        module.edit_schedule = case_schedule(case)
        run = LatentRun(module, rows(source, target, case.input("in.emb_uncond")), {})
        with_prompts(run, case.prompts["source"], [text])
        return run

    offsets: list[Tensor] = []
    walked: list[Tensor] = []
    pairs = zip(targets or [source], case.targets or [case.prompts["source"]], strict=True)
    for number, (target, text) in enumerate(pairs):
        recorded = run_to(number, target, text, recorded=True).invert(case.input("in.z0"))
        run = run_to(number, target, text)
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
        "out.offsets": torch.cat(offsets[: 1 + len(targets)], 1),
        "out.edit_traj": torch.cat(walked[: 1 + len(targets)], 1),
    }
