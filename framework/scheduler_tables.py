"""The noise levels that diffusers' schedulers hold, as tables; the schedulers themselves are not used afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from framework.errors import Checks


def training_table(config: Mapping[str, Any]) -> Tensor:
    """Return the cumulative alphas that a diffusers scheduler with this config holds, [training steps] float32.

    Computed by the library's own scheduler, so that the table has its very bits.
    """
    from diffusers import DDIMScheduler

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    scheduler: Any = DDIMScheduler(**{key: config[key] for key in keys if key in config})
    table: Tensor = scheduler.alphas_cumprod
    return table


def listed_timesteps(
    timesteps: Sequence[int] | None, original_steps: int, num_steps: int, train_steps: int
) -> list[int]:
    """Return explicit timesteps, or those of a consistency model: every k-th trained level from the noisiest down.

    Source: diffusers' LCMScheduler of 2024, which spreads the steps by floor(k * original_steps / steps). Earlier
    versions took a stride of original_steps // steps; give `timesteps` for theirs.
    """
    checks = Checks("schedule")
    if timesteps is not None:
        listed = list(timesteps)
        checks.require(
            len(listed) == num_steps, f"{len(listed)} timesteps are given for steps={num_steps}; give as many as steps."
        )
        highest = listed[0] if listed else 0
        checks.require(highest < train_steps, f"timesteps={listed} leave the training's {train_steps} steps.")
    else:
        original = original_steps
        checks.require(
            num_steps <= original,
            f"steps={num_steps} is more than the {original} levels that spacing='consistency' can visit; give at most "
            f"{original} steps, raise original_steps, or take another spacing.",
        )
        trained = [k * (train_steps // original) - 1 for k in range(original, 0, -1)]
        listed = [trained[k * original // num_steps] for k in range(num_steps)] if num_steps <= original else []
    checks.done()
    return listed


def flow_sigmas(config: Mapping[str, Any], num_steps: int, *, even: bool, image_tokens: int) -> Tensor:
    """Return the levels of a rectified-flow scheduler with this config, [num_steps + 1] float32, noisiest first.

    Computed by the library's own scheduler. Without `even` its constructor shifts the smallest sigma once before the
    grid is laid and shifted again, so that SD3's last level above 0 is 0.0089 whatever the number of steps; published
    figures use that grid.

    Args:
        config: `scheduler_config.json` of the checkpoint.
        num_steps: Steps of the grid.
        even: Lay the grid 1, 1 - 1/N, ..., 1/N before the shift (FLUX) instead of from sigma_max to sigma_min (SD3).
        image_tokens: Positions of the picture, which a dynamic shift depends on.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(settings)
    grid = [1 - k / num_steps for k in range(num_steps)] if even else None
    scheduler.set_timesteps(num_steps, sigmas=grid, mu=_dynamic_shift(scheduler.config, image_tokens))
    sigmas: Tensor = scheduler.sigmas
    return sigmas


def _dynamic_shift(config: Any, image_tokens: int) -> float:
    """Logarithm of the shift for so many image tokens, linear between the two that the checkpoint names.

    Source: `calculate_shift` of diffusers' FLUX pipeline; the checkpoint's own code gives the same.
    """
    few, many = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (many - few)
    return float(config.base_shift + (image_tokens - few) * slope)
