"""The command `invedit grid`: runs of a sweep as one picture with axes, of their edits or of a figure of metrics."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.command import Command
from framework.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from framework.run.folders import RunFolder

VARIANT, DRAW, SAMPLE = "variant", "draw", "sample"
"""Axes that are no setting: the runs by name, the draws of an image, the samples."""

_GAP = 4
_INCHES = 110.0
"""Pixels of a picture per inch of the figure, before the margins."""


@dataclass(frozen=True)
class Cell:
    """One run with its place on both axes."""

    run: RunFolder
    x: Any
    y: Any


def cells_of(runs: Sequence[RunFolder], x: str, y: str) -> list[Cell]:
    """Find the place of every run: what its config says at two dotted keys, or its name.

    Raises:
        SettingsError: A run has no such setting, or two runs have the same place.
    """
    import yaml

    found: list[Cell] = []
    for run in runs:
        config = yaml.safe_load((run.directory / "config.yaml").read_text())
        found.append(Cell(run, *(_value(run, config, key) for key in (x, y))))
    places = [(cell.x, cell.y) for cell in found]
    doubled = [cell for cell in found if places.count((cell.x, cell.y)) > 1]
    if doubled:
        names = ", ".join(cell.run.name for cell in doubled[:2])
        raise SettingsError([f"{names} have the same {x} and {y}; give the key in which they differ as --x or --y."])
    return found


def _value(run: RunFolder, config: Any, key: str) -> Any:
    if key in (DRAW, SAMPLE):
        return ""
    if key == VARIANT:
        return run.name
    here = config
    for name in key.split("."):
        if not isinstance(here, Mapping) or name not in here:
            raise SettingsError(
                [f"{run.directory}/config.yaml has no setting {key!r}; give a dotted key such as method.steps."]
            )
        here = here[name]
    return here if isinstance(here, (int, float, str)) else str(here)


def figure_grid(cells: Sequence[Cell], x: str, y: str, figure: str) -> Figure:
    """Draw the means of a figure of the metrics, such as ReconstructionPSNR.psnr_round_trip, as a map with numbers.

    Raises:
        SettingsError: A run has no such figure.
    """
    import numpy as np

    columns, rows = _ordered(cell.x for cell in cells), _ordered(cell.y for cell in cells)
    values = np.full((len(rows), len(columns)), np.nan)
    metric, _, name = figure.rpartition(".")
    unit = ""
    for cell in cells:
        path = cell.run.directory / "statistics" / "Metrics.json"
        summary = json.loads(path.read_text()) if path.exists() else {}
        found = summary.get("rows", {}).get("edit", {}).get(metric, {}).get(name)
        if found is None:
            known = [f"{m}.{f}" for m, group in summary.get("figures", {}).items() for f in group]
            raise SettingsError([f"{cell.run.name} has no figure {figure!r}; it has {', '.join(known) or 'none'}."])
        unit = summary.get("figures", {}).get(metric, {}).get(name, {}).get("unit", "")
        values[rows.index(cell.y), columns.index(cell.x)] = np.nan if found["mean"] is None else found["mean"]
    plot, axes = _subplots(1.1 * len(columns) + 2.4, 0.6 * len(rows) + 1.4, 1)
    shown = axes[0].imshow(values, aspect="auto", cmap="viridis")
    middle = np.nanmean(values)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axes[0].text(column, row, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=9)
    axes[0].set_xticks(range(len(columns)), [str(v) for v in columns])
    axes[0].set_yticks(range(len(rows)), [str(v) for v in rows])
    axes[0].set(xlabel=_short(x), ylabel=_short(y))
    plot.colorbar(shown, ax=axes[0], label=f"{name} [{unit}]" if unit else name)
    return plot


def picture_grid(cells: Sequence[Cell], x: str, y: str, picture: str, samples: Sequence[str], side: int) -> Figure:
    """Lay out one picture of every run: columns along x, rows along y (one panel per sample), or rows of samples.

    Args:
        cells: Runs with their places.
        x, y: Keys of the axes; with y "sample" there is one panel, its rows are samples and it shows the source too.
        picture: Name of the files without suffix, such as "edit".
        samples: Ids.
        side: Pixels of a shown picture.

    Raises:
        SettingsError: No run has the picture of a sample.
    """
    columns = _ordered(cell.x for cell in cells)
    if y == SAMPLE:
        table: dict[str, dict[Any, Path]] = {}
        for sample in samples:
            folders = [cell.run.directory / "samples" / sample for cell in cells]
            row: dict[Any, Path] = {"source": folders[0] / "source.png"}
            if x == DRAW:
                drawn = sorted(folders[0].glob(f"{picture}-*.png"), key=lambda p: int(p.stem.rpartition("-")[2]))
                row |= {f"draw {number}": path for number, path in enumerate(drawn)}
            else:
                pairs = zip(cells, folders, strict=True)
                row |= {cell.x: folder / f"{picture}.png" for cell, folder in pairs}
            table[_said(folders[0])] = row
        names = list(next(iter(table.values())))
        panels = [("", names, list(table), [[row.get(name) for name in names] for row in table.values()])]
        labels = ("", "")
    else:
        rows = _ordered(cell.y for cell in cells)
        at = {(cell.x, cell.y): cell.run.directory / "samples" for cell in cells}
        first = cells[0].run.directory / "samples"
        panels = []
        for sample in samples:
            files = [[at[c, r] / sample / f"{picture}.png" if (c, r) in at else None for c in columns] for r in rows]
            panels.append((_said(first / sample), columns, rows, files))
        labels = (_short(x), _short(y))
    mosaics = [_mosaic(files, side) for *_, files in panels]
    height, width = mosaics[0].shape[:2]
    plot, axes = _subplots((width / _INCHES + 1.2) * len(panels), height / _INCHES + 1.0, len(panels))
    for ax, (title, heads, marks, _), mosaic in zip(axes, panels, mosaics, strict=True):
        ax.imshow(mosaic, interpolation="nearest")
        centres = [side / 2 + k * (side + _GAP) for k in range(max(len(heads), len(marks)))]
        ax.set_xticks(centres[: len(heads)], [str(head) for head in heads], fontsize=8)
        ax.set_yticks(centres[: len(marks)], [_folded(str(mark)) for mark in marks], fontsize=8)
        ax.tick_params(length=0)
        if y == SAMPLE:
            ax.xaxis.tick_top()
        ax.set_xlabel(labels[0])
        ax.set_ylabel(labels[1])
        ax.set_title(title, fontsize=9)
        ax.spines[:].set_visible(False)
    return plot


def _mosaic(files: Sequence[Sequence[Path | None]], side: int) -> NDArray[Any]:
    """Put pictures into a table; white where there is none."""
    import numpy as np
    from PIL import Image

    step = side + _GAP
    canvas = np.full((len(files) * step - _GAP, len(files[0]) * step - _GAP, 3), 255, dtype=np.uint8)
    known = [file for row in files for file in row if file is not None]
    if not any(file.exists() for file in known):
        raise SettingsError(
            [f"there is no {known[0] if known else 'picture'}; give the id of a sample that was edited."]
        )
    for r, row in enumerate(files):
        for c, file in enumerate(row):
            if file is not None and file.exists():
                with Image.open(file) as opened:
                    small = opened.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
                canvas[r * step : r * step + side, c * step : c * step + side] = np.asarray(small)
    return canvas


def _subplots(width: float, height: float, count: int) -> tuple[Figure, Sequence[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _ordered(values: Any) -> list[Any]:
    """Each value once: numbers rising, anything else in the order met."""
    once = list(dict.fromkeys(values))
    return sorted(once) if all(isinstance(value, (int, float)) for value in once) else once


def _short(key: str) -> str:
    return " ".join(key.split(".")[-2:]).replace("_", " ")


def _said(folder: Path) -> str:
    """What a sample asks for, in its own words."""
    path = folder / "meta.json"
    meta = json.loads(path.read_text()) if path.exists() else {}
    return str(meta.get("instruction") or meta.get("prompts", {}).get("target") or folder.name)


def _folded(text: str, width: int = 18) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)) or text


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="root of a sweep, or its run folders")
    parser.add_argument("--x", default=VARIANT, metavar="KEY", help="setting along the columns, variant, or draw")
    parser.add_argument("--y", default=SAMPLE, metavar="KEY", help="setting along the rows, or sample (default)")
    parser.add_argument("--figure", metavar="METRIC.FIGURE", help="map of this figure's means instead of pictures")
    parser.add_argument("--picture", default="edit", help="file of every sample to show (default: edit)")
    parser.add_argument(
        "--sample", action="append", metavar="ID", help="sample to show; may be repeated (default: all)"
    )
    parser.add_argument("--most", type=int, default=8, metavar="N", help="most samples to show (default: 8)")
    parser.add_argument("--side", type=int, default=64, metavar="PX", help="pixels of a shown picture (default: 64)")
    parser.add_argument("--output", type=Path, default=Path("grid.png"), metavar="FILE", help="default: grid.png")


def _grid(arguments: argparse.Namespace) -> int:
    from framework.run.folders import find_runs

    x, y = arguments.x, arguments.y
    try:
        cells = cells_of(find_runs(arguments.runs), x, y)
        if arguments.figure:
            plot = figure_grid(cells, x, y, arguments.figure)
        else:
            folder = cells[0].run.directory / "samples"
            known = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            samples = arguments.sample or known[: arguments.most]
            if not samples:
                raise SettingsError([f"{folder} holds no sample yet; run the experiment first."])
            plot = picture_grid(cells, x, y, arguments.picture, samples, arguments.side)
    except SettingsError as error:
        print(f"invedit grid: {error}", file=sys.stderr)
        return 2
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(arguments.output, dpi=_INCHES, metadata={"Software": None})
    print(arguments.output)
    return 0


grid = Command(
    "draw the runs of a sweep as one picture with axes: edits, or a figure of the metrics", _configure, _grid
)
