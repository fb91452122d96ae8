"""Negative-prompt inversion, plain and with proximal guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.record import Record
from framework.step import UNCOND, Row, Stream
from methods.negative_prompt import NegativePrompt
from methods.proximal import ProximalGuidance
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.prompt_to_prompt import optional_controls, with_prompts


class PooledOverTargets(ProximalGuidance):
    """Takes the quantile over the source and all targets of the case, which are the images of one batch here."""

    def thresholds(self, found: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
        if self.threshold is not None:
            return super().thresholds(found)
        rows = torch.cat([found[Stream.SOURCE][:1], found[Stream.TARGET]])
        pooled = self._quantile(rows.abs().reshape(1, -1))
        return {stream: pooled.expand(len(d), -1, -1, -1) for stream, d in found.items()}


def replay_negative_prompt_inversion(case: Case, models: Path) -> dict[str, Tensor]:
    scale = float(case.settings["guidance_scale"])
    return _replay(case, models, ClassifierFree(target=scale, source=scale, inversion=1.0))


def replay_proximal_npi(case: Case, models: Path) -> dict[str, Tensor]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    quantile = float(settings.get("quantile", 0.7))
    guidance = PooledOverTargets(
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

    def run_to(targets: Tensor, guidance: ClassifierFree, texts: Sequence[str] = ()) -> tuple[LatentRun, Record]:
        module = NegativePrompt(
            network_of(case, models),
            steps=int(settings["num_steps"]),
            interpolation=float(settings.get("npi_interp", 0.0)),
            guidance=guidance,
            controls=optional_controls(case) if texts else [],
        )
        module.edit_schedule = case_schedule(case)
        count = len(targets)
        uncond = case.input("in.emb_uncond").expand(count, -1, -1)
        run = LatentRun(module, rows(source.expand(count, -1, -1), targets, uncond), {})
        if texts:
            with_prompts(run, case.prompts["source"], texts)
        record = run.invert(case.input("in.z0").expand(count, -1, -1, -1))
        run.denoise(record)
        return run, record

    plain, record = run_to(source, ClassifierFree(target=scale, source=scale, inversion=1.0))
    assert record.latents is not None
    uncond = plain.module.inversion.condition(record, 0, plain.ctx.conditions)[Row(Stream.TARGET, UNCOND)].text
    assert uncond is not None
    results = {
        "out.inversion_traj": record.latents.flip(0)[:, 0],
        "out.uncond": uncond,
        "out.recon_traj": plain.seen.trajectory(Stream.SOURCE)[:, 0],
    }
    if targets:
        edit, _ = run_to(torch.cat(targets), guidance, case.targets)
        walked = [edit.seen.trajectory(Stream.SOURCE)[:, :1], edit.seen.trajectory(Stream.TARGET)]
        results["out.edit_traj"] = torch.cat(walked, 1)
    return results
