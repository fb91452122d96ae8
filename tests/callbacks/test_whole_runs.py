"""All callbacks in whole runs: what they leave behind does not depend on the processes that made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.run.toy import Run, run_ranks, tree, write_experiment, write_pictures

NAMES = (
    *("Images", "Metrics", "NoiseCorrelation", "NoiseStatistics", "NoiseStructure"),
    *("Progress", "Throughput", "Trajectory"),
)
CALLBACKS = [{"_target_": f"callbacks.{name}"} for name in NAMES]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run = Run(write_experiment(folder / "e.yaml", pictures, callbacks=CALLBACKS), folder / "out")
    assert run.wait() == 0, run.said()
    return folder / "out"


def test_every_callback_leaves_its_figures(alone):
    names = set(tree(alone / "statistics"))

    assert names == {
        "Metrics.csv",
        "Metrics.json",
        "NoiseCorrelation-angles.png",
        "NoiseCorrelation-correlation.png",
        "NoiseCorrelation-matrix.png",
        "NoiseCorrelation.json",
        "NoiseCorrelation.safetensors",
        "NoiseStatistics-histograms.png",
        "NoiseStatistics-variance.png",
        "NoiseStatistics.json",
        "NoiseStatistics.safetensors",
        "NoiseStructure-channels.png",
        "NoiseStructure-imprint.png",
        "NoiseStructure-spectrum.png",
        "NoiseStructure.json",
        "NoiseStructure.safetensors",
        "Trajectory-deviation.png",
        "Trajectory.json",
        "Trajectory.safetensors",
    }
    assert (alone / "samples" / "p0" / "strip.png").exists() and (alone / "samples" / "p0" / "trajectory.png").exists()


def test_two_processes_leave_the_same_bytes_as_one(tmp_path, pictures, alone):
    experiment = write_experiment(tmp_path / "e.yaml", pictures, callbacks=CALLBACKS)

    runs = run_ranks(experiment, tmp_path / "out", 2)

    assert [run.wait() for run in runs] == [0, 0], "\n".join(run.said() for run in runs)
    assert tree(tmp_path / "out" / "samples") == tree(alone / "samples")
    assert tree(tmp_path / "out" / "statistics") == tree(alone / "statistics")


def test_a_run_that_is_resumed_leaves_the_same_bytes(tmp_path, pictures, alone):
    experiment = write_experiment(tmp_path / "e.yaml", pictures, callbacks=CALLBACKS)
    shutil.copytree(alone, tmp_path / "out")
    for name in ("p1", "p4"):
        (tmp_path / "out" / "samples" / name / "statistics.safetensors").unlink()
    shutil.rmtree(tmp_path / "out" / "statistics")

    run = Run(experiment, tmp_path / "out")

    assert run.wait() == 0, run.said()
    assert "3 of 5 samples are finished already" in run.said()
    assert tree(tmp_path / "out" / "samples") == tree(alone / "samples")
    assert tree(tmp_path / "out" / "statistics") == tree(alone / "statistics")


def test_more_processes_than_batches_leave_the_same_bytes(tmp_path, pictures, alone):
    experiment = write_experiment(tmp_path / "e.yaml", pictures, callbacks=CALLBACKS)

    runs = run_ranks(experiment, tmp_path / "out", 4)

    assert [run.wait() for run in runs] == [0] * 4, "\n".join(run.said() for run in runs)
    assert tree(tmp_path / "out" / "statistics") == tree(alone / "statistics")


def test_journal_lines_hold_what_differs_between_runs(alone):
    lines = [json.loads(line) for line in (alone / "records" / "rank-0.jsonl").read_text().splitlines()]

    timings = [line["details"]["timings"] for line in lines if line["kind"] == "sample"]
    assert len(timings) == 5
    assert all(entry["rows"] >= entry["calls"] > 0 and entry["batch_seconds"] > 0 for entry in timings)


def test_tensorboard_shows_the_groups_in_their_order(alone):
    events = EventAccumulator(str(alone / "events"))
    events.Reload()

    tags = events.Tags()
    groups = {tag.split("/")[0] for kind in ("scalars", "images", "histograms") for tag in tags[kind]}
    assert groups >= {"1_run", "2_noise", "3_latent", "4_edits"}
    assert "2_noise/values" in tags["histograms"] and "4_edits/p0" in tags["images"]
