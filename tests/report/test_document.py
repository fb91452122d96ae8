from __future__ import annotations

import math
from pathlib import Path

import pytest

from framework.report.document import build_document
from framework.report.noise import noise_charts
from framework.report.page import write_report
from framework.report.pictures import Embedded, Linked, pictures_in
from framework.report.prompts import prompt_difference
from framework.report.results import ResultsReader
from framework.report.summary import cost, figures_of, summarise
from framework.run.folders import find_runs
from framework.run.lock import RunLock
from tests.report.world import STEPS, World, document_of, picture, sweep


def results(root: Path):
    return [ResultsReader(run).read() for run in find_runs([root])]


def document(root: Path):
    return build_document("title", results(root), Linked(root / "report.html"))


def test_means_and_deviations_are_over_valid_values():
    summary = summarise([1.0, None, 3.0, math.inf, math.nan])

    assert (summary.mean, summary.n, summary.of) == (2.0, 2, 5)
    assert summary.deviation == pytest.approx(math.sqrt(2))
    assert summarise([None]).mean is None
    assert summarise([4.0]).deviation is None


def test_directions_units_and_words_come_from_what_a_run_noted_when_it_started(tmp_path):
    worlds = sweep(tmp_path)

    abouts = {figure.name: about for figure, about in figures_of(results(tmp_path)).items()}

    assert (abouts["toy_psnr"].label, abouts["toy_psnr"].better, abouts["toy_psnr"].unit) == (
        "toy PSNR",
        "higher",
        "dB",
    )
    assert abouts["far"].better == "lower"
    assert worlds


def test_a_figure_is_shown_at_the_scale_of_its_field(tmp_path):
    world = World(tmp_path / "run", ["a", "b"])
    world.finish("a", far=0.25)
    world.finish("b", far=0.75)
    about = {"better": "lower", "unit": "", "scale": 1000.0}
    world.table("Metrics", {"figures": {"Distance": {"far": about}}})

    shown = document(world.directory)

    place = next(index for index, metric in enumerate(shown["metrics"]) if metric["label"] == "far")
    assert shown["metrics"][place]["unit"] == "x1000"
    assert shown["runs"][0]["metrics"][place]["mean"] == pytest.approx(500)
    assert shown["rows"][1]["cells"][0]["metrics"][place] == pytest.approx(750)


def test_costs_leave_the_first_batch_out_where_there_are_others(tmp_path):
    world = World(tmp_path / "run", ["a", "b"])
    world.finish("a", seconds=9.0, warm_up=True)
    run = results(world.directory)[0]
    assert cost(run) == {"evaluations": 150.0, "seconds": 9.0, "memory": float(2**30)}

    world.finish("b", seconds=1.0)

    assert cost(results(world.directory)[0])["seconds"] == 1.0


def test_samples_stand_in_one_row_for_all_methods_unless_they_differ(tmp_path):
    sweep(tmp_path, ("first",), 2)
    other = World(tmp_path / "second", ["s1", "s2"])
    other.finish("s2")
    manifest = other.directory / "manifest.lock.jsonl"
    manifest.write_text(manifest.read_text().replace("content of s1", "another picture"))
    other.finish("s1")

    rows = document(tmp_path)["rows"]

    assert [(row["id"], row["version"], [cell is not None for cell in row["cells"]]) for row in rows] == [
        ("s0", 1, [True, False]),
        ("s1", 1, [True, False]),
        ("s1", 2, [False, True]),
        ("s2", 1, [False, True]),
    ]


def test_a_cell_names_its_pictures_by_what_they_are(tmp_path):
    world = World(tmp_path / "run", ["a"])
    more = {
        "edit-10.png": picture(1),
        "edit-2.png": picture(2),
        "attention-red.png": picture(3),
        "attention.png": picture(6),
        "strip.png": picture(4),
    }
    world.finish("a", pictures=more, notes=["a word was dropped"])

    cell = document(world.directory)["rows"][0]["cells"][0]

    assert [Path(full).name for _, full in cell["edits"]] == ["edit.png", "edit-2.png", "edit-10.png"]
    assert [word for word, _ in cell["words"]] == ["all words", "red"]
    assert [name for name, _ in cell["more"]] == ["strip"]
    assert cell["notes"] == ["a word was dropped"]


def test_pictures_are_sorted_by_their_numbers():
    assert pictures_in(["edit-10.png", "edit-9.jpg", "notes.txt", "edit-1.webp"]) == [
        *("edit-1.webp", "edit-9.jpg", "edit-10.png")
    ]


@pytest.mark.parametrize(
    ("source", "target", "gone", "new"),
    [
        ("a red square", "a blue square", ["red"], ["blue"]),
        ("a square", "a square on a plain", [], ["on a plain"]),
        ("", "a cat", [], ["a cat"]),
        ("same", "same", [], []),
        ("dog, cat", "dog and  cat", [","], ["and"]),
        ("  a\tb ", "a c", ["b"], ["c"]),
    ],
)
def test_words_that_differ_are_marked_and_no_character_is_lost(source, target, gone, new):
    left, right = prompt_difference(source, target)

    assert ["".join(text for text, _ in side) for side in (left, right)] == [source, target]
    assert [[text.strip() for text, differs in side if differs] for side in (left, right)] == [gone, new]


def test_noise_of_a_run_that_goes_on_is_folded_from_its_samples(tmp_path):
    world = World(tmp_path / "run", ["a", "b", "c"], noise=True)
    world.finish("a")
    world.finish("b")

    with RunLock(world.directory / "run.lock"):
        charts = {chart["name"]: chart for chart in noise_charts(results(world.directory))}

    line = charts["variance"]["lines"][0]
    assert (line["images"], line["of"], line["x"]) == (2, "noise maps", list(range(STEPS)))
    assert all(2.5 < value < 6 for value in line["y"])
    assert len(line["spread"]) == STEPS


def test_every_table_with_steps_that_a_run_left_becomes_charts(tmp_path):
    world = World(tmp_path / "run", ["a"])
    world.finish("a")
    rows = [{"step": 0, "next": 1, "flatness": 0.5}, {"step": 1, "next": 2, "flatness": None, "reason": "constant"}]
    world.table("SpectrumOfTomorrow", {"of": "noise maps", "images": 9, "pairs": rows})
    world.table("Broken", {"steps": [1, 2]})

    charts = noise_charts(results(world.directory))

    assert [chart["name"] for chart in charts] == ["flatness"]
    assert charts[0]["lines"] == [{"run": 0, "of": "noise maps", "images": 9, "x": [0.5, 1.5], "y": [0.5, None]}]


def test_statistics_that_cannot_be_read_cost_nothing_but_themselves(tmp_path):
    world = World(tmp_path / "run", ["a", "b"], noise=True)
    world.finish("a")
    world.finish("b")
    file = world.folder("a") / "statistics.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)

    charts = noise_charts(results(world.directory))

    assert {line["images"] for chart in charts for line in chart["lines"]} == {1}


def test_thumbnails_are_made_once_shared_by_equal_pictures_and_removed_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr("framework.report.pictures.SMALL_BYTES", 10)
    sweep(tmp_path)
    files = tmp_path / "report_files"

    write_report([tmp_path])
    first = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    (files / f"{'0' * 24}.jpg").write_bytes(b"of a report before")
    write_report([tmp_path])

    assert {path.name: path.stat().st_mtime_ns for path in files.iterdir()} == first
    assert len(first) == 8, "four sources and four edits, which both methods share"
    shown = document_of(tmp_path / "report.html")
    assert (tmp_path / shown["rows"][0]["picture"][0]).is_file()


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("framework.report.pictures.SMALL_BYTES", 10)
    world = World(tmp_path / "run", ["a"])
    world.finish("a", pictures={"edit.png": b"this is no picture at all"})

    write_report([world.directory])

    assert any(
        "edit.png of a cannot be shown" in problem
        for problem in document_of(world.directory / "report.html")["problems"]
    )


def test_one_file_holds_every_picture(tmp_path):
    sweep(tmp_path / "runs", ("first",), 2)

    page = write_report([tmp_path / "runs"], tmp_path / "one.html", single_file=True)

    row = document_of(page)["rows"][0]
    assert all(
        address.startswith("data:image/png;base64,") for address in [*row["picture"], *row["cells"][0]["edits"][0]]
    )
    assert not (tmp_path / "one_files").exists()


def test_large_pictures_within_a_page_are_reduced(tmp_path):
    world = World(tmp_path / "run", ["a"])
    world.finish("a", pictures={"edit.png": picture(1, side=64) + b"\0" * 40_000})
    cell = results(world.directory)[0].cells["a"]

    assert Embedded().full(cell, "edit.png").startswith("data:image/webp;base64,")
