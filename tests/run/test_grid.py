"""Runs of a sweep as one picture: places from the configs, pictures and figures from the samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from framework.cli import main


def sweep(root: Path, points: list[tuple[int, float]], draws: int = 1) -> Path:
    """Write runs whose edits are evenly coloured by their place."""
    for skip, scale in points:
        run = root / f"skip={skip},scale={scale}"
        folder = run / "samples" / "a"
        folder.mkdir(parents=True)
        (run / "manifest.lock.jsonl").write_text("")
        (run / "config.yaml").write_text(yaml.safe_dump({"method": {"skip": skip, "guidance": {"scale": scale}}}))
        (folder / "meta.json").write_text(json.dumps({"instruction": "make it so"}))
        Image.new("RGB", (8, 8), "white").save(folder / "source.png")
        for draw in range(draws):
            name = "edit" if draws == 1 else f"edit-{draw}"
            Image.new("RGB", (8, 8), (10 * skip, int(20 * scale), 0)).save(folder / f"{name}.png")
        (run / "statistics").mkdir()
        summary = {
            "figures": {"P": {"psnr": {"unit": "dB"}}},
            "rows": {"edit": {"P": {"psnr": {"mean": skip * scale}}}},
        }
        (run / "statistics" / "Metrics.json").write_text(json.dumps(summary))
    return root


POINTS = [(s, g) for s in (12, 6) for g in (5.0, 2.5)]


def test_pictures_stand_where_their_settings_say(tmp_path: Path) -> None:
    from framework.report.grid import _mosaic, cells_of
    from framework.run.folders import find_runs

    cells = cells_of(find_runs([sweep(tmp_path, POINTS)]), "method.skip", "method.guidance.scale")

    assert sorted((cell.x, cell.y) for cell in cells) == sorted(POINTS)
    cell = next(cell for cell in cells if (cell.x, cell.y) == (6, 2.5))
    mosaic = _mosaic([[None, cell.run.directory / "samples" / "a" / "edit.png"]], 8)
    assert (mosaic[:, :8] == 255).all()
    assert np.array_equal(mosaic[0, -1], [60, 50, 0])


@pytest.mark.parametrize(
    "options",
    [
        ["--x", "method.skip", "--y", "method.guidance.scale"],
        ["--x", "method.skip", "--y", "method.guidance.scale", "--figure", "P.psnr"],
        ["--x", "variant"],
    ],
)
def test_the_command_writes_one_picture(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out" / "grid.png"

    assert main(["grid", str(sweep(tmp_path / "runs", POINTS)), *options, "--output", str(out)]) == 0

    assert np.asarray(Image.open(out).convert("RGB")).std() > 5


def test_draws_of_an_image_are_columns(tmp_path: Path) -> None:
    runs, out = sweep(tmp_path / "runs", [(6, 5.0)], draws=3), tmp_path / "grid.png"

    assert main(["grid", str(runs), "--x", "draw", "--output", str(out)]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--x", "method.skpi"], "no setting 'method.skpi'"),
        (["--x", "method.skip"], "have the same method.skip and sample"),
        (["--figure", "P.ssim"], "no figure 'P.ssim'; it has P.psnr"),
        (["--sample", "b"], "there is no"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["grid", str(sweep(tmp_path / "runs", POINTS)), *options, "--output", str(tmp_path / "g.png")]) == 2
    assert words in capsys.readouterr().err
