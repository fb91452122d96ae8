"""pix2pix-zero: the regularisers with their gradients, the regularised inversion, and the guided edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.context import Context
from framework.guidance import ClassifierFree
from framework.statistics.regularisers import auto_correlation, kl_divergence
from framework.step import Stream
from methods.pix2pix_zero import CrossAttentionGuidance, Pix2PixZero
from methods.regularised_inversion import RegularisedInversion
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows
from tests.parity.replays.prompt_to_prompt import FromNoise


@dataclass(frozen=True)
class GivenOffsets(RegularisedInversion):
    """Takes the offsets from a list, in the order in which the authors' code draws them."""

    offsets: Tensor = field(default=torch.zeros(0), compare=False)

    def shifts(self, eps: Tensor, index: int, ctx: Context) -> Tensor:
        table = self.offsets.view(-1, self.repeats, self.rolls, eps.shape[1], _levels(eps))
        return table[index][None].expand(eps.shape[0], -1, -1, -1, -1)


def replay_pix2pix_zero(case: Case, models: Path) -> dict[str, Tensor]:
    task = case.settings["task"]
    known = {"inversion": _inversion, "edit": _edit, "regulariser": _regulariser}
    if task not in known:
        raise NotImplementedError(f"task={task!r}")
    return known[task](case, models)


def _regulariser(case: Case, models: Path) -> dict[str, Tensor]:
    del models
    x = case.input("in.noise_pred").requires_grad_()
    losses = {
        "auto_corr": auto_correlation(x, case.input("in.rolls").view(-1, x.shape[1], _levels(x))),
        "kl": kl_divergence(x),
    }
    gradients = {name: torch.autograd.grad(loss.sum(), x)[0] for name, loss in losses.items()}
    return {f"out.loss_{name}": loss.detach() for name, loss in losses.items()} | {
        f"out.grad_{name}": gradient for name, gradient in gradients.items()
    }


def _inversion(case: Case, models: Path) -> dict[str, Tensor]:
    settings = case.settings
    inner, stride = list(settings["inversion_timesteps"]), 1000 // int(settings["num_steps"])
    inversion = GivenOffsets(
        auto_correlation_rate=float(settings.get("lambda_ac", 20)),
        kl_rate=float(settings.get("lambda_kl", 20)),
        repeats=int(settings.get("num_reg_steps", 5)),
        rolls=int(settings.get("num_ac_rolls", 5)),
        keep_predictions=True,
        offsets=case.tensors["in.rolls"],
    )
    scale = float(settings.get("inversion_guidance_scale", 1.0))
    run = _run(case, models, [inner[-1] + stride, *inner[::-1], inner[0] - stride], scale, inversion=inversion)
    record = run.invert(case.input("in.z0"))
    assert record.latents is not None and record.predictions is not None
    trajectory = record.latents.flip(0)[1:, 0]
    return {
        "out.inverted": trajectory[-1:],
        "out.inversion_traj": trajectory,
        "out.regularised_eps": record.predictions.flip(0)[:, 0],
    }


def _edit(case: Case, models: Path) -> dict[str, Tensor]:
    settings = case.settings
    scale = float(settings.get("guidance_scale", 5.0))
    guidance = CrossAttentionGuidance(ClassifierFree(scale, scale, 1.0), amount=float(settings.get("xa_guidance", 0.1)))
    run = _run(case, models, list(settings["timesteps"]), 1.0, inversion=FromNoise(0, 0.0), guidance=guidance)
    run.denoise(run.invert(case.input("in.x_T")))
    return {
        "out.reference_traj": run.seen.trajectory(Stream.SOURCE)[:, 0],
        "out.edit_traj": run.seen.trajectory(Stream.TARGET)[:, 0],
        "out.edit_state_after_xa": torch.stack([step.z[Stream.TARGET][0] for step in run.seen.denoised]),
    }


def _run(case: Case, models: Path, timesteps: list[int], inverting: float, **slots: Any) -> LatentRun:
    slots.setdefault("guidance", CrossAttentionGuidance(ClassifierFree(5.0, 5.0, inverting)))
    module = Pix2PixZero(network_of(case, models), steps=int(case.settings["num_steps"]), **slots)
    module.edit_schedule = case_schedule(case, timesteps)
    source = case.input("in.emb_source")
    negative = case.input("in.emb_negative") if case.has("in.emb_negative") else source
    target = source + case.input("in.edit_dir") if case.has("in.edit_dir") else source
    conditions = rows(source, target, negative, negative)
    draws = {"start": case.input("in.x_T")[None]} if case.has("in.x_T") else {}
    return LatentRun(module, conditions, draws)


def _levels(x: Tensor) -> int:
    count, height = 1, x.shape[-2]
    while height > 8:
        count, height = count + 1, height // 2
    return count
