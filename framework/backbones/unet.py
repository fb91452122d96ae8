"""What backbones on a UNet of diffusers share: schedule, sites and controls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

from framework.backbones.base import ControlHandle
from framework.backbones.loading import meta_module
from framework.backbones.pipeline import PipelineBackbone
from framework.control import Control
from framework.schedule import Schedule, ScheduleOptions
from framework.step import Site


class UNetBackbone(PipelineBackbone):
    """A diffusion model whose network is a UNet of diffusers."""

    form = "epsilon"
    unet: Any
    unet_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]
    _components: ClassVar[tuple[str, ...]] = ("unet",)

    @property
    @abstractmethod
    def _network_class(self) -> Any:
        """Class of the UNet."""

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""
        return self.unet is not None

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
