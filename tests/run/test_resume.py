"""Runs that are killed, go on, and are told to go on with something else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.run.finished import StoredRun
from tests.run.toy import Run, journal_lines, run_ranks, tree, write_experiment, write_pictures

COUNT = 9


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), COUNT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run = Run(write_experiment(folder / "e.yaml", pictures), folder / "out")
    assert run.wait() == 0, run.said()
    return folder / "out"


def kill_somewhere(runs: list[Run], output: Path, dice: random.Random) -> None:
    """Kill all processes of a run at a random moment: while it starts, or shortly after one more commit."""
    seen, wait, deadline = journal_lines(output), dice.uniform(0, 0.1), time.monotonic() + 200
    if dice.random() < 0.25:
        wait *= 8
    else:
        while journal_lines(output) == seen and runs[0].process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
    time.sleep(wait)
    for run in dice.sample(runs, len(runs)):
        with contextlib.suppress(ProcessLookupError):  # the others' end may have been its own
            run.send(signal.SIGKILL)
    for run in runs:
        run.process.join()


def assert_same(output: Path, other: Path) -> None:
    assert tree(output / "samples") == tree(other / "samples")
    assert (output / "fold.json").read_bytes() == (other / "fold.json").read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_writes_what_an_uninterrupted_run_writes(
    tmp_path: Path, pictures: Path, uninterrupted: Path, seed: int
) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    dice, out = random.Random(seed), tmp_path / "out"

    kills = 0
    while kills < 8 and journal_lines(out) < COUNT:
        kill_somewhere([Run(experiment, out, seconds=0.01)], out, dice)
        kills += 1
    last = Run(experiment, out)

    assert last.wait() == 0, last.said()
    assert kills >= 2
    assert_same(out, uninterrupted)
    assert not [name for name in tree(out) if ".tmp-" in name]
    assert [sample.id for sample in StoredRun(out).samples()] == [f"p{k}" for k in range(COUNT)]


def die_at_an_operation() -> None:
    """Kill this process at the DIE_AT-th file that it syncs or renames."""
    sync, replace, left = os.fsync, os.replace, iter(range(int(os.environ["DIE_AT"]), -1, -1))

    def counted(operation: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **keywords: Any) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            operation(*arguments, **keywords)

        return call

    os.fsync, os.replace = counted(sync), counted(replace)


def test_a_run_killed_at_any_step_of_a_commit_goes_on(
    tmp_path: Path, pictures: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, out = write_experiment(tmp_path / "e.yaml", pictures), tmp_path / "out"

    # 14 operations make the folder ready, 8 + 8 + 2 commit a sample: its files, their names, the folder, the journal.
    for operation in (2, 12, 14, 18, 24, 30, 31, 32, 48, 8):
        run = Run(
            experiment, out, patch="tests.run.test_resume.die_at_an_operation", environment={"DIE_AT": str(operation)}
        )
        assert run.wait() == -signal.SIGKILL, run.said()
    last = Run(experiment, out)

    assert last.wait() == 0, last.said()
    assert_same(out, uninterrupted)


def test_another_number_of_processes_changes_no_byte(tmp_path: Path, pictures: Path, uninterrupted: Path) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    dice, out = random.Random(0), tmp_path / "out"
    for world in (2, 1, 2):
        runs = run_ranks(experiment, out, world, seconds=0.01)
        while journal_lines(out) == 0 and runs[0].process.is_alive():
            time.sleep(0.001)
        kill_somewhere(runs, out, dice)

    last = run_ranks(experiment, out, 3)

    assert [run.wait() for run in last] == [0, 0, 0], last[0].said()
    assert_same(out, uninterrupted)


def test_a_batch_that_is_half_done_is_computed_in_its_old_composition(
    tmp_path: Path, pictures: Path, uninterrupted: Path
) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    assert Run(experiment, tmp_path / "out").wait() == 0
    out = tmp_path / "out"
    kept = (out / "samples" / "p2" / "edit.png").stat().st_mtime_ns
    (out / "samples" / "p3" / "meta.json").write_bytes(b"{}")
    (out / "samples" / "p8" / "statistics.safetensors").unlink()

    again = Run(experiment, out)

    assert again.wait() == 0 and "9 of 9 samples done (2 now)" in again.said()
    assert_same(out, uninterrupted)
    assert (out / "samples" / "p2" / "edit.png").stat().st_mtime_ns == kept
    batches = {json.loads(line)["id"] for line in (out / "records" / "rank-0.jsonl").read_text().splitlines()[-2:]}
    assert batches == {"p3", "p8"}


def test_a_finished_run_is_folded_again_and_nothing_is_computed(
    tmp_path: Path, pictures: Path, uninterrupted: Path
) -> None:
    experiment = write_experiment(tmp_path / "e.yaml", pictures)
    assert Run(experiment, tmp_path / "out").wait() == 0
    journal = (tmp_path / "out" / "records" / "rank-0.jsonl").read_bytes()
    (tmp_path / "out" / "fold.json").unlink()

    again = Run(experiment, tmp_path / "out")

    assert again.wait() == 0 and "all 9 samples were done" in again.said()
    assert (tmp_path / "out" / "records" / "rank-0.jsonl").read_bytes() == journal
    assert_same(tmp_path / "out", uninterrupted)
    assert len(list((tmp_path / "out" / "events").glob("*.summary"))) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method__skip": 2}, "settings.method.skip: 1 before, 2 now"),
        ({"backbone__version": 2}, "model.toy: 1 before, 2 now"),
        ({"seed": 2}, "settings.seed: 1 before, 2 now"),
        ({"data__batch_size": 3}, "settings.data.batch_size: 2 before, 3 now"),
        ({"callbacks": []}, "settings.callbacks: [{'_target_': 'tests.run.toy.ToyStatistics'}] before, [] now"),
        ({"data__limit": 8}, "1 samples that are gone: 'p8'"),
        ({"output__save": {"inversion": False}}, "settings.output.save.inversion: True before, False now"),
    ],
)
def test_other_settings_are_refused_in_a_folder_that_holds_results(
    tmp_path: Path, pictures: Path, uninterrupted: Path, changes: dict[str, object], said: str
) -> None:
    before = tree(uninterrupted)

    run = Run(write_experiment(tmp_path / "e.yaml", pictures, **changes), uninterrupted)

    assert run.wait() == 2
    assert said in run.said() and "--allow-changed" in run.said()
    assert tree(uninterrupted) == before


def test_what_changes_no_result_may_change(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "moved").symlink_to(pictures)
    assert Run(write_experiment(tmp_path / "e.yaml", pictures), tmp_path / "out").wait() == 0
    changes = {"data__max_failures": 3, "data__num_workers": 1, "output__dir": "elsewhere"}

    callbacks = [{"_target_": f"tests.run.toy.{name}"} for name in ("Bystander", "ToyStatistics")]
    again = Run(
        write_experiment(tmp_path / "e.yaml", tmp_path / "moved", callbacks=callbacks, **changes), tmp_path / "out"
    )

    assert again.wait() == 0 and "all 9 samples were done" in again.said()


def test_with_leave_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 3)
    experiment = write_experiment(tmp_path / "e.yaml", pictures, data__batch_size=1)
    assert Run(experiment, tmp_path / "out").wait() == 0
    (pictures / "p1.txt").write_text("source 1\nanother target")
    write_pictures(pictures, 4)
    (pictures / "p1.txt").write_text("source 1\nanother target")
    refused = Run(experiment, tmp_path / "out")
    assert refused.wait() == 2 and "whose image, mask or text changed: 'p1'" in refused.said()

    again = Run(experiment, tmp_path / "out", allow_changed=True)
    fresh = Run(experiment, tmp_path / "fresh")

    assert again.wait() == 0 and "4 of 4 samples done (2 now)" in again.said()
    assert fresh.wait() == 0
    assert_same(tmp_path / "out", tmp_path / "fresh")


def test_other_settings_with_leave_give_what_a_fresh_run_gives(tmp_path: Path, pictures: Path) -> None:
    assert Run(write_experiment(tmp_path / "e.yaml", pictures, method__draws=2), tmp_path / "out").wait() == 0
    assert (tmp_path / "out" / "samples" / "p0" / "edit-1.png").exists()
    other = write_experiment(tmp_path / "e.yaml", pictures, method__skip=2)

    again = Run(other, tmp_path / "out", allow_changed=True)
    fresh = Run(other, tmp_path / "fresh")

    assert again.wait() == 0, again.said()
    assert fresh.wait() == 0
    assert_same(tmp_path / "out", tmp_path / "fresh")
