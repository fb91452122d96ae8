"""Null-text inversion: embeddings, losses, reconstruction and edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from framework.guidance import ClassifierFree
from framework.step import Stream
from methods.ddim import DDIMInversion
from methods.null_text import NullText, NullTextInversion
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.prompt_to_prompt import optional_controls, with_prompts


def replay_null_text_inversion(case: Case, models: Path) -> dict[str, Any]:
    settings = case.settings
    adam, scale = settings.get("optimizer") or {}, float(settings.get("guidance_scale", 7.5))
    if adam.get("kind", "adam") != "adam":
        raise NotImplementedError(f"optimizer {adam['kind']!r}")
    inversion = NullTextInversion(
        DDIMInversion("next_step"),
        scale,
        int(settings.get("num_inner_steps", 10)),
        float(adam.get("lr", 0.01)),
        decay=float(adam.get("lr_decay_per_step", 0.01)),
        tolerance=float(settings.get("early_stop_epsilon", 1e-5)),
        growth=float(adam.get("early_stop_growth", 2e-5)),
        betas=tuple(adam.get("betas", (0.9, 0.999))),
        epsilon=float(adam.get("eps", 1e-8)),
    )
    module = NullText(
        network_of(case, models),
        steps=int(settings["num_steps"]),
        guidance=ClassifierFree(target=scale, source=scale, inversion=1.0),
        inversion=inversion,
        controls=optional_controls(case),
    )
    module.edit_schedule = case_schedule(case)
    source = case.input("in.emb_source")
    target = case.input("in.emb_target") if case.has("in.emb_target") else source
    run = LatentRun(module, rows(source, target, case.input("in.emb_uncond")), {})
    with_prompts(run, case.prompts["source"], case.targets[:1] or [case.prompts["source"]])
    record = run.invert(case.input("in.z0"))
    run.denoise(record)
    assert record.latents is not None
    losses = record.own["null_text.losses"][:, 0]
    walked = [run.seen.trajectory(stream)[:, 0] for stream in (Stream.SOURCE, Stream.TARGET)]
    return {
        "out.inversion_traj": record.latents.flip(0)[:, 0],
        "out.null_embeddings": record.own["null_text.embeddings"][:, 0],
        "out.losses": losses[~losses.isnan()],
        "out.inner_steps_taken": (~losses.isnan()).sum(1).tolist(),
        "out.recon_traj": walked[0],
        "out.edit_traj": torch.stack(walked, 1),
    }
