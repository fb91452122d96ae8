"""The noise space of two-dimensional Gaussian data: closed forms, and the project's inversions on many chains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.backbones import GaussianMixture
from framework.guidance import ClassifierFree
from framework.record import Record
from framework.schedule import Schedule
from framework.statistics import noise_space
from framework.step import COND, UNCOND, Latents, Row, Stream
from methods.cycle_diffusion import CycleDiffusion, PosteriorInversion
from methods.edit_friendly import EditFriendlyDDPM, EditFriendlyInversion, NoiseMapInversion
from tests.parity.case import Case
from tests.parity.latent import LatentRun

TABLE = re.compile(r"beta (?P<kind>linear|scaled_linear) (?P<start>[0-9.e-]+?)\.\.(?P<end>[0-9.e-]+)")
"""How a case names its noise table."""


def replay_noise_space_2d(case: Case, models: Path) -> dict[str, Any]:
    del models
    results: dict[str, Any] = {}
    for name in case.about["inputs"]:
        table = name.removeprefix("in.").removesuffix(".schedule")
        for key, value in _table(case, case.value(name)).items():
            results[f"out.{table}.{key}"] = value
    return results


def _table(case: Case, about: Mapping[str, Any]) -> dict[str, Any]:
    edges, mu, eta = case.settings["angle_bins_deg"], case.settings["mu"], case.settings["eta"]
    named = TABLE.fullmatch(about["table"])
    if named is None:
        raise NotImplementedError(f"noise table {about['table']!r}")
    fields = {
        "beta_schedule": named["kind"],
        "beta_start": float(named["start"]),
        "beta_end": float(named["end"]),
        "num_train_timesteps": int(about["train_steps"]),
    }
    steps = about["timesteps"]
    stride = about["train_steps"] // about["num_steps"]
    schedule = Schedule.from_alphas_cumprod(_float64_table(fields), steps, final_alpha="one", stride=stride)
    abar = (schedule.alpha**2).numpy()
    results: dict[str, Any] = dict(_closed_forms(abar[:-1], abar[1:], edges))

    chains = int(case.settings["chains"])
    generator = torch.Generator().manual_seed(20)
    mean = torch.tensor(mu, dtype=torch.float64).view(1, -1, 1, 1)
    z0 = mean + torch.randn(chains, len(mu), 1, 1, generator=generator, dtype=torch.float64)
    draws = torch.randn(len(steps), *z0.shape, generator=generator, dtype=torch.float64)
    backbone = GaussianMixture(means=[mu], variances=1.0, **fields)

    friendly = EditFriendlyInversion(skip=0, eta=eta, zero_last=False)
    run = _run(EditFriendlyDDPM, backbone, schedule, friendly, {"edit-friendly levels": draws})
    record = run.invert(z0)
    results.update(_monte_carlo("edit_friendly", record, edges))
    run.denoise(record)
    assert record.latents is not None
    walked = run.seen.trajectory(Stream.SOURCE)[:-1]  # the last step is noise-free and left out, as everywhere here
    results["edit_friendly_recon_max_error"] = float((walked - record.latents[1:-1]).abs().max())

    posterior = PosteriorInversion(skip=0, eta=eta)
    run = _run(CycleDiffusion, backbone, schedule, posterior, {"posterior path": draws})
    results.update(_monte_carlo("consistent_posterior_inversion", run.invert(z0), edges))
    results.update(_monte_carlo("native_sampling", _native(run, friendly, z0, draws, generator), edges))
    return results


def _float64_table(fields: Mapping[str, Any]) -> Tensor:
    """Cumulative alphas in float64; a scheduler's float32 table is off by 1e-4 of 1 - abar at the clean end."""
    power = 2 if fields["beta_schedule"] == "scaled_linear" else 1
    ends = fields["beta_start"] ** (1 / power), fields["beta_end"] ** (1 / power)
    return torch.cumprod(1 - torch.linspace(*ends, fields["num_train_timesteps"], dtype=torch.float64) ** power, 0)


def _run(
    method: type[Any],
    backbone: GaussianMixture,
    schedule: Schedule,
    inversion: NoiseMapInversion,
    draws: dict[str, Tensor],
) -> LatentRun:
    chains = next(iter(draws.values())).shape[1]
    guidance = ClassifierFree(target=1.0, source=1.0)
    module = method(backbone, steps=schedule.num_steps, inversion=inversion, guidance=guidance)
    module.edit_schedule = schedule
    text = backbone.encode_prompt([""]).text
    assert text is not None
    many = text.expand(chains, *text.shape[1:])
    return LatentRun(module, {Row(s, b): many for s in Stream for b in (COND, UNCOND)}, draws)


def _native(
    run: LatentRun, inversion: NoiseMapInversion, like: Tensor, noise: Tensor, generator: torch.Generator
) -> Record:
    """Sample natively with given noise, then read the noise off the path again."""
    schedule = run.ctx.schedule
    z = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    maps = torch.zeros_like(noise)
    network = run.network
    for i in range(schedule.num_steps):
        bound = network.at(i, run.ctx.conditions)
        eps = bound(Latents(source=z), [Row(Stream.SOURCE, COND)])[Row(Stream.SOURCE, COND)]
        mean, std = inversion.posterior(z, eps, i, schedule)
        z_next = mean + std * noise[i]
        maps[i], z = inversion.extract(z, eps, z_next, i, schedule)
    return Record.on(schedule, "native", like, noise_maps=maps)


def _closed_forms(abar: Any, abar_next: Any, edges: list[float]) -> dict[str, Any]:
    """Statistics over all steps but the last, and over pairs of those."""
    a, b = abar[:-1], abar_next[:-1]
    rho = noise_space.edit_friendly_correlation(a, b)
    flat = np.zeros(len(a) - 1)
    forms = {
        "edit_friendly": {
            "variance": noise_space.edit_friendly_variance(a, b),
            "variance_given_x0": noise_space.edit_friendly_variance(a, b, given_x0=True),
            "corr_next": rho,
            "corr_next_given_x0": noise_space.edit_friendly_correlation(a, b, given_x0=True),
            "angle_hist_fraction": noise_space.angle_fractions(edges, rho),
        },
        "consistent_posterior_inversion": {"variance": noise_space.posterior_variance(a, b)},
        "native_sampling": {
            "variance": np.ones(len(a)),
            "corr_next": flat,
            "angle_hist_fraction": noise_space.angle_fractions(edges, flat),
        },
    }
    return {f"{space}.closed_form.{key}": value for space, group in forms.items() for key, value in group.items()}


def _monte_carlo(space: str, record: Record, edges: list[float]) -> dict[str, Any]:
    assert record.noise_maps is not None
    maps = record.noise_maps[:-1].flatten(2)  # [steps, chains, coordinates]
    centred = maps - maps.mean(1, keepdim=True)
    variance = (centred**2).mean((1, 2))
    correlation = (centred[:-1] * centred[1:]).mean((1, 2)) / (variance[:-1] * variance[1:]).sqrt()
    cosine = torch.nn.functional.cosine_similarity(maps[:-1], maps[1:], dim=-1).clamp(-1, 1)
    angles = torch.rad2deg(torch.arccos(cosine))
    counts = torch.histogram(angles.flatten(), torch.tensor(edges, dtype=angles.dtype)).hist
    values = {
        "variance": variance,
        "corr_next": correlation,
        "angle_hist_fraction": counts / counts.sum(),
        "mean_angle_deg": float(angles.mean()),
    }
    return {f"{space}.monte_carlo.{key}": value for key, value in values.items()}
