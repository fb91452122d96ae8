"""DDIM inversion and reconstruction, both recorded conventions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from framework.guidance import ClassifierFree
from framework.schedule import Schedule
from framework.step import Stream
from methods.ddim import DDIM
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows


def replay_ddim(case: Case, models: Path) -> dict[str, Tensor]:
    convention = case.settings["inversion"]
    if convention == "course_snippet":
        return _course_snippet(case, models)
    if convention == "next_step":
        return _next_step(case, models)
    raise NotImplementedError(f"inversion={convention!r}")


def _run(case: Case, models: Path, schedule: Schedule, guidance: ClassifierFree, **settings: object) -> LatentRun:
    steps = schedule.num_steps
    module = DDIM(network_of(case, models), steps=steps, guidance=guidance, **settings)  # type: ignore[arg-type]
    module.edit_schedule = schedule
    source = case.input("in.emb_source")
    uncond = case.input("in.emb_negative" if case.has("in.emb_negative") else "in.emb_uncond")
    return LatentRun(module, rows(source, source, uncond), {})


def _next_step(case: Case, models: Path) -> dict[str, Tensor]:
    settings, schedule = case.settings, case_schedule(case)
    inversion = float(settings.get("inversion_guidance_scale", 1.0))
    plain, guided = settings.get("recon_guidance_scales", [1.0, settings.get("guidance_scale", 7.5)])
    results: dict[str, Tensor] = {}

    run = _run(case, models, schedule, ClassifierFree(source=plain, target=guided, inversion=inversion))
    record = run.invert(case.input("in.z0"))
    assert record.latents is not None
    results["out.inversion_traj"] = record.latents.flip(0)[:, 0]
    run.denoise(record)
    results["out.recon_traj_g1"] = run.seen.trajectory(Stream.SOURCE)[:, 0]
    results["out.recon_traj_cfg"] = run.seen.trajectory(Stream.TARGET)[:, 0]
    if "out.inversion_traj_null" in case.expected:
        empty = _run(case, models, schedule, ClassifierFree(source=1.0, target=1.0, inversion=0.0))
        latents = empty.invert(case.input("in.z0")).latents
        assert latents is not None
        results["out.inversion_traj_null"] = latents.flip(0)[:, 0]
    return results


def _course_snippet(case: Case, models: Path) -> dict[str, Tensor]:
    settings = case.settings
    table = case_schedule(case).alphas_cumprod
    assert table is not None
    stride = len(table) // settings["num_steps"]
    schedule = Schedule.from_alphas_cumprod(table, settings["timesteps"], final_alpha="second", stride=stride)
    scale = float(settings["guidance_scale"])
    start = int(settings.get("start_step", 0))
    guidance = ClassifierFree(source=scale, target=scale, inversion=scale)
    run = _run(case, models, schedule, guidance, convention="course_snippet", skip=start, reconstruct=False)
    record = run.invert(case.input("in.z0"))
    assert record.latents is not None
    results = {"out.inversion_traj": record.latents.flip(0)[1:, 0]}
    if "out.recon_traj" in case.expected:
        run.denoise(replace(record))
        results["out.recon_traj"] = run.seen.trajectory(Stream.TARGET)[:, 0]
    return results
