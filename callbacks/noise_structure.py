"""How the noise of each step is structured in space: spectrum, autocorrelation, channels, patches, imprint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from callbacks._committed import alike, shortened, write_figure, write_summary
from callbacks._noise import NoiseObserver, placed, times
from framework.callback import FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.errors import Checks
from framework.schedule import Level
from framework.statistics.series import Of
from framework.statistics.steps import measure_steps
from framework.statistics.structure import (
    CleanLatents,
    StructureFold,
    StructureSettings,
    image_structure,
    measure_structure,
)

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


class NoiseStructure(NoiseObserver):
    """Measures how far maps are from white in space, and how much of the image is printed on them.

    Radial power spectrum and flatness, autocorrelation of pixels with and without wrapping, correlation of channels and
    within patches, correlation of the map (and of its variance in windows of 3 x 3) with the clean latent, and the two
    losses by which pix2pix-zero tells noise from white noise. A map is kept until the edit ends, when the clean latent
    is known.

    Args:
        of: What is measured, see `NoiseStatistics`.
        max_lag: Largest distance of the autocorrelation, in pixels of the latent.
        patch: Side of the patches; 0 measures none. None takes 2 where channels are few (a patch of at most 32
            numbers), and none otherwise: what is kept per step grows with the fourth power of the side.
        unused: Measure also maps that the edit does not use (skipped steps).
        plots: Draw the figures at the end of a run.
    """

    usual: ClassVar[Of] = "auto"

    def __init__(
        self,
        *,
        of: Of = "auto",
        max_lag: int = 4,
        patch: int | None = None,
        unused: bool = False,
        plots: bool = True,
    ) -> None:
        checks = Checks("NoiseStructure")
        checks.between("max_lag", max_lag, 0, 64)
        if patch is not None:
            checks.between("patch", patch, 0, 16)
        checks.done()
        self.max_lag = max_lag
        self.patch = patch
        self.plots = plots
        super().__init__(of=of, unused=unused)

    def forget(self) -> None:
        self._maps: dict[int, tuple[Level, Tensor]] = {}

    def see(self, at: int, level: Level, values: Tensor) -> None:
        self._maps[at] = (level, values.detach().clone())

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        self.see_residuals(module, result)
        maps, steps = sorted(self._maps.items()), self.steps
        excluded, about = self.about(result)
        self._forget()
        images, draws = len(result.samples), result.draws
        z0 = result.record.z0
        if not maps or z0.ndim != 4:
            why = "nothing: the method has none" if not maps else "nothing: its latents have no rows and columns"
            return [Measurement(values={"of": why}) for _ in range(images)]
        settings = StructureSettings(self.max_lag, self.patch)
        clean = CleanLatents.of(z0)
        # What is left out is not measured; one map says the shapes where nothing else is left.
        counted = [(at, values) for at, (_, values) in maps if at not in excluded] or [(maps[0][0], maps[0][1][1])]
        places, values = zip(*counted, strict=True)
        states = measure_steps(
            torch.stack(values), lambda part, group: measure_structure(part, clean.rows(group), settings)
        )
        found = {}
        for name, state in states.items():
            fill = torch.nan if name == "regularisers" else 0.0
            empty = torch.full((steps, *state.shape[1:]), fill, dtype=torch.float64)
            found[name] = placed(places, state, empty)
        t = times([(at, level) for at, (level, _) in maps], steps)
        measurements = []
        for image in range(images):
            if image in result.failures:
                measurements.append(Measurement())
                continue
            rows = slice(image * draws, (image + 1) * draws)
            own = image_structure({name: value[:, rows] for name, value in found.items()}, excluded)
            measurements.append(Measurement({**own, "t": t}, about))
        return measurements

    def on_run_end(self, run: FinishedRun) -> None:
        left: dict[str, str] = {}
        folded = StructureFold()
        about: dict[str, Any] = {}
        for _, values, tensors in alike(run, self.name, "spectrum", _kind, left):
            folded.add({name: value for name, value in tensors.items() if name != "t"})
            about = {**values, "t": tensors["t"]}
        if not folded.images:
            write_summary(run, self.name, {"images": 0, "left_out": shortened(left)}, {})
            return
        rows = folded.rows(about["t"], about["excluded"])
        summary = {
            "of": about["of"],
            "images": folded.images,
            "draws": about["draws"],
            "left_out": shortened(left),
            "steps": rows,
        }
        write_summary(run, self.name, summary, {**folded.arrays(), "t": about["t"]})
        _log(run.writer, "2_noise/" if self.of == "auto" else f"2_noise/{self.of}_", rows)
        if self.plots:
            from framework.statistics.structure_plots import structure_figures

            title = f"{about['of']}, {folded.images} image{'s' if folded.images != 1 else ''}"
            for name, figure in structure_figures(folded, title):
                write_figure(run, f"{self.name}-{name}", figure)


def _kind(values: Any, tensors: dict[str, Tensor]) -> Any:
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    return values["of"], values["excluded"], tensors["t"].nan_to_num(-1).tolist(), shapes


def _log(writer: Any, tag: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the curves that fit on one axis each; nothing where there is no writer."""
    if writer is None:
        return
    curves = ("flatness", "imprint_mean_over_images", "autocorrelation_horizontal_1", "channels_mean_abs")
    for row in rows:
        for name in curves:
            if "reason" not in row and name in row:
                writer.add_scalar(f"{tag}{name.removesuffix('_mean_over_images')}", row[name], row["step"])
