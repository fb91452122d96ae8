"""What backbones on a UNet of diffusers share: settings, place of the weights, schedule, sites and controls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from framework.backbones.base import Backbone, ControlHandle
from framework.backbones.files import ModelFiles
from framework.backbones.loading import DTYPES, config_hash, meta_module
from framework.control import Control
from framework.errors import Checks
from framework.schedule import Schedule, ScheduleOptions
from framework.step import Site

DtypeName = Literal["float32", "float16", "bfloat16", "float64"]


class UNetBackbone(Backbone):
    """A diffusion model whose network is a UNet of diffusers.

    Args:
        model, revision, variant, cache_dir, local_files_only: See `ModelFiles`.
        dtype: Dtype of the network.
    """

    form = "epsilon"
    unet: Any
    unet_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]
    _components: ClassVar[tuple[str, ...]] = ("unet",)
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

    @property
    @abstractmethod
    def _network_class(self) -> Any:
        """Class of the UNet."""

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

    def load(self) -> None:
        """Read the weights if they are not there yet; frozen and in evaluation mode.

        Raises:
            SettingsError: Files are missing, broken, pickled, or cannot be reached, in words that tell these apart.
        """
        if self.unet is not None:
            return
        for name, module in self._load(self.files.download(self._weights)).items():
            setattr(self, name, module.to(self.device))

    def schedule(self, num_steps: int, options: ScheduleOptions | None = None) -> Schedule:
        """Build the sampling schedule of the checkpoint, with the conventions of a method."""
        return Schedule.from_scheduler(self.scheduler_config, num_steps, options)

    @cached_property
    def _structure(self) -> tuple[tuple[Site, ...], tuple[str, ...]]:
        from framework.backbones.sites import unet_sites

        unet = self.unet or meta_module(self._network_class, self.unet_config)
        return unet_sites(unet), tuple(name for name, _ in unet.named_modules() if name)

    def sites(self) -> tuple[Site, ...]:
        """Return the attention sites of the UNet in call order; needs no weights."""
        return self._structure[0]

    def layers(self) -> tuple[str, ...]:
        """Return the dotted names of the UNet's modules; needs no weights."""
        return self._structure[1]

    @contextmanager
    def controlled(self, controls: Sequence[Control], states: Sequence[Any]) -> Iterator[ControlHandle]:
        """Install controls in the UNet for the duration of the context; see `controlled_network`."""
        from framework.backbones.attention import controlled_network

        with controlled_network(self._component("unet"), self.sites(), controls, states) as handle:
            yield handle

    def _component(self, name: str) -> Any:
        if getattr(self, name) is None:
            self.load()
        return getattr(self, name)
