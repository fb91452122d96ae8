"""`python -m docs.pictures QUICKSTART NOISE --attention MAPS`: make the pictures of README and docs from runs.

QUICKSTART and NOISE are the root folders of runs of `quickstart` and `noise_maps`. Writes docs/pictures/quickstart.png
(one row per sample, one column per method) and docs/pictures/noise.png (variance and neighbour correlation of maps).
MAPS is the folder of a run of `attention_maps`; it gives docs/pictures/attention.png, where words look. Each may be
left out (`-` for the first two).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURES = Path(__file__).parent / "pictures"
TITLES = {
    "ddim": "DDIM", "edit-friendly": "edit-friendly", "edit-friendly-p2p": "edit-friendly + P2P",
    "cycle-diffusion": "CycleDiffusion", "sdedit": "SDEdit",
}  # fmt: skip
SIDE = 128


def quickstart_grid(root: Path) -> Image.Image:
    """Lay out source, truth where it is known, and the edit of every method."""
    variants = [root / name for name in TITLES if (root / name / "samples").is_dir()]
    samples = sorted(folder.name for folder in (variants[0] / "samples").iterdir())
    font = ImageFont.load_default(size=13)
    gap, head, foot = 8, 22, 34
    columns = ["source", *(TITLES[variant.name] for variant in variants)]
    width = gap + len(columns) * (SIDE + gap)
    canvas = Image.new("RGB", (width, head + len(samples) * (SIDE + foot)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(columns):
        draw.text((gap + column * (SIDE + gap) + SIDE // 2, head // 2), title, fill="black", font=font, anchor="mm")
    for row, sample in enumerate(samples):
        top = head + row * (SIDE + foot)
        files = [variants[0] / "samples" / sample / "source.png"]
        files += [variant / "samples" / sample / "edit.png" for variant in variants]
        for column, file in enumerate(files):
            if file.exists():
                picture = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
                canvas.paste(picture, (gap + column * (SIDE + gap), top))
        meta = json.loads((variants[0] / "samples" / sample / "meta.json").read_text())
        said = meta["instruction"] or meta["prompts"]["target"]
        draw.text((gap, top + SIDE + 4), said, fill=(60, 60, 60), font=font)
    return canvas


def noise_figure(root: Path) -> plt.Figure:
    """Draw per-step variance and neighbour correlation of edit-friendly and native noise maps."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, colour in (("edit-friendly", "tab:red"), ("cycle-diffusion", "tab:blue")):
        variance, correlation = _statistics(root / name)
        steps = np.arange(len(variance))
        axes[0].plot(steps, variance, color=colour, label=TITLES[name])
        axes[1].plot(steps[: len(correlation)], correlation, color=colour, label=TITLES[name])
    axes[0].axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes[1].axhline(0, color="grey", linewidth=0.8, linestyle=":")
    axes[1].axhline(-0.5, color="grey", linewidth=0.8, linestyle=":")
    axes[0].set(yscale="log", xlabel="step, noisy to clean", ylabel="variance of the noise map")
    axes[1].set(xlabel="step, noisy to clean", ylabel="correlation with the next map", ylim=(-0.75, 0.4))
    axes[0].legend(frameon=False)
    return figure


def attention_grid(run: Path, samples: int = 4) -> plt.Figure:
    """Draw source pictures with the averaged maps of their words; words that the edit changes are bold."""
    folders = sorted(path for path in (run / "samples").iterdir() if path.is_dir())[:samples]
    shown = [_maps(folder) for folder in folders]
    columns = 1 + max(len(words) for _, words, _, _ in shown)
    figure, axes = plt.subplots(len(shown), columns, figsize=(1.15 * columns, 1.35 * len(shown)), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for row, (picture, words, maps, changed) in zip(axes, shown, strict=True):
        row[0].imshow(picture)
        row[0].set_title("source", fontsize=7)
        for axis, word, weights in zip(row[1:], words, maps, strict=False):
            axis.imshow(picture.mean(-1), cmap="gray", extent=(0, 1, 0, 1))
            axis.imshow(weights, cmap="inferno", alpha=0.65, interpolation="bilinear", extent=(0, 1, 0, 1), vmin=0)
            axis.set_title(word, fontsize=7, fontweight="bold" if word in changed else "normal")
    return figure


def _maps(folder: Path) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    from safetensors.numpy import load_file

    found = json.loads((folder / "meta.json").read_text())["measurements"]["AttentionMaps"]
    maps = load_file(folder / "statistics.safetensors")["AttentionMaps.source"]
    picture = np.asarray(Image.open(folder / "source.png").convert("RGB"))
    return picture, found["words"]["source"], maps, found["changed"]["source"]


def _statistics(run: Path) -> tuple[np.ndarray, np.ndarray]:
    def column(callback: str, rows: str, name: str) -> np.ndarray:
        table = json.loads((run / "statistics" / f"{callback}.json").read_text())[rows]
        return np.array([np.nan if row.get(name) is None else row[name] for row in table], dtype=float)

    variance = column("NoiseStatistics", "steps", "variance")
    return variance, column("NoiseCorrelation", "pairs", "correlation_mean_over_images")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("quickstart", type=Path, nargs="?", default=Path("-"), metavar="QUICKSTART")
    parser.add_argument("noise", type=Path, nargs="?", default=Path("-"), metavar="NOISE")
    parser.add_argument("--attention", type=Path, default=Path("-"), metavar="MAPS")
    options = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    if options.quickstart != Path("-"):
        quickstart_grid(options.quickstart).save(PICTURES / "quickstart.png", optimize=True)
    if options.noise != Path("-"):
        noise_figure(options.noise).savefig(PICTURES / "noise.png", dpi=110)
    if options.attention != Path("-"):
        attention_grid(options.attention).savefig(PICTURES / "attention.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
