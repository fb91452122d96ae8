"""Methods as points: one figure against another, with intervals."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from framework.errors import SettingsError
from framework.evaluation.layout import title
from framework.evaluation.rows import Key
from framework.evaluation.table import ALL, Table
from framework.run.files import write_file

_COLOURS = ("#2a6f97", "#d1495b", "#6a994e", "#b5651d", "#6d597a", "#468faf")
_MARKERS = "osD^vP"
_FIXED = "*X8p"
_INK, _FAINT = "#33373d", "#9aa1a9"


def write_scatter(table: Table, path: Path) -> None:
    """Draw the first two figures of a table against each other, one point per method; fixed rows are hollow.

    Raises:
        SettingsError: The table has fewer than two figures, or the file is no .png.
        StoreError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    if len(table.figures) < 2:
        raise SettingsError(["--figure needs two figures to draw against each other; choose them with --figures."])
    if path.suffix.lower() != ".png":
        raise SettingsError([f"--figure {path} is not a .png file; give FILE.png."])
    horizontal, vertical = table.figures[:2]
    figure = Figure(figsize=(9.5, max(5.2, 0.18 * len(table.methods) + 0.4)), layout="constrained")
    axes = figure.add_subplot()
    for number, method in enumerate(table.methods):
        about = table.summaries[ALL][method.name]
        if not all(key in about and about[key].n for key in (horizontal, vertical)):
            continue
        x, y = (_scaled(table, key, about[key].mean) for key in (horizontal, vertical))
        (x0, x1), (y0, y1) = (
            [_scaled(table, key, end) for end in (about[key].low, about[key].high)] for key in (horizontal, vertical)
        )
        colour = _INK if method.fixed else _COLOURS[number % len(_COLOURS)]
        fixed = [other.name for other in table.methods if other.fixed]
        marker = _MARKERS[number // len(_COLOURS) % len(_MARKERS)]
        if method.fixed:
            marker = _FIXED[fixed.index(method.name) % len(_FIXED)]
        axes.errorbar(x, y, [[y - y0], [y1 - y]], [[x - x0], [x1 - x]], color=colour, alpha=0.35, linewidth=1)
        face = "white" if method.fixed else colour
        axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=9, label=method.name)
    axes.set_xlabel(title(table, horizontal), color=_INK)
    axes.set_ylabel(title(table, vertical), color=_INK)
    axes.grid(color=_FAINT, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, buffer.getvalue())


def _scaled(table: Table, key: Key, value: float) -> float:
    return value * float(table.about.get(key, {}).get("scale", 1))
