"""The figure of the two-dimensional noise space: chains with their drift and noise, and how neighbouring maps point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from framework.callback import EditCallback, FinishedRun
from framework.record import Record
from framework.run.files import write_file
from framework.schedule import Level, ddpm_variance
from framework.statistics.noise_space import angle_fractions, edit_friendly_correlation, edit_friendly_variance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRIFT, NOISE, CHAIN = "#2a6f97", "#d1495b", "#9aa1a9"
_TITLES = {"native": "native noise", "edit-friendly": "edit-friendly noise"}


class PlaneFigure(EditCallback):
    """Draws `noise_space_2d.png` beside the runs of the sweep once they are all there.

    Needs saved inversions, and `callbacks.NoiseStatistics` and `callbacks.NoiseCorrelation(positions=True)` beside it.

    Args:
        variants: Names of the runs, one row of the figure each.
        chains: Chains that are drawn.
        steps: Steps of a chain whose arrows are drawn, evenly spread.
    """

    def __init__(self, variants: Sequence[str] = ("native", "edit-friendly"), chains: int = 2, steps: int = 12) -> None:
        self.variants = tuple(variants)
        self.chains = chains
        self.steps = steps

    def on_run_end(self, run: FinishedRun) -> None:
        root = run.directory.parent
        folders = [root / name for name in self.variants]
        if run.directory not in folders or any(_first_inversion(folder) is None for folder in folders):
            return
        write_figure(root / "noise_space_2d.png", self._draw(folders))

    def _draw(self, folders: Sequence[Path]) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12.5, 4.2 * len(folders)), layout="constrained", facecolor="white")
        for row, folder in enumerate(folders):
            path = _first_inversion(folder)
            assert path is not None
            record = Record.load(path)
            title = _TITLES.get(folder.name, folder.name)
            axes: Any = figure.add_subplot(len(folders), 3, 3 * row + 1)
            self._draw_chains(axes, record)
            axes.set_title(title, loc="left", fontsize=12)
            if row == 0:
                axes.legend(fontsize=8, frameon=False, loc="upper left")
            states = statistics(folder, "NoiseCorrelation")
            friendly = folder.name == "edit-friendly"
            polar: Any = figure.add_subplot(len(folders), 3, 3 * row + 2, projection="polar")
            _draw_angles(polar, states["position_angle_histogram"], record, friendly=friendly)
            _draw_curves(figure.add_subplot(len(folders), 3, 3 * row + 3), folder, record, friendly=friendly)
        return figure

    def _draw_chains(self, axes: Any, record: Record) -> None:
        """Draw chains through the plane, each with its steps taken apart into drift and noise."""
        assert record.latents is not None and record.noise_maps is not None
        z = record.latents[:, 0].flatten(2)  # [T + 1, 2, points]
        maps = record.noise_maps[:, 0].flatten(2)
        steps = len(maps)
        drawn = sorted({round(place) for place in np.linspace(0, steps - 1, self.steps).tolist()})
        for chain in range(self.chains):
            path = z[..., chain].numpy()
            axes.plot(path[:, 0], path[:, 1], color=CHAIN, linewidth=0.8, zorder=1)
            for i in drawn:
                a, b = (Level(float(record.t[k]), float(record.alpha[k]), float(record.sigma[k])) for k in (i, i + 1))
                noise = ddpm_variance(a, b) ** 0.5 * maps[i, :, chain].numpy()
                drift = path[i + 1] - noise - path[i]
                first = chain == 0 and i == drawn[0]
                for start, arrow, colour, name in (
                    (path[i], drift, DRIFT, "drift"),
                    (path[i] + drift, noise, NOISE, "noise"),
                ):
                    axes.quiver(
                        *start, *arrow, angles="xy", scale_units="xy", scale=1, color=colour, width=0.005,
                        zorder=2, label=name if first else None,
                    )  # fmt: skip
            axes.plot(*path[-1], marker="o", color="black", markersize=4, zorder=3)
        axes.set_xlabel("first coordinate")
        axes.set_ylabel("second coordinate")
        axes.set_aspect("equal", adjustable="datalim")


def _draw_angles(polar: Any, counts: torch.Tensor, record: Record, *, friendly: bool) -> None:
    """Draw the share of angles in bins of ten degrees, with the closed form."""
    share = counts[:, 1:-1].sum(0).double().view(18, 10).sum(1)
    share = share / share.sum()
    middle = (np.arange(18) + 0.5) * np.pi / 18
    polar.bar(middle, share.numpy(), width=np.pi / 18 * 0.94, color=DRIFT, alpha=0.85)
    abar = record.alpha.square().numpy()
    rho = edit_friendly_correlation(abar[:-2], abar[1:-1]) if friendly else np.zeros(1)
    polar.plot(middle, angle_fractions(np.linspace(0, 180, 19), rho), color=NOISE, linewidth=1.5)
    polar.set_thetamin(0)
    polar.set_thetamax(180)
    polar.set_thetagrids(range(0, 181, 30))
    polar.set_yticks([])
    polar.set_title("angles between the maps of neighbouring steps\n(line: closed form)", fontsize=10, y=0.9)


def _draw_curves(axes: Any, folder: Path, record: Record, *, friendly: bool) -> None:
    """Draw variance per step beside its closed form."""
    from framework.statistics.moments import Moments

    state = Moments.from_tensor(statistics(folder, "NoiseStatistics")["moments"])
    found = torch.where(state.n > 0, state.variance, torch.nan)
    axes.plot(found.numpy(), marker="o", markersize=3.5, linewidth=0, color=DRIFT, label="measured")
    abar = record.alpha.square().numpy()
    form = edit_friendly_variance(abar[:-2], abar[1:-1]) if friendly else np.ones(len(abar) - 2)
    axes.plot(form, color=NOISE, linewidth=1.2, label="closed form")
    axes.set_yscale("log")
    axes.set_ylim(0.5, max(100.0, 1.2 * float(np.nanmax(found.numpy()))))
    axes.set_xlabel("step (0 is the noisiest)")
    axes.set_title("variance of the maps", loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def statistics(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the folded states that a callback left in a run."""
    from safetensors.torch import load_file

    return load_file(folder / "statistics" / f"{name}.safetensors")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a picture, without anything that differs between reruns."""
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_file(path, buffer.getvalue())


def _first_inversion(folder: Path) -> Path | None:
    """The inversion of the first sample of a run whose statistics are there."""
    if not (folder / "statistics" / "NoiseCorrelation.safetensors").is_file():
        return None
    return next(iter(sorted((folder / "samples").glob("*/inversion.safetensors"))), None)
