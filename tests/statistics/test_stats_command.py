from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from framework.cli import main
from framework.run.folders import find_runs
from framework.statistics.comparison import comparable
from framework.statistics.saved import SavedStatistics, measure_run
from tests.statistics.saved_runs import record, saved_run


def stats(*arguments: Path | str) -> int:
    return main(["stats", "--no-plots", *map(str, arguments)])


def groups(root: Path) -> list[list[SavedStatistics]]:
    """Runs below a folder, those of one axis together."""
    return comparable([measure_run(run) for run in find_runs([root])])


def summary(folder: Path) -> list[dict]:
    return json.loads((folder / "stats.json").read_text())["runs"]


def test_figures_are_those_of_all_maps_together(tmp_path):
    records = {f"image-{k}": record(k) for k in range(4)}
    saved_run(tmp_path / "run", records)

    assert stats(tmp_path / "run", "--output", tmp_path / "out") == 0

    maps = np.stack([one.noise_maps[:, 0].double().numpy() for one in records.values()])  # [N, T, C, H, W]
    (found,) = summary(tmp_path / "out")
    assert found["images"] == 4 and found["of"] == "noise maps"
    for step, row in enumerate(found["steps"]):
        values = maps[:, step].ravel()
        assert row["variance"] == pytest.approx(values.var(), rel=1e-12)
        assert row["variance_mean_over_images"] == pytest.approx(maps[:, step].reshape(4, -1).var(1).mean(), rel=1e-12)
        left = np.concatenate([maps[:, step, :, :, :-1].ravel()[None], maps[:, step, :, :, 1:].ravel()[None]])
        assert row["autocorrelation_horizontal_1"] == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-12)
    for row in found["pairs"]:
        a, b = (maps[:, row[name]].ravel() for name in ("step", "next"))
        assert row["correlation_pooled"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)


def test_tables_are_readable_and_say_whose_rows_they_hold(tmp_path):
    saved_run(tmp_path / "root" / "a", {"x": record(0), "y": record(1)})
    saved_run(tmp_path / "root" / "b", {"x": record(2)})

    assert stats(tmp_path / "root") == 0

    table = pyarrow.parquet.read_table(tmp_path / "root" / "statistics" / "stats-steps.parquet").to_pylist()
    assert [(row["run"], row["step"]) for row in table] == [(name, k) for name in "ab" for k in range(6)]
    assert all(math.isfinite(row["variance"]) for row in table)
    pairs = pyarrow.parquet.read_table(tmp_path / "root" / "statistics" / "stats-pairs.parquet").to_pylist()
    assert len(pairs) == 10


def test_one_command_twice_writes_the_same_bytes(tmp_path):
    saved_run(tmp_path / "run", {f"image-{k}": record(k, steps=4) for k in range(3)})

    for name in ("one", "two"):
        assert main(["stats", str(tmp_path / "run"), "--output", str(tmp_path / name)]) == 0

    one, two = ({p.name: p.read_bytes() for p in sorted((tmp_path / n).iterdir())} for n in ("one", "two"))
    assert one == two
    assert {"variance.png", "correlation.png", "angles.png", "spectrum.png", "run-matrix.png"} <= set(one)


def test_a_truncated_file_is_named_and_skipped(tmp_path, capsys):
    saved_run(tmp_path / "run", {"whole": record(0), "torn": record(1), "gone": record(2)})
    torn = tmp_path / "run" / "samples" / "torn" / "inversion.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    (tmp_path / "run" / "samples" / "gone" / "inversion.json").unlink()

    assert stats(tmp_path / "run") == 1

    (found,) = summary(tmp_path / "run" / "statistics")
    assert found["images"] == 1 and set(found["skipped"]) == {"torn", "gone"}
    assert "skipped: torn: files are missing or are not what was committed" in capsys.readouterr().out


def test_a_map_that_is_not_finite_is_counted_and_listed_and_spoils_no_other(tmp_path, capsys):
    broken = record(1)
    broken.noise_maps[2, 0, 0, 0, 0] = math.nan
    saved_run(tmp_path / "run", {"good": record(0), "bad": broken})

    assert stats(tmp_path / "run") == 1

    (found,) = summary(tmp_path / "run" / "statistics")
    assert found["not_finite"] == {"bad": "steps 2"}
    assert [row["images"] for row in found["steps"]] == [2, 2, 1, 2, 2, 2]
    assert [row["images"] for row in found["pairs"]] == [2, 1, 1, 2, 2]
    assert all(math.isfinite(row["variance"]) and math.isfinite(row["flatness"]) for row in found["steps"])
    assert "not finite: bad: steps 2" in capsys.readouterr().out


def test_constant_and_zeroed_maps_are_null_with_a_reason(tmp_path):
    constant = record(0, zeroed=(5,))
    constant.noise_maps[1] = 0.3
    constant.noise_maps[5] = 0.0
    saved_run(tmp_path / "run", {"x": constant})

    stats(tmp_path / "run")

    (found,) = summary(tmp_path / "run" / "statistics")
    rows = found["steps"]
    assert rows[1]["skewness"] is None and rows[1]["kl_gaussian"] is None and "constant" in rows[1]["reason"]
    assert rows[5]["reason"] == "the method sets this map to zero" and "variance" not in rows[5]
    assert found["pairs"][4]["correlation_pooled"] is None and "step 5" in found["pairs"][4]["reason"]
    assert found["pairs"][0]["correlation_pooled"] is None
    assert math.isfinite(rows[0]["variance"]) and math.isfinite(found["pairs"][2]["correlation_pooled"])
    assert math.isfinite(found["mean_over_images_and_steps"]["correlation"])


def test_samples_on_other_steps_are_left_out_with_the_reason(tmp_path):
    saved_run(tmp_path / "run", {"a": record(0), "b": record(1, steps=4), "c": record(2)})

    stats(tmp_path / "run")

    (found,) = summary(tmp_path / "run" / "statistics")
    assert found["images"] == 2 and "other steps than a" in found["skipped"]["b"]


@pytest.mark.parametrize("other", ["steps", "model", "shape"])
def test_runs_that_differ_are_not_put_on_one_axis(tmp_path, capsys, other):
    saved_run(tmp_path / "root" / "a", {"x": record(0)})
    different = (
        record(1, steps=4) if other == "steps" else record(1, shape=(2, 4, 4)) if other == "shape" else record(1)
    )
    saved_run(tmp_path / "root" / "b", {"x": different}, model="two" if other == "model" else "one")

    assert stats(tmp_path / "root") == 0

    assert "not on one axis" in capsys.readouterr().out
    assert [[one.name for one in group] for group in groups(tmp_path / "root")] == [["a"], ["b"]]


def test_runs_that_differ_get_figures_of_their_own(tmp_path):
    for name, steps in (("a", 3), ("b", 2)):
        saved_run(tmp_path / "root" / name, {"x": record(0, steps=steps, shape=(1, 8, 8))})

    assert main(["stats", str(tmp_path / "root")]) == 0

    drawn = {path.name for path in (tmp_path / "root" / "statistics").iterdir()}
    assert {"variance.png", "variance-2.png", "a-histograms.png", "b-histograms.png"} <= drawn


def test_runs_that_agree_share_an_axis(tmp_path, capsys):
    saved_run(tmp_path / "root" / "a", {"x": record(0)})
    saved_run(tmp_path / "root" / "b", {"x": record(1, scale=2.0)})

    assert stats(tmp_path / "root") == 0

    assert "not on one axis" not in capsys.readouterr().out
    assert [[one.name for one in group] for group in groups(tmp_path / "root")] == [["a", "b"]]


@pytest.mark.parametrize(
    ("of", "what", "count"),
    [
        ("latents", "latents of the inversion", 7),
        ("residuals", "residuals", 6),
        ("predictions", "predicted noise of the", 6),
    ],
)
def test_whatever_a_method_keeps_can_be_measured(tmp_path, of, what, count):
    generator = torch.Generator().manual_seed(3)
    more = {name: torch.randn(6, 1, 2, 8, 8, generator=generator) for name in ("residuals", "predictions")}
    saved_run(tmp_path / "run", {"x": record(0, **more)})

    assert stats(tmp_path / "run", "--of", of) == 0

    (found,) = summary(tmp_path / "run" / "statistics")
    assert found["of"].startswith(what) and len(found["steps"]) == count


def test_a_run_without_saved_inversions_is_refused_with_what_to_do(tmp_path, capsys):
    saved_run(tmp_path / "run", {"x": record(0)}, inversion=False)

    assert stats(tmp_path / "run") == 2
    assert "output.save.inversion=true" in capsys.readouterr().err


def test_a_record_without_what_is_asked_for_is_refused_with_what_it_holds(tmp_path, capsys):
    saved_run(tmp_path / "run", {"x": record(0)})

    assert stats(tmp_path / "run", "--of", "residuals") == 2
    assert "holds no residuals; it holds noise_maps, latents" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert stats(tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err
