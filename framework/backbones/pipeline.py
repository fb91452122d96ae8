"""What backbones share that read a pipeline of diffusers: settings, place of the weights, loading, autoencoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.backbones.files import ModelFiles
from framework.backbones.loading import DTYPES, config_hash
from framework.errors import Checks

_PIXELS_PER_CALL = 2**20
"""Pixels that the autoencoder sees at once; four pictures of 512 x 512."""


class PipelineBackbone(Backbone):
    """A model in the layout of diffusers, with its components in sub-folders; weights load when they are needed.

    Args:
        model, revision, variant, cache_dir, local_files_only: See `ModelFiles`.
        dtype: Dtype of the network.
    """

    _components: ClassVar[tuple[str, ...]]
    _anchor: Tensor

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        variant: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        super().__init__()
        checks = Checks(type(self).__name__)
        checks.require(bool(str(model).strip()), "model is empty; give a folder, a hub id, or a name such as 'shapes'.")
        checks.one_of("dtype", dtype, DTYPES)
        checks.done()
        self.files = ModelFiles(
            model, revision=revision, variant=variant, cache_dir=cache_dir, local_files_only=local_files_only
        )
        self._dtype = DTYPES[dtype]
        for name in self._components:
            self.register_module(name, None)
        # Tells where `to` has moved the backbone, also before there are weights.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    @abstractmethod
    def _weights(self) -> Mapping[str, str]:
        """Component's folder -> stem of its weight file."""

    @abstractmethod
    def _load(self, folder: Path) -> Mapping[str, Any]:
        """Read all components from a folder whose weights are complete."""

    @property
    @abstractmethod
    def _configs(self) -> Sequence[Mapping[str, Any]]:
        """Configs that decide this backbone's numbers."""

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Model, commit or hash of the weights, hash of the configs, dtype; a folder's place does not matter."""
        files = self.files
        return {
            "backbone": type(self).__name__,
            "model": files.name,
            "variant": files.variant,
            "dtype": str(self._dtype).removeprefix("torch."),
            "configs": config_hash(self._configs),
            "weights": files.fingerprint(self._weights),
        }

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, or will be."""
        return self._anchor.device

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""
        return all(getattr(self, name) is not None for name in self._weights)

    def load(self) -> None:
        """Read the weights if they are not there yet; frozen and in evaluation mode.

        Raises:
            SettingsError: Files are missing, broken, pickled, or cannot be reached, in words that tell these apart.
        """
        if self.is_loaded:
            return
        for name, module in self._load(self.files.download(self._weights)).items():
            setattr(self, name, module.to(self.device))

    def _component(self, name: str) -> Any:
        if getattr(self, name) is None:
            self.load()
        return getattr(self, name)


class LatentPipeline(PipelineBackbone):
    """A pipeline whose pictures pass through an AutoencoderKL."""

    vae: Any
    vae_config: Mapping[str, Any]

    @property
    def _vae_dtype(self) -> torch.dtype:
        """Dtype of the autoencoder: float32 for a half-precision network where its config says `force_upcast`."""
        half = self._dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if half and self.vae_config.get("force_upcast", True) else self._dtype

    def encode_image(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode pictures to shifted and scaled latents.

        Args:
            images: [B, 3, H, W] in [-1, 1], sides multiples of `multiple`.
            noise: [B, C, h, w] standard normal draws for a sample of the posterior; None takes its mode.

        Returns:
            [B, C, h, w] in `latent_dtype`.
        """
        vae = self._component("vae")

        def encode(part: Tensor, draws: Tensor | None) -> Tensor:
            posterior = vae.encode(part).latent_dist
            mean: Tensor = posterior.mode().to(self.latent_dtype)
            return mean if draws is None else mean + posterior.std.to(mean.dtype) * draws.to(mean)

        pictures = images.to(self.device, vae.dtype)
        size = max(1, _PIXELS_PER_CALL // (images.shape[-1] * images.shape[-2]))
        draws = [None] * len(images) if noise is None else torch.split(noise, size)
        z = torch.cat([encode(part, draw) for part, draw in zip(torch.split(pictures, size), draws, strict=False)])
        shift, scale = self._latent_scales(z)
        return (z - shift) * scale

    def decode_latent(self, z: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to pictures [B, 3, H, W] in [-1, 1] (not clamped), float32."""
        vae = self._component("vae")
        shift, scale = self._latent_scales(z)
        latents = (z / scale + shift).to(self.device, vae.dtype)
        size = max(1, _PIXELS_PER_CALL // (z.shape[-1] * z.shape[-2] * self.latent_factor**2))
        return torch.cat([vae.decode(part, return_dict=False)[0] for part in torch.split(latents, size)]).float()

    def _latent_scales(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale of latents, numbers or per channel as newer autoencoders have them."""
        config = self.vae_config
        scale = float(config.get("scaling_factor", 0.18215))
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return float(config.get("shift_factor") or 0.0), scale
        mean, std = (
            torch.tensor(config[key], dtype=z.dtype, device=z.device) for key in ("latents_mean", "latents_std")
        )
        return mean.view(-1, 1, 1), (scale / std).view(-1, 1, 1)
