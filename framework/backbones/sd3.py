"""Stable Diffusion 3 and 3.5 and models in their layout: a joint transformer on the latents of an AutoencoderKL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.backbones.joint_attention import JointProcessor
from framework.backbones.loading import DtypeName
from framework.backbones.tokenizers import TextTokenizer
from framework.backbones.transformer import FlowTransformer
from framework.errors import Checks
from framework.step import Condition, Segment, Site, SiteKind, Token


class SD3(FlowTransformer):
    """A Stable Diffusion 3 pipeline, loaded component by component without the pipeline's code.

    The text positions are those of CLIP (both encoders side by side in channels) and then `max_sequence_length`
    positions of T5, which are zero where there is no T5, as published code has them.

    Args:
        model: Local diffusers folder, hub id, or a short name such as "shapes-flow" (bundled).
        t5: Whether to use the T5 encoder if the model has one; without it a model needs much less memory and follows
            long prompts less closely.
        max_sequence_length: Positions of T5 in the text.
        revision, dtype, text_dtype, variant, cache_dir, local_files_only: See `StableDiffusion`.

    Raises:
        SettingsError: Settings or configs that cannot work, or a model that cannot be reached.
    """

    _network_name = "SD3Transformer2DModel"
    _encoders: ClassVar[Mapping[str, str]] = {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    }
    _components: ClassVar[tuple[str, ...]] = (*_encoders, "transformer", "vae")
    _spacing = "linspace"
    _processor = JointProcessor

    def __init__(
        self,
        model: str,
        *,
        t5: bool = True,
        max_sequence_length: int = 256,
        revision: str | None = None,
        dtype: DtypeName = "float32",
        text_dtype: DtypeName | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        checks = Checks("SD3")
        checks.between("max_sequence_length", max_sequence_length, 1, 512, "published code uses 256")
        checks.done()
        self._wants_t5 = t5
        self._t5_positions = max_sequence_length
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
        side = int(self.transformer_config.get("sample_size", 128))
        self.image_size = (side * self.latent_factor, side * self.latent_factor)

    @property
    def _latent_channels(self) -> int:
        return int(self.transformer_config.get("in_channels", 16))

    @property
    def _patch(self) -> int:
        return int(self.transformer_config.get("patch_size", 2))

    @property
    def has_t5(self) -> bool:
        """Whether prompts pass through a T5 encoder too."""
        return self._wants_t5 and (self._index.get("text_encoder_3") or [None])[-1] is not None

    @property
    def _present_encoders(self) -> Mapping[str, str]:
        return {name: kind for name, kind in self._encoders.items() if name != "text_encoder_3" or self.has_t5}

    # Prompts

    @cached_property
    def _clips(self) -> tuple[TextTokenizer, TextTokenizer]:
        files, kind = self.files, "CLIPTokenizerFast"
        limit = int(self.text_configs["text_encoder"].get("max_position_embeddings", 77))
        return TextTokenizer(files, "tokenizer", kind, limit), TextTokenizer(files, "tokenizer_2", kind, limit)

    @cached_property
    def _t5(self) -> TextTokenizer | None:
        kind = "PreTrainedTokenizerFast"
        return TextTokenizer(self.files, "tokenizer_3", kind, self._t5_positions) if self.has_t5 else None

    @property
    def _tokenizers(self) -> Mapping[str, TextTokenizer]:
        clip = {"the CLIP text encoder": self._clips[0]}
        return clip if self._t5 is None else {**clip, "the T5 text encoder": self._t5}

    @property
    def max_tokens(self) -> int:
        """Text positions of the network: CLIP's, and after them T5's."""
        return self._clips[0].limit + self._t5_positions

    def _encode_text(self, text: str) -> Condition:
        features, pooled = [], []
        for name, tokenizer in zip(("text_encoder", "text_encoder_2"), self._clips, strict=True):
            encoder = self._component(name)
            output = encoder(tokenizer.padded(text).to(self.device), output_hidden_states=True)
            features.append(output.hidden_states[-2])
            pooled.append(output[0])
        clip = torch.cat(features, -1)
        width = int(self.transformer_config.get("joint_attention_dim", 4096))
        if self._t5 is None:
            t5 = clip.new_zeros(1, self._t5_positions, width)
        else:
            t5 = self._component("text_encoder_3")(self._t5.padded(text).to(self.device))[0].to(clip.dtype)
        return Condition(torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5], 1), torch.cat(pooled, -1))

    def segments(self, text: str) -> tuple[Segment, Segment]:
        """Return CLIP's positions and T5's; where there is no T5, its positions are counted as CLIP's tokens."""
        clip = self._clips[0]
        ids = clip.ids(text) if self._t5 is None else self._t5.ids(text)
        return (
            Segment(0, clip.limit, clip.ids(text)),
            Segment(clip.limit, self._t5_positions, ids[: self._t5_positions]),
        )

    def tokens(self, text: str) -> tuple[Token, ...]:
        """Return all CLIP tokens of a prompt; see `Backbone.tokens`."""
        return self._clips[0].tokens(text)

    def token_spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return where in a prompt its CLIP tokens begin and end; see `Backbone.token_spans`."""
        return tuple((token.start, token.end) for token in self.tokens(text)[: self._clips[0].limit - 2])

    # Network

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Run the transformer, told 1000 sigma; see `Backbone.forward`."""
        assert condition.text is not None and condition.pooled is not None
        output: Tensor = self._component("transformer")(
            hidden_states=z,
            timestep=t.to(z.device, torch.float32),
            encoder_hidden_states=condition.text.to(z.device, z.dtype),
            pooled_projections=condition.pooled.to(z.device, z.dtype),
            return_dict=False,
        )[0]
        return output

    @cached_property
    def _sites(self) -> tuple[Site, ...]:
        dual = set(self.transformer_config.get("dual_attention_layers") or ())
        sites: list[Site] = []
        counts: dict[SiteKind, int] = {"joint": 0, "self": 0}
        for block in range(int(self.transformer_config.get("num_layers", 18))):
            layers: list[tuple[str, SiteKind, int]] = [("attn", "joint", self.max_tokens)]
            layers += [("attn2", "self", 0)] if block in dual else []
            for layer, kind, text in layers:
                name = f"transformer_blocks.{block}.{layer}"
                sites.append(
                    Site(name, kind, "joint", len(sites), counts[kind], block, self._patch, text, width=self._width)
                )
                counts[kind] += 1
        return tuple(sites)

    def sites(self) -> tuple[Site, ...]:
        """Return joint attention of every block, and the picture's own attention of dual-attention blocks."""
        return self._sites
