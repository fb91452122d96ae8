"""Small parts to build experiments from: real base classes, a network that predicts zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone, ControlHandle
from framework.callback import EditCallback
from framework.control import Control
from framework.data.readers.source import DataSource
from framework.data.sample import EditSample
from framework.errors import Checks, SettingsError
from framework.guidance import ClassifierFree, Guidance
from framework.inversion import Inversion
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.schedule import Schedule, ScheduleOptions
from framework.step import Condition, Need, Site

LOADS: list[str] = []
"""Which weights were read; building must leave it empty."""


class Colour(Enum):
    RED = "r"
    BLUE = "b"


class ZeroNetwork(Backbone):
    """Predicts zero, in any size."""

    prediction_type = "epsilon"
    form = "epsilon"
    image_channels = 3
    image_size = (16, 16)
    multiple = 8
    takes_text = True

    def __init__(self, model: str = "tiny", dtype: Literal["float32", "float64"] = "float32") -> None:
        super().__init__()
        if model == "gone":
            raise SettingsError([f"ZeroNetwork: model={model!r} is neither a folder nor a hub id; check the spelling."])
        self.model = model

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": self.model}

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def load(self) -> None:
        LOADS.append(self.model)

    def schedule(self, num_steps: int, options: ScheduleOptions | None = None) -> Schedule:
        return None  # type: ignore[return-value]

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def decode_latent(self, z: Tensor) -> Tensor:
        return z

    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        return Condition(torch.zeros(len(texts), 1, 1))

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(z)

    def sites(self) -> tuple[Site, ...]:
        return ()

    @contextmanager
    def controlled(self, controls: Sequence[Control], states: Sequence[Any]) -> Iterator[ControlHandle]:
        yield ControlHandle()


@dataclass(frozen=True)
class NoRecord(Inversion):
    skip: int = 0

    def provides(self) -> frozenset[Need]:
        return frozenset()

    def check(self, schedule_steps: int) -> list[str]:
        return [] if self.skip < schedule_steps else [f"skip={self.skip} leaves no step of steps={schedule_steps}."]

    def record(self, z0: Tensor, predict: Any, ctx: Any) -> Record:
        raise NotImplementedError

    def start(self, record: Record, ctx: Any) -> Any:
        raise NotImplementedError

    def step(self, record: Record, i: int, z: Any, predict: Any, state: Any, ctx: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Window:
    start: float
    stop: float = 1.0

    def __post_init__(self) -> None:
        checks = Checks("Window")
        checks.between("start", self.start, 0, 1)
        checks.between("stop", self.stop, 0, 1)
        checks.done()


@dataclass(frozen=True)
class Nudge(Control):
    """A control with every kind of setting.

    Attributes:
        words: Words.
    """

    kind: Literal["replace", "refine"] = "replace"
    words: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    span: tuple[float, float] = (0.0, 1.0)
    window: Window | None = None
    colour: Colour = Colour.RED
    folder: Path | None = None
    strength: float | list[float] = 1.0
    enabled: bool = True
    anything: Any = None

    def __post_init__(self) -> None:
        checks = Checks("Nudge")
        checks.require(self.span[0] <= self.span[1], f"span={self.span} ends before it begins; give [low, high].")
        checks.done()


class Method(EditModule):
    """A method that does nothing.

    And a second paragraph.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        skip: int = 0,
        guidance: Guidance = ClassifierFree(source=3.5, target=15.0),
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(backbone, steps=steps, inversion=NoRecord(skip), guidance=guidance, **common)


class OtherMethod(EditModule):
    """Another one."""

    def __init__(self, backbone: Backbone, *, strength: float = 0.5, **common: Unpack[CommonSettings]) -> None:
        super().__init__(backbone, steps=10, inversion=NoRecord(), guidance=ClassifierFree(), **common)


@dataclass(kw_only=True)
class Listed(DataSource):
    """Samples from nowhere."""

    count: int = 2

    def samples(self) -> list[EditSample]:
        if self.count == 0:
            raise SettingsError(["Listed: line 1: no image.", "Listed: line 2: no target."])
        return [EditSample(f"s{i}", Path(f"{i}.png"), "", "a cat") for i in range(self.count)]


class Watch(EditCallback):
    """Looks on."""

    def __init__(self, label: str = "watch", every: int = 1, metrics: Sequence[Metric] = ()) -> None:
        self.label, self.every, self.metrics = label, every, metrics

    @property
    def name(self) -> str:
        return self.label


class NoiseWatch(EditCallback):
    """Wants noise maps."""

    needs = frozenset({Need.NOISE_MAPS})


class Metric(Protocol):
    def compare(self, picture: Tensor) -> float: ...


class Distance:
    def __init__(self, order: int = 2) -> None:
        self.order = order

    def compare(self, picture: Tensor) -> float:
        return 0.0


class Broken:
    """Fails when it is made."""

    def __init__(self, size: int = 1) -> None:
        raise RuntimeError("no such device")
