"""A world in which everything is known: Gaussian pictures with their exact denoiser, and a run folder made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from framework.backbones.base import Backbone
from framework.callback import EditCallback
from framework.data.sample import EditBatch, EditSample, Frame
from framework.result import EditResult
from framework.run.files import json_document
from framework.schedule import Schedule, ScheduleOptions
from framework.step import Condition

TABLE = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0)


class GaussianPictures(Backbone):
    """Pictures with independent N(mean, 1) values, which are their own latents, and the exact noise prediction."""

    prediction_type = "epsilon"
    form = "epsilon"
    image_channels = 3
    image_size = None
    multiple = 1
    takes_text = False
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, mean: float = 0.0) -> None:
        super().__init__()
        self.mean = mean
        self.decoded = 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "gaussian", "mean": self.mean}

    def load(self) -> None:
        pass

    def schedule(self, num_steps: int, options: ScheduleOptions | None = None) -> Schedule:
        stride = 1000 // num_steps
        steps = [(num_steps - 1 - k) * stride + 1 for k in range(num_steps)]
        return Schedule.from_alphas_cumprod(TABLE, steps, final_alpha="first")

    def encode_image(self, images: Tensor) -> Tensor:
        return images.double()

    def decode_latent(self, z: Tensor) -> Tensor:
        self.decoded += 1
        return z.float()

    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        return Condition()

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        abar = TABLE[t.long()].view(-1, *([1] * (z.ndim - 1)))
        return (1 - abar).sqrt() * (z - abar.sqrt() * self.mean)


def batch_of(images: Tensor, names: Sequence[str] | None = None, masks: Tensor | None = None) -> EditBatch:
    names = names or [f"picture-{index}" for index in range(len(images))]
    samples = tuple(EditSample(name, Path(name), "a source", "a target") for name in names)
    size = (images.shape[-2], images.shape[-1])
    frames = tuple(Frame(size, (0, 0, *size), size) for _ in samples)
    return EditBatch(samples, images, masks, frames, tuple(() for _ in samples))


def pictures(count: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@dataclass
class Sample:
    id: str
    directory: Path

    @property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "meta.json").read_bytes())
        return found

    def statistics(self) -> dict[str, Tensor]:
        path = self.directory / "statistics.safetensors"
        return load_file(path) if path.exists() else {}


@dataclass
class Run:
    """A run folder into which results are committed by hand."""

    directory: Path
    writer: Any = None
    ids: list[str] = field(default_factory=list)

    def commit(self, result: EditResult) -> None:
        from PIL import Image

        for sample, measurements in zip(result.samples, result.measurements, strict=True):
            folder = self.directory / "samples" / sample.id
            folder.mkdir(parents=True)
            values = {name: measurement.values for name, measurement in measurements.items()}
            meta = {"id": sample.id, "edit_type": sample.edit_type, "measurements": values}
            (folder / "meta.json").write_bytes(json_document(meta))
            tensors = {f"{name}.{key}": x for name, m in measurements.items() for key, x in m.tensors.items()}
            if tensors:
                save_file(tensors, folder / "statistics.safetensors")
            for measurement in measurements.values():
                for name, picture in measurement.pictures.items():
                    Image.fromarray(picture.numpy()).save(folder / f"{name}.png")
            self.ids.append(sample.id)

    def samples(self) -> Iterator[Sample]:
        return iter(Sample(name, self.directory / "samples" / name) for name in sorted(self.ids))

    def summary(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "statistics" / f"{name}.json").read_bytes())
        return found

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.directory / "statistics").iterdir())}


def run_of(
    directory: Path, module: Any, batches: Iterable[EditBatch], callbacks: Sequence[EditCallback], writer: Any = None
) -> Run:
    """Edit batches, commit them, and let the callbacks fold what was committed."""
    run = Run(directory, writer)
    for batch in batches:
        run.commit(module.edit(batch, callbacks=callbacks))
    for callback in callbacks:
        callback.on_run_end(run)
    return run


class Events(SimpleNamespace):
    """Remembers calls of a SummaryWriter's methods as (method, tag, step)."""

    def __init__(self) -> None:
        super().__init__(calls=[])

    def __getattr__(self, name: str) -> Any:
        def call(tag: str, *arguments: Any, **keywords: Any) -> None:
            step = keywords.get("global_step", arguments[1] if len(arguments) > 1 else None)
            self.calls.append((name, tag, step))

        return call

    def tags(self, method: str) -> set[str]:
        return {tag for name, tag, _ in self.calls if name == method}
