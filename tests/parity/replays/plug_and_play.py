"""Plug-and-Play: inversion with its own text, edit with the empty text in the source row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from framework.guidance import ClassifierFree
from framework.schedule import Schedule
from framework.step import Stream
from methods.plug_and_play import FineInversion, OnTrajectory, PlugAndPlay
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows


@dataclass(frozen=True)
class Listed(FineInversion):
    """Takes the timesteps of the case."""

    listed: tuple[int, ...] = ()

    def timesteps(self, schedule: Schedule) -> list[int]:
        return [t for t in self.listed if t <= schedule.levels[0].t]


def replay_plug_and_play(case: Case, models: Path) -> dict[str, Tensor]:
    settings, wanted = case.settings, case.settings.get("control") or {"pnp_f_t": 0, "pnp_attn_t": 0}
    module = PlugAndPlay(
        network_of(case, models),
        steps=int(settings["num_steps"]),
        features=float(wanted.get("pnp_f_t", 0.8)),
        attention=float(wanted.get("pnp_attn_t", 0.5)),
        guidance=ClassifierFree(target=float(settings.get("guidance_scale", 7.5)), source=0.0, inversion=1.0),
        inversion=OnTrajectory(Listed(listed=tuple(settings["inversion_timesteps"]))),
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
