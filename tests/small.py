"""Small models and batches that many tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.data.sample import EditBatch, EditSample, Frame

MODELS = Path(__file__).resolve().parent / "parity_data" / "models"

PROMPTS = (
    ("a photo of a cat", "a photo of a dog"),
    ("a house by the sea", "a castle by the sea"),
    ("", "a watercolour painting"),
)


def batch_of(indices: Sequence[int], images: Tensor | None = None) -> EditBatch:
    """Make a batch of random pictures; picture and prompts depend on the index alone."""
    pictures, samples = [], []
    for index in indices:
        generator = torch.Generator().manual_seed(index)
        pictures.append(torch.rand(3, 64, 64, generator=generator) * 2 - 1)
        source, target = PROMPTS[index % len(PROMPTS)]
        samples.append(EditSample(f"image-{index}", Path("unused"), source, target))
    count = len(samples)
    frame = Frame((64, 64), (0, 0, 64, 64), (64, 64))
    stacked = torch.stack(pictures) if images is None else images
    return EditBatch(tuple(samples), stacked, None, (frame,) * count, ((),) * count)


def prompts(*pairs: tuple[str, str], **extra: Any) -> EditBatch:
    """Make a batch of random pictures with these pairs of source and target prompt."""
    batch = batch_of(range(len(pairs)))
    samples = [
        replace(sample, source=source, target=target, extra=extra)
        for sample, (source, target) in zip(batch.samples, pairs, strict=True)
    ]
    return replace(batch, samples=tuple(samples))
