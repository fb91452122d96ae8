"""MasaCtrl on DDIM inversion: plain, with given masks, with automatic masks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.step import Stream
from methods.ddim import DDIM
from methods.masactrl import MutualSelfAttention
from methods.plug_and_play import OnTrajectory
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, rows, tiny_sd

VARIANTS = {"plain": "none", "mask": "given", "mask_auto": "auto"}


def replay_masactrl(case: Case, models: Path) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    wanted = settings["control"]
    inversion = OnTrajectory() if settings.get("use_inversion_latents") else None
    given = wanted["variant"] == "mask"
    control = MutualSelfAttention(
        start_step=wanted.get("start_step", 4),
        start_layer=wanted.get("start_layer", 10),
        step_list=wanted.get("step_idx"),
        layer_list=wanted.get("layer_idx"),
        masks=VARIANTS[wanted["variant"]],  # type: ignore[arg-type]
        source_mask=case.input("in.mask_s") if given else None,
        target_mask=case.input("in.mask_t") if given else None,
        source_words=wanted.get("ref_token_idx", [1]),
        target_words=wanted.get("cur_token_idx", [1]),
        threshold=wanted.get("thres", 0.1),
    )

    def run_with(source: str, scale_of_inversion: float) -> LatentRun:
        module = DDIM(
            tiny_sd(models),
            steps=int(settings["num_steps"]),
            guidance=ClassifierFree(target=scale, source=scale, inversion=scale_of_inversion),
            inversion=inversion,
            controls=[control],
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
