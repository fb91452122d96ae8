"""The metrics of PIE-Bench that know a mask: their names, units and scales; `similarity` has those of whole pictures.

Pictures are measured with 256 levels, as files hold them. Published rows were measured on JPEG files of quality 75:
save with `output.save: {format: jpeg, quality: 75}` and measure with `invedit evaluate` to compare with them.

Source: cure-lab/PnPInversion (07f97f4), evaluation/matrics_calculator.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from framework.errors import Checks, SettingsError
from framework.evaluation.lpips import LpipsNetwork, Net, load_lpips, lpips_parts
from framework.evaluation.metric import Figure, Metric, MetricInput, Values
from framework.evaluation.network_metric import NetworkMetric, model_files
from framework.evaluation.pixels import Border, Part, Rule, part_weight, psnr_of, squared_error, ssim

PARTS: tuple[Part, ...] = ("whole", "unedit", "edit")
BATCH = 8


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
class LPIPS(NetworkMetric, PartMetric):
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

    def network(self) -> LpipsNetwork:
        """The network with its heads."""
        if self.model is None:
            wanted = f"a folder with model.safetensors of torchvision's {self.net} network"
            raise SettingsError([f"it has no weights: give `model`, {wanted}."])
        return _load_lpips(self.model, self.download, self.net)

    @torch.no_grad()
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""
        found: list[dict[str, float | None]] = [{figure.name: None for figure in self.figures} for _ in items]
        for part, figure in zip(self.parts, self.figures, strict=True):
            weights = part_weights(items, part)
            for group in batches(list(weights), lambda k: tuple(items[k].edit.shape)):
                network = self.network().to(items[group[0]].edit.device)
                edit, source = stacked(items, group)
                weight = None if part == "whole" else stacked_weights(weights, group)
                for k, value in zip(
                    group, network(*lpips_parts(edit, source, weight, self.rule)).tolist(), strict=True
                ):
                    found[k][figure.name] = value
        return found


def levels(picture: Tensor) -> Tensor:
    """Round a picture in [0, 1] to 256 levels."""
    return (picture.float().clamp(0, 1) * 255).round() / 255


def _weight(item: MetricInput, part: Part) -> Tensor | None:
    return None if part == "whole" or item.mask is None else part_weight(item.mask, part)


def part_weights(items: Sequence[MetricInput], part: Part) -> dict[int, Tensor]:
    """Return the weight [1, H, W] of a part for every item, by index, that has a mask and something in this part."""
    if part == "whole":
        return {k: torch.ones(1, *item.edit.shape[-2:], device=item.edit.device) for k, item in enumerate(items)}
    weights = {k: _weight(item, part) for k, item in enumerate(items)}
    return {k: weight for k, weight in weights.items() if weight is not None and bool(weight.any())}


def stacked_weights(weights: Mapping[int, Tensor], group: Sequence[int]) -> Tensor:
    """Stack the weights of a group of items, [n, 1, H, W] float32."""
    return torch.stack([weights[k].float() for k in group])


def stacked(items: Sequence[MetricInput], group: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Stack edits and sources of a group of items, each [n, 3, H, W], at 256 levels."""
    edits, sources = ([levels(getattr(items[k], name)) for k in group] for name in ("edit", "source"))
    return torch.stack(edits), torch.stack(sources)


def batches(indices: Sequence[int], key: Callable[[int], object]) -> Iterator[list[int]]:
    """Gather indices with equal keys, a bounded number at a time."""
    known: dict[object, list[int]] = {}
    for index in indices:
        known.setdefault(key(index), []).append(index)
    for group in known.values():
        yield from (group[start : start + BATCH] for start in range(0, len(group), BATCH))


@lru_cache(maxsize=4)
def _load_lpips(model: str, download: bool, net: Net) -> LpipsNetwork:
    return load_lpips(model_files(model, download), net)
