"""Plug-and-Play: inversion with its own text, edit with the empty text in the source row."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.step import Stream
from methods.plug_and_play import PlugAndPlay
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, rows, tiny_sd


def replay_plug_and_play(case: Case, models: Path) -> dict[str, Tensor]:
    settings, wanted = case.settings, case.settings["control"]
    if settings["inversion_timesteps"][::-1] != settings["timesteps"]:
        raise NotImplementedError("an inversion on other levels than the edit's")
    module = PlugAndPlay(
        tiny_sd(models),
        steps=int(settings["num_steps"]),
        features=float(wanted.get("pnp_f_t", 0.8)),
        attention=float(wanted.get("pnp_attn_t", 0.5)),
        guidance=ClassifierFree(target=float(settings["guidance_scale"]), source=0.0, inversion=1.0),
    )
    module.edit_schedule = case_schedule(case)
    source, target, null, negative = (
        case.input(f"in.emb_{name}") for name in ("inversion", "target", "null", "negative")
    )
    run = LatentRun(module, rows(source, target, null, negative), {})
    record = run.invert(case.input("in.z0"))
    run.denoise(record)
    assert record.latents is not None
    return {
        "out.source_latents": record.latents[:-1, 0],
        "out.target_traj": torch.cat([record.latents[:1, 0], run.seen.trajectory(Stream.TARGET)[:, 0]]),
    }
