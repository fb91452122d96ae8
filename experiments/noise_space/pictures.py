"""Figures of the noise space of pictures: statistics of the maps, and what happens when they are flipped or shifted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.noise_space.plane import statistics, write_figure
from framework.callback import EditCallback, FinishedRun
from framework.run.files import json_document, write_file
from framework.statistics.moments import Moments
from framework.statistics.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SPACES = ("native", "friendly")
CHANGES = ("prompt", "flip", "shift")


class MapsFigure(EditCallback):
    """Draws `noise_space_images.png` beside the runs of the sweep: variance and correlation of neighbours per step.

    Curves are means over images of figures per image, with the 95 % interval of the mean.

    Args:
        variants: Names of the runs, one curve each.
    """

    def __init__(self, variants: Sequence[str] = ("native", "posterior", "edit-friendly")) -> None:
        self.variants = tuple(variants)

    def on_run_end(self, run: FinishedRun) -> None:
        folders = [run.directory.parent / name for name in self.variants]
        needed = ("NoiseStatistics", "NoiseCorrelation")
        there = all((f / "statistics" / f"{name}.safetensors").is_file() for f in folders for name in needed)
        if run.directory in folders and there:
            write_figure(run.directory.parent / "noise_space_images.png", _maps(folders))


def _maps(folders: Sequence[Path]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for folder, colour in zip(folders, COLOURS, strict=False):
        variance = Moments.from_tensor(statistics(folder, "NoiseStatistics")["variance_over_images"])
        correlation = Moments.from_tensor(statistics(folder, "NoiseCorrelation")["correlation_over_images"])
        for axes, folded, shift in ((left, variance, 0.0), (right, correlation, 0.5)):
            x = np.arange(len(folded.n)) + shift
            mean = torch.where(folded.n > 0, folded.mean, torch.nan).numpy()
            half = torch.where(folded.n > 1, 1.96 * (folded.variance_unbiased / folded.n).sqrt(), torch.nan).numpy()
            axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.25, linewidth=0)
            axes.plot(x, mean, color=colour, linewidth=1.7, label=folder.name)
    left.set_yscale("log")
    left.set_title("variance per pixel of the noise maps", loc="left")
    right.set_title("correlation of neighbouring noise maps", loc="left")
    right.set_ylim(-0.75, 0.25)
    for axes in (left, right):
        axes.set_xlabel("step (0 is the noisiest)")
        axes.grid(color="#e6e9ec", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    left.axhline(1.0, color="#9aa1a9", linestyle=(0, (5, 4)), linewidth=1.1, zorder=1)
    right.axhline(0.0, color="#9aa1a9", linestyle=(0, (5, 4)), linewidth=1.1, zorder=1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


class GeneratedFigure(EditCallback):
    """Draws `generated_source.png` beside the runs of the sweep, and writes `generated_source.json` with its figures.

    For every space and change the PSNR, in dB, of the edit to what a space that holds the picture's structure would
    give: the source for another prompt, the flipped source for a flip, the shifted source (inside what stays covered)
    for a shift.

    Args:
        shift: Rows and columns of the latent by which the maps are shifted, as in the experiment.
        rows: Samples that are drawn, the first ones.
        scale: Pixels of the picture per pixel of the latent.
    """

    def __init__(self, shift: Sequence[int] = (2, 2), rows: int = 5, scale: int = 4) -> None:
        self.shift = (int(shift[0]) * scale, int(shift[1]) * scale)
        self.rows = rows

    def on_run_end(self, run: FinishedRun) -> None:
        root = run.directory.parent
        runs = {(space, change): root / f"{space}-{change}" for change in CHANGES for space in SPACES}
        if run.directory not in runs.values() or not all(map(_pictures, runs.values())):
            return
        found = {key: _pictures(folder) for key, folder in runs.items()}
        names = sorted(set.intersection(*(set(group) for group in found.values())))
        values = {f"{space}-{change}": self._psnr(found[space, change], change, names) for space, change in runs}
        write_file(root / "generated_source.json", json_document({"samples": names, "psnr": values}))
        write_figure(root / "generated_source.png", self._draw(found, values, names[: self.rows]))

    def _psnr(self, group: dict[str, tuple[Any, Any]], change: str, names: Sequence[str]) -> float:
        found = []
        for name in names:
            source, edit = group[name]
            wanted, inside = source, np.ones(source.shape[:2], dtype=bool)
            if change == "flip":
                wanted = source[:, ::-1]
            elif change == "shift":
                wanted = np.roll(source, self.shift, (0, 1))
                inside[: self.shift[0]] = False
                inside[:, : self.shift[1]] = False
            error = ((wanted.astype(float) - edit)[inside] / 255) ** 2
            found.append(-10 * np.log10(max(error.mean(), 1e-12)))
        return float(np.mean(found))

    def _draw(
        self, found: dict[tuple[str, str], dict[str, tuple[Any, Any]]], values: dict[str, float], names: Sequence[str]
    ) -> Figure:
        from matplotlib.figure import Figure

        columns = 1 + len(found)
        figure = Figure(figsize=(1.55 * columns, 1.6 * len(names) + 0.7), layout="constrained", facecolor="white")
        grid = figure.subplots(len(names), columns, squeeze=False)
        titles = {"native": "native", "friendly": "edit-friendly"}
        for row, name in enumerate(names):
            pictures = [next(iter(found.values()))[name][0], *(group[name][1] for group in found.values())]
            for axes, picture in zip(grid[row], pictures, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
        grid[0][0].set_title("generated", fontsize=10)
        for axes, (space, change) in zip(grid[0][1:], found, strict=True):
            axes.set_title(f"{change}, {titles[space]}\n{values[f'{space}-{change}']:.1f} dB", fontsize=9)
        return figure


def _pictures(folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Read source and edit of every committed sample of a run; empty where there is none."""
    from PIL import Image

    found = {}
    for path in sorted(folder.glob("samples/*/edit.png")):
        with Image.open(path.with_name("source.png")) as source, Image.open(path) as edit:
            found[path.parent.name] = (np.asarray(source.convert("RGB")), np.asarray(edit.convert("RGB")))
    return found
