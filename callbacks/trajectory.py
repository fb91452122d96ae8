"""The way of the latents: their spread per level, previews of clean estimates, and the latents on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks._committed import alike, shortened, write_figure, write_summary
from callbacks._pictures import log_thumbnails, shrunk, strip
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.errors import Checks
from framework.statistics.fold import fold_draws
from framework.statistics.moments import Moments
from framework.step import Step, Stream

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult

Previews = Literal["decode", "linear", "none"]
PHASES = ("inversion", "denoising")


class Trajectory(EditCallback):
    """Follows the latents: the source's while it is inverted, the target's while it is denoised.

    Mean and higher moments of every level are always measured. `trajectory.png` shows the clean estimate of a few
    denoising steps, noisy to clean, and the edit at its end (the first draw of an image).

    Args:
        previews: "decode" runs the decoder on every preview; "linear" shows the best linear map from latents to
            colours, fitted to the batch's own pictures, at no cost; "none" draws nothing.
        preview_steps: Previews per image, evenly spread over the steps.
        tile: Shorter side of a preview in pixels; None keeps the picture's size.
        save: Keep the latents in `statistics.safetensors`, float32 or float64 as they are.
        every_n_steps: Of which steps the latents are kept; the last one always is.
        budget: Samples whose strip is shown in TensorBoard, the first ones in the order of ids.
        thumbnail: Most rows of a picture in TensorBoard, in pixels.
    """

    def __init__(
        self,
        *,
        previews: Previews = "decode",
        preview_steps: int = 6,
        tile: int | None = None,
        save: bool = False,
        every_n_steps: int = 1,
        budget: int = 16,
        thumbnail: int = 128,
    ) -> None:
        checks = Checks("Trajectory")
        checks.one_of("previews", previews, ("decode", "linear", "none"))
        checks.between("preview_steps", preview_steps, 1, 100)
        if tile is not None:
            checks.between("tile", tile, 8, 4096)
        checks.between("every_n_steps", every_n_steps, 1, 1000)
        checks.between("budget", budget, 0, 1000)
        checks.between("thumbnail", thumbnail, 16, 1024)
        checks.done()
        self.previews = previews
        self.preview_steps = preview_steps
        self.tile = tile
        self.save = save
        self.every_n_steps = every_n_steps
        self.budget = budget
        self.thumbnail = thumbnail
        self._reset()

    def _reset(self) -> None:
        self._levels = 0
        self._moments: dict[str, dict[int, Tensor]] = {phase: {} for phase in PHASES}
        self._latents: dict[str, dict[int, Tensor]] = {phase: {} for phase in PHASES}
        self._estimates: dict[int, Tensor] = {}

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        self._reset()

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        self._reset()

    def on_invert_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        self._follow("inversion", Stream.SOURCE, step)

    def on_denoise_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        self._follow("denoising", Stream.TARGET, step)
        chosen = torch.linspace(0, step.total - 1, min(self.preview_steps, step.total)).round().long().tolist()
        if self.previews != "none" and step.index in chosen:
            self._estimates[step.interval] = step.x0()[Stream.TARGET].detach().clone()

    def _follow(self, phase: str, stream: Stream, step: Step) -> None:
        self._levels = step.schedule.num_steps + 1
        down = step.level_next.sigma < step.level.sigma
        if not self._moments[phase]:
            self._moments[phase][step.interval + (not down)] = Moments.of(step.z[stream]).to_tensor()
        self._moments[phase][step.interval + down] = Moments.of(step.z_next[stream]).to_tensor()
        if self.save and (step.index % self.every_n_steps == 0 or step.index == step.total - 1):
            self._latents[phase][step.interval + down] = step.z_next[stream].detach().clone()

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        images, draws = len(result.samples), result.draws
        tensors: dict[str, Tensor] = {}
        for phase in PHASES:
            if self._moments[phase]:
                at = torch.tensor(sorted(self._moments[phase]))
                found = torch.zeros(self._levels, images * draws, 7, dtype=torch.float64)
                found[..., 5:] = torch.tensor([torch.inf, -torch.inf])
                found[at] = torch.stack([self._moments[phase][level] for level in at.tolist()]).cpu()
                tensors[f"{phase}_moments"] = found
            if self._latents[phase]:
                levels = sorted(self._latents[phase])
                tensors[f"{phase}_latents"] = torch.stack([self._latents[phase][level] for level in levels]).cpu()
                tensors[f"{phase}_levels"] = torch.tensor(levels)
        estimates = [value[::draws] for _, value in sorted(self._estimates.items())]
        steps = sorted(self._estimates)
        self._reset()
        decoded = self._preview(module, result, estimates)
        measurements = []
        for image in range(images):
            if image in result.failures:
                measurements.append(Measurement())
                continue
            rows = slice(image * draws, (image + 1) * draws)
            own = {name: value for name, value in tensors.items() if name.endswith("_levels")}
            own |= {name: value[:, rows].clone() for name, value in tensors.items() if name.endswith("_latents")}
            for name in (name for name in tensors if name.endswith("_moments")):
                state = Moments.from_tensor(tensors[name][:, rows].transpose(0, 1))
                own[name] = fold_draws(state.without(~state.finite), draws).to_tensor()
            pictures = {}
            if decoded:
                tiles = [*(preview[image] for preview in decoded), result.edits[image][0]]
                pictures = {"trajectory": strip(shrunk([tile.cpu() for tile in tiles], self.tile))}
            measurements.append(Measurement(own, {"preview_steps": steps if decoded else []}, pictures))
        return measurements

    def _preview(self, module: EditModule, result: EditResult, estimates: Sequence[Tensor]) -> list[Tensor]:
        """Turn clean estimates [B, C, h, w] into pictures [B, 3, H, W] in [0, 1]."""
        if not estimates:
            return []
        if self.previews == "decode":
            # One step at a time: decoding is where memory peaks.
            return [(module.backbone.decode_latent(z).float() / 2 + 0.5).clamp(0, 1) for z in estimates]
        good = [b for b in range(len(result.samples)) if b not in result.failures]
        if not good:
            return []
        z0 = result.record.z0[:: result.draws][good]
        return linear_previews(z0, result.source[good], estimates, size=result.source.shape[-2:])

    def on_run_end(self, run: FinishedRun) -> None:
        left: dict[str, str] = {}
        folded: dict[str, Moments] = {}
        spread: dict[str, Moments] = {}
        images = 0
        for _, _, tensors in alike(run, self.name, "denoising_moments", _kind, left):
            images += 1
            for phase in PHASES:
                if f"{phase}_moments" not in tensors:
                    continue
                state = Moments.from_tensor(tensors[f"{phase}_moments"])
                own = Moments.single(state.variance.sqrt())
                folded[phase] = folded[phase].merge(state) if phase in folded else state
                spread[phase] = spread[phase].merge(own) if phase in spread else own
        summary: dict[str, Any] = {"images": images, "left_out": shortened(left)}
        for phase, state in folded.items():
            shown = (state.n > 0).nonzero().flatten().tolist()
            means, deviations = state.mean.tolist(), state.variance.sqrt().tolist()
            summary[phase] = [{"level": k, "mean": means[k], "standard_deviation": deviations[k]} for k in shown]
            for level in shown if run.writer is not None else []:
                run.writer.add_scalar(f"3_latent/mean_{phase}", means[level], level)
                run.writer.add_scalar(f"3_latent/sd_{phase}", deviations[level], level)
        write_summary(run, self.name, summary, {f"{p}_moments": state.to_tensor() for p, state in folded.items()})
        if folded:
            from framework.statistics import plots

            curves = [
                plots.Curve(f"{phase} (bands over images)", torch.where(s.n > 0, s.mean, torch.nan), s)
                for phase, s in spread.items()
            ]
            title = f"Standard deviation of the latents, {images} image{'s' if images != 1 else ''}"
            axis = "level (0 is the noisiest)"
            figure = plots.per_step(curves, title=title, ylabel="standard deviation", axis=axis)
            write_figure(run, f"{self.name}-deviation", figure)
        log_thumbnails(run, self.name, "trajectory", "4_edits/trajectory", budget=self.budget, height=self.thumbnail)


def linear_previews(z0: Tensor, source: Tensor, latents: Sequence[Tensor], *, size: Sequence[int]) -> list[Tensor]:
    """Show latents through the affine map of channels to colours that fits known pictures best (least squares).

    Args:
        z0: [n, C, h, w] latents of known pictures.
        source: [n, 3, H, W] these pictures in [0, 1].
        latents: Each [B, C, h, w].
        size: Rows and columns of the previews.

    Returns:
        Each [B, 3, *size] float32 in [0, 1], on the CPU.
    """
    known = z0.detach().double().cpu()
    colours = F.interpolate(source.detach().double().cpu(), size=known.shape[-2:], mode="area")
    design = F.pad(known.movedim(1, -1).flatten(0, -2), (0, 1), value=1.0)
    weights = torch.linalg.lstsq(design, colours.movedim(1, -1).flatten(0, -2), driver="gelsd").solution
    previews = []
    for z in latents:
        shown = F.pad(z.detach().double().cpu().movedim(1, -1), (0, 1), value=1.0) @ weights
        previews.append(F.interpolate(shown.movedim(-1, 1).float().clamp(0, 1), size=list(size), mode="nearest"))
    return previews


def _kind(values: Any, tensors: dict[str, Tensor]) -> Any:
    return [tensors[f"{phase}_moments"].shape[0] for phase in PHASES if f"{phase}_moments" in tensors]
