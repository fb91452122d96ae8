"""What a metric is given, what it answers, and what it may ask of the backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.data.sample import EditSample
from framework.errors import SettingsError


@dataclass(frozen=True)
class Figure:
    """One number that a metric gives.

    Attributes:
        name: Key in what `Metric.measure` returns.
        better: Which direction is better.
        unit: "dB", "degrees", ...; empty for a share in [0, 1] or a plain number.
        scale: What tables of the field multiply it by; rows hold it unscaled.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    scale: float = 1.0

    def about(self) -> dict[str, Any]:
        """Return direction, unit and scale as plain values."""
        return {"better": self.better, "unit": self.unit, "scale": self.scale}


class Codec:
    """The backbone's own picture code, for metrics that must not blame an edit for it. Pictures are in [0, 1].

    Args:
        backbone: Whose encoder, decoder and network are used; None where nobody knows which model made the pictures.
        source: [B, 3, H, W] pictures of the batch.
    """

    def __init__(self, backbone: Backbone | None, source: Tensor) -> None:
        self._backbone = backbone
        self._source = source
        self._round_trips: Tensor | None = None

    @property
    def backbone(self) -> Backbone:
        """The model, loaded.

        Raises:
            SettingsError: Nobody knows which model made the pictures.
        """
        if self._backbone is None:
            raise SettingsError(["it needs the model that made the pictures, and there is none for these results."])
        self._backbone.load()
        return self._backbone

    @torch.no_grad()
    def round_trip(self, pictures: Tensor) -> Tensor:
        """Encode and decode pictures [n, 3, H, W]; the result is clamped to [0, 1]."""
        backbone = self.backbone
        z = backbone.encode_image(pictures.to(backbone.device).float() * 2 - 1)
        return (backbone.decode_latent(z).float() / 2 + 0.5).clamp(0, 1).to(pictures.device)

    @property
    def round_trips(self) -> Tensor:
        """Round trips of all sources of the batch, [B, 3, H, W]; computed when first asked for, in one call."""
        if self._round_trips is None:
            self._round_trips = self.round_trip(self._source)
        return self._round_trips

    def generate(
        self,
        prompts: Sequence[str],
        ids: Sequence[str],
        *,
        steps: int = 50,
        guidance: float = 3.0,
        seed: int = 0,
        draw: str = "plain generation",
    ) -> Tensor:
        """Sample pictures [n, 3, H, W] from prompts alone; see `framework.evaluation.generation.generate`."""
        from framework.evaluation.generation import generate

        size = (self._source.shape[-2], self._source.shape[-1])
        return generate(
            self.backbone, prompts, ids, size=size, steps=steps, guidance=guidance, seed=seed, purpose=draw
        ).to(self._source.device)


@dataclass(frozen=True)
class MetricInput:
    """One edit (one draw of one sample). Pictures are float32 in [0, 1], as the network saw them.

    Attributes:
        sample: Its description; `sample.extra` holds whatever else the manifest says.
        index: Position of the sample in its batch.
        source: [3, H, W].
        edit: [3, H, W].
        reconstruction: [3, H, W], or None where the source was not walked back.
        mask: [1, H, W], 1 = edit, or None where the sample has none.
        codec: The backbone's code, for round trips and plain generation.
    """

    sample: EditSample
    index: int
    source: Tensor
    edit: Tensor
    reconstruction: Tensor | None
    mask: Tensor | None
    codec: Codec = field(repr=False)

    @property
    def round_trip(self) -> Tensor:
        """The source, encoded and decoded, [3, H, W]; computed once per batch."""
        return self.codec.round_trips[self.index]


Values = Mapping[str, float | None]
"""Figure -> value; None (or NaN) where it has none for this edit, infinite where two pictures are identical."""


class Metric(ABC):
    """Measures edits. The values of a sample may depend on its batch by rounding only, and on nothing else that varies.

    Class attributes:
        figures: What `measure` returns, with direction and unit.
    """

    figures: ClassVar[tuple[Figure, ...]]

    @property
    def name(self) -> str:
        """Prefix of the figures; two metrics of one run must not share it."""
        return type(self).__name__

    @property
    def unavailable(self) -> str | None:
        """Why it cannot be computed here (no weights, say), in words; None when it can. Found out once."""
        return None

    @property
    def weights(self) -> str | None:
        """What tells the weights it uses from any others (a hash, a commit); None when it uses none."""
        return None

    @abstractmethod
    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""

    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits, in their order; overridden where a network is quicker on many."""
        return [self.measure(item) for item in items]

    def rows(self, items: Sequence[MetricInput]) -> Mapping[str, Sequence[Tensor | None]]:
        """Return fixed rows for the table of this metric: pictures to be measured in the place of the edits.

        Args:
            items: One per sample of the batch.

        Returns:
            Name of the row -> one [3, H, W] in [0, 1] per item, None where there is none. Default: no rows.
        """
        del items
        return {}
