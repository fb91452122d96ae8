"""How far the source row drifts from the latents that its inversion recorded, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from callbacks._committed import measured, write_figure, write_summary
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.evaluation.metric import Figure
from framework.evaluation.rows import EDIT
from framework.step import Need, Step

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


FIGURES = (Figure("rmse", "lower"), Figure("rmse_db", "higher", "dB"))
"""Error of the reconstructed clean latent, for `invedit table`."""


class SourceDrift(EditCallback):
    """Measures the accumulated error of an inversion: root mean square of source row - recorded latent.

    Every denoising step is compared at the level that it arrives at; `final` is the error of the reconstructed clean
    latent, before any decoder. Draws of an image are averaged as mean squares. `invedit table` compares runs by
    `rmse`, which is `final`, and by `rmse_db`, -20 log10 of it.

    Args:
        plots: Draw the figure at the end of a run.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE, Need.TRAJECTORY})

    def __init__(self, *, plots: bool = True) -> None:
        self.plots = plots
        self._squares: list[Tensor] = []

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        self._squares = []

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        self._squares = []

    def on_denoise_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        source, record = step.z_next.source, step.record
        if source is None or record is None or record.latents is None:
            return
        error = source.double() - record.latents[step.interval + 1].double()
        self._squares.append(error.square().flatten(1).mean(1))

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        squares, self._squares = self._squares, []
        if not squares:
            return [Measurement() for _ in result.samples]
        per_step = torch.stack(squares).cpu().view(len(squares), len(result.samples), result.draws).mean(2).sqrt()
        return [
            Measurement() if image in result.failures else self._measurement(per_step[:, image].tolist())
            for image in range(len(result.samples))
        ]

    def _measurement(self, course: Sequence[float]) -> Measurement:
        final = course[-1]
        figures = {"rmse": final, "rmse_db": -20 * math.log10(final) if final else None}
        values = {"final": final, "largest": max(course), "by_step": list(course), "rows": {EDIT: {self.name: figures}}}
        return Measurement(values={**values, "infinite": [] if final else [f"{EDIT}/{self.name}/rmse_db"]})

    def on_run_end(self, run: FinishedRun) -> None:
        courses = [values["by_step"] for _, values in measured(run, self.name) if values]
        longest = max(map(len, courses), default=0)
        columns = [[course[k] for course in courses if k < len(course)] for k in range(longest)]
        means = [math.fsum(column) / len(column) for column in columns]
        figures = {self.name: {figure.name: figure.about() for figure in FIGURES}}
        write_summary(run, self.name, {"images": len(courses), "by_step": means, "figures": figures}, {})
        if self.plots and means:
            from framework.statistics import plots

            many = f"{len(courses)} image{'s' if len(courses) != 1 else ''}"
            title = f"Drift of the source row, mean over {many}"
            curve = plots.Curve("source row - recorded latent", torch.tensor(means))
            figure = plots.per_step([curve], title=title, ylabel="root mean square", axis="executed step")
            write_figure(run, self.name, figure)
