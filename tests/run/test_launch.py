"""Whole runs in processes of their own: what they write, refuse, survive and say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.run.finished import StoredRun
from tests.run.toy import Run, journal_lines, run_ranks, tree, write_experiment, write_pictures


def gate(tmp_path: Path) -> dict[str, str]:
    """Environment of a run that is to be disturbed: its processes wait after their first batch until the gate opens."""
    return {"TOY_GATE": str(tmp_path / "gate")}


def until(condition: Callable[[], bool], run: Run, timeout: float = 200) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline and run.process.is_alive(), run.said()
        time.sleep(0.005)


# What a failing disk, a dying rank and a broken event file look like; named by `patch`, called in the run's process.


def fail_on_full_disk() -> None:
    from framework.run import files

    write = files.write_all
    calls = iter(range(10_000))

    def full(descriptor: int, data: bytes) -> None:
        if next(calls) == 20:
            os.write(descriptor, data[:10])
            raise OSError(28, "No space left on device")
        write(descriptor, data)

    files.write_all = full


def fail_events() -> None:
    from tensorboard.summary.writer import record_writer

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    record_writer.RecordWriter.write = full


def fail_rank_one() -> None:
    from framework.run.store import RunStore

    commit = RunStore.commit

    def crash(self: RunStore, *arguments: object) -> object:
        if os.environ.get("LOCAL_RANK") == "1":
            os._exit(7)
        return commit(self, *arguments)  # type: ignore[arg-type]

    RunStore.commit = crash  # type: ignore[assignment, method-assign]


def change_pictures() -> None:
    """Somebody paints over a picture after it was loaded, and over another before."""
    from framework.run.writer import ResultWriter

    setup = ResultWriter.setup

    def paint(self: ResultWriter, *arguments: Any, **keywords: Any) -> None:
        setup(self, *arguments, **keywords)
        root = Path(str(self._source.root))
        (root / "p3.png").write_bytes((root / "p0.png").read_bytes())

    ResultWriter.setup = paint  # type: ignore[method-assign]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", 5)


def test_a_run_writes_the_folder_that_the_design_shows(tmp_path: Path, pictures: Path) -> None:
    run = Run(write_experiment(tmp_path / "e.yaml", pictures), tmp_path / "out")

    assert run.wait() == 0, run.said()

    out = tmp_path / "out"
    names = {name.split(".tfevents")[0] for name in tree(out)}
    per_sample = [
        "edit.png",
        "inversion.json",
        "inversion.safetensors",
        "meta.json",
        "reconstruction.png",
        "source.png",
    ]
    per_sample += ["statistics.safetensors", "toy.png"]
    assert names == {f"samples/p{index}/{name}" for index in range(5) for name in per_sample} | {
        *(
            "config.yaml",
            "manifest.lock.jsonl",
            "records.parquet",
            "report.html",
            "fold.json",
            "events/events.out",
            "events/hparams.yaml",
        ),
        *("records/rank-0.jsonl", "records/identity.json", "records/summary.json"),
    }
    assert "5 of 5 samples done (5 now), 0 failed" in run.said()
    assert f"invedit dashboard {out}" in run.said()
    summary = json.loads((out / "records" / "summary.json").read_text())
    assert (summary["total"], summary["done"], summary["computed"], summary["failed"]) == (5, 5, 5, {})


def test_results_say_nothing_of_time_place_and_process(tmp_path: Path, pictures: Path) -> None:
    assert Run(write_experiment(tmp_path / "e.yaml", pictures), tmp_path / "out").wait() == 0

    meta = json.loads((tmp_path / "out" / "samples" / "p1" / "meta.json").read_text())

    assert meta["prompts"] == {"source": "source 1", "target": "target 1", "negative": ""}
    assert meta["measurements"]["ToyStatistics"]["nothing"] is None
    assert meta["evaluations"]["total"]["samples"] > meta["evaluations"]["inversion"]["samples"] > 0
    words = set(json.dumps(meta).replace('"', " ").replace(":", " ").split())
    assert not words & {"time", "seconds", "host", "pid", "rank", "world_size", "memory", os.uname().nodename}
    line = json.loads((tmp_path / "out" / "records" / "rank-0.jsonl").read_text().splitlines()[1])
    assert {"time", "seconds", "host", "pid", "rank", "world_size", "peak_memory"} <= set(line["details"])


def test_the_written_config_runs_and_gives_the_same_results(tmp_path: Path, pictures: Path) -> None:
    assert Run(write_experiment(tmp_path / "e.yaml", pictures), tmp_path / "out").wait() == 0

    again = Run(tmp_path / "out" / "config.yaml", tmp_path / "again")

    assert again.wait() == 0, again.said()
    assert tree(tmp_path / "again" / "samples") == tree(tmp_path / "out" / "samples")


@pytest.mark.parametrize("count", [5, 3, 1])
def test_two_processes_give_the_bytes_of_one(tmp_path: Path, count: int) -> None:
    pictures = write_pictures(tmp_path / "few", count)
    experiment = write_experiment(tmp_path / "e.yaml", pictures, data__batch_size=1)
    one = Run(experiment, tmp_path / "one")

    two = run_ranks(experiment, tmp_path / "two", 2)

    assert one.wait() == 0, one.said()
    assert [run.wait() for run in two] == [0, 0], [run.said() for run in two]
    assert tree(tmp_path / "one" / "samples") == tree(tmp_path / "two" / "samples")
    assert (tmp_path / "one" / "fold.json").read_bytes() == (tmp_path / "two" / "fold.json").read_bytes()
    assert len(list((tmp_path / "two" / "records").glob("rank-*.jsonl"))) == 2
    assert two[1].said() == ""


def test_a_sweep_of_two_processes_runs_every_variant_and_skips_finished_ones(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures, sweep={"method.skip": [0, 1, 2]})
    first = run_ranks(experiment, tmp_path / "out", 2)
    assert [run.wait() for run in first] == [0, 0], first[0].said()
    (tmp_path / "out" / "skip=1" / "samples" / "p2" / "edit.png").unlink()

    again = run_ranks(experiment, tmp_path / "out", 2)

    assert [run.wait() for run in again] == [0, 0], again[0].said()
    assert again[0].said().count("all 5 samples were done") == 2
    assert "skip=1: 5 of 5 samples done (1 now)" in again[0].said()


def test_processes_that_load_pictures_change_no_byte_and_stop_nothing(tmp_path: Path, pictures: Path) -> None:
    one = Run(write_experiment(tmp_path / "e.yaml", pictures), tmp_path / "one")
    loaded = Run(write_experiment(tmp_path / "w.yaml", pictures, data__num_workers=2), tmp_path / "loaded")

    assert one.wait() == 0
    assert loaded.wait() == 0, loaded.said()
    assert "stopped" not in loaded.said()
    assert tree(tmp_path / "one" / "samples") == tree(tmp_path / "loaded" / "samples")


def test_lightnings_own_launcher_starts_the_second_process(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    one = Run(experiment, tmp_path / "one")
    command = [sys.executable, "-m", "tests.run.toy_main", str(experiment), str(tmp_path / "two"), "trainer.devices=2"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=250)

    assert done.returncode == 0, done.stderr
    assert one.wait() == 0
    assert tree(tmp_path / "one" / "samples") == tree(tmp_path / "two" / "samples")
    assert done.stdout.count("5 of 5 samples done") == 1


def test_a_second_run_in_the_folder_is_refused_and_harms_nothing(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    first = Run(experiment, tmp_path / "out", environment=gate(tmp_path))
    until(lambda: journal_lines(tmp_path / "out") > 0, first)

    second = Run(experiment, tmp_path / "out")

    assert second.wait() == 2
    assert f"process {first.process.pid} on" in second.said() and "--force" in second.said()
    (tmp_path / "gate").touch()
    assert first.wait() == 0, first.said()
    assert StoredRun(tmp_path / "out").state.complete


def test_force_makes_the_first_run_stop(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    first = Run(experiment, tmp_path / "out", environment=gate(tmp_path), patch="tests.run.test_launch.beat_fast")
    until(lambda: journal_lines(tmp_path / "out") > 0, first)

    second = Run(experiment, tmp_path / "out", force=True)
    assert second.wait() == 0, second.said()
    (tmp_path / "gate").touch()

    assert first.wait() == 1 and "taken over by another run" in first.said()
    assert StoredRun(tmp_path / "out").state.complete
    assert not (tmp_path / "out" / "run.lock").exists()


def beat_fast() -> None:
    from framework.run import lock

    lock.HEARTBEAT_S = 0.05


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_with_its_code_and_the_run_goes_on_later(
    tmp_path: Path, pictures: Path, number: int, code: int
) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    run = Run(experiment, tmp_path / "out", environment=gate(tmp_path))
    until(lambda: journal_lines(tmp_path / "out") > 0, run)

    run.send(number)
    started = time.monotonic()

    assert run.wait() == code, run.said()
    assert time.monotonic() - started < 15
    assert f"stopped by {signal.Signals(number).name}" in run.said()
    done = journal_lines(tmp_path / "out")
    assert 0 < done < 5 and not (tmp_path / "out" / "run.lock").exists()
    assert not list((tmp_path / "out").rglob("*.tmp-*"))
    assert json.loads((tmp_path / "out" / "records" / "summary.json").read_text())["unfinished"] == 5 - done
    again = Run(experiment, tmp_path / "out")
    assert again.wait() == 0, again.said()
    assert f"5 of 5 samples done ({5 - done} now)" in again.said()


def test_a_signal_to_every_rank_stops_every_rank(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    ranks = run_ranks(experiment, tmp_path / "out", 2, environment=gate(tmp_path))
    until(lambda: journal_lines(tmp_path / "out") > 0, ranks[0])

    for run in ranks:
        run.send(signal.SIGTERM)

    assert [run.wait() for run in ranks] == [143, 143], [run.said() for run in ranks]


def test_a_signal_reaches_the_process_that_lightning_started(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    command = [sys.executable, "-m", "tests.run.toy_main", str(experiment), str(tmp_path / "out"), "trainer.devices=2"]
    process = subprocess.Popen(command, env=os.environ | gate(tmp_path), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while journal_lines(tmp_path / "out") == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)

    process.terminate()
    _, said = process.communicate(timeout=200)

    assert process.returncode == 143, said
    done = journal_lines(tmp_path / "out")
    time.sleep(0.5)
    assert 0 < journal_lines(tmp_path / "out") == done < 5


def test_a_rank_that_dies_ends_the_others_with_an_error(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    ranks = run_ranks(experiment, tmp_path / "out", 2, patch="tests.run.test_launch.fail_rank_one")

    assert ranks[1].wait() == 7
    assert ranks[0].wait() == 1, ranks[0].said()
    assert "another rank ended" in ranks[0].said()
    assert journal_lines(tmp_path / "out") > 0
    again = Run(experiment, tmp_path / "out")
    assert again.wait() == 0, again.said()


def test_a_full_disk_is_one_clear_error_and_no_record_claims_what_is_missing(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    run = Run(experiment, tmp_path / "out", patch="tests.run.test_launch.fail_on_full_disk")

    assert run.wait() == 1
    assert "cannot be written: No space left on device. Free some space" in run.said()
    assert "Traceback" not in run.said()
    done = journal_lines(tmp_path / "out")
    assert 0 < done == len(StoredRun(tmp_path / "out").state.done) < 5
    again = Run(experiment, tmp_path / "out")
    assert again.wait() == 0, again.said()
    whole = Run(experiment, tmp_path / "whole")
    assert whole.wait() == 0
    assert tree(tmp_path / "out" / "samples") == tree(tmp_path / "whole" / "samples")


def test_events_that_cannot_be_written_cost_the_curves_only(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    run = Run(experiment, tmp_path / "out", patch="tests.run.test_launch.fail_events")

    assert run.wait() == 0, run.said()
    assert run.said().count("TensorBoard events cannot be written (No space left on device)") == 1
    assert StoredRun(tmp_path / "out").state.complete and (tmp_path / "out" / "fold.json").exists()


def test_failed_samples_are_named_and_retried(tmp_path: Path, pictures: Path) -> None:
    whole = (pictures / "p1.png").read_bytes()
    (pictures / "p1.png").write_bytes(whole[:100])
    (pictures / "p3.txt").write_text("source 3\npoison")
    experiment = write_experiment(tmp_path / "e.yaml", pictures, backbone__poison="poison")
    run = Run(experiment, tmp_path / "out")

    assert run.wait() == 1
    assert "3 of 5 samples done (3 now), 2 failed" in run.said()
    assert "p1  " in run.said() and "p3  the target latent at step" in run.said()
    assert not (tmp_path / "out" / "samples" / "p3").exists()
    (pictures / "p1.png").write_bytes(whole)
    again = Run(experiment, tmp_path / "out")
    assert again.wait() == 1
    assert "4 of 5 samples done (1 now), 1 failed" in again.said()


def test_a_batch_that_fails_as_a_whole_fails_its_samples_only(tmp_path: Path, pictures: Path) -> None:
    (pictures / "p2.txt").write_text("source 2\nexplode")
    run = Run(write_experiment(tmp_path / "e.yaml", pictures), tmp_path / "out")

    assert run.wait() == 1
    assert "3 of 5 samples done (3 now), 2 failed" in run.said()
    assert "p3  RuntimeError: out of memory, say" in run.said() and "Traceback" not in run.said()


@pytest.mark.parametrize("policy", [{"data__on_error": "stop"}, {"data__max_failures": 1}])
def test_the_policy_for_failures_ends_the_run(tmp_path: Path, pictures: Path, policy: dict[str, object]) -> None:
    for index in (0, 1):
        (pictures / f"p{index}.png").write_bytes(b"no picture")
    experiment = write_experiment(tmp_path / "e.yaml", pictures, data__batch_size=1, **policy)
    run = Run(experiment, tmp_path / "out")

    assert run.wait() == 1
    assert "stopped by data" in run.said() and "Traceback" not in run.said()
    assert journal_lines(tmp_path / "out", "failed") == (1 if "data__on_error" in policy else 2)
    assert journal_lines(tmp_path / "out") == 0


def test_a_picture_that_changes_during_the_run_fails(tmp_path: Path, pictures: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    run = Run(experiment, tmp_path / "out", patch="tests.run.test_launch.change_pictures")

    assert run.wait() == 1
    assert "p3  the sample changed since the run began" in run.said()
    assert "4 of 5 samples done" in run.said()


@pytest.mark.parametrize("kind", ["a file", "below a file", "read-only"])
def test_an_output_that_cannot_be_used_is_refused(tmp_path: Path, pictures: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    outputs = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "x", "read-only": Path("/proc/invedit")}
    run = Run(write_experiment(tmp_path / "e.yaml", pictures), outputs[kind])

    assert run.wait() == 2
    assert "give another output.dir or --output" in run.said() and "Traceback" not in run.said()
