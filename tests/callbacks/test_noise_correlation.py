from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from callbacks.noise_correlation import NoiseCorrelation
from framework.statistics.comoments import CoMoments
from framework.statistics.noise_space import edit_friendly_correlation
from methods.cycle_diffusion import CycleDiffusion
from methods.ddim import DDIM
from methods.edit_friendly import EditFriendlyDDPM
from tests.callbacks.world import Events, GaussianPictures, batch_of, pictures, run_of


def module(**settings):
    return EditFriendlyDDPM(GaussianPictures(), **{"steps": 10, "skip": 0, **settings})


def test_correlation_of_neighbouring_edit_friendly_maps_is_the_closed_form(tmp_path):
    method = module(steps=20, zero_last=False)
    batches = [batch_of(pictures(8, seed=s), [f"{s}-{k}" for k in range(8)]) for s in range(3)]

    run = run_of(tmp_path, method, batches, [NoiseCorrelation(plots=False)])

    abar = method.edit_schedule.alpha.square()
    expected = edit_friendly_correlation(abar[:-1], abar[1:])
    summary = run.summary("NoiseCorrelation")
    for row, correlation in list(zip(summary["pairs"], expected, strict=True))[:-1]:
        # 18432 values per pair: a correlation has a standard error below 1 / sqrt(n).
        assert row["correlation_pooled"] == pytest.approx(float(correlation), abs=5 / math.sqrt(18432))
    assert summary["mean_over_images_and_steps"]["angle"] == pytest.approx(119.5, abs=1.5)


def test_native_maps_of_a_path_of_the_model_are_not_correlated(tmp_path):
    method = CycleDiffusion(GaussianPictures(), steps=20, strength=1.0, eta=1.0)

    run = run_of(tmp_path, method, [batch_of(pictures(8))], [NoiseCorrelation(plots=False)])

    found = [row["correlation_pooled"] for row in run.summary("NoiseCorrelation")["pairs"] if "reason" not in row]
    assert len(found) > 10 and max(abs(value) for value in found) < 0.1


def test_values_of_an_image_are_numpys_of_its_maps():
    method = module()

    result = method.edit(batch_of(pictures(2)), callbacks=[NoiseCorrelation()])

    tensors = result.measurements[1]["NoiseCorrelation"].tensors
    maps = result.record.noise_maps[:9, 1].flatten(1).numpy()
    pairs = CoMoments.from_tensor(tensors["pairs"])
    expected = [np.corrcoef(maps[step], maps[step + 1])[0, 1] for step in range(8)]
    np.testing.assert_allclose(pairs.pearson[0, :8, 0, 1], expected, atol=1e-12)
    matrix = CoMoments.from_tensor(tensors["matrix"])
    np.testing.assert_allclose(matrix.pearson[:9, :9], np.corrcoef(maps), atol=1e-12)


def test_the_zeroed_map_has_no_correlation_and_spoils_no_other(tmp_path):
    run = run_of(tmp_path, module(), [batch_of(pictures(2))], [NoiseCorrelation()])

    pairs = run.summary("NoiseCorrelation")["pairs"]
    matrix = CoMoments.from_tensor(load_file(run.directory / "statistics" / "NoiseCorrelation.safetensors")["matrix"])
    assert pairs[8]["reason"] == "step 9: the method sets this map to zero" and pairs[8]["correlation_pooled"] is None
    assert all(row["correlation_pooled"] < -0.2 for row in pairs[:8])
    assert matrix.pearson[9].isnan().all() and matrix.pearson[:9, :9].isfinite().all()


def test_one_group_and_several_groups_of_samples_give_the_same_bits(tmp_path):
    batches = [batch_of(pictures(2, seed=s), [f"{s}-a", f"{s}-b"]) for s in range(3)]

    one = run_of(tmp_path / "one", module(), batches, [NoiseCorrelation()])
    other = run_of(tmp_path / "other", module(), [batches[2], batches[1], batches[0]], [NoiseCorrelation()])

    assert one.files() == other.files()
    assert "NoiseCorrelation-matrix.png" in one.files()


def test_every_draw_counts_in_the_histogram_of_angles(tmp_path):
    run = run_of(tmp_path, module(draws=3), [batch_of(pictures(2))], [NoiseCorrelation(plots=False)])

    counts = load_file(run.directory / "statistics" / "NoiseCorrelation.safetensors")
    assert counts["angle_histogram"].sum(1).tolist() == [6] * 8 + [0]
    assert counts["correlation_histogram"].sum(1).tolist() == [6] * 8 + [0]
    assert counts["correlation_over_images"][0, 0] == 2


def test_pairs_are_measured_also_where_only_the_edit_injects_maps():
    method = module()
    batch = batch_of(pictures(2))
    record = method.invert(batch)

    reused = method.edit(batch, record, callbacks=[NoiseCorrelation()])
    fresh = method.edit(batch, callbacks=[NoiseCorrelation()])

    expected = fresh.measurements[0]["NoiseCorrelation"].tensors["pairs"]
    assert torch.equal(reused.measurements[0]["NoiseCorrelation"].tensors["pairs"], expected)


def test_an_image_that_failed_has_no_measurement_and_the_others_keep_theirs(tmp_path):
    images = pictures(3)
    images[1, 0, 0, 0] = math.nan

    run = run_of(tmp_path, module(), [batch_of(images)], [NoiseCorrelation(plots=False)])

    summary = run.summary("NoiseCorrelation")
    assert summary["images"] == 2 and list(summary["left_out"]["first"]) == ["picture-1"]
    assert all(math.isfinite(row["angle_mean_over_images"]) for row in summary["pairs"][:8])


def test_a_method_without_noise_maps_is_refused():
    problems = DDIM(GaussianPictures(), steps=10).check([NoiseCorrelation()])

    assert len(problems) == 1 and problems[0].startswith("NoiseCorrelation needs noise maps")


def test_curves_and_histograms_over_images_go_to_tensorboard(tmp_path):
    events = Events()

    run_of(tmp_path, module(), [batch_of(pictures(2))], [NoiseCorrelation(plots=False)], events)

    assert events.tags("add_scalar") == {"2_noise/correlation", "2_noise/angle"}
    assert events.tags("add_histogram_raw") == {"2_noise/correlation_over_images", "2_noise/angle_over_images"}
