"""Unconditional diffusion models on pixels: the UNet2DModel of DDPM pipelines; a picture is its own latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.backbones.loading import DtypeName, load_component, scheduler_config
from framework.backbones.unet import UNetBackbone
from framework.errors import Checks
from framework.step import Condition

_STEM = "diffusion_pytorch_model"


class PixelDiffusion(UNetBackbone):
    """A DDPM or DDIM pipeline of diffusers, with its components in sub-folders or, as older ones, side by side.

    Prompts have no effect (`takes_text` is False). Where the network also predicts a variance, in as many further
    channels, the mean alone is used.

    Args:
        model: Local diffusers folder or hub id.
        revision: Branch, tag or commit of a hub id; None is its main branch. The commit found is kept in `identity`.
        dtype: Dtype of the network.
        variant: Variant in the names of the weight files, such as "fp16".
        cache_dir: Where downloads are kept; None is the hub's own cache.
        local_files_only: Never ask the hub; the environment variable HF_HUB_OFFLINE does the same.

    Raises:
        SettingsError: Settings or configs that cannot work, or a model that cannot be reached.
    """

    takes_text = False

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: DtypeName = "float32",
        variant: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        super().__init__(
            model,
            revision=revision,
            dtype=dtype,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        files = self.files
        inside = files.config("unet/config.json", optional=True)
        self._place = "" if inside is None else "unet"
        self.unet_config = inside or files.config("config.json", "unet/config.json") or {}
        self.scheduler_config, self.prediction_type = scheduler_config(
            files, "scheduler/scheduler_config.json", "scheduler_config.json"
        )
        checks = Checks(f"PixelDiffusion: model {files.model!r}")
        kind = self.unet_config.get("_class_name")
        hint = "StableDiffusion reads text-to-image pipelines; " if kind == "UNet2DConditionModel" else ""
        checks.require(
            kind == "UNet2DModel",
            f"its network is {kind}, and this backbone runs UNet2DModel; {hint}take an unconditional DDPM pipeline.",
        )
        classes = self.unet_config.get("num_class_embeds")
        checks.require(
            classes is None, f"its network wants one of {classes} class labels; take an unconditional DDPM pipeline."
        )
        self.image_channels = int(self.unet_config.get("in_channels", 3))
        given = int(self.unet_config.get("out_channels", 3))
        checks.require(
            given in (self.image_channels, 2 * self.image_channels),
            f"its network takes {self.image_channels} channels and gives {given}; it must give as many, or "
            "twice as many if it also predicts a variance.",
        )
        checks.done()
        self.multiple = 2 ** (len(self.unet_config.get("block_out_channels", (1,) * 4)) - 1)
        side = self.unet_config.get("sample_size")
        if side is None:
            self.image_size = None
        else:
            rows, columns = side if isinstance(side, Sequence) else (side, side)
            self.image_size = (int(rows), int(columns))

    @property
    def _weights(self) -> Mapping[str, str]:
        return {self._place: _STEM}

    @property
    def _configs(self) -> Sequence[Mapping[str, Any]]:
        return self.unet_config, self.scheduler_config

    @property
    def _network_class(self) -> Any:
        from diffusers import UNet2DModel

        return UNet2DModel

    def _load(self, folder: Path) -> Mapping[str, Any]:
        return {"unet": load_component(self._network_class, folder / self._place, self._dtype, self.files)}

    def encode_image(self, images: Tensor) -> Tensor:
        """Return pictures [B, C, H, W] in [-1, 1] as they are, in `latent_dtype`."""
        return images.to(self.device, self.latent_dtype)

    def decode_latent(self, z: Tensor) -> Tensor:
        """Return latents as they are, float32."""
        return z.float()

    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        """Return an empty condition: nothing conditions the network."""
        del texts
        return Condition()

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Run the UNet; see `Backbone.forward`."""
        del condition
        output: Tensor = self._component("unet")(z, t.to(z.device, torch.float32), return_dict=False)[0]
        return output[:, : z.shape[1]]
