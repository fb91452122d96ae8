"""How noise maps of different steps hang together: correlation and angle of neighbours, and the full matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from callbacks._committed import alike, shortened, write_figure, write_summary
from callbacks._noise import NoiseObserver, placed
from framework.callback import FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.schedule import Level
from framework.statistics.comoments import Centred, CoMoments
from framework.statistics.histogram import ANGLE_EDGES, Histogram
from framework.statistics.moments import Moments
from framework.statistics.pairs import PairFold, beside, measure_matrix, position_angles
from framework.statistics.series import NOISE_MAPS, Of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


class NoiseCorrelation(NoiseObserver):
    """Measures correlation and angle between the maps of neighbouring steps, per draw of each image.

    Args:
        of: What is measured, see `NoiseStatistics`; by default noise maps, which a method must then have.
        matrix: Measure also the correlation of every step with every other. Maps that are not in the inversion's record
            are kept until the edit ends, one latent per step.
        positions: Count also the angles between the channel vectors at every position: of a model whose positions are
            points of the plane, the angles between steps of its chains.
        unused: Measure also maps that the edit does not use (skipped steps).
        plots: Draw the figures at the end of a run.
    """

    usual: ClassVar[Of] = "noise_maps"

    def __init__(
        self,
        *,
        of: Of = "noise_maps",
        matrix: bool = True,
        positions: bool = False,
        unused: bool = False,
        plots: bool = True,
    ) -> None:
        self.matrix = matrix
        self.positions = positions
        self.plots = plots
        super().__init__(of=of, unused=unused)

    def forget(self) -> None:
        self._last: tuple[int, Centred, Tensor | None] | None = None
        self._pairs: dict[int, Tensor] = {}
        self._angles: dict[int, Tensor] = {}
        self._maps: dict[int, Tensor] = {}

    def see(self, at: int, level: Level, values: Tensor) -> None:
        if self.matrix and self.what != NOISE_MAPS:
            self._maps[at] = values.detach().clone()
        here = (at, Centred.of(values), values.detach().clone() if self.positions else None)
        if self._last is not None and abs(self._last[0] - at) == 1:
            (first, a, x), (_, b, y) = sorted((self._last, here), key=lambda item: item[0])
            self._pairs[first] = CoMoments.between(a, b).to_tensor()
            if x is not None and y is not None:
                self._angles[first] = position_angles(x, y)
        self._last = here

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        self.see_residuals(module, result)
        steps, pairs, angles = self.steps, self._pairs, self._angles
        maps = self._whole(result, steps)
        excluded, about = self.about(result)
        self._forget()
        images, draws = len(result.samples), result.draws
        if not pairs:
            return [Measurement() for _ in range(images)]
        found = torch.stack(list(pairs.values()))
        packed = placed(list(pairs), found, torch.zeros(steps - 1, images * draws, 6, dtype=torch.float64))
        counts = torch.zeros(steps - 1, images * draws, len(ANGLE_EDGES) + 1, dtype=torch.int64)
        if angles:
            counts = placed(list(angles), torch.stack(list(angles.values())), counts)
        gaps = beside(excluded, steps)
        measurements = []
        for image in range(images):
            if image in result.failures:
                measurements.append(Measurement())
                continue
            rows = slice(image * draws, (image + 1) * draws)
            state = CoMoments.from_tensor(packed[:, rows].transpose(0, 1).contiguous())
            empty = ~state.finite
            broken = empty.any(0).nonzero().flatten().tolist()
            empty[:, gaps] = True
            tensors = {"pairs": state.without(empty).to_tensor()}
            if maps is not None:
                tensors["matrix"] = measure_matrix(maps[:, rows], sorted(excluded))
            if angles:
                own = Histogram(counts[:, rows].transpose(0, 1), ANGLE_EDGES).without(empty)
                tensors["position_angles"] = own.counts.sum(0)
            correlation = CoMoments.from_tensor(tensors["pairs"]).pearson[..., 0, 1].nanmean()
            values = {**about, "not_finite": broken, "over_steps": {f"{self._short}correlation": float(correlation)}}
            measurements.append(Measurement(tensors, values))
        return measurements

    def on_run_end(self, run: FinishedRun) -> None:
        left: dict[str, str] = {}
        folded = PairFold()
        not_finite: dict[str, str] = {}
        about: Any = {}
        for id, values, tensors in alike(run, self.name, "pairs", _kind, left):
            folded.add(tensors)
            about = values
            if values["not_finite"]:
                not_finite[id] = f"pairs {', '.join(map(str, values['not_finite']))}"
        if not folded.images:
            write_summary(run, self.name, {"images": 0, "left_out": shortened(left)}, {})
            return
        summary = {
            "of": f"{about['of']} of a step and the next",
            "images": folded.images,
            "draws": about["draws"],
            "left_out": shortened(left),
            "not_finite": shortened(not_finite),
            "mean_over_images_and_steps": folded.over_steps(),
            "pairs": folded.rows(about["excluded"]),
        }
        write_summary(run, self.name, summary, folded.arrays())
        tag = "2_noise/" if self.of == type(self).usual else f"2_noise/{self.of}_"
        _log(run.writer, tag, folded.singles, folded.counts)
        if self.plots:
            many = f"{folded.images} image{'s' if folded.images != 1 else ''}"
            for name, figure in folded.figures(about["of"], many):
                write_figure(run, f"{self.name}-{name}", figure)

    def _whole(self, result: EditResult, steps: int) -> Tensor | None:
        """The maps of all steps, [steps, rows, ...]; those that were not seen are constant and say nothing."""
        if not self.matrix:
            return None
        if self.what == NOISE_MAPS:
            return result.record.noise_maps
        if not self._maps:
            return None
        like = next(iter(self._maps.values()))
        return torch.stack([self._maps.get(step, torch.zeros_like(like)) for step in range(steps)])


def _kind(values: Any, tensors: dict[str, Tensor]) -> Any:
    return values["of"], values["excluded"], tensors["pairs"].shape[1], sorted(tensors)


def _log(writer: Any, tag: str, singles: dict[str, Moments], counts: dict[str, Histogram]) -> None:
    """Write curves and raw histograms over images per pair of steps; nothing where there is no writer."""
    if writer is None:
        return
    for name in ("correlation", "angle"):
        folded, histogram = singles[name], counts[name]
        for step in (folded.n > 0).nonzero().flatten().tolist():
            n, mean = float(folded.n[step]), float(folded.mean[step])
            writer.add_scalar(f"{tag}{name}", mean, step)
            writer.add_histogram_raw(
                f"{tag}{name}_over_images",
                min=float(folded.low[step]),
                max=float(folded.high[step]),
                num=int(histogram.n[step]),
                sum=n * mean,
                sum_squares=float(folded.m2[step]) + n * mean * mean,
                bucket_limits=histogram.edges[1:].tolist(),
                bucket_counts=histogram.counts[step, 1:-1].tolist(),
                global_step=step,
            )
