"""Pictures of folded statistics, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from framework.statistics.moments import Moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2a6f97", "#d1495b", "#6a994e", "#b5651d", "#6d597a", "#468faf")
"""Colours of curves, in this order."""
STEPS = "step (0 is the noisiest)"
"""Text of an axis of steps."""
LEVELS = "level (0 is the noisiest)"
"""Text of an axis of levels."""
_INK, _FAINT = "#33373d", "#9aa1a9"


@dataclass(frozen=True)
class Curve:
    """One line over the steps.

    Attributes:
        label: For the legend.
        values: [T]; NaN leaves a gap.
        spread: Values per image folded step by step, for a band of one standard deviation and one of the extremes.
        at: [T] places on the axis of steps; 0, 1, ... if not given.
    """

    label: str
    values: Tensor
    spread: Moments | None = None
    at: Tensor | None = None


def per_step(
    curves: Sequence[Curve],
    *,
    title: str,
    ylabel: str,
    references: Sequence[tuple[float, str]] = (),
    positive: bool = False,
    axis: str = STEPS,
    confidence: bool = False,
) -> Figure:
    """Draw curves over the steps, noisy to clean, with bands over images.

    Args:
        curves: Lines, in the order of the legend.
        title, ylabel: Texts.
        references: Heights of dashed lines, each with its label ("" for none).
        positive: Values are positive: the axis becomes logarithmic where they span more than a factor of 20.
        axis: Text of the axis of steps.
        confidence: Bands are the 95 % confidence interval of the mean, for comparing runs, instead of one standard
            deviation and the extremes.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(7.2, 4.0)
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        x = (torch.arange(len(curve.values)) if curve.at is None else curve.at).numpy()
        if curve.spread is not None and confidence:
            s = curve.spread
            half = torch.where(s.n > 1, 1.96 * (s.variance_unbiased / s.n).sqrt(), torch.nan)
            axes.fill_between(
                x, (s.mean - half).numpy(), (s.mean + half).numpy(), color=colour, alpha=0.25, linewidth=0
            )
        elif curve.spread is not None:
            s = curve.spread
            shown = s.n > 1
            low, high = (torch.where(shown, value, torch.nan) for value in (s.low, s.high))
            deviation = s.variance_unbiased.sqrt()
            axes.fill_between(x, low.numpy(), high.numpy(), color=colour, alpha=0.10, linewidth=0)
            lower, upper = torch.maximum(s.mean - deviation, low), torch.minimum(s.mean + deviation, high)
            axes.fill_between(x, lower.numpy(), upper.numpy(), color=colour, alpha=0.22, linewidth=0)
        style = "-" if curve.spread is not None or len(curves) == 1 else (0, (1.5, 1.5))
        marker = "o" if int(curve.values.isfinite().sum()) < 40 else None
        axes.plot(
            x,
            curve.values.numpy(),
            color=colour,
            linewidth=1.8,
            linestyle=style,
            marker=marker,
            markersize=3.5,
            label=curve.label,
        )
    if positive and _spans(curves, 20):
        axes.set_yscale("log")
    for height, label in references:
        axes.axhline(height, color=_FAINT, linestyle=(0, (5, 4)), linewidth=1.1, zorder=1, label=label or None)
    finish(axes, title, axis, ylabel)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=_INK)
    return figure


def ridge(
    counts: Tensor, edges: Tensor, *, steps: Sequence[int], title: str, xlabel: str, most: int = 12, axis: str = STEPS
) -> Figure:
    """Draw histograms of steps above each other, the noisiest on top, each with the density of N(0, 1) behind it.

    Args:
        counts: [T, bins + 2] with tails.
        edges: [bins + 1].
        steps: Which steps have values.
        title, xlabel: Texts.
        most: How many steps are shown at most, evenly spread.
        axis: Text of the axis of steps.
    """
    import matplotlib

    chosen = [steps[round(place)] for place in torch.linspace(0, len(steps) - 1, min(most, len(steps))).tolist()]
    figure, axes = new_axes(6.4, 1.6 + 0.42 * len(chosen))
    total = counts.sum(-1).clamp(min=1)
    shown = (counts[:, 1:-1].double() / (total[:, None] * edges.diff())).numpy()
    outside = ((counts[:, 0] + counts[:, -1]) / total).tolist()
    centres = ((edges[1:] + edges[:-1]) / 2).numpy()
    normal = np.exp(-centres * centres / 2) / (2 * np.pi) ** 0.5
    scale = 1.6 / max(shown[chosen].max(), normal.max())
    left, right = float(edges[0]), float(edges[-1])
    colours = matplotlib.colormaps["viridis"]
    for row, step in enumerate(chosen):
        base, order = -float(row), 2 * row + 1
        colour, top = colours(0.12 + 0.74 * row / max(1, len(chosen) - 1)), base + scale * shown[step]
        axes.plot(centres, base + scale * normal, color=_FAINT, linewidth=0.9, linestyle=(0, (3, 2)), zorder=order)
        axes.fill_between(centres, base, top, color=colour, alpha=0.78, linewidth=0, zorder=order)
        axes.plot(centres, top, color="white", linewidth=0.9, zorder=order + 1)
        axes.text(left * 1.02, base + 0.1, str(step), ha="right", fontsize=9, color=_INK)
        if outside[step] >= 0.005:
            text = f"{100 * outside[step]:.0f} % outside"
            axes.text(right * 1.02, base + 0.1, text, ha="left", fontsize=8, color=_FAINT)
    finish(axes, title, xlabel, axis)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    axes.yaxis.labelpad = 22
    axes.set_xlim(left, right)
    return figure


def angles(counts: Tensor, spread: Moments, *, title: str) -> Figure:
    """Draw how the angles between neighbours are spread, and their mean per step with bands over images.

    Args:
        counts: [T - 1, 182] counts of one-degree bins with (empty) tails.
        spread: [T - 1] angles per image in degrees, folded.
        title: Text.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.0, 4.1), layout="constrained", facecolor="white")
    polar: Any = figure.add_subplot(1, 2, 1, projection="polar")
    share = counts[:, 1:-1].sum(0).view(36, 5).sum(1).double()
    share = share / share.sum().clamp(min=1)
    width = np.pi / 36
    polar.bar((np.arange(36) + 0.5) * width, share.numpy(), width=width * 0.94, color=COLOURS[0], alpha=0.85)
    polar.plot(np.linspace(0, np.pi, 90), np.full(90, 1 / 36), color=COLOURS[1], linewidth=1.3)
    polar.set_thetamin(0)
    polar.set_thetamax(180)
    polar.set_thetagrids(range(0, 181, 30))
    polar.set_yticks([])
    polar.grid(color="#dfe3e7", linewidth=0.7)
    polar.tick_params(colors=_INK, labelsize=9)
    polar.set_title("share of angles in bins of 5 degrees\n(line: all angles alike)", fontsize=10, color=_INK, y=0.86)
    axes = figure.add_subplot(1, 2, 2)
    x = np.arange(len(spread.mean)) + 0.5
    mean = torch.where(spread.n > 0, spread.mean, torch.nan).numpy()
    deviation = spread.variance_unbiased.sqrt().numpy()
    shown = spread.n > 1
    low, high = (torch.where(shown, value, torch.nan).numpy() for value in (spread.low, spread.high))
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.10, linewidth=0, label="extremes over images")
    axes.fill_between(x, mean - deviation, mean + deviation, color=COLOURS[0], alpha=0.22, linewidth=0, label="± 1 sd")
    axes.plot(x, mean, color=COLOURS[0], linewidth=1.8, label="mean over images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.axhline(90, color=_FAINT, linestyle=(0, (5, 4)), linewidth=1.1, label="independent maps")
    finish(axes, "angle between the maps of a step and the next", STEPS, "degrees")
    figure.legend(loc="outside lower right", ncols=4, frameon=False, fontsize=9, labelcolor=_INK)
    figure.suptitle(title, fontsize=12, color=_INK, x=0.01, ha="left")
    return figure


def matrix(values: Tensor, *, title: str, xlabel: str = STEPS, ylabel: str = "step") -> Figure:
    """Draw a square matrix of correlations, grey where there is none."""
    figure, axes = new_axes(5.6, 4.8)
    axes.set_facecolor("#d5d8dc")
    picture = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    finish(axes, title, xlabel, ylabel)
    axes.grid(False)
    bar = figure.colorbar(picture, ax=axes, shrink=0.86)
    bar.set_label("correlation", fontsize=9, color=_INK)
    bar.ax.tick_params(labelsize=8, colors=_INK)
    return figure


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of this size in inches with one set of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.add_subplot()


def finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Write title and labels, and bring the axes into the house style."""
    axes.set_title(title, fontsize=12, color=_INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=10, color=_INK)
    axes.set_ylabel(ylabel, fontsize=10, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color="#e6e9ec", linewidth=0.7)
    axes.set_axisbelow(True)


def _spans(curves: Sequence[Curve], factor: float) -> bool:
    values = torch.cat([curve.values[curve.values.isfinite()] for curve in curves])
    return len(values) > 0 and float(values.min()) > 0 and float(values.max() / values.min()) > factor
