from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch

from callbacks.metrics import Metrics, _text
from framework.errors import SettingsError
from framework.evaluation.metric import Figure, Metric
from framework.evaluation.reconstruction import psnr
from methods.edit_friendly import EditFriendlyDDPM
from methods.sdedit import SDEdit
from tests.callbacks.world import Events, GaussianPictures, batch_of, pictures, run_of


def module(**settings):
    return EditFriendlyDDPM(GaussianPictures(), **{"steps": 4, "skip": 0, **settings})


class Brightness(Metric):
    figures = (Figure("mean", "higher"), Figure("inside", "higher"))

    def measure(self, item):
        inside = None if item.mask is None else float((item.edit * item.mask).sum() / item.mask.sum() / 3)
        return {"mean": float(item.edit.mean()), "inside": inside}

    def rows(self, items):
        generated = items[0].codec.generate([i.sample.target for i in items], [i.sample.id for i in items], steps=4)
        return {
            "source copied": [item.source for item in items],
            "plain generation": list(generated),
            "black": [torch.zeros_like(items[0].source), *([None] * (len(items) - 1))],
        }


def test_psnr_of_a_known_error():
    assert psnr(torch.full((3, 4, 4), 0.6), torch.full((3, 4, 4), 0.5)) == pytest.approx(20, abs=1e-5)


def test_psnr_counts_only_where_the_weight_is():
    picture, reference, weight = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)
    picture[:, 0, 0], weight[:, 0] = 0.1, 1

    assert psnr(picture, reference, weight) == pytest.approx(20 + 10 * math.log10(2), abs=1e-5)
    assert psnr(picture, reference, 1 - weight) == math.inf
    assert math.isnan(psnr(picture, reference, weight * 0))


def test_reconstruction_is_measured_against_the_source_and_its_round_trip():
    result = module().edit(batch_of(pictures(2)), callbacks=[Metrics()])

    values = result.measurements[1]["Metrics"].values["rows"]["edit"]["ReconstructionPSNR"]
    assert values["psnr_source"] == pytest.approx(psnr(result.reconstructions[1], result.source[1]))
    assert values["psnr_round_trip"] == pytest.approx(values["psnr_source"], abs=1e-4)


def test_the_round_trip_is_computed_once_for_a_batch_and_only_if_asked_for():
    class Asks(Brightness):
        def measure(self, item):
            return {"mean": float(item.round_trip.mean()), "inside": None}

    asked, unasked = GaussianPictures(), GaussianPictures()

    EditFriendlyDDPM(asked, steps=4, skip=0).edit(batch_of(pictures(3)), callbacks=[Metrics([Asks()], rows=False)])
    EditFriendlyDDPM(unasked, steps=4, skip=0).edit(
        batch_of(pictures(3)), callbacks=[Metrics([Brightness()], rows=False, reconstruction=False)]
    )

    assert asked.decoded == unasked.decoded + 1


def test_identical_pictures_are_counted_apart_and_spoil_no_mean(tmp_path):
    class Exact(Metric):
        figures = (Figure("psnr", "higher", "dB"),)

        def measure(self, item):
            return {"psnr": math.inf if item.index == 0 else 30.0}

    run = run_of(tmp_path, module(), [batch_of(pictures(3))], [Metrics([Exact()])])

    summary = run.summary("Metrics")
    assert summary["rows"]["edit"]["Exact"]["psnr"] == {"mean": 30, "standard_deviation": 0, "n": 2, "samples": 3}
    assert summary["infinite"] == {"edit/Exact/psnr": 1}


def test_values_that_a_metric_cannot_give_are_counted(tmp_path):
    run = run_of(
        tmp_path, SDEdit(GaussianPictures(), steps=4), [batch_of(pictures(2))], [Metrics([Brightness()], rows=False)]
    )

    row = run.summary("Metrics")["rows"]["edit"]
    assert row["ReconstructionPSNR"]["psnr_source"]["n"] == 0
    assert row["ReconstructionPSNR"]["psnr_source"]["mean"] is None
    assert row["Brightness"]["mean"]["n"] == 2


def test_a_sample_without_a_mask_has_none_though_its_batch_has_masks():
    batch = batch_of(pictures(2), masks=torch.ones(2, 1, 16, 16))
    batch = replace(batch, samples=(replace(batch.samples[0], mask=batch.samples[0].image), batch.samples[1]))

    result = module().edit(batch, callbacks=[Metrics([Brightness()], rows=False)])

    inside = [m["Metrics"].values["rows"]["edit"]["Brightness"]["inside"] for m in result.measurements]
    assert inside[0] == pytest.approx(float(result.edits[0][0].mean())) and inside[1] is None


def test_draws_of_an_image_are_averaged_and_kept():
    result = module(draws=3).edit(batch_of(pictures(1)), callbacks=[Metrics([Brightness()], rows=False)])

    values = result.measurements[0]["Metrics"].values
    each = [float(edit.mean()) for edit in result.edits[0]]
    assert values["draws"]["Brightness"]["mean"] == each
    assert values["rows"]["edit"]["Brightness"]["mean"] == pytest.approx(sum(each) / 3)


def test_fixed_rows_stand_in_the_table_with_paired_differences(tmp_path):
    events = Events()
    batches = [batch_of(pictures(2, seed=s), [f"{s}-b", f"{s}-a"]) for s in range(3)]

    run = run_of(tmp_path, module(), batches, [Metrics([Brightness()])], events)

    summary = run.summary("Metrics")
    assert set(summary["rows"]) == {"edit", "source copied", "plain generation", "black"}
    assert summary["rows"]["black"]["Brightness"]["mean"]["samples"] == 3
    difference = summary["edit_minus_row"]["source copied"]["Brightness"]["mean"]
    means = [summary["rows"][row]["Brightness"]["mean"]["mean"] for row in ("edit", "source copied")]
    assert difference["n"] == 6 and difference["mean"] == pytest.approx(means[0] - means[1])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    lines = list(csv.DictReader((run.directory / "statistics" / "Metrics.csv").open()))
    assert [line["id"] for line in lines if line["row"] == "edit"] == sorted(f"{s}-{k}" for s in range(3) for k in "ab")
    assert events.tags("add_text") == {"4_edits/metrics"}


def test_folding_does_not_depend_on_the_order_in_which_samples_were_finished(tmp_path):
    batches = [batch_of(pictures(2, seed=s), [f"{s}-a", f"{s}-b"]) for s in range(3)]

    one = run_of(tmp_path / "one", module(), batches, [Metrics([Brightness()])])
    other = run_of(tmp_path / "other", module(), batches[::-1], [Metrics([Brightness()])])

    assert one.files() == other.files()


def test_a_failed_sample_is_not_measured(tmp_path):
    images = pictures(3)
    images[1, 0, 0, 0] = math.nan

    run = run_of(tmp_path, module(), [batch_of(images)], [Metrics([Brightness()], rows=False)])

    assert run.summary("Metrics")["rows"]["edit"]["Brightness"]["mean"]["samples"] == 2


def test_plain_generation_from_a_gaussian_has_its_mean_and_depends_on_the_id_alone():
    codec_of = []

    class Keeps(Brightness):
        def measure(self, item):
            codec_of.append(item.codec)
            return {"mean": None, "inside": None}

    EditFriendlyDDPM(GaussianPictures(mean=0.2), steps=4, skip=0).edit(
        batch_of(pictures(1, side=64)), callbacks=[Metrics([Keeps()], rows=False)]
    )
    codec = codec_of[0]

    both = codec.generate(["x", "y"], ["a", "b"], steps=50, guidance=1.0)
    alone = codec.generate(["y"], ["b"], steps=50, guidance=3.0)

    torch.testing.assert_close(both[1], alone[0])
    # Pictures are N(0.2, 1) in [-1, 1] units, cut off at both ends: the mean of a clipped normal, by its closed form.
    phi = lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    cdf = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))  # noqa: E731
    low, high = -1.2, 0.8
    clipped = -cdf(low) + (1 - cdf(high)) + 0.2 * (cdf(high) - cdf(low)) + phi(low) - phi(high)
    assert float(both.mean() * 2 - 1) == pytest.approx(clipped, abs=0.02)


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(SettingsError, match="two metrics are named Brightness"):
        Metrics([Brightness(), Brightness()])


@pytest.mark.parametrize("value", ["=1+1", "+cmd", "-x", "@y"])
def test_no_cell_of_the_table_is_a_formula(value: str) -> None:
    assert _text(value) == f"'{value}"
    assert _text("plain") == "plain"
