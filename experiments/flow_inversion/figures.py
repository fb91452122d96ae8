"""Figures over a whole sweep: curves against a number that is swept over, paths in the plane, windows per kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.noise_space.plane import write_figure
from framework.callback import EditCallback, FinishedRun
from framework.evaluation.rows import Key, MethodRows, collect
from framework.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2a6f97", "#d1495b", "#6a994e", "#b5651d", "#6d597a", "#468faf", "#33373d", "#c9a227")
_FAINT = "#9aa1a9"


@dataclass(frozen=True)
class Place:
    """Where a run of a sweep stands in a figure, as its name says: "mixture,euler,steps=10".

    Attributes:
        row: The point that names a row of panels, or "".
        curve: The other points, joined.
        x: Value of the number that is swept over.
    """

    row: str
    curve: str
    x: float


def place_of(name: str, axis: str, rows: Sequence[str]) -> Place | None:
    """Read a run's name; None where the axis is not swept over in it."""
    points = name.split(",")
    numbers = [point for point in points if point.startswith(f"{axis}=")]
    named = [point for point in points if point in rows]
    if len(numbers) != 1 or len(named) != (1 if rows else 0):
        return None
    rest = [point for point in points if point not in (*numbers, *named)]
    return Place(named[0] if named else "", ", ".join(rest), float(numbers[0].partition("=")[2]))


class SweepCurves(EditCallback):
    """Draws `<name>.png` beside the runs of a sweep: figures against a number, one curve for what else is swept over.

    Points are means over images with the 95 % interval of the mean; infinite values are left out. Of a figure that
    is drawn logarithmically it is the mean of the logarithm.

    Args:
        name: Of the file.
        axis: The number that is swept over, as variants name it ("steps" of "steps=10").
        figures: "<metric>/<figure>" of each panel, left to right.
        titles: Of the panels; by default what they show.
        rows: Points of the sweep that have a row of panels each.
        log: Figures that are drawn logarithmically, by "<metric>/<figure>"; the axis then is, too.
    """

    def __init__(
        self,
        name: str,
        axis: str,
        figures: Sequence[str],
        *,
        titles: Sequence[str] = (),
        rows: Sequence[str] = (),
        log: Sequence[str] = (),
    ) -> None:
        self.file = f"{name}.png"
        self.axis = axis
        self.figures = tuple(figures)
        self.titles = tuple(titles) or self.figures
        self.rows = tuple(rows)
        self.logarithmic = tuple(log)

    def on_run_end(self, run: FinishedRun) -> None:
        root = run.directory.parent
        found = {m.name: m for m in collect([root]).methods if not m.fixed}
        placed = {name: place_of(name, self.axis, self.rows) for name in found}
        curves: dict[str, dict[str, list[tuple[float, MethodRows]]]] = {row: {} for row in self.rows or ("",)}
        for name, place in placed.items():
            if place is not None:
                curves[place.row].setdefault(place.curve, []).append((place.x, found[name]))
        if any(len({x for x, _ in points}) > 1 for row in curves.values() for points in row.values()):
            write_figure(root / self.file, self._draw(curves))

    def _draw(self, curves: Mapping[str, Mapping[str, Sequence[tuple[float, MethodRows]]]]) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

        filled = [row for row, here in curves.items() if here]
        # A single figure has its rows side by side.
        shape = (len(filled), len(self.figures)) if len(self.figures) > 1 else (1, len(filled))
        size = (4.6 * shape[1], 4.0 * shape[0] + 0.6)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        panels = figure.subplots(*shape, squeeze=False).reshape(len(filled), len(self.figures))
        names = sorted({curve for row in filled for curve in curves[row]})
        colours = dict(zip(names, COLOURS * (1 + len(names) // len(COLOURS)), strict=False))
        handles: dict[str, Any] = {}
        for row, line in zip(filled, panels, strict=True):
            for key, title, axes in zip(self.figures, self.titles, line, strict=True):
                for curve, points in sorted(curves[row].items()):
                    drawn = _curve(axes, points, _key(key), colours[curve], key in self.logarithmic)
                    handles.setdefault(curve, drawn)
                axes.set_title(f"{row}: {title}" if row else title, loc="left", fontsize=11)
                axes.set_xlabel(self.axis)
                axes.grid(color="#e6e9ec", linewidth=0.7)
                axes.spines[["top", "right"]].set_visible(False)
                if key in self.logarithmic:
                    axes.set_xscale("log")
                    axes.set_yscale("log")
                ticks = sorted({x for points in curves[row].values() for x, _ in points})
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axes.xaxis.set_minor_locator(NullLocator())
        shown = [name for name in names if name]
        if shown:
            order = [handles[name] for name in shown]
            figure.legend(order, shown, loc="outside lower center", ncols=min(len(shown), 4), frameon=False)
        return figure


def _key(text: str) -> Key:
    metric, _, figure = text.partition("/")
    return metric, figure


def _curve(axes: Any, points: Sequence[tuple[float, MethodRows]], key: Key, colour: str, log: bool) -> Any:
    drawn = [
        (x, *interval)
        for x, method in sorted(points, key=lambda point: point[0])
        if math.isfinite((interval := mean_of(method, key, log=log))[0])
    ]
    x, middle, low, high = zip(*drawn, strict=True) if drawn else ((), (), (), ())
    (line,) = axes.plot(x, middle, marker="o", markersize=4, linewidth=1.6, color=colour)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    return line


def mean_of(
    method: MethodRows, key: Key, samples: Sequence[str] | None = None, *, log: bool = False
) -> tuple[float, float, float]:
    """Mean of a figure over images and the ends of its 95 % interval; NaN without finite values.

    Args:
        method: Values of a run.
        key: Which figure.
        samples: Images that count; None for all.
        log: Take the mean of the logarithm, of values above 0.
    """
    values = method.values.get(key, {})
    chosen = [values.get(sample) for sample in (values if samples is None else samples)]
    finite = np.array(
        [value for value in chosen if value is not None and math.isfinite(value) and (not log or value > 0)]
    )
    if not len(finite):
        return math.nan, math.nan, math.nan
    finite = np.log(finite) if log else finite
    half = 1.96 * float(finite.std(ddof=1)) / len(finite) ** 0.5 if len(finite) > 1 else 0.0
    ends = (float(finite.mean()) + side * half for side in (0, -1, 1))
    middle, low, high = (math.exp(end) if log else end for end in ends)
    return middle, low, high


class PathsFigure(EditCallback):
    """Draws `flow_paths_2d.png` beside the runs: points of the plane on their way to noise, and back.

    Args:
        variants: Names of the runs with saved inversions, one panel each.
        points: Points that are drawn.
    """

    def __init__(self, variants: Sequence[str], points: int = 24) -> None:
        self.variants = tuple(variants)
        self.points = points

    def on_run_end(self, run: FinishedRun) -> None:
        root = run.directory.parent
        paths = [sorted((root / name / "samples").glob("*/inversion.safetensors"))[:1] for name in self.variants]
        if run.directory.name in self.variants and all(paths):
            records = {name: Record.load(path[0]) for name, path in zip(self.variants, paths, strict=True)}
            write_figure(root / "flow_paths_2d.png", self._draw(records))

    def _draw(self, records: Mapping[str, Record]) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.4 * len(records), 4.4), layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(records), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, record) in zip(panels, records.items(), strict=True):
            assert record.latents is not None
            path = record.latents[:, 0].flatten(2)[..., : self.points].numpy()  # [T + 1, 2, points]
            axes.plot(path[:, 0], path[:, 1], color=_FAINT, linewidth=0.8, zorder=1)
            axes.scatter(path[-1, 0], path[-1, 1], s=14, color=COLOURS[0], zorder=3, label="clean")
            axes.scatter(path[0, 0], path[0, 1], s=14, color=COLOURS[1], zorder=2, label="noise")
            axes.set_title(name.replace(",", ", "), loc="left", fontsize=11)
            axes.set_aspect("equal", adjustable="box")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False, fontsize=9)
        return figure


class WindowFigure(EditCallback):
    """Draws `<name>.png` beside the runs: figures over two windows of the steps, for every kind of edit.

    Args:
        name: Of the file.
        across, down: The two numbers that are swept over.
        figures: "<metric>/<figure>" of each row of panels.
        titles: Of these rows.
    """

    def __init__(self, name: str, across: str, down: str, figures: Sequence[str], titles: Sequence[str] = ()) -> None:
        self.file = f"{name}.png"
        self.across, self.down = across, down
        self.figures = tuple(figures)
        self.titles = tuple(titles) or self.figures

    def on_run_end(self, run: FinishedRun) -> None:
        root = run.directory.parent
        cells: dict[tuple[float, float], MethodRows] = {}
        for method in collect([root], by="extra.shapes_edit.kind").methods:
            if method.fixed:
                continue
            places = [place_of(method.name, axis, ()) for axis in (self.across, self.down)]
            if places[0] is not None and places[1] is not None:
                cells[places[0].x, places[1].x] = method
        if len(cells) > 1:
            write_figure(root / self.file, self._draw(cells))

    def _draw(self, cells: Mapping[tuple[float, float], MethodRows]) -> Figure:
        from matplotlib.figure import Figure

        x, y = (sorted({place[k] for place in cells}) for k in (0, 1))
        groups: dict[str, list[str]] = {}
        for method in cells.values():
            for sample, group in method.groups.items():
                groups.setdefault(group or "all", [])
                if sample not in groups[group or "all"]:
                    groups[group or "all"].append(sample)
        figure = Figure(figsize=(1.9 * len(groups) + 1.2, 2.1 * len(self.figures) + 0.6), layout="constrained")
        panels = figure.subplots(len(self.figures), len(groups), squeeze=False)
        for line, text, title in zip(panels, self.figures, self.titles, strict=True):
            tables = {g: self._table(cells, x, y, _key(text), samples) for g, samples in groups.items()}
            finite = np.concatenate([table[np.isfinite(table)] for table in tables.values()] or [np.zeros(0)])
            limits = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
            for axes, (group, table) in zip(line, sorted(tables.items()), strict=True):
                axes.imshow(table, origin="lower", cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto")
                for (row, column), value in np.ndenumerate(table):
                    dark = value < limits[0] + 0.6 * (limits[1] - limits[0])
                    axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7,
                              color="white" if dark else "black")  # fmt: skip
                axes.set_xticks(range(len(x)), [f"{value:g}" for value in x], fontsize=7)
                axes.set_yticks(range(len(y)), [f"{value:g}" for value in y], fontsize=7)
                axes.set_title(f"{group} ({len(groups[group])})", fontsize=9)
            line[0].set_ylabel(f"{title}\n{self.down}", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel(self.across, fontsize=8)
        return figure

    def _table(
        self,
        cells: Mapping[tuple[float, float], MethodRows],
        x: Sequence[float],
        y: Sequence[float],
        key: Key,
        samples: Sequence[str],
    ) -> Any:
        table = np.full((len(y), len(x)), np.nan)
        for (across, down), method in cells.items():
            table[y.index(down), x.index(across)] = mean_of(method, key, samples)[0]
        return table
