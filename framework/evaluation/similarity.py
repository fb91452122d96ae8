"""The metrics of networks that see whole pictures: DINO's structure, CLIP's agreement with prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.errors import Checks
from framework.evaluation.metric import Figure, MetricInput, Values
from framework.evaluation.network_metric import NetworkMetric, model_files
from framework.evaluation.pictures import (
    BATCH,
    PartMetric,
    batches,
    part_weights,
    stacked,
    stacked_weights,
)
from framework.evaluation.pixels import Part
from framework.evaluation.vision import Clip, Dino, self_similarity


@dataclass(frozen=True)
class StructureDistance(NetworkMetric, PartMetric):
    """Mean squared difference of the self-similarities of DINO's keys (last block, class token included).

    The benchmark feeds values in 0..255 to the normalisation, Splice in 0..1; figures of the second are named. Beside a
    part of the picture all is black, as in the benchmark: keys see everything, so that there is no other rule.

    Attributes:
        parts: Of "whole", "unedit" and "edit".
        rule: "official".
        input_range: 255 as PIE-Bench, 1 as Splice.
        antialias: Of the resize to 224; most likely off for the published rows.
        model: Folder or hub id of a `ViTModel` with DINO's ViT-B/8.
        download: Whether a hub id may be downloaded.
    """

    parts: Sequence[Part] = ("whole",)
    input_range: int = 255
    antialias: bool = False
    model: str = "facebook/dino-vitb8"
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("StructureDistance")
        checks.one_of("rule", self.rule, ("official",))
        checks.one_of("input_range", self.input_range, (255, 1))
        checks.done()

    @property
    def name(self) -> str:
        """Both input ranges may measure the same run."""
        return "StructureDistance" if self.input_range == 255 else "StructureDistanceUnitRange"

    @property
    def figures(self) -> tuple[Figure, ...]:  # type: ignore[override]
        """The distance of every part."""
        name = "structure_distance" + ("" if self.input_range == 255 else "_unit_range")
        name += "_antialias" if self.antialias else ""
        return tuple(Figure(name + self.ending(part), "lower", scale=1e3) for part in self.parts)

    def network(self) -> Dino:
        """The network in evaluation mode."""
        return _load_dino(self.model, self.download)

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        found: list[dict[str, float | None]] = [{figure.name: None for figure in self.figures} for _ in items]
        for part, figure in zip(self.parts, self.figures, strict=True):
            weights = part_weights(items, part)
            for group in batches(list(weights), lambda k: tuple(items[k].edit.shape)):
                network = self.network().to(items[group[0]].edit.device)
                edit, source = (pictures * stacked_weights(weights, group) for pictures in stacked(items, group))
                both = torch.cat([edit, source]) * self.input_range
                edit, source = self_similarity(network.keys(network.pixels(both, antialias=self.antialias))).chunk(2)
                for k, value in zip(group, (edit - source).square().mean((1, 2)).tolist(), strict=True):
                    found[k][figure.name] = value
        return found


@dataclass(frozen=True)
class CLIPSimilarity(NetworkMetric):
    """Similarity of pictures and prompts, 100 times the cosine and at least 0.

    Figures: `clip_similarity_source_image` (source and its prompt), `clip_similarity_target_image` (whole edit and
    target prompt), `..._edit_part` (the edit with black outside of the mask), and with `more`: `clip_directional`, the
    cosine of the changes of picture and text, `clip_image`, the cosine of source and edit, and `clip_accuracy`, whether
    the edit is closer to the target prompt than to the source prompt.

    Attributes:
        model: Folder or hub id of a `CLIPModel` with its tokenizer; PIE-Bench uses ViT-L/14.
        more: Whether the last three are measured too.
        download: Whether a hub id may be downloaded.
    """

    model: str = "openai/clip-vit-large-patch14"
    more: bool = False
    download: bool = False

    @property
    def figures(self) -> tuple[Figure, ...]:  # type: ignore[override]
        """The benchmark's three, and three more on request."""
        names = ("source_image", "target_image", "target_image_edit_part")
        own = [Figure(f"clip_similarity_{name}", "higher") for name in names]
        more = ("clip_directional", "clip_image", "clip_accuracy")
        return (*own, *(Figure(name, "higher") for name in more if self.more))

    def network(self) -> Clip:
        """The network in evaluation mode."""
        return _load_clip(self.model, self.download)

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        found: list[Values] = []
        for start in range(0, len(items), BATCH):
            found += self._measure(items[start : start + BATCH])
        return found

    def _measure(self, items: Sequence[MetricInput]) -> list[Values]:
        device = items[0].edit.device
        network = self.network().to(device)
        masked = [k for k, item in enumerate(items) if item.mask is not None]
        pictures = [item.source for item in items] + [item.edit for item in items]
        for k in masked:
            mask = items[k].mask
            assert mask is not None
            pictures.append(items[k].edit * mask.to(items[k].edit))
        prepared = torch.stack([network.pixels(picture) for picture in pictures]).to(device)
        images = F.normalize(network.image_features(prepared), dim=-1)
        texts = list(dict.fromkeys(text for item in items for text in (item.sample.source, item.sample.target)))
        known = dict(zip(texts, F.normalize(network.text_features(texts), dim=-1), strict=True))
        n = len(items)
        values: list[Values] = []
        for k, item in enumerate(items):
            text, target = known[item.sample.source], known[item.sample.target]
            source, edit = images[k], images[n + k]
            part = images[2 * n + masked.index(k)] if k in masked else None
            own: dict[str, float | None] = {
                "clip_similarity_source_image": _percent(source, text) if item.sample.source else None,
                "clip_similarity_target_image": _percent(edit, target),
                "clip_similarity_target_image_edit_part": None if part is None else _percent(part, target),
            }
            if self.more:
                own["clip_directional"] = _cosine(edit - source, target - text)
                own["clip_image"] = float(edit @ source)
                own["clip_accuracy"] = float(edit @ target > edit @ text)
            values.append(own)
        return values


@dataclass(frozen=True)
class DINOSimilarity(NetworkMetric):
    """Cosine of DINO's class tokens of edit and source, in [-1, 1].

    Attributes:
        model: Folder or hub id of a `ViTModel`.
        download: Whether a hub id may be downloaded.
    """

    model: str = "facebook/dino-vitb8"
    download: bool = False

    figures: ClassVar[tuple[Figure, ...]] = (Figure("dino_similarity", "higher"),)

    def network(self) -> Dino:
        """The network in evaluation mode."""
        return _load_dino(self.model, self.download)

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        values: list[float] = [math.nan] * len(items)
        for group in batches(range(len(items)), lambda k: tuple(items[k].edit.shape)):
            network = self.network().to(items[group[0]].edit.device)
            edit, source = network.embed(network.pixels(torch.cat(stacked(items, group)))).chunk(2)
            for k, value in zip(group, F.cosine_similarity(edit, source, dim=-1).tolist(), strict=True):
                values[k] = value
        return [{"dino_similarity": value} for value in values]


@lru_cache(maxsize=2)
def _load_dino(model: str, download: bool) -> Dino:
    return Dino(model_files(model, download)).eval()


@lru_cache(maxsize=2)
def _load_clip(model: str, download: bool) -> Clip:
    return Clip(model_files(model, download)).eval()


def _cosine(first: Tensor, second: Tensor) -> float | None:
    norms = float(first.norm() * second.norm())
    return float(first @ second) / norms if norms > 0 else None


def _percent(image: Tensor, text: Tensor) -> float:
    return max(0.0, 100 * float(image @ text))
