"""SDEdit as diffusers' image-to-image pipeline does it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from framework.guidance import ClassifierFree
from framework.step import Stream
from methods.sdedit import NoInversion, SDEdit
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows


def replay_sdedit(case: Case, models: Path) -> dict[str, Tensor]:
    settings = case.settings
    schedule = case_schedule(case)
    eta = float(settings.get("eta", 0.0))
    module = SDEdit(
        network_of(case, models),
        steps=schedule.num_steps,
        inversion=NoInversion(skip=0, eta=eta),
        guidance=ClassifierFree(target=max(1.0, float(settings.get("guidance_scale", 7.5)))),
    )
    module.edit_schedule = schedule
    draws = {"start": case.input("in.noise")[None]}
    if eta > 0:
        draws["steps"] = case.input("in.noise_steps")[:, None]
    target, negative = case.input("in.emb_target"), case.input("in.emb_negative")
    run = LatentRun(module, rows(target, target, negative), draws)
    record = run.invert(case.input("in.z0"))
    run.denoise(record)
    return {"out.start": record.own["sdedit.start"][0], "out.traj": run.seen.trajectory(Stream.TARGET)[:, 0]}
