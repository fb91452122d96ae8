"""Run folders with saved inversions, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from framework.record import Record
from framework.run.files import json_document
from framework.run.identity import Identity
from framework.run.store import RunStore, lock_samples


def record(seed: int, *, steps: int = 6, shape: tuple[int, ...] = (2, 8, 8), scale: float = 1.0, **more: Any) -> Record:
    """A record of one image whose noise maps are independent normal values."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(steps, 1, *shape, generator=generator) * scale
    z0 = torch.randn(1, *shape, generator=generator)
    t = torch.linspace(1000, 0, steps + 1, dtype=torch.float64)
    alpha = 1 - t / 1001
    values = {"noise_maps": maps, "latents": torch.cat([maps, z0[None]]), **more}
    return Record("Made", "epsilon", z0, t, alpha, (1 - alpha**2).sqrt(), **values)


def saved_run(directory: Path, records: Mapping[str, Record], *, model: str = "one", inversion: bool = True) -> Path:
    """Commit records as `invedit run` does."""
    identity = Identity({}, {"weights": model}, {})
    samples = lock_samples([(name, name) for name in records], identity)
    store = RunStore(directory)
    store.prepare(identity, samples, "")
    for sample in samples:
        one = records[sample.id]
        files = {"meta.json": json_document({"id": sample.id})}
        if inversion:
            files["inversion.safetensors"] = save(one.tensors())
            files["inversion.json"] = json_document(one.describe())
        store.commit(sample, files, {"time": 1.0})
    return directory
