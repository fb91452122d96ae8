from __future__ import annotations

import math

import pytest

from callbacks.source_drift import SourceDrift
from framework.guidance import ClassifierFree
from methods.ddim import DDIM
from methods.direct_inversion import DirectDDIM
from tests.callbacks.world import GaussianPictures, batch_of, pictures, run_of


def drift_of(method, count=2, **settings):
    result = method(GaussianPictures(), steps=8, **settings).edit(batch_of(pictures(count)), callbacks=[SourceDrift()])
    return result, [measured["SourceDrift"].values for measured in result.measurements]


def test_the_final_drift_is_the_error_of_the_reconstructed_latent():
    result, values = drift_of(DDIM)

    for image, found in enumerate(values):
        error = (result.latents.source[image] - result.record.latents[-1, image]).square().mean().sqrt().item()
        assert found["final"] == found["by_step"][-1] == pytest.approx(error, rel=1e-12)
        assert error > 1e-4 and len(found["by_step"]) == 8


def test_tables_find_the_error_and_its_decibels():
    _, (found, _) = drift_of(DDIM)

    figures = found["rows"]["edit"]["SourceDrift"]
    assert figures == {"rmse": found["final"], "rmse_db": -20 * math.log10(found["final"])}


def test_a_run_says_what_its_figures_are_and_how_far_sources_drifted(tmp_path):
    method = DDIM(GaussianPictures(), steps=8)

    run = run_of(tmp_path, method, [batch_of(pictures(3))], [SourceDrift()])

    summary = run.summary("SourceDrift")
    finals = [sample.meta["measurements"]["SourceDrift"]["final"] for sample in run.samples()]
    assert summary["by_step"][-1] == pytest.approx(sum(finals) / 3)
    assert summary["figures"]["SourceDrift"]["rmse_db"] == {"better": "higher", "unit": "dB", "scale": 1.0}


def test_a_source_that_comes_back_exactly_is_counted_as_infinitely_good():
    _, (found, _) = drift_of(DirectDDIM, guidance=ClassifierFree(target=1.0, source=1.0))

    assert found["final"] == 0
    assert found["rows"]["edit"]["SourceDrift"]["rmse_db"] is None
    assert found["infinite"] == ["edit/SourceDrift/rmse_db"]
