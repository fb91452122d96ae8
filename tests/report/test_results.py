from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from framework.errors import SettingsError
from framework.report.results import ResultsReader
from framework.run.folders import RunFolder, find_runs
from framework.run.lock import RunLock
from tests.report.world import World, sweep


def read(directory: Path):
    return ResultsReader(RunFolder("run", directory)).read()


def test_a_sweeps_variants_are_found_in_the_order_in_which_they_were_run(tmp_path):
    worlds = sweep(tmp_path / "sweep", ("zebra", "ant"))
    os.utime(worlds["ant"].directory / "manifest.lock.jsonl", (2e9, 2e9))

    assert [run.name for run in find_runs([tmp_path / "sweep"])] == ["zebra", "ant"]


def test_runs_of_several_roots_are_named_by_what_tells_them_apart(tmp_path):
    sweep(tmp_path / "a", ("x", "y"))
    World(tmp_path / "b", ["s"])

    assert [run.name for run in find_runs([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "y"])] == [
        "a/x",
        "a/y",
        "b",
    ]


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(SettingsError, match=r"empty holds no run.*") as problem:
        find_runs([tmp_path / "empty", tmp_path / "absent"])

    assert len(problem.value.problems) == 2


def test_a_success_counts_more_than_a_failure_and_other_keys_count_nothing(tmp_path):
    world = World(tmp_path / "run", ["a", "b", "c"])
    world.finish("a")
    world.fail("a", "later")
    world.fail("b", "out of memory")
    line = json.loads(world.journal.read_bytes().splitlines()[1])
    world.note(line | {"id": "c", "key": "key of other settings"})

    run = read(tmp_path / "run")

    assert [cell.sample.id for cell in run.done] == ["a"]
    assert [(cell.sample.id, cell.entry.reason) for cell in run.failed] == [("b", "out of memory")]
    assert "c" not in run.cells


def test_states_of_a_run(tmp_path):
    world = World(tmp_path / "run", ["a", "b"])
    world.finish("a")
    assert read(world.directory).status == "stopped"
    with RunLock(world.directory / "run.lock"):
        running = read(world.directory)
    assert (running.status, running.owner.startswith(f"process {os.getpid()}")) == ("running", True)
    world.fail("b", "no reason")
    assert read(world.directory).status == "failures"
    world.finish("b")
    assert read(world.directory).status == "complete"


def test_what_is_broken_is_named_and_everything_else_is_read(tmp_path):
    world = World(tmp_path / "run", ["a", "b", "c", "d"])
    for name in ("a", "b", "c"):
        world.finish(name)
    (world.folder("a") / "edit.png").unlink()
    (world.folder("b") / "edit.png").write_bytes(b"short")
    (world.folder("c") / "meta.json").write_bytes(b"{" + b" " * ((world.folder("c") / "meta.json").stat().st_size - 1))
    (world.directory / "config.yaml").unlink()
    with world.journal.open("ab") as file:
        file.write(b'{"kind":"sample","id":"d"}\n{"kind":"sam')

    run = read(world.directory)

    assert len(run.done) == 3
    told = "\n".join(run.problems)
    for piece in ("'a': edit.png is missing", "'b': edit.png has 5 bytes instead of", "'c': meta.json cannot be read"):
        assert piece in told
    for piece in ("config.yaml cannot be read", "rank-0.jsonl lacks", "of rank-0.jsonl is not whole"):
        assert piece in told
    assert "edit.png" not in run.cells["a"].files
    assert "source.png" in run.cells["a"].files


def test_a_torn_last_line_is_no_problem_while_somebody_writes_it(tmp_path):
    world = World(tmp_path / "run", ["a"])
    with world.journal.open("ab") as file:
        file.write(b'{"kind":"sam')

    with RunLock(world.directory / "run.lock"):
        assert not read(world.directory).problems
    assert len(read(world.directory).problems) == 1


def test_a_truncated_manifest_is_named_and_its_whole_lines_are_used(tmp_path):
    world = World(tmp_path / "run", ["a", "b"])
    world.finish("a")
    manifest = world.directory / "manifest.lock.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-5])

    run = read(world.directory)

    assert [sample.id for sample in run.samples] == ["a"]
    assert any("manifest.lock.jsonl is not whole" in problem for problem in run.problems)


@pytest.mark.parametrize("name", ["../../secret", "..", "", "/etc", "a\\b", "nul\0"])
def test_records_cannot_lead_out_of_the_run(tmp_path, name):
    world = World(tmp_path / "run", ["a"])
    world.finish("a")
    manifest = world.directory / "manifest.lock.jsonl"
    line = json.loads(manifest.read_bytes())
    journal = [json.loads(line) for line in world.journal.read_bytes().splitlines()]
    journal[1]["files"][name] = {"size": 1, "sha256": "0"}
    world.journal.write_text("".join(json.dumps(line) + "\n" for line in journal))

    assert name not in read(world.directory).cells["a"].files

    manifest.write_text(json.dumps(line | {"folder": name}) + "\n")

    assert not read(world.directory).samples


def test_a_reader_takes_over_what_it_has_read(tmp_path):
    world = World(tmp_path / "run", ["a", "b"])
    world.finish("a")
    reader = ResultsReader(RunFolder("run", world.directory))
    first = reader.read().cells["a"]
    world.finish("b")

    second = reader.read()

    assert second.cells["a"] is first
    assert set(second.cells) == {"a", "b"}
