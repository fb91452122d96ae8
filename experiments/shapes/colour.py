"""How much of a picture has one of the world's colours: for concepts that add a colour or take it away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from experiments.shapes.render import PALETTE
from framework.errors import Checks
from framework.evaluation.metric import Figure, Metric, MetricInput, Values


@dataclass(frozen=True)
class ColourShare(Metric):
    """Share of the pixels whose nearest colour of the palette is the one asked for, in [0, 1].

    The fixed row is the source as the autoencoder returns it, so that its difference to an edit is what the edit added
    (above 0) or removed.

    Attributes:
        colour: Word of the palette.
    """

    colour: str = "red"

    figures: ClassVar = (Figure("share", "higher"),)

    def __post_init__(self) -> None:
        checks = Checks("ColourShare")
        checks.one_of("colour", self.colour, PALETTE)
        checks.done()

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""
        return {"share": colour_share(item.edit, self.colour)}

    def rows(self, items: Sequence[MetricInput]) -> Mapping[str, Sequence[Tensor | None]]:
        """Return the sources as the autoencoder returns them."""
        return {"source through the autoencoder": [item.round_trip for item in items]}


def colour_share(picture: Tensor, colour: str) -> float:
    """Share of the pixels of a picture [3, H, W] in [0, 1] that are nearest to a colour of the palette."""
    palette = torch.tensor(list(PALETTE.values()), device=picture.device)
    distances = (picture.float()[None] - palette[:, :, None, None]).square().sum(1)
    return float((distances.argmin(0) == list(PALETTE).index(colour)).float().mean())
