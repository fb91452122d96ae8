"""How well the masks that a method finds by itself cover what is to be edited."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks._committed import measured, write_figure, write_summary
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.step import Step

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult

FIGURES = ("iou", "chance", "precision", "recall", "share")
"""Intersection over union; what a random mask of the same size would have of it; shares of the found mask that are true
and of the true mask that are found; share of the picture that the found mask covers."""


class MaskOverlap(EditCallback):
    """Compares, at every step, the masks that the guidance found with the sample's own.

    The masks of several concepts are joined. They are compared at the picture's size, to which they are enlarged by the
    nearest neighbour. Steps at which nothing is masked (concepts that still warm up) do not count, nor do samples
    without a mask or with an empty one. Figures are means over steps, and over the draws of an image.

    Args:
        of: Name under which the guidance shows them; LEDITS++ has "masks", and with an intersection its two sides
            "noise_masks" and "attention_masks" too. Several callbacks of one run may look at different ones.
        plots: Draw the figure at the end of a run.
    """

    def __init__(self, *, of: str = "masks", plots: bool = True) -> None:
        self.of = of
        self.plots = plots
        self._truth: Tensor | None = None
        self._areas: list[Tensor] = []

    @property
    def name(self) -> str:
        """Prefix of the measurements; with other masks than "masks", their name is part of it."""
        return type(self).__name__ if self.of == "masks" else f"{type(self).__name__}-{self.of}"

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        self._areas = []
        self._truth = None if batch.masks is None else batch.masks.to(module.backbone.device).double()

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        self._areas, self._truth = [], None

    def on_denoise_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        masks = step.found.get(self.of)
        if masks is None or self._truth is None:
            return
        found = masks.detach().amax(1, keepdim=True).double()
        truth = self._truth.repeat_interleave(len(found) // len(self._truth), 0)
        found = F.interpolate(found, size=truth.shape[-2:], mode="nearest")
        areas = [(found * truth).flatten(1).mean(1), found.flatten(1).mean(1), truth.flatten(1).mean(1)]
        self._areas.append(torch.stack(areas))

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        areas, truth = self._areas, self._truth
        self._areas, self._truth = [], None
        if not areas or truth is None:
            return [Measurement() for _ in result.samples]
        images, draws = len(result.samples), result.draws
        both, found, true = torch.stack(areas).cpu().view(len(areas), 3, images, draws).unbind(1)
        figures = {
            "iou": both / (found + true - both),
            "chance": found * true / (found + true - found * true),
            "precision": both / found,
            "recall": both / true,
            "share": found,
        }
        counts = (found > 0) & (true > 0)
        per_step = {name: torch.where(counts, value, torch.nan).nanmean(2) for name, value in figures.items()}
        return [
            Measurement() if image in result.failures else Measurement(values=_values(per_step, image))
            for image in range(images)
        ]

    def on_run_end(self, run: FinishedRun) -> None:
        rows = [values for _, values in measured(run, self.name) if values]
        columns = {name: [row[name] for row in rows if row[name] is not None] for name in FIGURES}
        series = {name: _by_step([row["by_step"][name] for row in rows]) for name in ("iou", "chance")}
        means = {name: _mean(values) for name, values in columns.items()}
        write_summary(run, self.name, {"images": len(columns["iou"]), "mean": means, "by_step": series}, {})
        if self.plots and columns["iou"]:
            self._draw(run, len(columns["iou"]), series)

    def _draw(self, run: FinishedRun, images: int, series: Mapping[str, Sequence[float | None]]) -> None:
        from framework.statistics import plots

        labels = {"iou": "found", "chance": "a random mask of the same size"}
        curves = [
            plots.Curve(label, torch.tensor([math.nan if v is None else v for v in series[name]]))
            for name, label in labels.items()
        ]
        many = f"{images} image{'s' if images != 1 else ''}"
        title = f"Overlap of found and true masks, mean over {many}"
        figure = plots.per_step(curves, title=title, ylabel="intersection over union", axis="executed step")
        write_figure(run, self.name, figure)


def _values(per_step: Mapping[str, Tensor], image: int) -> dict[str, Any]:
    """Return means over the steps that count, and the course of the overlap; None where no step counts."""
    course = {name: [_or_none(x) for x in value[:, image].tolist()] for name, value in per_step.items()}
    means = {name: _mean([x for x in course[name] if x is not None]) for name in FIGURES}
    return {**means, "by_step": {name: course[name] for name in ("iou", "chance")}}


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _by_step(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Average courses of possibly different lengths step by step."""
    longest = max((len(row) for row in rows), default=0)
    columns = [[row[k] for row in rows if k < len(row)] for k in range(longest)]
    return [_mean([value for value in column if value is not None]) for column in columns]
