"""The metrics of PIE-Bench, and a few of the same networks: what they are asked for, their names, units and scales.

Pictures are measured with 256 levels, as files hold them. Published rows were measured on JPEG files of quality 75:
save with `output.save: {format: jpeg, quality: 75}` and measure with `invedit evaluate` to compare with them.

Source: cure-lab/PnPInversion (07f97f4), evaluation/matrics_calculator.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.backbones.files import ModelFiles
from framework.errors import Checks, SettingsError
from framework.evaluation.lpips import LpipsNetwork, Net, load_lpips, lpips_parts
from framework.evaluation.metric import Figure, Metric, MetricInput, Values
from framework.evaluation.pixels import Border, Part, Rule, part_weight, psnr_of, squared_error, ssim
from framework.evaluation.vision import Clip, Dino, self_similarity

PARTS: tuple[Part, ...] = ("whole", "unedit", "edit")
_BATCH = 8
Loaded = TypeVar("Loaded", bound=nn.Module)


@dataclass(frozen=True)
class PartMetric(Metric):
    """A metric of one or both sides of a sample's mask.

    Attributes:
        parts: Of "whole", "unedit" (outside the mask) and "edit"; samples without a mask, and masks that leave a part
            empty, have no value for it.
        rule: How the mask enters, see `framework.evaluation.pixels.Rule`; `region` is named in the figures.
    """

    parts: Sequence[Part] = ("unedit",)
    rule: Rule = "official"

    def __post_init__(self) -> None:
        checks = Checks(self.name)
        for part in self.parts:
            checks.one_of("parts", part, PARTS)
        checks.require(bool(self.parts), f"parts=[] measures nothing; give some of {', '.join(PARTS)}.")
        checks.one_of("rule", self.rule, ("official", "region"))
        checks.done()

    def ending(self, part: Part) -> str:
        """Return what the name of a figure of this part ends with, as in the benchmark's files."""
        side = "part" if self.rule == "official" else "region"
        return "" if part == "whole" else f"_{part}_{side}"


@dataclass(frozen=True)
class PixelMetrics(PartMetric):
    """MSE, PSNR and SSIM of the edit against the source.

    Attributes:
        border: Of the SSIM; "reflect" is named in its figures.
    """

    border: Border = "crop"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks(self.name)
        checks.one_of("border", self.border, ("crop", "reflect"))
        checks.done()

    @property
    def _ssim(self) -> str:
        return "ssim" if self.border == "crop" else "ssim_reflect"

    @property
    def figures(self) -> tuple[Figure, ...]:  # type: ignore[override]
        """PSNR, MSE and SSIM of every part."""
        return tuple(
            figure
            for ending in map(self.ending, self.parts)
            for figure in (
                Figure(f"psnr{ending}", "higher", "dB"),
                Figure(f"mse{ending}", "lower", scale=1e4),
                Figure(f"{self._ssim}{ending}", "higher", scale=100),
            )
        )

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""
        values: dict[str, float | None] = {}
        source, edit = levels(item.source), levels(item.edit)
        for part in self.parts:
            weight = _weight(item, part)
            known = part == "whole" or weight is not None
            error = squared_error(edit, source, weight, self.rule) if known else math.nan
            similar = ssim(edit, source, weight, rule=self.rule, border=self.border) if known else math.nan
            ending = self.ending(part)
            empty = not known or math.isnan(error)
            values[f"psnr{ending}"] = None if empty else psnr_of(error)
            values[f"mse{ending}"] = None if empty else error
            values[f"{self._ssim}{ending}"] = None if empty or math.isnan(similar) else similar
        return values


@dataclass(frozen=True)
class LPIPS(PartMetric):
    """LPIPS of the edit against the source; figures name the network.

    Attributes:
        net: "squeeze" (PIE-Bench's), "alex" or "vgg".
        model: Folder or hub id with `model.safetensors`: the network's features under torchvision's names, and its
            heads unless they are the published ones. Convert torchvision's file with `safetensors.torch.save_file(
            torch.load(FILE, weights_only=True), "model.safetensors")`.
        download: Whether a hub id may be downloaded.
    """

    net: Net = "squeeze"
    model: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks(self.name)
        checks.one_of("net", self.net, ("squeeze", "alex", "vgg"))
        checks.done()

    @property
    def name(self) -> str:
        """Two networks may measure the same run."""
        return "LPIPS" if self.net == "squeeze" else f"LPIPS_{self.net}"

    @property
    def figures(self) -> tuple[Figure, ...]:  # type: ignore[override]
        """The distance of every part."""
        return tuple(Figure(f"lpips_{self.net}{self.ending(part)}", "lower", scale=1e3) for part in self.parts)

    @property
    def unavailable(self) -> str | None:
        """Why the weights cannot be had."""
        if self.model is None:
            return (
                f"it has no weights: give `model`, a folder with model.safetensors of torchvision's {self.net} network."
            )
        return _problem(_load_lpips, self.model, self.download, self.net)

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""
        return self.measure_batch([item])[0]

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        assert self.model is not None
        found: list[dict[str, float | None]] = [{figure.name: None for figure in self.figures} for _ in items]
        for part, figure in zip(self.parts, self.figures, strict=True):
            weights = [_weight(item, part) for item in items]
            known = [k for k, w in enumerate(weights) if part == "whole" or (w is not None and bool(w.any()))]
            for group in _groups(known, lambda k: tuple(items[k].edit.shape)):
                network = _on(_load_lpips(self.model, self.download, self.net), items[group[0]].edit.device)
                edit, source = _stacked(items, group)
                kept = [weights[k] for k in group]
                weight = torch.stack([w.to(edit) for w in kept if w is not None]) if part != "whole" else None
                for k, value in zip(
                    group, network(*lpips_parts(edit, source, weight, self.rule)).tolist(), strict=True
                ):
                    found[k][figure.name] = value
        return found


@dataclass(frozen=True)
class StructureDistance(Metric):
    """Mean squared difference of the self-similarities of DINO's keys (last block, class token included).

    The benchmark feeds values in 0..255 to the normalisation, Splice in 0..1; figures of the second are named.

    Attributes:
        input_range: 255 as PIE-Bench, 1 as Splice.
        antialias: Of the resize to 224; most likely off for the published rows.
        model: Folder or hub id of a `ViTModel` with DINO's ViT-B/8.
        download: Whether a hub id may be downloaded.
    """

    input_range: int = 255
    antialias: bool = False
    model: str = "facebook/dino-vitb8"
    download: bool = False

    def __post_init__(self) -> None:
        checks = Checks("StructureDistance")
        checks.one_of("input_range", self.input_range, (255, 1))
        checks.done()

    @property
    def name(self) -> str:
        """Both input ranges may measure the same run."""
        return "StructureDistance" if self.input_range == 255 else "StructureDistanceUnitRange"

    @property
    def figures(self) -> tuple[Figure, ...]:  # type: ignore[override]
        """The distance."""
        name = "structure_distance" + ("" if self.input_range == 255 else "_unit_range")
        return (Figure(name + ("_antialias" if self.antialias else ""), "lower", scale=1e3),)

    @property
    def unavailable(self) -> str | None:
        """Why the weights cannot be had."""
        return _problem(_load_dino, self.model, self.download)

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""
        return self.measure_batch([item])[0]

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        values: list[float | None] = [None] * len(items)
        for group in _groups(range(len(items)), lambda k: tuple(items[k].edit.shape)):
            network = _on(_load_dino(self.model, self.download), items[group[0]].edit.device)
            both = torch.cat(_stacked(items, group)) * self.input_range
            edit, source = self_similarity(network.keys(network.pixels(both, antialias=self.antialias))).chunk(2)
            for k, value in zip(group, (edit - source).square().mean((1, 2)).tolist(), strict=True):
                values[k] = value
        return [{self.figures[0].name: value} for value in values]


@dataclass(frozen=True)
class CLIPSimilarity(Metric):
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

    @property
    def unavailable(self) -> str | None:
        """Why the weights cannot be had."""
        return _problem(_load_clip, self.model, self.download)

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""
        return self.measure_batch([item])[0]

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        found: list[Values] = []
        for start in range(0, len(items), _BATCH):
            found += self._measure(items[start : start + _BATCH])
        return found

    def _measure(self, items: Sequence[MetricInput]) -> list[Values]:
        device = items[0].edit.device
        network = _on(_load_clip(self.model, self.download), device)
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
class DINOSimilarity(Metric):
    """Cosine of DINO's class tokens of edit and source, in [-1, 1].

    Attributes:
        model: Folder or hub id of a `ViTModel`.
        download: Whether a hub id may be downloaded.
    """

    model: str = "facebook/dino-vitb8"
    download: bool = False

    figures: ClassVar[tuple[Figure, ...]] = (Figure("dino_similarity", "higher"),)

    @property
    def unavailable(self) -> str | None:
        """Why the weights cannot be had."""
        return _problem(_load_dino, self.model, self.download)

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""
        return self.measure_batch([item])[0]

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        values: list[float] = [math.nan] * len(items)
        for group in _groups(range(len(items)), lambda k: tuple(items[k].edit.shape)):
            network = _on(_load_dino(self.model, self.download), items[group[0]].edit.device)
            edit, source = network.embed(network.pixels(torch.cat(_stacked(items, group)))).chunk(2)
            for k, value in zip(group, F.cosine_similarity(edit, source, dim=-1).tolist(), strict=True):
                values[k] = value
        return [{"dino_similarity": value} for value in values]


def levels(picture: Tensor) -> Tensor:
    """Round a picture in [0, 1] to 256 levels."""
    return (picture.float().clamp(0, 1) * 255).round() / 255


def _weight(item: MetricInput, part: Part) -> Tensor | None:
    return None if part == "whole" or item.mask is None else part_weight(item.mask, part)


def _stacked(items: Sequence[MetricInput], group: Sequence[int]) -> tuple[Tensor, Tensor]:
    edits, sources = ([levels(getattr(items[k], name)) for k in group] for name in ("edit", "source"))
    return torch.stack(edits), torch.stack(sources)


def _groups(indices: Sequence[int], key: Callable[[int], object]) -> Iterator[list[int]]:
    """Gather indices with equal keys, a bounded number at a time."""
    known: dict[object, list[int]] = {}
    for index in indices:
        known.setdefault(key(index), []).append(index)
    for group in known.values():
        yield from (group[start : start + _BATCH] for start in range(0, len(group), _BATCH))


def _cosine(first: Tensor, second: Tensor) -> float | None:
    norms = float(first.norm() * second.norm())
    return float(first @ second) / norms if norms > 0 else None


def _percent(image: Tensor, text: Tensor) -> float:
    return max(0.0, 100 * float(image @ text))


def _files(model: str, download: bool) -> ModelFiles:
    return ModelFiles(model, local_files_only=not download)


@lru_cache(maxsize=4)
def _load_lpips(model: str, download: bool, net: Net) -> LpipsNetwork:
    return load_lpips(_files(model, download), net)


@lru_cache(maxsize=2)
def _load_dino(model: str, download: bool) -> Dino:
    return Dino(_files(model, download)).eval()


@lru_cache(maxsize=2)
def _load_clip(model: str, download: bool) -> Clip:
    return Clip(_files(model, download)).eval()


@lru_cache(maxsize=16)
def _problem(load: Callable[..., nn.Module], *settings: object) -> str | None:
    """Why a network cannot be loaded, or None; it is loaded on the way, once."""
    try:
        load(*settings)
    except SettingsError as error:
        return " ".join(error.problems)
    return None


def _on(network: Loaded, device: torch.device) -> Loaded:
    return network.to(device)
