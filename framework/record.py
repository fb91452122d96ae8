"""The record of an inversion: a value that is saved, loaded, and reused for many edits without inverting again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.errors import SampleError
from framework.schedule import Form, Schedule
from framework.step import Need

_SERIES = ("latents", "noise_maps", "predictions", "residuals")


@dataclass(frozen=True)
class Record:
    """What an inversion found out about its sources. Everything runs in execution order, noisy to clean.

    Attributes:
        kind: Name of the inversion, to refuse a record of another one.
        form: Whether predictions on its schedule are "epsilon" or "velocity".
        z0: [B, ...] clean latents.
        t, alpha, sigma: [T + 1] float64, levels of `latents`.
        latents: [T + 1, B, ...], the last one the clean end; None where there is no trajectory.
        noise_maps: [T, B, ...], entry i leads from level i to level i + 1; None where the method has none.
        predictions: [T, B, ...] guided predictions of the inversion, kept on request.
        residuals: [T, B, ...] what the inversion could not reach by itself, kept on request.
        own: Tensors of one method only, named `<method>.<name>`, images along axis 1.
        features: What the network computed inside for the source, named `<method>.<name>`, images along axis 0. They
            are larger than all else together, and stay on the device and in the dtype that they were stored in.
        unused: Intervals that an edit from this record does not run (skipped).
        zeroed: Intervals whose noise map was set to zero.
        settings: What decides these numbers, for the json beside the file.
    """

    kind: str
    form: Form
    z0: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    latents: Tensor | None = None
    noise_maps: Tensor | None = None
    predictions: Tensor | None = None
    residuals: Tensor | None = None
    own: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    unused: tuple[int, ...] = ()
    zeroed: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def on(cls, schedule: Schedule, kind: str, z0: Tensor, **values: Any) -> Record:
        """Build a record whose latents lie on the levels of a schedule."""
        return cls(kind, schedule.form, z0, schedule.t, schedule.alpha, schedule.sigma, **values)

    @property
    def provides(self) -> frozenset[Need]:
        """What parts can find in this record."""
        have = {
            Need.TRAJECTORY: self.latents is not None,
            Need.NOISE_MAPS: self.noise_maps is not None,
            Need.PREDICTIONS: self.predictions is not None,
        }
        return frozenset(need for need, given in have.items() if given)

    def map(self, function: Any) -> Record:
        """Apply a function to every tensor that has an axis of images, given with that axis' position."""
        series = {name: getattr(self, name) for name in _SERIES}
        values: dict[str, Any] = {n: None if x is None else function(x, 1) for n, x in series.items()}
        return replace(
            self,
            z0=function(self.z0, 0),
            own={name: function(value, 1) for name, value in self.own.items()},
            features={name: function(value, 0) for name, value in self.features.items()},
            **values,
        )

    def image(self, index: int) -> Record:
        """Return the record of one image; negative indices count from the end."""
        count = self.z0.shape[0]
        index %= count
        return self.map(lambda x, axis: x.narrow(axis, index, 1))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Record:
        """Move to a device and a floating-point dtype; level tables stay float64 on the CPU, features as they are."""
        return replace(self, features={}).map(lambda x, axis: x.to(device, dtype)).with_features(self.features)

    def with_features(self, features: Mapping[str, Tensor]) -> Record:
        """Return a copy that holds these features."""
        return replace(self, features=features)

    @staticmethod
    def stack(records: Sequence[Record]) -> Record:
        """Join the records of several images on one schedule, in the order given.

        Raises:
            SampleError: They were made by different inversions or on different levels.
        """
        first = records[0]
        for other in records[1:]:
            if (other.kind, other.form) != (first.kind, first.form) or not torch.equal(other.t, first.t):
                raise SampleError(
                    f"an inversion by {other.kind} over {len(other.t) - 1} steps cannot share a batch with one by "
                    f"{first.kind} over {len(first.t) - 1} steps; edit them in separate batches."
                )

        def joined(values: Sequence[Tensor | None], axis: int) -> Tensor | None:
            present = [value for value in values if value is not None]
            return torch.cat(present, axis) if present else None

        series: dict[str, Any] = {name: joined([getattr(r, name) for r in records], 1) for name in _SERIES}
        own = {name: torch.cat([r.own[name] for r in records], 1) for name in first.own}
        features = {name: torch.cat([r.features[name] for r in records]) for name in first.features}
        return replace(first, z0=torch.cat([r.z0 for r in records]), own=own, features=features, **series)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as a file holds them: without an axis of images, for a record of one image."""
        if self.z0.shape[0] != 1:
            raise ValueError(f"tensors() is for one image, this record holds {self.z0.shape[0]}; take record.image(i)")
        values: dict[str, Tensor] = {"z0": self.z0[0], "t": self.t, "alpha": self.alpha, "sigma": self.sigma}
        for name in _SERIES:
            value = getattr(self, name)
            if value is not None:
                values[name] = value[:, 0]
        values.update({name: value[:, 0] for name, value in self.own.items()})
        values.update({name: value[0] for name, value in self.features.items()})
        return {name: value.detach().to("cpu").contiguous().clone() for name, value in values.items()}

    def describe(self) -> dict[str, Any]:
        """Return what belongs in the json beside the tensors."""
        return {
            "kind": self.kind,
            "prediction_type": self.form,
            "unused": list(self.unused),
            "zeroed": list(self.zeroed),
            "own": sorted(self.own),
            "features": sorted(self.features),
            "settings": dict(self.settings),
        }

    def save(self, path: Path | str) -> None:
        """Write `path` (.safetensors) and the same name with .json; a record of one image."""
        from safetensors.torch import save_file

        path = Path(path).with_suffix(".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors(), path)
        path.with_suffix(".json").write_text(json.dumps(self.describe(), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Record:
        """Read what `save` wrote.

        Raises:
            SampleError: A file is missing, cut off, or was not written by this project.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(path).with_suffix(".safetensors")
        try:
            about = json.loads(path.with_suffix(".json").read_text())
            values = load_file(path)
            series = {name: values[name][:, None] if name in values else None for name in _SERIES}
            return cls(
                about["kind"],
                about["prediction_type"],
                values["z0"][None],
                values["t"],
                values["alpha"],
                values["sigma"],
                own={name: values[name][:, None] for name in about["own"]},
                features={name: values[name][None] for name in about.get("features", ())},
                unused=tuple(about["unused"]),
                zeroed=tuple(about["zeroed"]),
                settings=about["settings"],
                **series,
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
            raise SampleError(
                f"{path} cannot be read as an inversion ({type(problem).__name__}: {problem}); it needs its .json "
                "beside it and both files whole. Invert the image again, or copy both files."
            ) from problem
