"""How noise maps of different steps hang together: correlation and angle of neighbours, and the full matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from callbacks._committed import alike, shortened, write_figure, write_summary
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.statistics.comoments import Centred, CoMoments
from framework.statistics.fold import fold, fold_draws
from framework.statistics.histogram import ANGLE_EDGES, CORRELATION_EDGES, Histogram
from framework.statistics.moments import Moments
from framework.statistics.tables import pair_table
from framework.step import Need, Step

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


class NoiseCorrelation(EditCallback):
    """Measures correlation and angle between the noise maps of neighbouring steps, per draw of each image.

    Args:
        matrix: Measure also the correlation of every step with every other, from the maps in the inversion's record.
        unused: Measure also maps that the edit does not use (skipped steps).
        plots: Draw the figures at the end of a run.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.NOISE_MAPS})

    def __init__(self, *, matrix: bool = True, unused: bool = False, plots: bool = True) -> None:
        self.matrix = matrix
        self.unused = unused
        self.plots = plots
        self._reset()

    def _reset(self) -> None:
        self._inverted = False
        self._steps = 0
        self._last: tuple[int, Centred] | None = None
        self._pairs: dict[int, Tensor] = {}

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        self._reset()

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        self._reset()

    def on_invert_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        self._inverted = True
        self._look(step)

    def on_denoise_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        if not self._inverted:
            self._look(step)

    def _look(self, step: Step) -> None:
        self._steps = step.schedule.num_steps
        if step.noise is None:
            return
        here = (step.interval, Centred.of(step.noise))
        if self._last is not None and abs(self._last[0] - step.interval) == 1:
            (first, a), (_, b) = sorted((self._last, here), key=lambda item: item[0])
            self._pairs[first] = CoMoments.between(a, b).to_tensor()
        self._last = here

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        steps, pairs = self._steps, sorted(self._pairs.items())
        self._reset()
        images, draws = len(result.samples), result.draws
        if not pairs:
            return [Measurement() for _ in range(images)]
        packed = torch.zeros(steps - 1, images * draws, 6, dtype=torch.float64)
        packed[[first for first, _ in pairs]] = torch.stack([state for _, state in pairs]).cpu()
        skipped = {} if self.unused else dict.fromkeys(result.record.unused, "not used by the edit (skipped)")
        excluded = skipped | dict.fromkeys(result.record.zeroed, "the method sets this map to zero")
        beside = sorted({first for step in excluded for first in (step - 1, step) if 0 <= first < steps - 1})
        about = {"draws": draws, "excluded": {str(step): why for step, why in sorted(excluded.items())}}
        maps = result.record.noise_maps if self.matrix else None
        measurements = []
        for image in range(images):
            if image in result.failures:
                measurements.append(Measurement())
                continue
            rows = slice(image * draws, (image + 1) * draws)
            state = CoMoments.from_tensor(packed[:, rows].transpose(0, 1).contiguous())
            empty = ~state.finite
            empty[:, beside] = True
            tensors = {"pairs": state.without(empty).to_tensor()}
            if maps is not None:
                tensors["matrix"] = _matrix(maps[:, rows], sorted(excluded))
            measurements.append(Measurement(tensors, about))
        return measurements

    def on_run_end(self, run: FinishedRun) -> None:
        left: dict[str, str] = {}
        images = 0
        about: Any = {}
        pooled: CoMoments | None = None
        whole: CoMoments | None = None
        folded: list[Moments] = []
        counted: list[Histogram] = []
        for _, values, tensors in alike(run, self.name, "pairs", _kind, left):
            draws = CoMoments.from_tensor(tensors["pairs"])
            pearson, angle = draws.pearson[..., 0, 1], draws.angle[..., 0, 1]
            own = fold_draws(draws, len(pearson))
            pooled = own if pooled is None else pooled.merge(own)
            singles = [Moments.single(pearson.nanmean(0)), Moments.single(angle.nanmean(0))]
            edges = (pearson, CORRELATION_EDGES), (angle, ANGLE_EDGES)
            bins = [fold_draws(Histogram.single(value, at), len(value)) for value, at in edges]
            if "matrix" in tensors:
                state = CoMoments.from_tensor(tensors["matrix"])
                whole = state if whole is None else whole.merge(state)
                singles.append(Moments.single(state.pearson))
            folded = [a.merge(b) for a, b in zip(folded, singles, strict=True)] if folded else singles
            counted = [a.merge(b) for a, b in zip(counted, bins, strict=True)] if counted else bins
            about = values
            images += 1
        if pooled is None:
            write_summary(run, self.name, {"images": 0, "left_out": shortened(left)}, {})
            return
        correlations, angles = folded[0], folded[1]
        over_steps = {"correlation": _over_steps(correlations), "angle": _over_steps(angles)}
        summary = {
            "of": "noise maps of a step and the next",
            "images": images,
            "draws": about["draws"],
            "left_out": shortened(left),
            "mean_over_images_and_steps": over_steps,
            "pairs": pair_table(pooled, correlations, angles, about["excluded"]),
        }
        arrays = {
            "pairs": pooled.to_tensor(),
            "correlation_over_images": correlations.to_tensor(),
            "angle_over_images": angles.to_tensor(),
            "correlation_histogram": counted[0].counts,
            "correlation_edges": CORRELATION_EDGES,
            "angle_histogram": counted[1].counts,
            "angle_edges": ANGLE_EDGES,
        }
        if whole is not None:
            arrays |= {"matrix": whole.to_tensor(), "matrix_over_images": folded[2].to_tensor()}
        write_summary(run, self.name, summary, arrays)
        _log(run.writer, correlations, angles, counted)
        if self.plots and bool((correlations.n > 0).any()):
            self._draw(run, images, pooled, folded, counted[1])

    def _draw(
        self, run: FinishedRun, images: int, pooled: CoMoments, folded: Sequence[Moments], angles: Histogram
    ) -> None:
        from framework.statistics import plots

        many = f"{images} image{'s' if images != 1 else ''}"
        correlations = folded[0]
        at = torch.arange(len(correlations.n)) + 0.5
        mean = torch.where(correlations.n > 0, correlations.mean, torch.nan)
        curves = [
            plots.Curve("mean over images (bands: 1 sd, extremes)", mean, correlations, at),
            plots.Curve("all values pooled", pooled.pearson[:, 0, 1], None, at),
        ]
        figure = plots.per_step(
            curves,
            title=f"Correlation of neighbouring noise maps, {many}",
            ylabel="correlation",
            references=[(0.0, "independent maps"), (-0.5, "")],
        )
        write_figure(run, f"{self.name}-correlation", figure)
        figure = plots.angles(angles.counts, folded[1], title=f"Angles between neighbouring noise maps, {many}")
        write_figure(run, f"{self.name}-angles", figure)
        if len(folded) > 2:
            values = torch.where(folded[2].n > 0, folded[2].mean, torch.nan)
            figure = plots.matrix(values, title=f"Correlation of noise maps, mean over {many}")
            write_figure(run, f"{self.name}-matrix", figure)


def _matrix(maps: Tensor, excluded: Sequence[int]) -> Tensor:
    """Measure the maps [T, draws, ...] of one image against each other; nothing if one that counts is not finite."""
    kept = torch.ones(len(maps), 1, device=maps.device)
    kept[list(excluded)] = 0
    # One draw at a time: in float64 the maps of a whole batch would take twice the memory of the record.
    states = []
    for draw in maps.unbind(1):
        flat = draw.detach().flatten(1)
        states.append(CoMoments.of(torch.where(kept > 0, flat, 0.0)[None]))
    total = fold(CoMoments.from_tensor(state.to_tensor().cpu()[0]) for state in states)
    assert total is not None
    return total.without(~total.finite).to_tensor()


def _over_steps(folded: Moments) -> float:
    shown = folded.mean[folded.n > 0]
    return float(shown.mean()) if len(shown) else float("nan")


def _kind(values: Any, tensors: dict[str, Tensor]) -> Any:
    return values["excluded"], tensors["pairs"].shape[1], "matrix" in tensors


def _log(writer: Any, correlations: Moments, angles: Moments, counted: Sequence[Histogram]) -> None:
    """Write curves and raw histograms over images per pair of steps; nothing where there is no writer."""
    if writer is None:
        return
    curves = zip(("correlation", "angle"), (correlations, angles), counted, strict=True)
    for name, folded, histogram in curves:
        for step in (folded.n > 0).nonzero().flatten().tolist():
            n, mean = float(folded.n[step]), float(folded.mean[step])
            writer.add_scalar(f"2_noise/{name}", mean, step)
            writer.add_histogram_raw(
                f"2_noise/{name}_over_images",
                min=float(folded.low[step]),
                max=float(folded.high[step]),
                num=int(histogram.n[step]),
                sum=n * mean,
                sum_squares=float(folded.m2[step]) + n * mean * mean,
                bucket_limits=histogram.edges[1:].tolist(),
                bucket_counts=histogram.counts[step, 1:-1].tolist(),
                global_step=step,
            )
