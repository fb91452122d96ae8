from __future__ import annotations

import csv
import io

import pytest

from framework.errors import SettingsError
from framework.evaluation.layout import sheets, to_csv, to_latex
from framework.evaluation.pictures import LPIPS, PixelMetrics
from framework.evaluation.published import COLUMNS, SCALES, published_rows
from framework.evaluation.rows import Collection, MethodRows
from framework.evaluation.similarity import CLIPSimilarity, StructureDistance
from framework.evaluation.table import make_table

PSNR, STRUCTURE = COLUMNS["psnr"], COLUMNS["structure"]


def collection() -> Collection:
    own = MethodRows("own", groups={"a": "", "b": ""}, expected=2)
    own.values = {PSNR: {"a": 20.0, "b": 22.0}, STRUCTURE: {"a": 0.03, "b": 0.05}}
    return Collection([own], {PSNR: {"unit": "dB", "scale": 1.0}, STRUCTURE: {"scale": 1e3}})


def test_the_columns_are_figures_that_the_metrics_give_in_their_scales():
    metrics = (PixelMetrics(), LPIPS(), StructureDistance(), CLIPSimilarity())
    known = {(metric.name, figure.name): figure.scale for metric in metrics for figure in metric.figures}

    assert {key: known[key] for key in COLUMNS.values()} == {key: SCALES.get(key, 1) for key in COLUMNS.values()}


def test_every_row_names_its_source_and_has_plausible_values():
    ranges = {"structure": (5e-3, 0.1), "psnr": (15, 32), "lpips": (0.03, 0.3), "mse": (1e-3, 4e-2), "ssim": (0.7, 0.9)}
    ranges |= {"clip_whole": (22, 28), "clip_edited": (20, 24)}

    for row in published_rows():
        assert row.source and row.model and row.values and row.verified <= set(row.values)
        for name, (low, high) in ranges.items():
            assert low <= row.values.get(COLUMNS[name], low) <= high, (row.method, name)


def test_own_and_published_rows_stand_in_one_sheet_with_sources_and_marks():
    table = make_table(collection(), published=published_rows())

    sheet = next(sheet for sheet in sheets(table) if sheet.title == "Beside published rows")
    rows = {row[0]: list(row[1:]) for row in sheet.rows}

    assert rows["own"] == ["40.00", "21.00", ""]
    assert rows["published: DDIM + P2P (SD 1.4)"] == ["69.43", "17.87", "Direct Inversion, table 1"]
    assert rows["published: edit-friendly DDPM + P2P (SD 1.4)"][:2] == ["18.05?", "24.55"]
    assert "published: DDIM" in to_latex(sheets(table))


def test_csv_holds_them_unscaled_with_source_and_verification():
    lines = list(csv.DictReader(io.StringIO(to_csv(make_table(collection(), published=published_rows())))))

    found = [line for line in lines if line["method"].startswith("published: edit-friendly DDPM")]
    assert [(line["figure"], float(line["mean"]), line["verified"]) for line in found] == [
        ("structure_distance", pytest.approx(0.01805), "no"),
        ("psnr_unedit_part", 24.55, "yes"),
    ]
    assert {line["source"] for line in found} == {"Direct Inversion, appendix"}


def test_without_a_figure_of_the_benchmark_there_is_nothing_to_stand_beside():
    own = MethodRows("own", groups={"a": ""}, values={("Other", "other"): {"a": 1.0}})

    with pytest.raises(SettingsError, match="invedit evaluate"):
        make_table(Collection([own]), published=published_rows())
