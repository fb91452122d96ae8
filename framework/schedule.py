"""Noise levels as tables, and the maths of one step as pure functions.

Diffusion and rectified flow share one form, z = alpha z0 + sigma eps: diffusion has alpha^2 + sigma^2 = 1, flow has
alpha = 1 - sigma. Levels run from noisy (index 0) to clean (index T), the order in which an edit is denoised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from framework.errors import Checks, SettingsError
from framework.scheduler_tables import flow_sigmas, listed_timesteps, training_table

Form = Literal["epsilon", "velocity"]
"""What the engine's predictions are on a schedule: noise on diffusion, velocity (towards noise) on flow."""

Spacing = Literal["leading", "trailing", "linspace", "consistency"]
FinalAlpha = Literal["checkpoint", "first", "one", "second"]


class Level(NamedTuple):
    """One noise level.

    Attributes:
        t: Time that the network is told, in 0..999 for diffusion and 1000 sigma for flow; meaningless at a clean end.
        alpha, sigma: Scales of signal and noise.
    """

    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class ScheduleOptions:
    """Conventions of a sampling schedule in which published methods differ.

    Attributes:
        spacing: How timesteps are spread over training time; None takes the checkpoint's. "consistency" visits levels
            that consistency distillation trained, evenly spread over its `original_steps`. Flow schedules know
            "linspace" (SD3: over the training table, so that the last step does almost nothing) and "trailing"
            (FLUX: 1, 1 - 1/T, ..., 1/T), before the shift.
        original_steps: Steps of the solver that a consistency model was distilled from; "consistency" only.
        timesteps: The timesteps themselves, noisiest first, one per step; replaces the spacing.
        steps_offset: Added to every "leading" timestep; None takes the checkpoint's.
        final_alpha: Signal of the last level: "first" is a[0] (editing code), "second" is a[1] (course snippet), "one"
            is noise-free, "checkpoint" what the checkpoint's `set_alpha_to_one` says.
        shift: Shift s of a flow schedule, sigma -> s sigma / (1 + (s - 1) sigma); None takes the checkpoint's.
        dynamic_shift: Whether a flow's shift follows the number of image tokens (FLUX); None takes the checkpoint's,
            and a `shift` that is given is fixed.
    """

    spacing: Spacing | None = None
    steps_offset: int | None = None
    final_alpha: FinalAlpha = "checkpoint"
    shift: float | None = None
    original_steps: int = 50
    timesteps: Sequence[int] | None = None
    dynamic_shift: bool | None = None

    def __post_init__(self) -> None:
        checks = Checks("schedule")
        if self.spacing is not None:
            checks.one_of("spacing", self.spacing, get_args(Spacing))
        checks.between("original_steps", self.original_steps, 1, 1000, "latent consistency models: 50")
        steps = list(self.timesteps or ())
        checks.require(
            all(0 <= after < before for before, after in pairwise(steps)),
            f"timesteps={steps} do not fall; give them noisiest first, down to at least 0.",
        )
        checks.one_of("final_alpha", self.final_alpha, ("checkpoint", "first", "one", "second"))
        if self.steps_offset is not None:
            checks.between("steps_offset", self.steps_offset, 0, 1000)
        if self.shift is not None:
            checks.require(self.shift > 0, f"shift={self.shift} is not allowed; give a number above 0 (SD3 uses 3).")
            checks.require(
                not self.dynamic_shift, "shift and dynamic_shift contradict each other; give the one that is meant."
            )
        checks.done()


@dataclass(frozen=True)
class Schedule:
    """Frozen tables of T + 1 noise levels, noisy to clean.

    Attributes:
        t: [T + 1] float64, time of each level as the network is told it.
        alpha, sigma: [T + 1] float64, z = alpha z0 + sigma eps.
        form: Whether predictions on this schedule are noise or velocity.
        alphas_cumprod: [training steps] float64 table of a diffusion model, for conventions that leave the grid; None
            on flow.
        stride: Training steps between two levels of a "leading" grid; 0 where the grid is not even.
        by_size: Rebuilds a schedule that depends on the latent's rows and columns; None where it does not.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    form: Form
    alphas_cumprod: Tensor | None = None
    stride: int = 0
    by_size: Callable[[Sequence[int]], Schedule] | None = field(default=None, repr=False, compare=False)
    levels: tuple[Level, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = zip(self.t.tolist(), self.alpha.tolist(), self.sigma.tolist(), strict=True)
        object.__setattr__(self, "levels", tuple(Level(*row) for row in rows))

    @property
    def num_steps(self) -> int:
        """T, the number of intervals between levels."""
        return len(self.levels) - 1

    def for_size(self, size: Sequence[int]) -> Schedule:
        """Return the schedule for latents of these rows and columns: this one, unless its shift follows the size."""
        return self if self.by_size is None else self.by_size(size)

    def at_sigma(self, sigma: float) -> Level:
        """Return the level of any sigma of a flow, on or off the grid, sigma in [0, 1].

        Raises:
            SettingsError: The schedule is one of diffusion.
        """
        if self.form != "velocity":
            raise SettingsError([f"sigma {sigma} was asked of a diffusion schedule, whose times are a table."])
        first = self.levels[0]
        return Level(sigma * first.t / first.sigma, 1 - sigma, sigma)

    def at_timestep(self, t: int) -> Level:
        """Return the level of a training timestep, on or off the grid.

        Raises:
            SettingsError: The schedule has no training table (flow).
        """
        if self.alphas_cumprod is None:
            raise SettingsError([f"timestep {t} was asked of a flow schedule, which has no training table."])
        return _level(float(t), float(self.alphas_cumprod[t]))

    @classmethod
    def from_alphas_cumprod(
        cls,
        alphas_cumprod: Tensor,
        timesteps: Sequence[int],
        *,
        final_alpha: FinalAlpha = "first",
        stride: int | None = None,
    ) -> Schedule:
        """Build a diffusion schedule from its training table and the timesteps to visit.

        Args:
            alphas_cumprod: [training steps], cumulative products as the checkpoint's scheduler holds them; cast to
                float64 before any root is taken.
            timesteps: T training timesteps, noisiest first.
            final_alpha: Signal of the clean end where the step leaves the table; see `ScheduleOptions`.
            stride: Distance in training steps from the last timestep to the clean end; None takes training steps // T.

        Raises:
            SettingsError: The noisiest level holds no signal, so that noise and clean estimate cannot be converted.
        """
        table = alphas_cumprod.detach().to("cpu", torch.float64)
        stride = len(table) // len(timesteps) if stride is None else stride
        beyond = timesteps[-1] - stride
        ends = {"first": table[0], "second": table[1], "one": torch.ones((), dtype=torch.float64)}
        if final_alpha == "second":
            clean = table[max(1, beyond)]
        else:
            clean = table[beyond] if beyond >= 0 else ends[final_alpha]
        abar = torch.cat([table[list(timesteps)], clean[None]])
        if float(abar.min()) <= 0:
            raise SettingsError(
                [
                    f"the schedule's level at timestep {timesteps[0]} holds no signal (alpha = 0, zero terminal SNR): "
                    "noise and clean estimate cannot be converted there. Use 'leading'."
                ]
            )
        t = torch.tensor([*timesteps, max(beyond, -1)], dtype=torch.float64)
        return cls(t, abar.sqrt(), (1 - abar).sqrt(), "epsilon", table, stride)

    @classmethod
    def from_scheduler(
        cls, config: Mapping[str, Any], num_steps: int, options: ScheduleOptions | None = None
    ) -> Schedule:
        """Build a diffusion schedule from the config of a diffusers scheduler; the scheduler itself is not used.

        Args:
            config: `scheduler_config.json` of the checkpoint.
            num_steps: T, at least 1 and at most the training steps.
            options: Conventions that replace the checkpoint's.
        """
        options = options or ScheduleOptions()
        train_steps = int(config.get("num_train_timesteps", 1000))
        checks = Checks("schedule")
        checks.between("steps", num_steps, 1, train_steps, "the training steps of the checkpoint")
        checks.done()
        spacing = options.spacing or config.get("timestep_spacing", "leading")
        offset = options.steps_offset if options.steps_offset is not None else int(config.get("steps_offset", 0))
        final = options.final_alpha
        if final == "checkpoint":
            final = "one" if config.get("set_alpha_to_one", True) else "first"
        table = training_table(config)
        stride = train_steps // num_steps
        if spacing == "consistency" or options.timesteps is not None:
            steps = listed_timesteps(options.timesteps, options.original_steps, num_steps, train_steps)
            # Whatever the spacing, what follows the last of these levels is the clean latent.
            return cls.from_alphas_cumprod(table, steps, final_alpha=final, stride=train_steps)
        if spacing == "leading":
            steps = [min((num_steps - 1 - k) * stride + offset, train_steps - 1) for k in range(num_steps)]
        elif spacing == "trailing":
            steps = [round(train_steps - k * train_steps / num_steps) - 1 for k in range(num_steps)]
        else:
            steps = torch.linspace(0, train_steps - 1, num_steps, dtype=torch.float64).round().long().flip(0).tolist()
        return cls.from_alphas_cumprod(table, steps, final_alpha=final, stride=stride)

    @classmethod
    def from_sigmas(cls, sigmas: Tensor | Sequence[float], *, train_steps: int = 1000) -> Schedule:
        """Build a rectified-flow schedule, z = (1 - sigma) z0 + sigma eps, from T + 1 levels, noisiest first."""
        sigma = torch.as_tensor(sigmas, dtype=torch.float64)
        return cls(sigma * train_steps, 1 - sigma, sigma, "velocity")

    @classmethod
    def from_flow_scheduler(
        cls,
        config: Mapping[str, Any],
        num_steps: int,
        options: ScheduleOptions | None = None,
        *,
        spacing: Spacing,
        image_tokens: int,
        by_size: Callable[[Sequence[int]], Schedule] | None = None,
    ) -> Schedule:
        """Build a rectified-flow schedule from the config of a diffusers scheduler; arguments as in `from_scheduler`.

        Args:
            config, num_steps, options: See `from_scheduler`.
            spacing: That of the checkpoint's pipeline, since its config does not say: "linspace" or "trailing".
            image_tokens: Positions of the picture, which a dynamic shift depends on.
            by_size: Builds it again for another size; kept where the shift is dynamic.
        """
        options = options or ScheduleOptions()
        spacing = options.spacing or spacing
        train_steps = int(config.get("num_train_timesteps", 1000))
        checks = Checks("schedule")
        checks.between("steps", num_steps, 1, train_steps, "the training steps of the checkpoint")
        checks.one_of("spacing", spacing, ("linspace", "trailing"), "the model is a flow")
        checks.done()
        changed = dict(config)
        if options.dynamic_shift is not None or options.shift is not None:
            changed["use_dynamic_shifting"] = bool(options.dynamic_shift)
        if options.shift is not None:
            changed["shift"] = options.shift
        sigmas = flow_sigmas(changed, num_steps, even=spacing == "trailing", image_tokens=image_tokens)
        schedule = cls.from_sigmas(sigmas, train_steps=train_steps)
        return replace(schedule, by_size=by_size) if changed.get("use_dynamic_shifting") else schedule

    def add_noise(self, z0: Tensor, noise: Tensor, i: int) -> Tensor:
        """Return alpha z0 + sigma noise at level i; shapes broadcast."""
        level = self.levels[i]
        return level.alpha * z0 + level.sigma * noise

    def add_noise_everywhere(self, z0: Tensor, noise: Tensor) -> Tensor:
        """Noise z0 independently at every level but the clean end.

        Args:
            z0: [B, ...].
            noise: [T, B, ...], one draw per level.

        Returns:
            [T, B, ...] in the dtype of z0.
        """
        shape = (-1, *([1] * z0.ndim))
        alpha = self.alpha[:-1].to(z0.device, z0.dtype).view(shape)
        sigma = self.sigma[:-1].to(z0.device, z0.dtype).view(shape)
        return alpha * z0 + sigma * noise


def _level(t: float, abar: float) -> Level:
    return Level(t, abar**0.5, (1 - abar) ** 0.5)


def eps_to_x0(z: Tensor, eps: Tensor, *, alpha: float, sigma: float) -> Tensor:
    """Clean estimate from a noise prediction, x0 = (z - sigma eps) / alpha. Shapes broadcast."""
    return (z - sigma * eps) / alpha


def x0_to_eps(z: Tensor, x0: Tensor, *, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Noise from a clean estimate, eps = (z - alpha x0) / sigma; sigma must not be 0."""
    return (z - alpha * x0) / sigma


def v_prediction_to_eps(z: Tensor, v: Tensor, *, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Noise from a diffusion model's v, eps = alpha v + sigma z (Salimans and Ho 2022; variance-preserving only)."""
    return alpha * v + sigma * z


def eps_to_v_prediction(z: Tensor, eps: Tensor, *, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Inverse of `v_prediction_to_eps`, v = (eps - sigma z) / alpha."""
    return (eps - sigma * z) / alpha


def velocity_to_eps(z: Tensor, velocity: Tensor, *, sigma: float | Tensor) -> Tensor:
    """Noise from a rectified flow's velocity d z / d sigma, eps = z + (1 - sigma) velocity."""
    return z + (1 - sigma) * velocity


def eps_to_velocity(z: Tensor, eps: Tensor, *, sigma: float | Tensor) -> Tensor:
    """Inverse of `velocity_to_eps`, velocity = (eps - z) / (1 - sigma); sigma must not be 1."""
    return (eps - z) / (1 - sigma)


def velocity_to_x0(z: Tensor, velocity: Tensor, *, sigma: float | Tensor) -> Tensor:
    """Clean estimate from a rectified flow's velocity, x0 = z - sigma velocity."""
    return z - sigma * velocity


def x0_to_velocity(z: Tensor, x0: Tensor, *, sigma: float | Tensor) -> Tensor:
    """Inverse of `velocity_to_x0`, velocity = (z - x0) / sigma; sigma must not be 0."""
    return (z - x0) / sigma


def prediction_to_x0(z: Tensor, prediction: Tensor, level: Level, form: Form) -> Tensor:
    """Clean estimate from the engine's prediction in either form."""
    if form == "epsilon":
        return eps_to_x0(z, prediction, alpha=level.alpha, sigma=level.sigma)
    return velocity_to_x0(z, prediction, sigma=level.sigma)


def ddim_step(z: Tensor, eps: Tensor, level: Level, level_next: Level) -> Tensor:
    """Move a latent along the deterministic DDIM path to another noise level.

    z_next = alpha_next x0 + sigma_next eps with x0 = (z - sigma eps) / alpha. Works in both directions: a noisier
    `level_next` inverts, a cleaner one denoises.

    Args:
        z: Latent at `level`, [B, ...].
        eps: Noise prediction, same shape.
        level: Where z lies.
        level_next: Where to go.

    Returns:
        Latent at `level_next`, same shape and dtype.

    Source: Song et al., DDIM (ICLR 2021), Eq. 12 with zero eta.
    """
    x0 = eps_to_x0(z, eps, alpha=level.alpha, sigma=level.sigma)
    return level_next.alpha * x0 + level_next.sigma * eps


EtaRule = Literal["official", "ddim"]


def ddpm_posterior(
    z: Tensor, eps: Tensor, level: Level, level_next: Level, *, eta: float = 1.0, rule: EtaRule = "official"
) -> tuple[Tensor, float]:
    """Mean and standard deviation of a stochastic DDIM step; with eta 1 the DDPM posterior.

    mean = alpha_next x0 + sqrt(sigma_next^2 - w) eps, with V the posterior variance and w, std by rule:
    "ddim" w = eta^2 V, std = eta sqrt(V); "official" w = eta V, std = eta sqrt(V). They agree at eta 0 and 1.

    Args:
        z: Latent at `level`, [B, ...].
        eps: Noise prediction, same shape.
        level, level_next: Levels before and after the step, `level_next` the cleaner one.
        eta: Stochasticity in [0, 1].
        rule: Which power of eta enters the mean.

    Returns:
        The mean, shape of z, and the standard deviation as a number (0 where the step does not move).

    Source: Song et al., DDIM, Eq. 12 and 16; "official" as in the edit-friendly DDPM code, whose mean uses eta to the
    first power.
    """
    variance = ddpm_variance(level, level_next)
    weight = variance * (eta if rule == "official" else eta**2)
    x0 = eps_to_x0(z, eps, alpha=level.alpha, sigma=level.sigma)
    mean = level_next.alpha * x0 + max(level_next.sigma**2 - weight, 0.0) ** 0.5 * eps
    return mean, float(eta * variance**0.5)


def ddpm_variance(level: Level, level_next: Level) -> float:
    """Posterior variance V = sigma_next^2 / sigma^2 (1 - alpha^2 / alpha_next^2) of a DDPM step."""
    if level.sigma == 0:
        return 0.0
    return max(level_next.sigma**2 / level.sigma**2 * (1 - level.alpha**2 / level_next.alpha**2), 0.0)


def euler_step(z: Tensor, velocity: Tensor, level: Level, level_next: Level) -> Tensor:
    """One Euler step of a rectified flow in either direction, z + (sigma_next - sigma) velocity."""
    return z + (level_next.sigma - level.sigma) * velocity
