"""Denoisers in closed form: a Gaussian mixture as the distribution of clean latents, for experiments and laws."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.backbones.loading import DTYPES, DtypeName
from framework.errors import Checks
from framework.schedule import Schedule, ScheduleOptions
from framework.scheduler_tables import training_table
from framework.step import Condition

Numbers = float | Sequence[Any]
"""A number, or nested lists of numbers."""


class GaussianMixture(Backbone):
    """The exact denoiser of clean latents z0 ~ sum_k w_k N(m_k, v_k), with diagonal covariances.

    At z = alpha z0 + sigma eps component k is N(alpha m_k, s_k) with s_k = alpha^2 v_k + sigma^2, and with
    responsibilities r_k(z)

        score(z) = -sum_k r_k (z - alpha m_k) / s_k,    E[eps | z] = -sigma score(z),
        E[z0 | z] = sum_k r_k (m_k + v_k alpha / s_k (z - alpha m_k)).

    A diffusion model predicts E[eps | z], a flow E[eps | z] - E[z0 | z], the velocity towards noise. Pictures are
    latents: encoding and decoding change nothing. A component whose mean and variance are single numbers is a picture
    of equal pixels, so that a model of such components takes pictures of any size and commutes with shifts and flips.

    Args:
        means: One entry per component: a number for all elements, n numbers, or nested lists of the latent's shape.
        variances: One number for everything, or one entry per component as in `means`; above 0.
        weights: One number above or equal to 0 per component, of any positive sum; None is equal weights.
        texts: Prompt -> weights that this prompt gives the components; any other prompt means `weights`.
        kind: "diffusion" (predicts epsilon) or "flow" (predicts velocity).
        shape: [C, H, W] of latents; None is [n, 1, 1] for means of n numbers, and any shape for single numbers.
        num_train_timesteps: Length of the training table; a flow is told this times sigma.
        beta_schedule, beta_start, beta_end: Training table of a diffusion model, as diffusers names them.
        steps_offset, set_alpha_to_one: Sampling conventions of a diffusion model, as diffusers names them.
        shift: Shift s of a flow's levels, sigma -> s sigma / (1 + (s - 1) sigma); methods may replace it.
        dtype: Dtype of the arithmetic.
    """

    def __init__(
        self,
        means: Sequence[Numbers],
        variances: Numbers = 1.0,
        *,
        weights: Sequence[float] | None = None,
        texts: Mapping[str, Sequence[float]] | None = None,
        kind: Literal["diffusion", "flow"] = "diffusion",
        shape: Sequence[int] | None = None,
        num_train_timesteps: int = 1000,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        steps_offset: int = 1,
        set_alpha_to_one: bool = False,
        shift: float = 1.0,
        dtype: DtypeName = "float64",
    ) -> None:
        super().__init__()
        checks = Checks("GaussianMixture")
        checks.one_of("kind", kind, ("diffusion", "flow"))
        checks.one_of("dtype", dtype, DTYPES)
        checks.one_of("beta_schedule", beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        checks.between("num_train_timesteps", num_train_timesteps, 1, math.inf)
        checks.between("steps_offset", steps_offset, 0, num_train_timesteps)
        checks.between("beta_start", beta_start, 1e-12, 1)
        checks.between("beta_end", beta_end, 1e-12, 1)
        checks.between("shift", shift, 1e-3, 1e3, "SD3 uses 3")
        count = len(means)
        checks.require(count > 0, "means is empty; give one entry per component.")
        weights = [1.0] * count if weights is None else list(weights)
        texts = {text: list(given) for text, given in (texts or {}).items()}
        _check_weights(
            checks, {"weights": weights, **{f"texts[{key!r}]": value for key, value in texts.items()}}, count
        )
        each = list(variances) if isinstance(variances, Sequence) else [variances] * count
        problem = f"variances has {len(each)} entries for {count} components; give one number, or one entry each."
        checks.require(len(each) == count, problem)
        if shape is not None:
            fits = len(shape) == 3 and min(shape) >= 1
            checks.require(fits, f"shape={list(shape)} is not allowed; give channels, rows and columns.")
        checks.done()
        tensors = {"means": _tensors(checks, "means", means), "variances": _tensors(checks, "variances", each)}
        checks.done()
        lengths = {len(value) for group in tensors.values() for value in group if value.ndim == 1}
        if shape is None and len(lengths) == 1:
            shape = (lengths.pop(), 1, 1)
        for name, group in tensors.items():
            _check_components(checks, name, group, shape)
        checks.done()

        self.takes_text = bool(texts)
        self.form = "epsilon" if kind == "diffusion" else "velocity"
        self.prediction_type = "epsilon" if kind == "diffusion" else "velocity"
        self.latent_shape = None if shape is None else (shape[0], shape[1], shape[2])
        self.image_channels = 3 if shape is None else shape[0]
        self.image_size = None if shape is None else (shape[1], shape[2])
        self.multiple = 1
        self.kind = kind
        self._dtype = DTYPES[dtype]
        self._shift = shift
        self._weights = _normalised(weights)
        self._texts = {text: _normalised(list(value)) for text, value in texts.items()}
        self.scheduler_config = {
            "num_train_timesteps": num_train_timesteps,
            "beta_schedule": beta_schedule,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "steps_offset": steps_offset,
            "set_alpha_to_one": set_alpha_to_one,
        }
        self._settings = {
            "means": [value.tolist() for value in tensors["means"]],
            "variances": [value.tolist() for value in tensors["variances"]],
            "weights": self._weights,
            "texts": self._texts,
            "kind": kind,
            "shape": self.latent_shape,
            "shift": shift,
            "scheduler": self.scheduler_config,
        }
        for name, group in tensors.items():
            whole = shape if any(value.numel() > 1 for value in group) else None
            stacked = torch.stack([_broadcast(value, whole) for value in group])
            self.register_buffer(f"_{name}", stacked.to(self._dtype), persistent=False)
        table = training_table(self.scheduler_config).double() if kind == "diffusion" else torch.ones(1)
        self.register_buffer("_table", table, persistent=False)

    _means: Tensor
    _variances: Tensor
    _table: Tensor

    @property
    def identity(self) -> Mapping[str, Any]:
        """A hash of the distribution and the schedule, and the dtype."""
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        return {"backbone": "GaussianMixture", "settings": digest, "dtype": str(self._dtype).removeprefix("torch.")}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the arithmetic."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the means are."""
        return self._means.device

    def load(self) -> None:
        """Do nothing: there are no weights."""

    def schedule(self, num_steps: int, options: ScheduleOptions | None = None) -> Schedule:
        """Build a sampling schedule: the checkpoint's convention for diffusion, even levels from 1 to 0 for a flow.

        A flow takes only `shift` from the options; the others are about training tables.
        """
        if self.kind == "diffusion":
            return Schedule.from_scheduler(self.scheduler_config, num_steps, options)
        train_steps = int(self.scheduler_config["num_train_timesteps"])
        checks = Checks("schedule")
        checks.between("steps", num_steps, 1, math.inf)
        checks.done()
        shift = self._shift if options is None or options.shift is None else options.shift
        sigma = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        return Schedule.from_sigmas(shift * sigma / (1 + (shift - 1) * sigma), train_steps=train_steps)

    def encode_image(self, images: Tensor) -> Tensor:
        """Return pictures [B, C, H, W] as they are, in `latent_dtype`."""
        return images.to(self.device, self.latent_dtype)

    def decode_latent(self, z: Tensor) -> Tensor:
        """Return latents as they are, float32."""
        return z.float()

    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        """Look up the components' weights, [B, 1, K] in `dtype`; a prompt without an entry has the mixture's own."""
        rows = [self._texts.get(text, self._weights) for text in texts]
        return Condition(torch.tensor(rows, dtype=self._dtype, device=self.device)[:, None])

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return E[eps | z] of a diffusion model or the velocity of a flow; see `Backbone.forward`."""
        alpha, sigma = self._level(z, t)
        eps, z0 = self.posterior_means(z, alpha, sigma, condition)
        return eps if self.kind == "diffusion" else eps - z0

    def _level(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma of each row, [rows, 1, ...], from the times that the network is told."""
        if self.kind == "diffusion":
            # The clean end's own time may lie below the table.
            abar = self._table[t.to(self._table.device).round().long().clamp(min=0)]
            alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        else:
            sigma = t.to(self.device, torch.float64) / float(self.scheduler_config["num_train_timesteps"])
            alpha = 1 - sigma
        shape = (-1, *([1] * (z.ndim - 1)))
        return alpha.to(z.dtype).view(shape), sigma.to(z.dtype).view(shape)

    def posterior_means(
        self, z: Tensor, alpha: Tensor, sigma: Tensor, condition: Condition | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute E[eps | z] and E[z0 | z].

        Args:
            z: [B, ...] at the given level.
            alpha, sigma: Broadcast against z.
            condition: Weights from `encode_prompt`; None takes the mixture's own.

        Returns:
            Two tensors of the shape of z.
        """
        means, variances = self._spread(z)
        residual = z[None] - alpha * means
        marginal = alpha**2 * variances + sigma**2
        r = self._responsibilities(residual, marginal, condition)
        eps = (r * sigma * residual / marginal).sum(0)
        z0 = (r * (means + variances * alpha / marginal * residual)).sum(0)
        return eps, z0

    def log_density(self, z: Tensor, alpha: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """Log density of noised latents, [B]; arguments as in `posterior_means`."""
        means, variances = self._spread(z)
        marginal = (alpha**2 * variances + sigma**2).expand(len(means), *z.shape)
        return self._log_joint(z[None] - alpha * means, marginal, condition).logsumexp(0)

    def _spread(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances, [K, 1, ...] each, in the dtype of z."""
        shape = (len(self._means), 1, *([1] * (z.ndim - 1)))
        means, variances = (
            value.to(z.dtype).view(shape) if value.ndim == 1 else value.to(z.dtype)[:, None]
            for value in (self._means, self._variances)
        )
        return means, variances

    def _responsibilities(self, residual: Tensor, marginal: Tensor, condition: Condition | None) -> Tensor:
        r = self._log_joint(residual, marginal.expand_as(residual), condition).softmax(0)
        return r.view(*r.shape, *([1] * (residual.ndim - 2)))

    def _log_joint(self, residual: Tensor, marginal: Tensor, condition: Condition | None) -> Tensor:
        """Log w_k + log N(z; alpha m_k, s_k), [K, B]."""
        text = None if condition is None else condition.text
        if text is None:
            text = torch.tensor(self._weights, dtype=residual.dtype, device=residual.device).expand(1, 1, -1)
        log_weights = text[:, 0].to(residual).log().T
        quadratic = residual**2 / marginal + (2 * math.pi * marginal).log()
        return log_weights - 0.5 * quadratic.flatten(2).sum(2)


def _tensors(checks: Checks, name: str, entries: Sequence[Numbers]) -> list[Tensor]:
    tensors = []
    for number, entry in enumerate(entries):
        try:
            tensors.append(torch.tensor(entry, dtype=torch.float64))
        except (TypeError, ValueError, RuntimeError):
            checks.require(False, f"{name}[{number}]={entry!r} is no number and no evenly nested list of numbers.")
    return tensors


def _check_weights(checks: Checks, groups: Mapping[str, Sequence[float]], count: int) -> None:
    for name, given in groups.items():
        fits = len(given) == count and min(given, default=-1) >= 0 and 0 < sum(given) < math.inf
        checks.require(fits, f"{name}={given} is not allowed; give {count} numbers of at least 0, not all 0.")


def _check_components(checks: Checks, name: str, group: Sequence[Tensor], shape: Sequence[int] | None) -> None:
    for number, value in enumerate(group):
        if shape is None:
            wanted = "a number, or set shape=[channels, rows, columns]"
        else:
            wanted = f"a number, {math.prod(shape)} numbers, one per channel, or nested lists of shape {list(shape)}"
        checks.require(_fits(value, shape), f"{name}[{number}] has shape {list(value.shape)}; give {wanted}.")
        allowed = bool(value.isfinite().all()) and (name == "means" or bool((value > 0).all()))
        rule = "finite numbers" if name == "means" else "finite numbers above 0"
        checks.require(allowed, f"{name}[{number}] holds values that are not allowed; give {rule}.")


def _normalised(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _fits(value: Tensor, shape: Sequence[int] | None) -> bool:
    if value.numel() == 1:
        return True
    if shape is None:
        return False
    return tuple(value.shape) == tuple(shape) or (value.ndim == 1 and len(value) in (math.prod(shape), shape[0]))


def _broadcast(value: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Bring a component's numbers to the shape of latents, or to one number where all components have one."""
    if shape is None:
        return value.reshape(())
    if value.numel() == math.prod(shape):
        return value.reshape(*shape)
    if value.numel() == 1:
        return value.reshape(()).expand(*shape)
    return value.reshape(-1, 1, 1).expand(*shape)
