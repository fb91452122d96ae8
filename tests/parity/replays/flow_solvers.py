"""Euler, RF-Solver and FireFlow on SD3 and FLUX, two-stage inversion with its controls, RF-Inversion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.backbones import Flux
from framework.backbones.flux import pack, unpack
from framework.guidance import ClassifierFree, EmbeddedGuidance
from framework.step import Stream
from methods.adaln_invariance import AdaLNInvariance, ValueInjection, token_map
from methods.euler_flow import EulerFlow
from methods.feature_sharing import FeatureSharing
from methods.rf_inversion import RFInversion
from methods.rf_solver import FireFlow, RFSolver
from methods.two_stage import FixedPointInversion, TwoStage, compensated
from tests.parity.case import Case
from tests.parity.flow import FlowRun, backbone_of

_SOLVERS = {
    "euler_flow": EulerFlow, "rf_solver": RFSolver, "fireflow": FireFlow, "rf_edit_flux": RFSolver,
    "fireflow_flux": FireFlow,
}  # fmt: skip


def replay_solver(case: Case, models: Path) -> dict[str, Any]:
    backbone, settings = backbone_of(case, models), case.settings
    sharing = _sharing(settings.get("control"))
    method = _SOLVERS[case.method]
    inversion_scale = float(settings.get("inversion_guidance_scale", 1.0))
    scales = {
        "target": float(settings["guidance_scale"]), "source": inversion_scale, "inversion": inversion_scale,
    }  # fmt: skip
    flux = isinstance(backbone, Flux)
    guidance = EmbeddedGuidance(**scales) if flux else ClassifierFree(**scales)

    def run(sharing: FeatureSharing) -> FlowRun:
        own: dict[str, Any] = {"time": "clean_end"} if method is EulerFlow else {}
        steps = int(settings["num_steps"])
        return FlowRun(method(backbone, steps=steps, guidance=guidance, sharing=sharing, **own), case, {})

    both = run(sharing)
    record = both.invert(case.input("in.z0"))
    calls, times = both.calls.take()
    final = both.denoise(record)
    assert record.latents is not None
    results: dict[str, Any] = {
        "out.inversion_calls": calls,
        "out.inversion_call_times": times,
        "out.inverted": record.latents[0],
        "out.reconstruction": final[Stream.SOURCE],
        "out.sampled": final[Stream.TARGET],
        "out.sampling_call_times": both.calls.take()[1],
    }
    if flux:
        plain = run(FeatureSharing(inject_steps=0))
        alone = plain.denoise(plain.invert(case.input("in.z0")))
        results |= {
            "out.inverted_packed": pack(record.latents[0]),
            "out.edited": final[Stream.TARGET],
            "out.edited_packed": pack(final[Stream.TARGET]),
            "out.edited_without_sharing_packed": pack(alone[Stream.TARGET]),
            "out.sigmas": both.ctx.schedule.sigma,
            "out.stored_features": torch.tensor(len(record.features)),
        }
    return results


def _sharing(control: Mapping[str, Any] | None) -> FeatureSharing:
    if control is None:
        return FeatureSharing(inject_steps=0)
    if control["kind"] != "qkv_sharing":
        raise NotImplementedError(f"control {control['kind']!r}")
    blocks = {"first_block": int(control["start_layer_index"]), "last_block": int(control["end_layer_index"])}
    inject = int(control["inject_steps"])
    # Reused values are taken as they are; strategies without a word share nothing.
    if control.get("reuse_v", True) or not control.get("editing_strategy"):
        return FeatureSharing(inject if control.get("reuse_v", True) else 0, **blocks)
    factors = tuple(control.get("qkv_ratio") or (1.0, 1.0, 1.0))
    return FeatureSharing(inject, strategy=tuple(control["editing_strategy"]), factors=factors, **blocks)


def replay_two_stage(case: Case, models: Path) -> dict[str, Any]:
    backbone, settings = backbone_of(case, models), case.settings
    scale = float(settings.get("guidance_scale", 2.0))
    inversion_scale = float(settings.get("inversion_guidance_scale", 1.0))
    reconstruct = bool(settings.get("reconstruct"))
    skip = int(settings.get("skip", 0))
    stage_one = FixedPointInversion(
        skip=skip,
        iterations=int(settings.get("num_fixpoint_steps", 2)),
        window=tuple(settings.get("average_step_ranges") or (0, 5)),
    )
    module = TwoStage(
        backbone,
        steps=int(settings["num_steps"]),
        inversion=compensated(stage_one, "none" if reconstruct else "source"),
        guidance=ClassifierFree(target=scale, source=scale, inversion=inversion_scale),
        controls=_adaln(settings.get("control")),
    )
    run = FlowRun(module, case, {})

    record = run.invert(case.input("in.z0"))
    final = run.denoise(record)

    assert record.latents is not None
    trajectory = record.latents.flip(0)[: module.steps - skip + 1]
    start = trajectory[-1:, 0]
    steps = {stream: torch.cat([start, run.seen.trajectory(stream)[:, 0]]) for stream in (Stream.SOURCE, Stream.TARGET)}
    segments = [backbone.segments(case.prompts.get(name, "")) for name in ("source", "target")]
    positions, shared = token_map(segments[0], segments[1], "own_position")
    return {
        "out.inversion_traj": trajectory[:, 0],
        "out.recon_traj": steps[Stream.SOURCE],
        "out.target_traj": steps[Stream.TARGET],
        "out.edited": final[Stream.TARGET],
        "out.source_final": final[Stream.SOURCE],
        "out.mapper_clip": torch.tensor(positions[:77]),
        "out.alphas_clip": torch.tensor(shared[:77]),
    }


def _adaln(control: Mapping[str, Any] | None) -> list[AdaLNInvariance | ValueInjection]:
    if control is None:
        return []
    if control["kind"] != "adaln":
        raise NotImplementedError(f"control {control['kind']!r}")
    adaln, values = control.get("ly_ratio"), control.get("attn_ratio")
    found: list[AdaLNInvariance | ValueInjection] = []
    if adaln is not None:
        found.append(AdaLNInvariance(adaln if isinstance(adaln, (int, float)) else tuple(adaln)))
    if values is not None:
        found.append(ValueInjection(float(values)))
    return found


def replay_rf_inversion(case: Case, models: Path) -> dict[str, Any]:
    backbone, settings = backbone_of(case, models), case.settings
    steps = int(settings["num_steps"])
    stochastic = bool(settings.get("enable_sde"))
    module = RFInversion(
        backbone,
        steps=steps,
        inversion_steps=int(settings.get("inversion_steps", steps)),
        gamma=float(settings.get("gamma", 0.5)),
        eta=float(settings.get("eta", 1.0)),
        start_share=float(settings.get("start_timestep", 0.0)),
        stop_share=float(settings.get("stop_timestep", 0.25)),
        decay=float(settings.get("eta_decay_power", 1.0)) if settings.get("decay_eta") else 0.0,
        strength=float(settings.get("strength", 1.0)),
        stochastic=stochastic,
        reconstruct=False,
        guidance=EmbeddedGuidance(
            target=float(settings.get("guidance_scale", 3.5)),
            inversion=float(settings.get("source_guidance_scale", 0.0)),
        ),
    )
    draws: dict[str, Tensor] = {"controller": _unpacked(case, case.input("in.y1")[None])}
    if stochastic:
        draws["steps"] = _unpacked(case, case.input("in.noise_steps"))
    run = FlowRun(module, case, draws)

    record = run.invert(case.input("in.z0"))
    inversion_calls, inversion_times = run.calls.take()
    final = run.denoise(record)
    sampling_calls, sampling_times = run.calls.take()

    assert record.latents is not None
    return {
        "out.inverted_packed": pack(record.latents[0]),
        "out.edited": final[Stream.TARGET],
        "out.edited_packed": pack(final[Stream.TARGET]),
        "out.inversion_calls_packed": pack(inversion_calls),
        "out.sampling_calls_packed": pack(sampling_calls),
        "out.inversion_model_times": inversion_times,
        "out.sampling_model_times": sampling_times,
        "out.sigmas": run.ctx.schedule.sigma,
    }


def _unpacked(case: Case, packed: Tensor) -> Tensor:
    """Bring draws [n, 1, tokens, 64] to the shape of latents."""
    return torch.stack([unpack(tokens, *case.input("in.z0").shape[-2:]) for tokens in packed])
