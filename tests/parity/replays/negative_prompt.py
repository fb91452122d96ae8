"""Negative-prompt inversion, plain and with proximal guidance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.step import UNCOND, Row, Stream
from methods.negative_prompt import NegativePrompt
from methods.proximal import ProximalGuidance
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, rows, tiny_sd
from tests.parity.replays.prompt_to_prompt import optional_controls, with_prompts


def replay_negative_prompt_inversion(case: Case, models: Path) -> dict[str, Tensor]:
    scale = float(case.settings["guidance_scale"])
    return _replay(case, models, ClassifierFree(target=scale, source=scale, inversion=1.0))


def replay_proximal_npi(case: Case, models: Path) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    if len(case.input("in.emb_prompts")) > 2:
        raise NotImplementedError("several targets, whose differences share a quantile")
    quantile = float(settings.get("quantile", 0.7))
    guidance = ProximalGuidance(
        target=scale,
        source=scale,
        mode=settings["proximal"] or "none",
        quantile=max(quantile, 0.0),
        threshold=-quantile if quantile < 0 else None,
        reconstruction_guidance=bool(settings.get("use_reconstruction_guidance", False)),
        inversion_guidance=bool(settings.get("use_inversion_guidance", False)),
        rate=float(settings.get("recon_lr", 0.1)),
        until=float(settings.get("recon_t", 400)),
        dilation=int(settings.get("dilate_mask", 1)),
    )
    return _replay(case, models, guidance)


def _replay(case: Case, models: Path, guidance: ClassifierFree) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    source, *targets = case.input("in.emb_prompts").split(1)

    def run_to(target: Tensor, guidance: ClassifierFree, text: str | None = None) -> LatentRun:
        module = NegativePrompt(
            tiny_sd(models),
            steps=int(settings["num_steps"]),
            interpolation=float(settings.get("npi_interp", 0.0)),
            guidance=guidance,
            controls=[] if text is None else optional_controls(settings),
        )
        module.edit_schedule = case_schedule(case)
        run = LatentRun(module, rows(source, target, case.input("in.emb_uncond")), {})
        if text is not None:
            with_prompts(run, case.prompts["source"], [text])
        return run

    plain = run_to(source, ClassifierFree(target=scale, source=scale, inversion=1.0))
    record = plain.invert(case.input("in.z0"))
    plain.denoise(record)
    assert record.latents is not None
    uncond = plain.module.inversion.condition(record, 0, plain.ctx.conditions)[Row(Stream.TARGET, UNCOND)].text
    assert uncond is not None
    edits = []
    for target, text in zip(targets, case.targets, strict=True):
        run = run_to(target, guidance, text)
        run.denoise(record)
        edits.append(run)
    streams = [edits[0].seen.trajectory(Stream.SOURCE), *(run.seen.trajectory(Stream.TARGET) for run in edits)]
    return {
        "out.inversion_traj": record.latents.flip(0)[:, 0],
        "out.uncond": uncond,
        "out.recon_traj": plain.seen.trajectory(Stream.SOURCE)[:, 0],
        "out.edit_traj": torch.cat(streams, 1),
    }
