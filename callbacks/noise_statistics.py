"""How the noise of each step is distributed: mean, variance, higher moments and a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from callbacks._committed import alike, shortened, write_figure, write_summary
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.errors import Checks
from framework.schedule import Level
from framework.statistics.fold import fold_draws
from framework.statistics.histogram import NOISE_EDGES, Histogram
from framework.statistics.moments import Moments
from framework.statistics.tables import noise_table
from framework.step import Latents, Step

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult

Of = Literal["auto", "predictions", "latents"]
_TAGS = {"auto": "2_noise/", "predictions": "2_noise/predicted_", "latents": "3_latent/"}


class NoiseStatistics(EditCallback):
    """Measures the noise of every step: count, mean, centred powers, extrema, and 100 fixed bins on [-5, 5].

    Args:
        of: What is measured. "auto" takes the noise maps of a method that has them, and otherwise the predictions of
            the inversion (noise on diffusion, velocity on flow); "predictions" those in any case; "latents" the
            latents that the inversion passes through, by levels, the inverted noise at level 0. A method that does not
            invert is measured while it denoises. The measurement says which of these it is.
        unused: Measure also maps that the edit does not use (skipped steps).
        plots: Draw the figures at the end of a run.
    """

    def __init__(self, *, of: Of = "auto", unused: bool = False, plots: bool = True) -> None:
        checks = Checks("NoiseStatistics")
        checks.one_of("of", of, ("auto", "predictions", "latents"))
        checks.done()
        self.of = of
        self.unused = unused
        self.plots = plots
        self._reset()

    @property
    def name(self) -> str:
        return "NoiseStatistics" if self.of == "auto" else f"NoiseStatistics-{self.of}"

    def _reset(self) -> None:
        self._what = ""
        self._inverted = False
        self._steps = 0
        self._states: dict[int, tuple[float, Tensor, Tensor]] = {}

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
        phase = "inversion" if self._inverted else "denoising"
        self._steps = step.schedule.num_steps
        if self.of == "latents":
            self._what, self._steps = f"latents of the {phase}", self._steps + 1
            down = step.level_next.sigma < step.level.sigma
            if not self._states:
                self._measure(step.interval + (not down), step.level, _main(step.z))
            self._measure(step.interval + down, step.level_next, _main(step.z_next))
        elif self.of == "auto" and step.noise is not None:
            self._what = "noise maps"
            self._measure(step.interval, step.level, step.noise)
        else:
            kind = "noise" if step.schedule.form == "epsilon" else "velocity"
            self._what = f"predicted {kind} of the {phase}"
            self._measure(step.interval, step.level, _main(step.prediction))

    def _measure(self, at: int, level: Level, values: Tensor) -> None:
        self._states[at] = (level.t, Moments.of(values).to_tensor(), Histogram.of(values, NOISE_EDGES).counts)

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        what, steps, states = self._what, self._steps, sorted(self._states.items())
        self._reset()
        if not states:
            return [Measurement(values={"of": "nothing: the method made no step"}) for _ in result.samples]
        at = torch.tensor([interval for interval, _ in states])
        images, draws = len(result.samples), result.draws
        moments = torch.zeros(steps, images * draws, 7, dtype=torch.float64)
        counts = torch.zeros(steps, images * draws, len(NOISE_EDGES) + 1, dtype=torch.int64)
        moments[..., 5:] = torch.tensor([torch.inf, -torch.inf])
        moments[at] = torch.stack([state[1] for _, state in states]).cpu()
        counts[at] = torch.stack([state[2] for _, state in states]).cpu()
        t = torch.full((steps,), torch.nan, dtype=torch.float64)
        t[at] = torch.tensor([state[0] for _, state in states], dtype=torch.float64)
        excluded = _excluded(result, self.unused) if what == "noise maps" else {}
        about = {"of": what, "draws": draws, "excluded": {str(step): why for step, why in sorted(excluded.items())}}
        measurements = []
        for image in range(images):
            if image in result.failures:
                measurements.append(Measurement())
                continue
            rows = slice(image * draws, (image + 1) * draws)
            state = Moments.from_tensor(moments[:, rows].transpose(0, 1))
            histogram = Histogram(counts[:, rows].transpose(0, 1), NOISE_EDGES)
            broken = ~state.finite
            empty = broken.clone()
            empty[:, list(excluded)] = True
            tensors = {
                "moments": fold_draws(state.without(empty), draws).to_tensor(),
                "histogram": fold_draws(histogram.without(empty), draws).counts,
                "t": t,
            }
            not_finite = broken.any(0).nonzero().flatten().tolist()
            measurements.append(Measurement(tensors, {**about, "not_finite": not_finite}))
        return measurements

    def on_run_end(self, run: FinishedRun) -> None:
        left: dict[str, str] = {}
        pooled, histogram, spread = None, None, None
        images = 0
        not_finite: dict[str, str] = {}
        about: dict[str, Any] = {}
        for id, values, tensors in alike(run, self.name, "moments", _kind, left):
            state = Moments.from_tensor(tensors["moments"])
            bins = Histogram(tensors["histogram"], NOISE_EDGES)
            own = Moments.single(state.variance)
            pooled = state if pooled is None else pooled.merge(state)
            histogram = bins if histogram is None else histogram.merge(bins)
            spread = own if spread is None else spread.merge(own)
            about = {**values, "t": tensors["t"]}
            if values["not_finite"]:
                not_finite[id] = f"steps {', '.join(map(str, values['not_finite']))}"
            images += 1
        if pooled is None or histogram is None or spread is None:
            write_summary(run, self.name, {"images": 0, "left_out": shortened(left)}, {})
            return
        rows = noise_table(pooled, histogram, spread, about["t"], about["excluded"])
        summary = {
            "of": about["of"],
            "images": images,
            "draws": about["draws"],
            "left_out": shortened(left),
            "not_finite": shortened(not_finite),
            "steps": rows,
        }
        tensors = {
            "moments": pooled.to_tensor(),
            "histogram": histogram.counts,
            "histogram_edges": NOISE_EDGES,
            "variance_over_images": spread.to_tensor(),
            "t": about["t"],
        }
        write_summary(run, self.name, summary, tensors)
        _log(run.writer, _TAGS[self.of], pooled, histogram)
        if self.plots and bool((pooled.n > 0).any()):
            self._draw(run, about["of"], images, pooled, histogram, spread)

    def _draw(
        self, run: FinishedRun, what: str, images: int, pooled: Moments, histogram: Histogram, spread: Moments
    ) -> None:
        from framework.statistics import plots

        axis = "level (0 is the noisiest)" if self.of == "latents" else plots.STEPS
        title = f"{what}, {images} image{'s' if images != 1 else ''}"
        variance = plots.Curve("mean over images (bands: 1 sd, extremes)", _where(spread.n > 0, spread.mean), spread)
        curves = [variance, plots.Curve("all values pooled", _where(pooled.n > 0, pooled.variance))]
        white = [(1.0, "white noise")]
        figure = plots.per_step(
            curves, title=f"Variance: {title}", ylabel="variance", references=white, positive=True, axis=axis
        )
        write_figure(run, f"{self.name}-variance", figure)
        seen = (histogram.n > 0).nonzero().flatten().tolist()
        figure = plots.ridge(
            histogram.counts,
            histogram.edges,
            steps=seen,
            title=f"Histograms: {title}",
            xlabel="value (dashed: N(0, 1))",
            axis=axis,
        )
        write_figure(run, f"{self.name}-histograms", figure)


def _excluded(result: EditResult, unused: bool) -> dict[int, str]:
    """Steps whose maps say nothing, with the reason."""
    skipped = {} if unused else dict.fromkeys(result.record.unused, "not used by the edit (skipped)")
    return skipped | dict.fromkeys(result.record.zeroed, "the method sets this map to zero")


def _main(values: Latents) -> Tensor:
    """The source's tensor, or the target's where there is no source."""
    return values[values.streams()[0]]


def _kind(values: Any, tensors: dict[str, Tensor]) -> Any:
    return values["of"], values["excluded"], tensors["t"].nan_to_num(-1).tolist()


def _where(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.nan)


def _log(writer: Any, tag: str, pooled: Moments, histogram: Histogram) -> None:
    """Write curves and raw histograms per step; nothing where there is no writer."""
    if writer is None:
        return
    # TensorBoard wants one limit above each bin; a tail gets a limit one bin further out.
    edges = histogram.edges
    limits = torch.cat([edges, edges[-1:] + (edges[-1] - edges[-2])]).tolist()
    for step in (pooled.n > 0).nonzero().flatten().tolist():
        n, mean = float(pooled.n[step]), float(pooled.mean[step])
        writer.add_scalar(f"{tag}mean", mean, step)
        writer.add_scalar(f"{tag}variance", float(pooled.variance[step]), step)
        writer.add_scalar(f"{tag}excess_kurtosis", float(pooled.excess_kurtosis[step]), step)
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
