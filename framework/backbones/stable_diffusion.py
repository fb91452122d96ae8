"""Stable Diffusion 1 and 2 and models in their layout: a text-conditioned UNet on the latents of an AutoencoderKL."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from framework.backbones.loading import DTYPES, DtypeName, load_component, scheduler_config
from framework.backbones.pipeline import LatentPipeline
from framework.backbones.unet import UNetBackbone
from framework.errors import Checks
from framework.step import Condition, Token

_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_TOKENIZER_FILES = ("tokenizer/*.json", "tokenizer/merges.txt")
_CACHED_PROMPTS = 64
_KEPT_TOKENS = 4096
"""Prompts whose tokens are kept; many variants of an experiment ask for those of the same samples."""


class StableDiffusion(UNetBackbone, LatentPipeline):
    """A Stable Diffusion pipeline, loaded component by component without the pipeline's code.

    Latent size and channels, text length, scales and prediction type all come from the configs. The autoencoder of a
    half-precision network works in float32 where its config says `force_upcast` (the default of diffusers).

    Args:
        model: Local diffusers folder, hub id, or a short name such as "shapes" (bundled) or "sd-1.5".
        revision: Branch, tag or commit of a hub id; None is its main branch. The commit found is kept in `identity`.
        dtype: Dtype of the network and its codecs.
        text_dtype: Dtype of the text encoder; None takes `dtype`, but float32 with a float64 network, so that prompts
            have the embeddings that the checkpoint gives everywhere else.
        variant: Variant in the names of the weight files, such as "fp16".
        cache_dir: Where downloads are kept; None is the hub's own cache.
        local_files_only: Never ask the hub; the environment variable HF_HUB_OFFLINE does the same.
        gradient_checkpointing: Compute the UNet's activations again, block by block, when a gradient is taken, in place
            of keeping them: a fraction of the memory for about a third more time, to the same numbers. Only methods
            that take gradients are affected, and none that does so through attention control.

    Raises:
        SettingsError: Settings or configs that cannot work, or a model that cannot be reached.
    """

    takes_text = True
    vae: Any
    text_encoder: Any
    _components: ClassVar[tuple[str, ...]] = tuple(_WEIGHTS)

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: DtypeName = "float32",
        text_dtype: DtypeName | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            model,
            revision=revision,
            dtype=dtype,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        checks = Checks("StableDiffusion")
        if text_dtype is not None:
            checks.one_of("text_dtype", text_dtype, DTYPES)
        checks.done()
        self._text_dtype = DTYPES[text_dtype or ("float32" if dtype == "float64" else dtype)]
        self.recomputes = gradient_checkpointing
        self._prompts: OrderedDict[str, Tensor] = OrderedDict()
        self._tokens: dict[str, tuple[Token, ...]] = {}
        self._read_configs()

    def _read_configs(self) -> None:
        files = self.files
        index = files.config("model_index.json") or {}
        checks = Checks(f"StableDiffusion: model {files.model!r}")
        for name, classes in _CLASSES.items():
            found = (index.get(name) or [None, None])[-1]
            hint = (
                "PixelDiffusion reads unconditional pipelines"
                if found == "UNet2DModel"
                else "take a Stable Diffusion 1 or 2 model"
            )
            checks.require(found in classes, f"{name} is {found}, and this backbone runs {classes[0]}; {hint}.")
        extra = sorted(name for name in ("text_encoder_2", "tokenizer_2") if (index.get(name) or [None])[-1])
        checks.require(
            not extra, f"{', '.join(extra)} belongs to another family (SDXL); take a Stable Diffusion 1 or 2 model."
        )
        checks.done()
        self.unet_config = files.config("unet/config.json") or {}
        self.vae_config = files.config("vae/config.json") or {}
        self.text_config = files.config("text_encoder/config.json") or {}
        self.scheduler_config, prediction_type = scheduler_config(files, "scheduler/scheduler_config.json")
        self.prediction_type = prediction_type
        self.latent_channels = int(self.vae_config.get("latent_channels", 4))
        taken, given = self.unet_config.get("in_channels", 4), self.unet_config.get("out_channels", 4)
        checks.require(
            taken == given == self.latent_channels,
            f"its UNet takes {taken} channels and gives {given} for latents of {self.latent_channels} (inpainting and "
            "instruction models take more than the latent); take a text-to-image model.",
        )
        for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
            value = self.unet_config.get(key)
            checks.require(value is None, f"its UNet wants {key}={value}, which Stable Diffusion 1 and 2 do not give.")
        checks.done()
        self.image_channels = int(self.vae_config.get("in_channels", 3))
        self.multiple = 2 ** (len(self.vae_config.get("block_out_channels", (64,))) - 1)
        self.latent_factor = self.multiple
        side = self.unet_config.get("sample_size") or 64
        rows, columns = side if isinstance(side, Sequence) else (side, side)
        self.image_size = (int(rows) * self.multiple, int(columns) * self.multiple)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Model, commit or hash of the weights, hash of the configs, dtypes; a folder's place does not matter."""
        return {**super().identity, "text_dtype": str(self._text_dtype).removeprefix("torch.")}

    @property
    def _weights(self) -> Mapping[str, str]:
        return _WEIGHTS

    @property
    def _configs(self) -> Sequence[Mapping[str, Any]]:
        return self.unet_config, self.vae_config, self.text_config, self.scheduler_config

    @property
    def _network_class(self) -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel

    def _load(self, folder: Path) -> Mapping[str, Any]:
        from diffusers import AutoencoderKL
        from transformers import CLIPTextModel

        unet: Any = load_component(self._network_class, folder / "unet", self._dtype, self.files)
        if self.recomputes:
            unet.enable_gradient_checkpointing()
        return {
            "vae": load_component(AutoencoderKL, folder / "vae", self._vae_dtype, self.files),
            "text_encoder": load_component(CLIPTextModel, folder / "text_encoder", self._text_dtype, self.files),
            "unet": unet,
        }

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's CLIP tokenizer (transformers); it needs no weights."""
        import transformers

        library: Any = transformers
        folder = self.files.download({}, _TOKENIZER_FILES)
        try:
            # The fast class, which knows offsets; another name of CLIPTokenizer from transformers 5 on.
            return library.CLIPTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise self.files.problem(f"its tokenizer cannot be read ({error}); get the model again.") from None

    @property
    def max_tokens(self) -> int:
        """Positions of a prompt, start and end tokens included."""
        limits = (self.tokenizer.model_max_length, self.text_config.get("max_position_embeddings", 77))
        return int(min(limits))

    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        """Encode prompts to [B, L, D] in `dtype`, one by one, so that each row depends on its own text alone."""
        return Condition(torch.cat([self._embedding(text) for text in texts]))

    def _embedding(self, text: str) -> Tensor:
        cached = self._prompts.get(text)
        if cached is None:
            cached = self._encode_text(text)
            self._prompts[text] = cached
            if len(self._prompts) > _CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(text)
        return cached

    def _encode_text(self, text: str) -> Tensor:
        encoder = self._component("text_encoder")
        # Embeddings outlive this call and may be differentiated with respect to; inference tensors may not.
        with torch.inference_mode(False), torch.no_grad():
            tokens = self.tokenizer(
                text, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
            mask = tokens.attention_mask.to(self.device) if self.text_config.get("use_attention_mask") else None
            features: Tensor = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
            return features.to(self._dtype)

    def truncated(self, text: str) -> str:
        """Return the part of a prompt that the text encoder does not see; empty when it sees all of it."""
        tokens = self.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
        unseen = tokens["offset_mapping"][self.max_tokens - 1 : -1]
        return text[unseen[0][0] :].strip() if unseen else ""

    def token_spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return where in a prompt its tokens begin and end; see `Backbone.token_spans`."""
        tokens = self.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
        return tuple((start, end) for start, end in tokens["offset_mapping"][1:-1][: self.max_tokens - 2])

    def tokens(self, text: str) -> tuple[Token, ...]:
        """Return all tokens of a prompt; see `Backbone.tokens`."""
        known = self._tokens.get(text)
        if known is None:
            tokenizer = self.tokenizer
            found = tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
            ids, spans = found["input_ids"][1:-1], found["offset_mapping"][1:-1]
            known = tuple(Token(n, tokenizer.decode([n]).strip(), *span) for n, span in zip(ids, spans, strict=True))
            if len(self._tokens) >= _KEPT_TOKENS:
                self._tokens.clear()
            self._tokens[text] = known
        return known

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Run the UNet; see `Backbone.forward`."""
        unet = self._component("unet")
        text = condition.text
        assert text is not None
        # The time embedding is computed in float32 from whatever it is given; integers stay exact.
        output: Tensor = unet(
            z, t.to(z.device, torch.float32), encoder_hidden_states=text.to(z.device, z.dtype), return_dict=False
        )[0]
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StableDiffusion:
        """Move or cast as every module does; embeddings kept from before are dropped."""
        self._prompts.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
