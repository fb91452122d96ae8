from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from callbacks.noise_statistics import NoiseStatistics
from framework.errors import SettingsError
from framework.statistics.moments import Moments
from framework.statistics.noise_space import edit_friendly_variance
from methods.ddim import DDIM
from methods.edit_friendly import EditFriendlyDDPM
from methods.sdedit import SDEdit
from tests.callbacks.world import Events, GaussianPictures, batch_of, pictures, run_of


def module(**settings):
    return EditFriendlyDDPM(GaussianPictures(), **{"steps": 10, "skip": 0, **settings})


def test_variance_of_edit_friendly_maps_is_the_closed_form(tmp_path):
    method, statistics = module(steps=20, zero_last=False), NoiseStatistics(plots=False)
    batches = [batch_of(pictures(8, seed=s), [f"{s}-{k}" for k in range(8)]) for s in range(3)]

    run = run_of(tmp_path, method, batches, [statistics])

    abar = method.edit_schedule.alpha.square()
    expected = edit_friendly_variance(abar[:-1], abar[1:])
    for row, variance in list(zip(run.summary("NoiseStatistics")["steps"], expected, strict=True))[:-1]:
        # 18432 values per step; a variance has the relative standard error sqrt(2 / n).
        assert row["variance"] == pytest.approx(float(variance), rel=5 * math.sqrt(2 / row["count"]))
        assert abs(row["excess_kurtosis"]) < 5 * math.sqrt(24 / row["count"])


def test_states_of_a_sample_equal_those_of_its_own_maps():
    method = module()
    batch = batch_of(pictures(2))

    result = method.edit(batch, callbacks=[NoiseStatistics()])

    found = result.measurements[1]["NoiseStatistics"].tensors
    expected = Moments.of(result.record.noise_maps[:9, 1])
    assert torch.equal(found["moments"][:9], expected.to_tensor())
    assert found["histogram"][:9].sum(1).tolist() == [3 * 16 * 16] * 9


def test_folding_does_not_depend_on_the_order_in_which_samples_were_finished(tmp_path):
    first = [batch_of(pictures(2, seed=s), [f"{s}-a", f"{s}-b"]) for s in range(3)]

    one = run_of(tmp_path / "one", module(), first, [NoiseStatistics()])
    other = run_of(tmp_path / "other", module(), [first[2], first[0], first[1]], [NoiseStatistics()])

    assert one.files() == other.files()
    assert set(one.files()) == {
        "NoiseStatistics.json",
        "NoiseStatistics.safetensors",
        "NoiseStatistics-variance.png",
        "NoiseStatistics-histograms.png",
    }


def test_the_zeroed_map_and_the_skipped_steps_have_a_reason_instead_of_figures(tmp_path):
    run = run_of(tmp_path, module(skip=3), [batch_of(pictures(2))], [NoiseStatistics(plots=False)])

    steps = run.summary("NoiseStatistics")["steps"]

    assert steps[9] == {"step": 9, "t": 1.0, "count": 0, "reason": "the method sets this map to zero"}
    assert steps[0]["reason"] == "not used by the edit (skipped)"
    assert steps[3]["variance"] > 1 and "reason" not in steps[3]


def test_skipped_steps_are_measured_on_request(tmp_path):
    run = run_of(tmp_path, module(skip=3), [batch_of(pictures(2))], [NoiseStatistics(unused=True, plots=False)])

    assert run.summary("NoiseStatistics")["steps"][0]["variance"] > 1


def test_draws_of_an_image_are_folded_into_its_measurement():
    method = module(draws=3)

    result = method.edit(batch_of(pictures(2)), callbacks=[NoiseStatistics()])

    found = Moments.from_tensor(result.measurements[1]["NoiseStatistics"].tensors["moments"])
    assert found.n[:9].tolist() == [3 * 3 * 16 * 16] * 9
    torch.testing.assert_close(found.variance[4], result.record.noise_maps[4, 3:].var(correction=0))


def test_a_method_without_maps_is_measured_by_its_predictions(tmp_path):
    method = DDIM(GaussianPictures(), steps=100)

    run = run_of(tmp_path, method, [batch_of(pictures(2))], [NoiseStatistics(plots=False)])

    summary = run.summary("NoiseStatistics")
    assert summary["of"] == "predicted noise of the inversion"
    assert summary["steps"][0]["variance"] == pytest.approx(1, abs=0.1)


def test_the_inverted_noise_of_gaussian_pictures_is_nearly_white(tmp_path):
    method = DDIM(GaussianPictures(), steps=100)

    run = run_of(tmp_path, method, [batch_of(pictures(4))], [NoiseStatistics(of="latents")])

    summary = run.summary("NoiseStatistics-latents")
    assert summary["of"] == "latents of the inversion" and len(summary["steps"]) == 101
    assert summary["steps"][0]["kl_gaussian"] < 0.005
    assert all("reason" not in row for row in summary["steps"])


def test_a_method_that_does_not_invert_is_measured_while_it_denoises(tmp_path):
    method = SDEdit(GaussianPictures(), steps=10, strength=0.5)

    run = run_of(tmp_path, method, [batch_of(pictures(2))], [NoiseStatistics(plots=False)])

    summary = run.summary("NoiseStatistics")
    assert summary["of"].endswith("of the denoising")
    assert summary["steps"][0]["count"] == 0 and summary["steps"][9]["count"] > 0


def test_maps_that_are_not_finite_are_counted_and_left_out(tmp_path):
    statistics = NoiseStatistics(plots=False)
    method = module()
    images = pictures(3)
    images[1, 0, 0, 0] = math.nan

    run = run_of(tmp_path, method, [batch_of(images)], [statistics])

    summary = run.summary("NoiseStatistics")
    assert summary["images"] == 2 and summary["left_out"] == {
        "count": 1,
        "first": {"picture-1": "nothing was measured"},
    }
    assert all(math.isfinite(row["variance"]) for row in summary["steps"][:9])


def test_nothing_is_carried_from_a_failed_batch_into_the_next():
    statistics, method = NoiseStatistics(), module()
    alone = method.edit(batch_of(pictures(2)), callbacks=[NoiseStatistics()])
    method.edit(batch_of(pictures(2, seed=5)), callbacks=[statistics])
    statistics.on_edit_start(None, method, batch_of(pictures(1)))
    statistics.on_edit_failed(None, method, batch_of(pictures(1)), "out of memory")

    after = method.edit(batch_of(pictures(2)), callbacks=[statistics])

    for name in ("moments", "histogram"):
        expected = alone.measurements[0]["NoiseStatistics"].tensors[name]
        assert torch.equal(after.measurements[0]["NoiseStatistics"].tensors[name], expected)


def test_samples_measured_on_other_steps_are_named_and_not_merged(tmp_path):
    statistics = NoiseStatistics(plots=False)
    run = run_of(tmp_path, module(), [batch_of(pictures(1), ["a"])], [statistics])
    run.commit(module(steps=20).edit(batch_of(pictures(1), ["b"]), callbacks=[statistics]))

    statistics.on_run_end(run)

    summary = run.summary("NoiseStatistics")
    assert summary["images"] == 1 and summary["left_out"]["first"] == {"b": "measured on other steps than a"}


def test_curves_and_raw_histograms_go_to_tensorboard_by_step(tmp_path):
    events = Events()

    run_of(tmp_path, module(), [batch_of(pictures(2))], [NoiseStatistics(plots=False)], events)

    bands = {f"2_noise/variance_of_images{end}" for end in ("", "_low", "_high")}
    assert events.tags("add_scalar") == {"2_noise/mean", "2_noise/variance", "2_noise/excess_kurtosis", *bands}
    assert [step for name, _, step in events.calls if name == "add_histogram_raw"] == list(range(9))


def test_tensorboard_reads_the_merged_counts_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "events"))

    run = run_of(tmp_path / "run", module(), [batch_of(pictures(2))], [NoiseStatistics(plots=False)], writer)
    writer.close()

    accumulator = EventAccumulator(str(tmp_path / "events"), size_guidance={"histograms": 0})
    accumulator.Reload()
    counts = accumulator.Histograms("2_noise/values")[4].histogram_value.bucket
    merged = load_file(run.directory / "statistics" / "NoiseStatistics.safetensors")["histogram"][4]
    assert sum(counts) == int(merged.sum())


def test_a_run_without_samples_says_so(tmp_path):
    run = run_of(tmp_path, module(), [], [NoiseStatistics()])

    assert run.summary("NoiseStatistics")["images"] == 0


def test_an_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(SettingsError, match="give one of auto, predictions, latents"):
        NoiseStatistics(of="maps")
