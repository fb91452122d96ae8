from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from callbacks.progress import Progress
from callbacks.throughput import Throughput
from framework.errors import SettingsError
from framework.result import FailedBatch
from methods.edit_friendly import EditFriendlyDDPM
from tests.callbacks.world import Events, GaussianPictures, batch_of, pictures


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def trainer(batches, rank=0, world_size=1):
    datamodule = SimpleNamespace(todo=[batch.samples for batch in batches])
    return SimpleNamespace(
        global_rank=rank, world_size=world_size, is_global_zero=rank == 0, datamodule=datamodule, callbacks=[]
    )


def module():
    return EditFriendlyDDPM(GaussianPictures(), steps=5, skip=0)


def run(progress, trainer, batches, fail=()):
    from framework.hooks import Hooks

    method = module()
    progress.on_predict_start(trainer, method)
    for index, batch in enumerate(batches):
        result = (
            FailedBatch("broken") if index in fail else method._edit(batch, None, Hooks(method, [progress], trainer))
        )
        progress.on_predict_batch_end(trainer, method, result, batch, index)
    progress.on_predict_end(trainer, method)


def test_a_log_gets_plain_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    batches = [batch_of(pictures(2, seed=s)) for s in range(3)]

    run(Progress(every=0), trainer(batches), batches)

    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert re.fullmatch(r"0/6 images, inverting step 1/5, \d+\.\d evaluations/s", lines[0])
    assert any(re.fullmatch(r"2/6 images, \d+\.\d evaluations/s, about \d+ s left", line) for line in lines)
    assert re.fullmatch(r"6/6 images, \d+\.\d evaluations/s, \d+ s in all", lines[-1])


def test_a_quick_run_says_one_line(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    batches = [batch_of(pictures(2, seed=s)) for s in range(3)]

    run(Progress(every=60), trainer(batches), batches, fail=(1,))

    assert re.fullmatch(r"6/6 images, 2 failed, .* in all\n", stream.getvalue())


def test_other_ranks_are_silent_and_rank_zero_counts_its_own_share(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    batches = [batch_of(pictures(2, seed=s)) for s in range(3)]

    run(Progress(every=0), trainer(batches, rank=1, world_size=2), batches[1::2])
    assert stream.getvalue() == ""

    run(Progress(every=0), trainer(batches, rank=0, world_size=2), batches[0::2])
    assert "4/4 images (rank 0 of 2)" in stream.getvalue()


def test_a_terminal_gets_bars(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    batches = [batch_of(pictures(2, seed=s)) for s in range(2)]

    run(Progress(), trainer(batches), batches)

    assert "images 4/4" in stream.getvalue() and "denoising 5/5" in stream.getvalue()


def test_an_edit_without_a_trainer_shows_its_progress_too(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)

    module().edit(batch_of(pictures(2)), callbacks=[Progress(every=60)])

    assert stream.getvalue().startswith("2/2 images, ")


def test_an_interval_below_zero_is_refused():
    with pytest.raises(SettingsError, match="every=-1"):
        Progress(every=-1)


def test_throughput_counts_evaluations_in_both_ways_and_leaves_results_alone():
    throughput = Throughput()

    first = module().edit(batch_of(pictures(2)), callbacks=[throughput])
    second = module().edit(batch_of(pictures(2)), callbacks=[throughput])

    assert first.timings["calls"] == first.evaluations.calls
    assert first.timings["rows"] == first.evaluations.samples
    assert first.timings["inversion_rows"] == first.inversion_evaluations.samples
    assert first.timings["seconds_per_edit"] == pytest.approx(first.timings["batch_seconds"] / 2)
    assert first.timings["peak_resident_gib"] > 0
    assert (first.timings["warm_up"], second.timings["warm_up"]) == (1, 0)
    assert first.measurements == [{}, {}]


def test_throughput_shows_one_point_per_batch(tmp_path):
    from framework.run.journal import Journal, SampleEntry

    (tmp_path / "records").mkdir()
    journal = Journal(tmp_path / "records", 0)
    for batch in range(2):
        for sample in range(3):
            timings = {"rows_per_second": 10.0 + batch, "seconds_per_edit": 0.5}
            details = {"rank": 0, "time": float(batch), "timings": timings}
            journal.append(SampleEntry(f"{batch}-{sample}", "key", "done", "folder", {}, None, details))
    events = Events()

    Throughput().on_run_end(SimpleNamespace(directory=tmp_path, writer=events))

    assert [(tag, step) for _, tag, step in events.calls if tag == "1_run/rows_per_second"] == [
        ("1_run/rows_per_second", 0),
        ("1_run/rows_per_second", 1),
    ]
