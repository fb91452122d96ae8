from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from framework.data.sample import EditSample
from framework.evaluation.metric import Codec, MetricInput


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def item() -> Callable[..., MetricInput]:
    """A pair of pictures as a metric is given it."""

    def make(
        edit: Tensor, source: Tensor, mask: Tensor | None = None, texts: tuple[str, str] = ("a cat", "a dog")
    ) -> MetricInput:
        sample = EditSample("pair", Path("pair.png"), *texts)
        return MetricInput(sample, 0, source, edit, None, mask, Codec(None, source[None]))  # type: ignore[arg-type]

    return make
