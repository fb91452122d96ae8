"""What TensorBoard is given: one writer, curves over the images of all ranks, a table of methods, a small file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from framework.run.board import LAYOUT, LiveBoard, parameters
from framework.run.identity import Identity
from framework.run.store import RunStore, lock_samples
from tests.callbacks.world import Events
from tests.run.toy import Run, run_ranks, write_experiment, write_pictures

NAMES = ("NoiseStatistics", "NoiseCorrelation", "Trajectory", "Metrics", "Throughput", "Images")
CALLBACKS = [{"_target_": f"callbacks.{name}"} for name in NAMES]
LIMIT = 20e6


def events_of(output: Path) -> EventAccumulator:
    events = EventAccumulator(str(output / "events"), size_guidance={"tensors": 0, "scalars": 0, "histograms": 0})
    events.Reload()
    return events


def size(output: Path) -> int:
    return sum(path.stat().st_size for path in (output / "events").iterdir() if "tfevents" in path.name)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two processes in which one picture cannot be read."""
    folder = tmp_path_factory.mktemp("board")
    pictures = write_pictures(folder / "pictures", 5)
    (pictures / "p3.png").write_bytes(b"no picture")
    runs = run_ranks(write_experiment(folder / "e.yaml", pictures, callbacks=CALLBACKS), folder / "out", 2)
    assert sorted(run.wait() for run in runs) == [0, 1], "\n".join(run.said() for run in runs)
    return folder / "out"


def test_there_is_one_writer_while_the_run_goes_on_and_one_when_it_has_ended(done):
    files = [path.name for path in (done / "events").iterdir() if "tfevents" in path.name]

    assert len(files) == 2 and sum(name.endswith(".summary") for name in files) == 1


def test_the_last_point_counts_the_images_of_all_ranks(done):
    events = events_of(done)

    finished, failed = (events.Scalars(f"1_run/images_{name}")[-1] for name in ("done", "failed"))
    assert (finished.value, failed.value) == (4, 1)
    assert finished.step == failed.step == 5
    assert events.Scalars("1_run/images_per_second")[-1].value > 0


def test_every_chart_of_the_layout_finds_a_curve(done):
    events = events_of(done)

    stored = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(stored)
    tags = set(events.Tags()["scalars"])
    charts = {chart.title: chart for category in layout.category for chart in category.chart}
    assert set(charts) == {title for group in LAYOUT.values() for title in group}
    for chart in charts.values():
        for tag in chart.multiline.tag:
            assert any(re.search(tag, known) for known in tags), (chart.title, tag)
        for series in chart.margin.series:
            assert {series.value, series.lower, series.upper} <= tags


def test_the_table_of_methods_has_settings_and_figures_of_this_run(done):
    events = events_of(done)

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    info = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert info.hparams["method.skip"].number_value == 1
    assert info.hparams["method"].string_value == "EditFriendlyDDPM"
    assert info.hparams["method.zero_last"].string_value == "true"
    scalars = events.Tags()["scalars"]
    costs = {"1_run/seconds_per_image", "1_run/evaluations_per_image"}
    assert costs | {"0_figures/noise_variance", "0_figures/noise_correlation"} <= set(scalars)
    assert "_hparams_/experiment" not in events.summary_metadata  # or one run would choose the columns of all


def test_config_and_failures_are_there_as_text(done):
    events = events_of(done)

    def text(tag: str) -> str:
        return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()

    assert "_target_: tests.run.toy.ToyBackbone" in text("1_run/config")
    assert "4 of 5 samples done, 1 failed." in text("1_run/failures") and "| p3 |" in text("1_run/failures")


def test_histograms_have_the_same_bins_at_every_step(done):
    points = events_of(done).Histograms("2_noise/values")

    assert len(points) >= 2
    assert all(len(point.histogram_value.bucket_limit) == 102 for point in points)
    assert len({tuple(point.histogram_value.bucket_limit) for point in points}) == 1


def test_a_thousand_images_stay_below_the_limit(tmp_path):
    callbacks = [*CALLBACKS, {"_target_": "callbacks.NoiseStructure"}]
    sizes = {}
    for count in (18, 26):  # beyond the budget of 16 thumbnails
        pictures = write_pictures(tmp_path / f"pictures-{count}", count)
        experiment = write_experiment(tmp_path / f"{count}.yaml", pictures, callbacks=callbacks)
        run = Run(experiment, tmp_path / str(count))
        assert run.wait() == 0, run.said()
        sizes[count] = size(tmp_path / str(count))

    per_image = max(0, sizes[26] - sizes[18]) / 8
    # The small run as if all of it grew with the steps (4 here, 100 there), and thumbnails that cannot be packed: 16
    # samples, a strip of five pictures and a trajectory of nine, 128 rows each.
    thumbnails = 16 * (5 + 9) * 128 * 128 * 3
    assert 25 * sizes[18] + 982 * per_image + thumbnails < LIMIT


def test_points_come_no_faster_than_they_may_and_read_each_line_once(tmp_path, monkeypatch):
    identity = Identity({}, {}, {})
    samples = lock_samples([(f"s{k}", f"{k}") for k in range(3)], identity)
    store = RunStore(tmp_path)
    store.prepare(identity, samples, "")
    writer = Events()
    trainer = SimpleNamespace(is_global_zero=True, logger=SimpleNamespace(experiment=writer))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("framework.run.board.time.monotonic", lambda: clock.now)
    board = LiveBoard(store, "seed: 0", every=10)
    monkeypatch.setattr(writer, "flush", lambda: None, raising=False)
    values: list[tuple[str, float, int]] = []
    monkeypatch.setattr(writer, "add_scalar", lambda *point: values.append(point), raising=False)

    board.on_predict_start(trainer, None)
    for k, sample in enumerate(samples):
        meta = json.dumps({"measurements": {"A": {"over_steps": {"variance": float(k)}}}}).encode()
        store.commit(sample, {"meta.json": meta}, {"time": 1.0, "peak_memory": 2**30})
        clock.now += 6
        board.on_predict_batch_end(trainer, None, None, None, k)
    board.teardown(trainer, None, "predict")

    found = [(tag, value, step) for tag, value, step in values if tag == "1_run/images_done"]
    assert found == [("1_run/images_done", 2.0, 2), ("1_run/images_done", 3.0, 3)]
    assert ("2_noise/so_far_variance", 1.0, 3) in values and ("1_run/peak_memory_gib", 1.0, 3) in values


def test_other_ranks_write_nothing(tmp_path):
    trainer = SimpleNamespace(is_global_zero=False, logger=None)
    board = LiveBoard(RunStore(tmp_path), "seed: 0", every=0)

    board.on_predict_start(trainer, None)
    board.on_predict_batch_end(trainer, None, None, None, 0)
    board.teardown(trainer, None, "predict")


def test_settings_of_parts_are_told_by_their_place():
    resolved = {
        "seed": 3,
        "backbone": {"_target_": "b.B", "model": "shapes"},
        "method": {
            "_target_": "m.M",
            "steps": 20,
            "exact": False,
            "guidance": {"_target_": "g.G", "target": 5.0},
            "controls": [1],
        },
    }

    assert parameters(resolved) == {
        "backbone": "B", "backbone.model": "shapes", "method": "M", "method.exact": "false", "method.guidance": "G",
        "method.guidance.target": 5.0, "method.steps": 20, "seed": 3,
    }  # fmt: skip
