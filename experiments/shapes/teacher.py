"""A trained diffusion model as the teacher of a flow model: its prediction, read as the velocity of a straight path.

Both models denoise the same latents, and a noisy latent of a flow is one of diffusion times a number; so what one has
learned about a scene at some ratio of signal to noise is a target for the other, without the noise of a single scene's
own velocity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.shapes.denoising import SCHEDULER, signal_scales
from framework.errors import SettingsError

if TYPE_CHECKING:
    from experiments.shapes.settings import TeacherSettings


class Teacher:
    """Velocities that a diffusion pipeline predicts for the noisy latents of a flow.

    It is no module, so that neither checkpoints nor the exchange of gradients between processes see its weights.
    """

    def __init__(self, pipeline: Any, settings: TeacherSettings) -> None:
        self.settings = settings
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self.alphas = signal_scales()

    def to(self, device: torch.device) -> None:
        """Move the networks to a device."""
        self.unet.to(device)
        self.text_encoder.to(device)
        self.alphas = self.alphas.to(device)

    def share(self, sigma: Tensor) -> Tensor:
        """The teacher's share in the target, [B] in [0, share], for noise levels [B]."""
        start, full = self.settings.levels
        return self.settings.share * ((sigma - start) / (full - start)).clamp(0, 1)

    @torch.no_grad()
    def velocity(self, noisy: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        """Predict noise - latent.

        Args:
            noisy: (1 - sigma) * latent + sigma * noise, [B, 16, H, W].
            sigma: Noise levels of the flow, [B] in [0, 1].
            tokens: Captions, [B, 32].

        Returns:
            [B, 16, H, W].
        """
        norm = torch.hypot(1 - sigma, sigma)
        alpha, noise_scale = ((one / norm).view(-1, 1, 1, 1) for one in (1 - sigma, sigma))
        noisy = noisy / norm.view(-1, 1, 1, 1)
        states = self.text_encoder(tokens)[0]
        v = self.unet(noisy, self.timesteps((1 - sigma) / norm), states, return_dict=False)[0].float()
        noise, latent = noise_scale * noisy + alpha * v, alpha * noisy - noise_scale * v
        return noise - latent

    def timesteps(self, alpha: Tensor) -> Tensor:
        """Fractional training timesteps at signal scales [B], which lie between the schedule's ends or are clamped."""
        falling = -self.alphas
        after = torch.searchsorted(falling, -alpha.contiguous()).clamp(1, len(falling) - 1)
        low, high = falling[after - 1], falling[after]
        return after - 1 + ((-alpha - low) / (high - low)).clamp(0, 1)


def load_teacher(settings: TeacherSettings, tokenizer: Any, vae: Any) -> Teacher | None:
    """Load the teacher that settings name, if they name one.

    Args:
        settings: `training.teacher`.
        tokenizer, vae: Those of the flow model; its tokens and latents are what the teacher reads.

    Raises:
        FileNotFoundError: No pipeline lies there.
        SettingsError: The pipeline is no diffusion model, has another schedule or prediction than the bundled one, or
            reads other tokens or latents.
    """
    from experiments.shapes.pipeline import SHIPPED, load_pipeline

    if settings.source == "none":
        return None
    pipeline = load_pipeline(SHIPPED if settings.source == "shipped" else settings.source)
    if "unet" not in pipeline.components:
        raise SettingsError([f"training.teacher.source={settings.source!r} has no UNet; give a diffusion pipeline"])
    said = {key: pipeline.scheduler.config.get(key) for key in ("prediction_type", "beta_start", "beta_end")}
    if any(value != SCHEDULER[key] for key, value in said.items()):
        raise SettingsError(
            [f"training.teacher.source={settings.source!r} says {said}; give a model that `invedit train` made"]
        )
    if pipeline.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise SettingsError([f"training.teacher.source={settings.source!r} has another vocabulary than the flow model"])
    image = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        ours, theirs = (one.encode(image).latent_dist.mode() * one.config.scaling_factor for one in (vae, pipeline.vae))
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-3):
        raise SettingsError([f"training.teacher.source={settings.source!r} has other latents than the flow model"])
    return Teacher(pipeline, settings)
