from __future__ import annotations

import math

import pytest

from callbacks.noise_structure import NoiseStructure
from framework.errors import SettingsError
from framework.statistics.structure import StructureFold
from methods.cycle_diffusion import CycleDiffusion
from methods.ddim import DDIM
from methods.edit_friendly import EditFriendlyDDPM
from tests.callbacks.world import Events, GaussianPictures, batch_of, pictures, run_of


def module(**settings):
    return EditFriendlyDDPM(GaussianPictures(), **{"steps": 10, "skip": 0, **settings})


def test_maps_of_white_pictures_are_white_in_space(tmp_path):
    method = CycleDiffusion(GaussianPictures(), steps=10, strength=1.0, eta=1.0)

    run = run_of(tmp_path, method, [batch_of(pictures(8))], [NoiseStructure(plots=False)])

    rows = [row for row in run.summary("NoiseStructure")["steps"] if "reason" not in row]
    assert len(rows) == 10
    for row in rows:
        # 24 maps of 256 pixels: a correlation has a standard error of about 1 / sqrt(6144).
        assert abs(row["autocorrelation_horizontal_1"]) < 5 / math.sqrt(6144)
        assert abs(row["circular_vertical_2"]) < 5 / math.sqrt(6144)
        assert row["flatness"] > 0.9 and row["channels_mean_abs"] < 0.1


def test_the_imprint_on_edit_friendly_maps_is_the_closed_form(tmp_path):
    images = pictures(8)

    friendly = run_of(tmp_path / "a", module(zero_last=False), [batch_of(images)], [NoiseStructure(plots=False)])
    rows = friendly.summary("NoiseStructure")["steps"]

    # The image enters a map as alpha_next (1 - r) z0 / std.
    abar = module().edit_schedule.alpha.square()
    r = abar[:-1] / abar[1:]
    own = abar[1:] * (1 - r).square()
    expected = (own / (own + (1 - abar[1:]) + r * (1 - abar[:-1]))).sqrt()
    for row, correlation in zip(rows, expected.tolist(), strict=True):
        assert row["imprint_mean_over_images"] == pytest.approx(correlation, abs=5 / math.sqrt(6144))
    assert expected.max() > 0.15  # well above what the tolerance would let pass as nothing


@pytest.mark.parametrize("of", ["auto", "noise_maps", "predictions", "latents"])
def test_every_kind_of_map_is_measured(tmp_path, of):
    run = run_of(tmp_path, module(), [batch_of(pictures(2))], [NoiseStructure(of=of, plots=False)])

    name = "NoiseStructure" if of == "auto" else f"NoiseStructure-{of}"
    assert run.summary(name)["images"] == 2
    assert sum("reason" not in row for row in run.summary(name)["steps"]) >= 9


def test_a_method_without_maps_is_measured_by_its_predictions(tmp_path):
    run = run_of(tmp_path, DDIM(GaussianPictures(), steps=10), [batch_of(pictures(2))], [NoiseStructure(plots=False)])

    assert run.summary("NoiseStructure")["of"] == "predicted noise of the inversion"


def test_the_zeroed_map_has_a_reason_and_spoils_no_other(tmp_path):
    run = run_of(tmp_path, module(skip=3), [batch_of(pictures(2))], [NoiseStructure(plots=False)])

    steps = run.summary("NoiseStructure")["steps"]
    assert steps[9]["reason"] == "the method sets this map to zero" and "flatness" not in steps[9]
    assert steps[0]["reason"] == "not used by the edit (skipped)"
    assert all(math.isfinite(steps[k]["flatness"]) for k in range(3, 9))


def test_an_image_that_failed_leaves_no_trace(tmp_path):
    images = pictures(3)
    images[1, 0, 0, 0] = math.nan

    broken = run_of(tmp_path / "a", module(), [batch_of(images)], [NoiseStructure(plots=False)])

    summary = broken.summary("NoiseStructure")
    assert summary["images"] == 2 and list(summary["left_out"]["first"]) == ["picture-1"]
    assert all(math.isfinite(row["flatness"]) for row in summary["steps"][:9])


def test_folding_does_not_depend_on_the_order_in_which_samples_were_finished(tmp_path):
    first = [batch_of(pictures(2, seed=s), [f"{s}-a", f"{s}-b"]) for s in range(3)]

    one = run_of(tmp_path / "one", module(), first, [NoiseStructure()])
    other = run_of(tmp_path / "other", module(), [first[2], first[0], first[1]], [NoiseStructure()])

    assert one.files() == other.files()
    assert set(one.files()) == {
        "NoiseStructure.json",
        "NoiseStructure.safetensors",
        "NoiseStructure-spectrum.png",
        "NoiseStructure-imprint.png",
        "NoiseStructure-channels.png",
    }


def test_draws_of_an_image_are_folded_into_its_measurement():
    result = module(draws=3).edit(batch_of(pictures(1)), callbacks=[NoiseStructure()])

    folded = StructureFold()
    tensors = result.measurements[0]["NoiseStructure"].tensors
    folded.add({name: value for name, value in tensors.items() if name != "t"})
    assert folded.states["spectrum"].n[:9].tolist() == [9.0] * 9
    maps = result.record.noise_maps[4].double()
    assert folded.singles["kl"].mean[4] == pytest.approx(
        float(
            (maps.flatten(1).var(1) + maps.flatten(1).mean(1) ** 2 - 1 - (maps.flatten(1).var(1) + 1e-7).log()).mean()
        )
    )


def test_curves_go_to_tensorboard(tmp_path):
    events = Events()

    run_of(tmp_path, module(), [batch_of(pictures(2))], [NoiseStructure(plots=False)], events)

    assert events.tags("add_scalar") == {
        "2_noise/flatness", "2_noise/imprint", "2_noise/autocorrelation_horizontal_1", "2_noise/channels_mean_abs",
    }  # fmt: skip


def test_lags_and_patches_out_of_range_are_refused():
    with pytest.raises(SettingsError, match=r"max_lag=-1.*\n.*patch=17"):
        NoiseStructure(max_lag=-1, patch=17)
