"""FlowEdit, FlowAlign and UniEdit-Flow on tiny flow transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.backbones.flux import pack, unpack
from framework.guidance import usual_guidance
from framework.step import Stream
from methods.flowalign import FlowAlign, SourceAsUnconditional
from methods.flowedit import FlowEdit
from methods.uniedit_flow import UniEditFlow, VelocityFusion
from tests.parity.case import Case
from tests.parity.flow import FlowRun, backbone_of


def replay_flowedit(case: Case, models: Path) -> dict[str, Any]:
    settings, backbone = case.settings, backbone_of(case, models)
    packed = case.models == ["tiny-flux"]
    steps = int(settings["num_steps"])
    defaults = (5.5, 1.5, 24) if packed else (13.5, 3.5, 33)
    module = FlowEdit(
        backbone,
        steps=steps,
        n_max=settings.get("n_max", min(defaults[2], steps)),
        n_min=settings.get("n_min", 0),
        n_avg=settings.get("n_avg", 1),
        guidance=usual_guidance(
            backbone.guided_by,
            target=float(settings.get("guidance_scale", defaults[0])),
            source=float(settings.get("source_guidance_scale", defaults[1])),
        ),
    )
    noise = case.input("in.noise")
    if packed:
        size = case.input("in.z0").shape[-2:]
        noise = torch.stack([unpack(draw, *size) for draw in noise])
    run = FlowRun(module, case, {"flowedit": noise})
    edited = run.denoise(run.invert(run.z0))[Stream.TARGET]
    first, last = (run.calls.rows[k][-1:] for k in (0, -1))
    results: dict[str, Any] = {"out.edited": edited}
    if not packed:
        return {
            **results,
            "out.first_target_input": first,
            "out.last_target_input": last,
            "out.timesteps": run.calls.told,
        }
    return {
        **results,
        "out.first_target_input_packed": pack(first),
        "out.last_target_input_packed": pack(last),
        # Their calls hold one row each; a step's are one call here.
        "out.timesteps": torch.cat(run.calls.times) / 1000,
        "out.sigmas": run.ctx.schedule.sigma,
    }


def replay_flowalign(case: Case, models: Path) -> dict[str, Any]:
    settings = case.settings
    module = FlowAlign(
        backbone_of(case, models),
        steps=int(settings["num_steps"]),
        source_weight=float(settings.get("source_weight", 0.01)),
        guidance=SourceAsUnconditional(float(settings.get("guidance_scale", 7.0))),
    )
    run = FlowRun(module, case, {"flowalign": case.input("in.noise")})
    edited = run.denoise(run.invert(run.z0))[Stream.TARGET]
    return {"out.edited": edited, "out.last_target_input": run.calls.rows[-1][-1:]}


def replay_uniedit_flow(case: Case, models: Path) -> dict[str, Any]:
    settings = case.settings
    module = UniEditFlow(
        backbone_of(case, models),
        steps=int(settings["num_steps"]),
        alpha=float(settings.get("alpha", 0.6)),
        guidance=VelocityFusion(float(settings.get("omega", 5.0)), difference="signed", invert_with="source"),
        reconstruct=False,
    )
    run = FlowRun(module, case, {})
    record = run.invert(run.z0)
    calls = len(run.calls.times)
    edited: Tensor = run.denoise(record)[Stream.TARGET]
    told = run.calls.told
    return {
        "out.inverted": record.own["uni_inv.start"][0],
        "out.edited": edited,
        "out.edit_traj": run.seen.trajectory(Stream.TARGET)[:, 0],
        "out.inversion_timesteps": told[:calls],
        "out.edit_timesteps": told[calls:],
    }
