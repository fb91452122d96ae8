"""Figures of several runs on one axis, and the figures that each run has for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from framework.statistics import plots
from framework.statistics.saved import SavedStatistics
from framework.statistics.structure_plots import structure_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparable(found: Sequence[SavedStatistics]) -> list[list[SavedStatistics]]:
    """Group the runs that measured the same kind of maps on the same levels of the same model, in their order."""
    groups: dict[str, list[SavedStatistics]] = {}
    for one in found:
        if one.images:
            groups.setdefault(one.key, []).append(one)
    return list(groups.values())


def common_figures(group: Sequence[SavedStatistics]) -> Iterator[tuple[str, Figure]]:
    """Draw runs that may be compared: variance, correlation, angles, imprint and spectrum.

    Args:
        group: Runs of one group of `comparable`.
    """
    what = group[0].what
    labels = [f"{one.name} ({one.images} image{'s' if one.images != 1 else ''})" for one in group]
    curves = []
    for one, label in zip(group, labels, strict=True):
        assert one.distribution.spread is not None
        spread = one.distribution.spread
        curves.append(plots.Curve(label, torch.where(spread.n > 0, spread.mean, torch.nan), spread))
    yield (
        "variance",
        plots.per_step(
            curves,
            title=f"Variance of {what}, mean over images (95 % bands)",
            ylabel="variance",
            references=[(1.0, "white noise")],
            positive=True,
            confidence=True,
        ),
    )
    paired = [(one, label) for one, label in zip(group, labels, strict=True) if one.pairs.images]
    if paired:
        curves = []
        for one, label in paired:
            spread = one.pairs.singles["correlation"]
            at = torch.arange(len(spread.n)) + 0.5
            curves.append(plots.Curve(label, torch.where(spread.n > 0, spread.mean, torch.nan), spread, at))
        yield (
            "correlation",
            plots.per_step(
                curves,
                title=f"Correlation of neighbouring {what}, mean over images (95 % bands)",
                ylabel="correlation",
                references=[(0.0, "independent maps"), (-0.5, "")],
                confidence=True,
            ),
        )
        yield "angles", _angles(paired, what)
    shaped = [(one, label) for one, label in zip(group, labels, strict=True) if one.structure.images]
    if shaped:
        yield "spectrum", _spectra(shaped, what)


def own_figures(one: SavedStatistics) -> Iterator[tuple[str, Figure]]:
    """Draw what cannot share an axis: ridge of histograms, matrix, spectra per step, imprint, channels."""
    title = f"{one.what}, {one.images} image{'s' if one.images != 1 else ''}"
    for name, figure in one.distribution.figures(title, plots.STEPS):
        if name == "histograms":
            yield name, figure
    for name, figure in one.pairs.figures(one.what, title.rpartition(", ")[2]) if one.pairs.images else ():
        if name == "matrix":
            yield name, figure
    if one.structure.images:
        yield from structure_figures(one.structure, title)


def _angles(group: Sequence[tuple[SavedStatistics, str]], what: str) -> Figure:
    figure, axes = plots.new_axes(7.2, 4.0)
    for (one, label), colour in zip(group, plots.COLOURS * len(group), strict=False):
        counts = one.pairs.counts["angle"].counts[:, 1:-1].sum(0).double()
        share = counts / counts.sum().clamp(min=1)
        axes.stairs(share.numpy(), range(181), color=colour, fill=True, alpha=0.25)
        axes.stairs(share.numpy(), range(181), color=colour, linewidth=1.3, label=label)
    axes.axvline(90, color="#9aa1a9", linestyle=(0, (5, 4)), linewidth=1.1, zorder=1, label="independent maps")
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))
    plots.finish(axes, f"Angles between neighbouring {what}", "degrees", "share per degree")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _spectra(group: Sequence[tuple[SavedStatistics, str]], what: str) -> Figure:
    figure, axes = plots.new_axes(7.2, 4.0)
    for (one, label), colour in zip(group, plots.COLOURS * len(group), strict=False):
        spectrum = one.structure.spectrum()
        seen = spectrum[one.structure.states["spectrum"].n > 0]
        # Divided by its own power, so that the shape is compared and not the variance, which has its own figure.
        shape = (seen[:, 1:] / seen[:, 1:].mean(1, keepdim=True)).mean(0)
        axes.plot(range(1, len(shape) + 1), shape.numpy(), color=colour, linewidth=1.8, label=label)
    axes.axhline(1.0, color="#9aa1a9", linestyle=(0, (5, 4)), linewidth=1.1, zorder=1, label="white noise")
    plots.finish(
        axes, f"Power spectrum of {what}, mean over steps", "spatial frequency, cycles per map", "power over mean power"
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
