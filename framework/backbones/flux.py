"""FLUX.1 and models in its layout: double- and single-stream blocks on packed latents of an AutoencoderKL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from framework.backbones.joint_attention import FluxProcessor
from framework.backbones.loading import DtypeName
from framework.backbones.tokenizers import TextTokenizer
from framework.backbones.transformer import FlowTransformer
from framework.errors import Checks
from framework.step import Condition, Place, Segment, Site

_PATCH = 2
"""Side of the square of latents that is packed into one token."""


class Flux(FlowTransformer):
    """A FLUX pipeline, loaded component by component without the pipeline's code.

    Latents are [B, 16, h, w] everywhere outside the network; `pack` and `unpack` change to its tokens and back. Text
    is T5's; CLIP gives the pooled features. FLUX.1-dev is told a guidance scale (1 where nobody says one);
    FLUX.1-schnell has no guidance embedding and is evaluated under the prompt alone.

    Args:
        model: Local diffusers folder or hub id.
        max_sequence_length: Positions of the text; None is 512, or 256 for a model without guidance embedding.
        revision, dtype, text_dtype, variant, cache_dir, local_files_only: See `StableDiffusion`.

    Raises:
        SettingsError: Settings or configs that cannot work, or a model that cannot be reached.
    """

    _network_name = "FluxTransformer2DModel"
    _encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
    _components: ClassVar[tuple[str, ...]] = (*_encoders, "transformer", "vae")
    _spacing = "trailing"
    _processor = FluxProcessor

    def __init__(
        self,
        model: str,
        *,
        max_sequence_length: int | None = None,
        revision: str | None = None,
        dtype: DtypeName = "float32",
        text_dtype: DtypeName | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        if max_sequence_length is not None:
            checks = Checks("Flux")
            checks.between("max_sequence_length", max_sequence_length, 1, 512, "the default suits the model")
            checks.done()
        self._given_positions = max_sequence_length
        super().__init__(
            model,
            revision=revision,
            dtype=dtype,
            text_dtype=text_dtype,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )

    def _read_configs(self) -> None:
        super()._read_configs()
        side = int(self.vae_config.get("sample_size", 1024)) // self.multiple * self.multiple
        self.image_size = (side, side)
        self.guided_by = "embedding" if self.transformer_config.get("guidance_embeds") else "nothing"

    @property
    def _latent_channels(self) -> int:
        return int(self.transformer_config.get("in_channels", 64)) // _PATCH**2

    @property
    def _patch(self) -> int:
        return _PATCH

    # Prompts

    @property
    def max_tokens(self) -> int:
        """Text positions of the network, all of T5."""
        return self._given_positions or (512 if self.guided_by == "embedding" else 256)

    @cached_property
    def _clip(self) -> TextTokenizer:
        limit = int(self.text_configs["text_encoder"].get("max_position_embeddings", 77))
        return TextTokenizer(self.files, "tokenizer", "CLIPTokenizerFast", limit)

    @cached_property
    def _t5(self) -> TextTokenizer:
        return TextTokenizer(self.files, "tokenizer_2", "PreTrainedTokenizerFast", self.max_tokens)

    @property
    def _tokenizers(self) -> Mapping[str, TextTokenizer]:
        return {"the CLIP text encoder": self._clip, "the T5 text encoder": self._t5}

    def _encode_text(self, text: str) -> Condition:
        features = self._component("text_encoder_2")(self._t5.padded(text).to(self.device))[0]
        pooled = self._component("text_encoder")(self._clip.padded(text).to(self.device)).pooler_output
        return Condition(features, pooled)

    def segments(self, text: str) -> tuple[Segment, ...]:
        """Return the text positions, all of them T5's."""
        return (Segment(0, self.max_tokens, self._t5.ids(text)),)

    # Network

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Run the transformer on packed latents, told sigma; see `Backbone.forward`."""
        text, pooled = condition.text, condition.pooled
        assert text is not None and pooled is not None
        rows, columns = z.shape[-2], z.shape[-1]
        guidance = None
        if self.guided_by == "embedding":
            told = (condition.extra or {}).get("guidance")
            guidance = torch.ones(len(z), device=z.device) if told is None else told.to(z.device)
        wide = torch.promote_types(z.dtype, torch.float32)
        output: Tensor = self._component("transformer")(
            hidden_states=pack(z),
            timestep=(t / 1000).to(z.device, wide),
            guidance=guidance,
            encoder_hidden_states=text.to(z.device, z.dtype),
            pooled_projections=pooled.to(z.device, z.dtype),
            txt_ids=torch.zeros(text.shape[1], 3, dtype=z.dtype, device=z.device),
            img_ids=_positions(rows // _PATCH, columns // _PATCH).to(z.device, z.dtype),
            return_dict=False,
        )[0]
        return unpack(output, rows, columns)

    @cached_property
    def _sites(self) -> tuple[Site, ...]:
        layout: list[tuple[str, Place, int]] = [
            ("transformer_blocks", "joint", int(self.transformer_config.get("num_layers", 19))),
            ("single_transformer_blocks", "single", int(self.transformer_config.get("num_single_layers", 38))),
        ]
        names = [(f"{blocks}.{k}.attn", place, k) for blocks, place, count in layout for k in range(count)]
        return tuple(
            Site(name, "joint", place, index, index, block, _PATCH, self.max_tokens, text_first=True, width=self._width)
            for index, (name, place, block) in enumerate(names)
        )

    def sites(self) -> tuple[Site, ...]:
        """Return the attention of double-stream blocks (place "joint"), then of single-stream blocks ("single")."""
        return self._sites


def pack(z: Tensor) -> Tensor:
    """Turn latents [B, C, h, w] into tokens [B, h/2 w/2, 4 C]; row by row, channels slowest within a token."""
    batch, channels, rows, columns = z.shape
    z = z.view(batch, channels, rows // _PATCH, _PATCH, columns // _PATCH, _PATCH)
    return z.permute(0, 2, 4, 1, 3, 5).reshape(batch, (rows // _PATCH) * (columns // _PATCH), channels * _PATCH**2)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of `pack` for latents of the given rows and columns."""
    batch, _, width = tokens.shape
    z = tokens.view(batch, rows // _PATCH, columns // _PATCH, width // _PATCH**2, _PATCH, _PATCH)
    return z.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // _PATCH**2, rows, columns)


def _positions(rows: int, columns: int) -> Tensor:
    """Positions of image tokens, [rows * columns, 3]: zero, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None]
    return ids.view(-1, 3)
