"""How the noise of each step is distributed: mean, variance, higher moments, distances from normal, a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from callbacks._committed import alike, shortened, write_figure, write_summary
from callbacks._noise import NoiseObserver, placed, times
from framework.callback import FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.schedule import Level
from framework.statistics.distribution import (
    DistributionFold,
    empty_distribution,
    image_distribution,
    measure_distribution,
)
from framework.statistics.histogram import Histogram
from framework.statistics.moments import Moments
from framework.statistics.series import Of
from framework.statistics.steps import VALUES_PER_CALL, measure_steps

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult

_TAGS = {"auto": "2_noise/", "latents": "3_latent/"}


class NoiseStatistics(NoiseObserver):
    """Measures the noise of every step: centred powers, extrema, 100 fixed bins on [-5, 5], exact KS distances.

    Args:
        of: What is measured: "auto" (noise maps, otherwise predictions), "noise_maps", "predictions" (noise on
            diffusion, velocity on flow), "latents" (by levels; the inverted noise at level 0), or "residuals" (what an
            inversion could not reach by itself). The measurement says which.
        unused: Measure also maps that the edit does not use (skipped steps).
        plots: Draw the figures at the end of a run.
    """

    usual: ClassVar[Of] = "auto"

    def __init__(self, *, of: Of = "auto", unused: bool = False, plots: bool = True) -> None:
        super().__init__(of=of, unused=unused)
        self.plots = plots

    def forget(self) -> None:
        self._levels: dict[int, Level] = {}
        self._waiting: dict[int, Tensor] = {}
        self._measured: list[tuple[list[int], dict[str, Tensor]]] = []

    def see(self, at: int, level: Level, values: Tensor) -> None:
        self._levels[at] = level
        self._waiting[at] = values.detach().clone()
        if len(self._waiting) * values.numel() >= VALUES_PER_CALL:
            self._measure()

    def _measure(self) -> None:
        """Measure the maps that wait; several small ones together take half the time."""
        if self._waiting:
            maps = torch.stack(list(self._waiting.values()))
            found = measure_steps(maps, lambda part, _: measure_distribution(part))
            self._measured.append((list(self._waiting), found))
            self._waiting = {}

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        self.see_residuals(module, result)
        self._measure()
        measured, levels, steps = self._measured, sorted(self._levels.items()), self.steps
        excluded, about = self.about(result)
        self._forget()
        if not measured:
            return [Measurement(values={"of": "nothing: the method has none"}) for _ in result.samples]
        images, draws = len(result.samples), result.draws
        found = empty_distribution(steps, images * draws)
        for places, states in measured:
            found = {name: placed(places, states[name], values) for name, values in found.items()}
        t = times(levels, steps)
        measurements = []
        for image in range(images):
            if image in result.failures:
                measurements.append(Measurement())
                continue
            rows = slice(image * draws, (image + 1) * draws)
            own, broken = image_distribution({name: x[:, rows] for name, x in found.items()}, excluded)
            variance = Moments.from_tensor(own["moments"]).variance
            values = {
                **about,
                "not_finite": broken,
                "over_steps": {f"{self._short}variance": float(variance.nanmean())},
            }
            measurements.append(Measurement({**own, "t": t}, values))
        return measurements

    def on_run_end(self, run: FinishedRun) -> None:
        left: dict[str, str] = {}
        folded = DistributionFold()
        not_finite: dict[str, str] = {}
        about: dict[str, Any] = {}
        for id, values, tensors in alike(run, self.name, "moments", _kind, left):
            folded.add(tensors)
            about = {**values, "t": tensors["t"]}
            if values["not_finite"]:
                not_finite[id] = f"steps {', '.join(map(str, values['not_finite']))}"
        if not folded.images:
            write_summary(run, self.name, {"images": 0, "left_out": shortened(left)}, {})
            return
        summary = {
            "of": about["of"],
            "images": folded.images,
            "draws": about["draws"],
            "left_out": shortened(left),
            "not_finite": shortened(not_finite),
            "steps": folded.rows(about["t"], about["excluded"]),
        }
        write_summary(run, self.name, summary, {**folded.arrays(), "t": about["t"]})
        assert folded.pooled is not None and folded.histogram is not None
        assert folded.spread is not None
        tag = _TAGS.get(self.of, f"2_noise/{self.of}_")
        _log(run.writer, tag, folded.pooled, folded.histogram, folded.spread)
        if self.plots:
            from framework.statistics import plots

            axis = plots.LEVELS if self.of == "latents" else plots.STEPS
            title = f"{about['of']}, {folded.images} image{'s' if folded.images != 1 else ''}"
            for name, figure in folded.figures(title, axis):
                write_figure(run, f"{self.name}-{name}", figure)


def _kind(values: Any, tensors: dict[str, Tensor]) -> Any:
    return values["of"], values["excluded"], tensors["t"].nan_to_num(-1).tolist()


def _log(writer: Any, tag: str, pooled: Moments, histogram: Histogram, spread: Moments) -> None:
    """Write curves and raw histograms per step; nothing where there is no writer."""
    if writer is None:
        return
    # TensorBoard wants one limit above each bin; a tail gets a limit one bin further out.
    edges = histogram.edges
    limits = [*edges.tolist(), float(edges[-1] + (edges[-1] - edges[-2]))]
    for step in (pooled.n > 0).nonzero().flatten().tolist():
        n, mean = float(pooled.n[step]), float(pooled.mean[step])
        writer.add_scalar(f"{tag}mean", mean, step)
        writer.add_scalar(f"{tag}variance", float(pooled.variance[step]), step)
        writer.add_scalar(f"{tag}excess_kurtosis", float(pooled.excess_kurtosis[step]), step)
        middle = float(spread.mean[step])
        deviation = float(spread.variance_unbiased[step].sqrt()) if spread.n[step] > 1 else 0.0
        for end, value in (("", middle), ("_low", middle - deviation), ("_high", middle + deviation)):
            writer.add_scalar(f"{tag}variance_of_images{end}", value, step)
        writer.add_histogram_raw(
            f"{tag}values",
            min=float(pooled.low[step]),
            max=float(pooled.high[step]),
            num=int(n),
            sum=n * mean,
            sum_squares=float(pooled.m2[step]) + n * mean * mean,
            bucket_limits=limits,
            bucket_counts=histogram.counts[step].tolist(),
            global_step=step,
        )
