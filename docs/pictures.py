"""`python -m docs.pictures --NAME FOLDER ...`: make the pictures of README and docs from runs.

| option | what it is given | what it makes |
|---|---|---|
| --quickstart | root of a run of `quickstart` | quickstart.png, one row per sample, one column per method |
| --flow | root of a run of `flow_quickstart` | flow.png, the same |
| --noise | root of a run of `noise_maps` | noise.png, variance and neighbour correlation of maps |
| --attention | run of `attention_maps` | attention.png, where words look |
| --figures | root of a run of `noise_space_2d`, `noise_space_images` or `generated_source` | the figure that it drew |
| --page | `report.html` of some runs | report.png, its samples in headless Chromium |
| --tab | address of a running dashboard | plugin.png, its tab in headless Chromium |
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from io import BytesIO
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
FLOW_TITLES = {
    "euler": "Euler", "two-stage": "two-stage", "rf-solver": "RF-Solver", "fireflow": "FireFlow",
    "rf-inversion": "RF-Inversion", "flowedit": "FlowEdit", "flowalign": "FlowAlign", "uniedit": "UniEdit-Flow",
    "sdedit": "SDEdit",
}  # fmt: skip
SIDE = 128


def quickstart_grid(root: Path, titles: Mapping[str, str] = TITLES) -> Image.Image:
    """Lay out the source and the edit of every method."""
    variants = [root / name for name in titles if (root / name / "samples").is_dir()]
    samples = sorted(folder.name for folder in (variants[0] / "samples").iterdir())
    font = ImageFont.load_default(size=13)
    gap, head, foot = 8, 22, 34
    columns = ["source", *(titles[variant.name] for variant in variants)]
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


def drawn(root: Path, width: int = 900) -> list[tuple[str, Image.Image]]:
    """Find the figures that experiments draw beside their runs, reduced to a width in pixels."""
    found = []
    for path in sorted(root.glob("*.png")):
        picture = Image.open(path).convert("RGB")
        height = round(picture.height * width / picture.width)
        found.append((path.name, picture.resize((width, height), Image.Resampling.LANCZOS)))
    return found


def screenshot(address: str, prepare: str, *, frame: bool = False, wait: float = 5) -> Image.Image:
    """Show a page in headless Chromium.

    Args:
        address: Of the page.
        prepare: Script that brings it into the state to be shown.
        frame: The script belongs into the first frame of the page.
        wait: Seconds for pictures to arrive, before the script and after it.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1000"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options)
    try:
        browser.get(address)
        deadline = time.monotonic() + 120
        while frame and not browser.find_elements("css selector", "iframe") and time.monotonic() < deadline:
            time.sleep(1)
        time.sleep(wait)
        if frame:
            browser.switch_to.frame(browser.find_elements("css selector", "iframe")[0])
        while not browser.find_elements("css selector", "#samples .row") and time.monotonic() < deadline:
            time.sleep(1)
        browser.execute_script(prepare)
        time.sleep(wait)
        browser.switch_to.default_content()
        return Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    finally:
        browser.quit()


SLIDERS = """
document.querySelector("#samples").scrollIntoView();
document.querySelector("[data-mode=slider]").click();
document.querySelectorAll("#samples .split").forEach((slider, place) => {
  slider.value = [50, 35, 62, 45, 55][place % 5];
  slider.dispatchEvent(new Event("input"));
});
"""


def save(picture: Image.Image | plt.Figure, name: str) -> None:
    """Write a picture with a palette of 256 colours, which keeps it small."""
    if not isinstance(picture, Image.Image):
        buffer = BytesIO()
        picture.savefig(buffer, dpi=110)
        picture = Image.open(buffer)
    small = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    small.save(PICTURES / name, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("quickstart", "flow", "noise", "attention", "page"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--figures", type=Path, nargs="+", default=[])
    parser.add_argument("--tab")
    options = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    if options.quickstart:
        save(quickstart_grid(options.quickstart), "quickstart.png")
    if options.flow:
        save(quickstart_grid(options.flow, FLOW_TITLES), "flow.png")
    if options.noise:
        save(noise_figure(options.noise), "noise.png")
    if options.attention:
        save(attention_grid(options.attention), "attention.png")
    for root in options.figures:
        for name, picture in drawn(root):
            save(picture, name)
    if options.page:
        page = screenshot(options.page.resolve().as_uri(), SLIDERS)
        save(page.crop((0, 0, page.width, 800)).resize((960, 600), Image.Resampling.LANCZOS), "report.png")
    if options.tab:
        page = screenshot(options.tab.rstrip("/") + "/#invedit", SLIDERS, frame=True)
        save(page.crop((0, 0, page.width, 800)).resize((960, 600), Image.Resampling.LANCZOS), "plugin.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
