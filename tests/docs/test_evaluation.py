"""What the pages about evaluation show works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import framework.data
import framework.evaluation
from docs.benchmark import spliced
from framework.cli import main
from framework.evaluation.commands import _METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text()


def test_the_whole_way_on_known_truth_is_the_commands_of_the_page(tmp_path, monkeypatch, capsys):
    block = PAGE.partition("## The whole way on known truth")[2]
    lines = [line.strip() for line in block.splitlines() if line.startswith("    ")]
    monkeypatch.chdir(tmp_path)

    for line in lines:
        line = line.replace("--count 64", "--count 8").replace(
            "mine.yaml --output", "mine.yaml method.steps=2 --output"
        )
        command, *words = shlex.split(line)
        if command == "printf":
            Path(words[-1]).write_text(words[0].replace("\\n", "\n"))
        else:
            assert (command, main(words)) == ("invedit", 0), line

    shown = capsys.readouterr().out
    assert "psnr_unedit_part [dB] ↑" in shown and "joint_success ↑" in shown and "8 images;" in shown


def test_every_metric_of_the_command_line_and_every_reader_stands_on_the_page():
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    readers = {
        name for name in framework.data.__all__ if name in ("Folder", "Manifest", "PieBench", "TI2I", "ZeroShot")
    }

    assert set(_METRICS) <= set(listed)
    assert all(f"`framework.data.{name}`" in PAGE for name in readers) and len(readers) == 5


def test_every_figure_of_a_metric_without_settings_stands_on_the_page():
    for name in (
        "PixelMetrics",
        "LPIPS",
        "StructureDistance",
        "CLIPSimilarity",
        "DINOSimilarity",
        "ReconstructionPSNR",
    ):
        for figure in getattr(framework.evaluation, name)().figures:
            assert f"`{figure.name}`" in PAGE, figure.name


@pytest.mark.parametrize("page", ["evaluation.md", "benchmark.md"])
def test_every_picture_and_link_of_the_pages_exists(page):
    targets = re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text())

    assert [target for target in targets if "://" not in target and not (DOCS / target).exists()] == []


def test_a_table_goes_between_its_marks_with_the_groups_of_the_figures_named_there():
    page = "a\n<!-- begin own: psnr -->\nold\n<!-- end own -->\nz"
    table = (
        "### All images\n\nn 2\n\n| | psnr |\n|---|---|\n| x | 1 |\n\n### psnr [dB] ↑ per group\n\n| | a |\n\n"
        "### success ↑ per group\n\n| | b |\n\n### Left out of the means\n\nNumbers.\n\n"
        "| | figure | n |\n|---|---|---|\n| x | psnr | 1 |\n| y | psnr | 1 |\n| z | psnr | 2 |\n\nMade on a day.\n"
    )

    text = spliced(page, "own", table)

    assert text.startswith("a\n<!-- begin own: psnr -->\n\n### All images") and text.endswith("<!-- end own -->\nz")
    assert "psnr [dB] ↑ per group" in text and "success ↑ per group" not in text and "old" not in text
    assert "| x, y | psnr | 1 |" in text and "| z | psnr | 2 |" in text and "Made on a day." in text
    assert spliced(text, "own", table) == text
