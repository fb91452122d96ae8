"""Noise Map Guidance: reconstruction, first gradient, and edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from framework.guidance import StepNetwork
from framework.schedule import Level
from framework.step import Stream
from methods.noise_map_guidance import NMG, Loss, NoiseMapGuidance, NoiseMapStep, Reached
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.prompt_to_prompt import blend_masks, optional_controls, with_prompts

REFERENCES: dict[tuple[str, str], Reached] = {
    ("input_level", "N-1-i"): "current",
    ("input_level", "N-i"): "previous",
    ("next_step", "N-i"): "current",
    ("next_step", "N-1-i"): "next",
}
"""Inversion and index of its latents -> the level meant."""


@dataclass(frozen=True)
class Watched(NoiseMapGuidance):
    """Keeps the gradients."""

    gradients: list[Tensor] = field(default_factory=list, compare=False)

    def noise_map_step(
        self, source: Tensor, aim: Tensor, level: Level, level_next: Level, network: StepNetwork
    ) -> NoiseMapStep:
        found = super().noise_map_step(source, aim, level, level_next, network)
        self.gradients.append(found.gradient)
        return found


def replay_noise_map_guidance(case: Case, models: Path) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings.get("guidance_scale", 10.0))
    inversion, index = settings["inversion"], settings["reference_index"]
    if (inversion, index) not in REFERENCES:
        raise NotImplementedError(f"inversion={inversion!r} with reference_index={index!r}")
    guidance = Watched(
        target=scale,
        source=scale,
        noise_map_scale=float(settings.get("noise_map_guidance_scale", 10.0)),
        gradient_scale=float(settings.get("grad_scale", 5000.0)),
        loss=cast(Loss, settings.get("noise_cond_loss_type", "l1")),
        smooth_l1_beta=float(settings.get("smooth_l1_beta", 1e-4)),
        reference=REFERENCES[inversion, index],
    )
    source, *targets = case.input("in.emb_prompts").split(1)
    walked: list[Tensor] = []
    controls = [optional_controls(case, number) for number in range(max(1, len(targets)))]
    pairs = zip(targets or [source], case.targets or [case.prompts["source"]], controls, strict=True)
    for target, text, own in pairs:
        module = NMG(
            network_of(case, models),
            steps=int(settings["num_steps"]),
            convention=inversion,
            guidance=guidance,
            controls=own,
        )
        module.edit_schedule = case_schedule(case)
        run = LatentRun(module, rows(source, target, case.input("in.emb_uncond")), {})
        with_prompts(run, case.prompts["source"], [text])
        record = run.invert(case.input("in.z0"))
        run.denoise(record)
        walked += [] if walked else [run.seen.trajectory(Stream.SOURCE)]
        walked.append(run.seen.trajectory(Stream.TARGET))
    assert record.latents is not None
    return {
        "out.inversion_traj": record.latents.flip(0)[:, 0],
        "out.recon_traj": walked[0][:, 0],
        "out.recon_grad_step1": guidance.gradients[0],
        "out.edit_traj": torch.cat(walked[: 1 + len(targets)], 1),
        **blend_masks(controls),
    }
