"""Pictures of how maps are structured in space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framework.statistics import plots
from framework.statistics.moments import Moments
from framework.statistics.structure import StructureFold

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def structure_figures(folded: StructureFold, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw spectra, the imprint of the image and the mean correlation of channels; nothing where no step has maps.

    Args:
        folded: At least one image.
        title: What is shown, such as "noise maps, 12 images".
    """
    seen = (folded.states["spectrum"].n > 0).nonzero().flatten().tolist()
    if not seen:
        return
    yield "spectrum", spectra(folded.spectrum(), seen, title=f"Power spectrum: {title}")
    imprint = [
        plots.Curve(label, *_mean(folded.singles[name]))
        for name, label in (
            ("imprint", "map with image"),
            ("imprint_variance", "local variance with image"),
            ("imprint_contrast", "local variance with the image's own"),
        )
        if bool((folded.singles[name].n > 0).any())
    ]
    white = [(0.0, "no imprint")]
    yield "imprint", plots.per_step(imprint, title=f"Imprint: {title}", ylabel="correlation", references=white)
    if folded.states["channels"].mean.shape[-1] > 1:
        state = folded.states["channels"]
        shown = state.pearson[list(seen)].mean(0)
        figure = plots.matrix(shown, title="Channels", xlabel="channel", ylabel="channel")
        yield "channels", figure


def spectra(values: Tensor, seen: Sequence[int], *, title: str, most: int = 9) -> Figure:
    """Draw the radial power spectra of some steps, from the noisiest (dark) to the cleanest (bright).

    Args:
        values: [T, radii].
        seen: Steps that have one.
        title: Text.
        most: How many steps are drawn at most, evenly spread.
    """
    import matplotlib

    chosen = [seen[round(place)] for place in torch.linspace(0, len(seen) - 1, min(most, len(seen))).tolist()]
    figure, axes = plots.new_axes(7.2, 4.0)
    colours = matplotlib.colormaps["viridis"]
    for row, step in enumerate(chosen):
        x = range(1, values.shape[1])
        colour = colours(0.05 + 0.85 * row / max(1, len(chosen) - 1))
        axes.plot(x, values[step, 1:].numpy(), color=colour, linewidth=1.6, label=f"step {step}")
    axes.axhline(1.0, color="#9aa1a9", linestyle=(0, (5, 4)), linewidth=1.1, zorder=1, label="white noise")
    if bool((values[chosen, 1:] > 0).all()):
        axes.set_yscale("log")
    plots.finish(axes, title, "spatial frequency, cycles per map", "power per coefficient")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _mean(folded: Moments) -> tuple[Tensor, Moments]:
    return torch.where(folded.n > 0, folded.mean, torch.nan), folded
