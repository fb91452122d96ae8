"""What backbones on a flow transformer of diffusers share: codec, prompts, schedule, sites and controls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from framework.backbones.base import ControlHandle
from framework.backbones.joint_attention import JointProcessor
from framework.backbones.loading import DTYPES, DtypeName, load_component, meta_module
from framework.backbones.pipeline import LatentPipeline
from framework.backbones.tokenizers import TextTokenizer
from framework.control import Control
from framework.errors import Checks
from framework.schedule import Schedule, ScheduleOptions
from framework.step import Condition, Segment, Site


class FlowTransformer(LatentPipeline):
    """A rectified-flow pipeline whose network attends to text and picture jointly; it predicts velocity.

    Args:
        model, revision, dtype, variant, cache_dir, local_files_only: See `PipelineBackbone`.
        text_dtype: Dtype of the text encoders; None takes `dtype`, but float32 with a float64 network.
    """

    form = "velocity"
    prediction_type = "velocity"
    takes_text = True
    transformer: Any
    _network_name: ClassVar[str]
    """Class of the network in diffusers."""
    _encoders: ClassVar[Mapping[str, str]]
    """Text encoder's folder -> class in transformers."""
    _spacing: ClassVar[Literal["linspace", "trailing"]]
    """Spacing of the pipeline's grid before the shift."""
    _processor: ClassVar[type[JointProcessor]]

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
    ) -> None:
        super().__init__(
            model,
            revision=revision,
            dtype=dtype,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        checks = Checks(type(self).__name__)
        if text_dtype is not None:
            checks.one_of("text_dtype", text_dtype, DTYPES)
        checks.done()
        self._text_dtype = DTYPES[text_dtype or ("float32" if dtype == "float64" else dtype)]
        self._read_configs()

    def _read_configs(self) -> None:
        files = self.files
        self._index = files.config("model_index.json") or {}
        checks = Checks(f"{type(self).__name__}: model {files.model!r}")
        wanted = {"transformer": self._network_name, "vae": "AutoencoderKL", **self._present_encoders}
        for name, kind in wanted.items():
            found = (self._index.get(name) or [None, None])[-1]
            checks.require(found == kind, f"{name} is {found}, and this backbone runs {kind}; {self._other(found)}.")
        checks.done()
        self.transformer_config = files.config("transformer/config.json") or {}
        self.vae_config = files.config("vae/config.json") or {}
        self.text_configs = {name: files.config(f"{name}/config.json") or {} for name in self._present_encoders}
        self.scheduler_config = files.config("scheduler/scheduler_config.json") or {}
        kind = str(self.scheduler_config.get("_class_name", ""))
        checks.require(
            kind == "FlowMatchEulerDiscreteScheduler",
            f"its scheduler is {kind}, and this backbone builds the levels of FlowMatchEulerDiscreteScheduler.",
        )
        channels = int(self.vae_config.get("latent_channels", 4))
        takes = self._latent_channels
        checks.require(
            takes == channels,
            f"its transformer takes latents of {takes} channels and its autoencoder gives {channels} (models that are "
            "given a picture or a mask beside the latent take more); take a text-to-image model.",
        )
        checks.done()
        self.image_channels = int(self.vae_config.get("in_channels", 3))
        self.latent_factor = 2 ** (len(self.vae_config.get("block_out_channels", (64,))) - 1)
        self.multiple = self.latent_factor * self._patch

    @staticmethod
    def _other(found: str | None) -> str:
        known = {
            "SD3Transformer2DModel": "use framework.backbones.SD3",
            "FluxTransformer2DModel": "use framework.backbones.Flux",
        }
        return known.get(str(found), "take a model of this family")

    @property
    @abstractmethod
    def _latent_channels(self) -> int:
        """Channels of the latents that the network takes."""

    @property
    @abstractmethod
    def _patch(self) -> int:
        """Side of a patch of latents that becomes one token."""

    @property
    def _width(self) -> int:
        """Channels of queries, keys and values."""
        config = self.transformer_config
        return int(config["num_attention_heads"]) * int(config["attention_head_dim"])

    @property
    def _present_encoders(self) -> Mapping[str, str]:
        """The text encoders that are used."""
        return self._encoders

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Model, commit or hash of the weights, hash of the configs, dtypes, positions of the text."""
        text = str(self._text_dtype).removeprefix("torch.")
        return {**super().identity, "text_dtype": text, "text_positions": self.max_tokens}

    @property
    def _weights(self) -> Mapping[str, str]:
        networks = dict.fromkeys(("transformer", "vae"), "diffusion_pytorch_model")
        return {**networks, **dict.fromkeys(self._present_encoders, "model")}

    @property
    def _configs(self) -> Sequence[Mapping[str, Any]]:
        return self.transformer_config, self.vae_config, *self.text_configs.values(), self.scheduler_config

    @cached_property
    def _network_class(self) -> Any:
        import diffusers

        return getattr(diffusers, self._network_name)

    def _load(self, folder: Path) -> Mapping[str, Any]:
        import transformers
        from diffusers import AutoencoderKL

        loaded = {
            name: load_component(getattr(transformers, kind), folder / name, self._text_dtype, self.files)
            for name, kind in self._present_encoders.items()
        }
        loaded["vae"] = load_component(AutoencoderKL, folder / "vae", self._vae_dtype, self.files)
        loaded["transformer"] = load_component(self._network_class, folder / "transformer", self._dtype, self.files)
        return loaded

    # Schedule

    def schedule(self, num_steps: int, options: ScheduleOptions | None = None) -> Schedule:
        """Build the sampling schedule of the pipeline; a dynamic shift is that of `image_size`, see `by_size`."""
        assert self.image_size is not None
        return self._schedule(num_steps, options, tuple(side // self.latent_factor for side in self.image_size))

    def _schedule(self, num_steps: int, options: ScheduleOptions | None, size: Sequence[int]) -> Schedule:
        return Schedule.from_flow_scheduler(
            self.scheduler_config,
            num_steps,
            options,
            spacing=self._spacing,
            image_tokens=(size[0] // self._patch) * (size[1] // self._patch),
            by_size=partial(self._schedule, num_steps, options),
        )

    # Prompts

    @property
    @abstractmethod
    def _tokenizers(self) -> Mapping[str, TextTokenizer]:
        """Name of an encoder, for people -> its tokenizer."""

    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        """Encode prompts to [B, L, D] and [B, P] in `dtype`, one by one: each row depends on its own text alone."""
        # Embeddings outlive this call and may be differentiated with respect to; inference tensors may not.
        with torch.inference_mode(False), torch.no_grad():
            return Condition.cat([self._encode_text(text).map(lambda x: x.to(self._dtype)) for text in texts])

    @abstractmethod
    def _encode_text(self, text: str) -> Condition:
        """Encode one prompt, [1, L, D] and [1, P]."""

    def truncated(self, text: str) -> str:
        """Return the part of a prompt that no text encoder sees; empty when one of them sees all of it."""
        return min((tokenizer.tail(text) for tokenizer in self._tokenizers.values()), key=len)

    def cuts(self, text: str) -> Mapping[str, str]:
        """Return which end of a prompt each text encoder does not see, where there is one."""
        tails = {name: tokenizer.tail(text) for name, tokenizer in self._tokenizers.items()}
        return {name: tail for name, tail in tails.items() if tail}

    @abstractmethod
    def segments(self, text: str) -> Sequence[Segment]:
        """Return the text positions by the tokenizer that fills them."""

    # Sites and controls

    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """Return the attention sites in call order; needs no weights."""

    @cached_property
    def _layers(self) -> tuple[str, ...]:
        network = self.transformer or meta_module(self._network_class, self.transformer_config)
        return tuple(name for name, _ in network.named_modules() if name)

    def layers(self) -> tuple[str, ...]:
        """Return the dotted names of the network's modules; needs no weights."""
        return self._layers

    @contextmanager
    def controlled(self, controls: Sequence[Control], states: Sequence[Any]) -> Iterator[ControlHandle]:
        """Install controls in the transformer for the duration of the context; see `controlled_network`."""
        from framework.backbones.attention import controlled_network

        network = self._component("transformer")
        with controlled_network(network, self.sites(), controls, states, self._processor) as handle:
            yield handle
