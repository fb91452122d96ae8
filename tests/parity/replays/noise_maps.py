"""Edit-friendly DDPM inversion and the native noise space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.step import Stream
from methods.cycle_diffusion import CycleDiffusion, PosteriorInversion
from methods.edit_friendly import EditFriendlyDDPM, EditFriendlyInversion
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.prompt_to_prompt import optional_controls, with_prompts


def replay_ddpm_inversion(case: Case, models: Path) -> dict[str, Tensor]:
    noise = case.input("in.noise")
    if noise.ndim == 5:
        return _edit_friendly(case, models, noise)
    results = {}
    for k, draw in enumerate(noise):
        results.update({f"{name}_{k}": value for name, value in _edit_friendly(case, models, draw).items()})
    return results


def _edit_friendly(case: Case, models: Path, noise: Tensor) -> dict[str, Tensor]:
    settings = case.settings
    schedule = case_schedule(case)
    eta: Any = settings.get("eta", 1.0)
    eta = tuple(reversed(eta)) if isinstance(eta, list) else float(eta)  # theirs: index 0 is the last step
    skip = int(settings["skip"])
    controls = optional_controls(case)

    def run(skip: int) -> LatentRun:
        inversion = EditFriendlyInversion(skip=skip, eta=eta, sequential=True)
        scale = float(settings.get("source_guidance_scale", 3.5))
        guidance = ClassifierFree(target=float(settings["guidance_scale"]), source=scale)
        module = EditFriendlyDDPM(
            network_of(case, models),
            steps=schedule.num_steps,
            inversion=inversion,
            guidance=guidance,
            reconstruct=skip == 0,
            controls=controls,
        )
        module.edit_schedule = schedule
        emb = [case.input(f"in.emb_{name}") for name in ("source", "target", "uncond")]
        made = LatentRun(module, rows(*emb), {"edit-friendly levels": noise}, case.prompts["source"])
        with_prompts(made, case.prompts["source"], [case.prompts["target"]])
        return made

    edit = run(skip)
    record = edit.invert(case.input("in.z0"))
    assert record.latents is not None and record.noise_maps is not None
    edit.denoise(record)
    results = {
        "out.zs": record.noise_maps.flip(0)[:, 0],
        "out.xts": record.latents.flip(0)[:, 0],
        "out.edit_traj": edit.seen.trajectory(Stream.TARGET),
    }
    if controls:
        results["out.p2p_traj"] = torch.cat([edit.seen.trajectory(s) for s in (Stream.SOURCE, Stream.TARGET)], 1)
    if settings.get("reconstruct"):
        back = run(0)
        back.denoise(record)
        results["out.recon_traj"] = back.seen.trajectory(Stream.SOURCE)
    return results


def replay_cycle_diffusion(case: Case, models: Path) -> dict[str, Tensor]:
    settings = case.settings
    executed = list(settings["timesteps"])
    skip = int(settings["skip"])
    schedule = case_schedule(case, executed)
    inversion = PosteriorInversion(skip=0, eta=float(settings["eta"]))
    guidance = ClassifierFree(target=float(settings["guidance_scale"]), source=float(settings["source_guidance_scale"]))
    module = CycleDiffusion(
        network_of(case, models), steps=schedule.num_steps, inversion=inversion, guidance=guidance, reconstruct=False
    )
    assert len(executed) == settings["num_steps"] - skip
    module.edit_schedule = schedule
    emb = [case.input(f"in.emb_{name}") for name in ("source", "target", "uncond")]
    run = LatentRun(module, rows(*emb), {"posterior path": case.input("in.noise")})
    record = run.invert(case.input("in.z0"))
    run.denoise(record)
    assert record.latents is not None and record.noise_maps is not None
    return {
        "out.xs": torch.as_tensor(record.latents),
        "out.zs": record.noise_maps,
        "out.edit_traj": run.seen.trajectory(Stream.TARGET),
    }
