"""Trains the autoencoder's decoder alone; the encoder is a fixed projection, so the denoiser need not wait for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.shapes.data import pixels
from experiments.shapes.latents import Projection
from experiments.shapes.optimiser import MixedOptimiser
from experiments.shapes.sample import sample_scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def train_decoder(
    vae: AutoencoderKL,
    projection: Projection,
    *,
    steps: int,
    seed: int,
    batch: int = 8,
    rate: float = 3e-3,
    noise: float = 0.03,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the decoder in place on scenes that are drawn as they are needed.

    Args:
        vae: Autoencoder from `build_vae`; only its decoder changes.
        projection: What its encoder computes.
        steps: Steps of the optimiser; the rate falls to zero along a cosine.
        seed: Seed of the scenes and of the noise.
        batch: Images per step.
        rate: Highest learning rate.
        noise: Standard deviation of the noise on scaled latents, so that the decoder does not amplify a denoiser's
        errors.
        report: Receives a line now and then.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder = vae.decoder.to(memory_format=torch.channels_last)
    matrices = [value for name, value in decoder.named_parameters() if value.ndim >= 2 and "conv_out" not in name]
    inner = {id(value) for value in matrices}
    others = [value for value in decoder.parameters() if id(value) not in inner]
    groups = [{"params": matrices, "lr": rate, "matrix": True}, {"params": others, "lr": rate / 1.5}]
    optimiser = MixedOptimiser(groups, weight_decay=0.0)
    rates = [group["lr"] for group in optimiser.param_groups]
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group, full in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = full * factor
        images = pixels([sample_scene(seed, step * batch + k) for k in range(batch)])
        latents = projection.encode(images)
        latents = latents + noise / projection.scaling_factor * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = decoder(latents.contiguous(memory_format=torch.channels_last))
        error = decoded.float() - images
        # Squares alone leave flat ground slightly uneven; absolute errors pull it flat.
        loss = error.square().mean() + 0.1 * error.abs().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        if step % 250 == 249 or step == steps - 1:
            quality = psnr(error.detach() / 2).mean().item()
            report(f"decoder: step {step + 1}, loss {loss.item():.5f}, {quality:.2f} dB on its batch")


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of errors [B, ...] of images in [0, 1], one value per image."""
    return -10 * error.square().flatten(1).mean(1).clamp(min=1e-12).log10()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode and decode images [B, 3, H, W] in [-1, 1]; the result is clamped to the same range."""
    weights = next(vae.parameters())
    latents = vae.encode(images.to(weights.dtype)).latent_dist.mode()
    decoded: Tensor = vae.decode(latents).sample
    return decoded.clamp(-1, 1).to(images.dtype)
