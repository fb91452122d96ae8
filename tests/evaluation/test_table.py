from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.cli import main
from framework.errors import SettingsError
from framework.evaluation.layout import sheets, to_csv, to_latex, to_markdown
from framework.evaluation.paired import bootstrap_interval, paired_difference
from framework.evaluation.rows import Collection, MethodRows, collect
from framework.evaluation.table import ALL, make_table
from framework.run.files import json_document
from framework.run.identity import Identity
from framework.run.journal import Journal
from framework.run.store import LockedSample, RunStore

PSNR = ("Fidelity", "psnr")


def method(name: str, values: list[float | None], groups: str | None = None, **more: Any) -> MethodRows:
    ids = [f"{number:03d}" for number in range(len(values))]
    kinds = groups or "a" * len(values)
    return MethodRows(
        name,
        groups=dict(zip(ids, kinds, strict=True)),
        values={PSNR: dict(zip(ids, values, strict=True))},
        expected=len(values),
        **more,
    )


def collection(*methods: MethodRows, **about: Any) -> Collection:
    return Collection(list(methods), {PSNR: {"better": "higher", "unit": "dB", "scale": 1.0, **about}})


def lines(table: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def test_values_that_are_no_numbers_are_counted_apart_and_spoil_no_mean():
    table = make_table(collection(method("one", [1.0, 3.0, None, math.nan, math.inf])))

    found = table.summaries[ALL]["one"][PSNR]
    assert (found.mean, found.n, found.missing, found.nan, found.infinite) == (2.0, 2, 1, 1, 1)
    assert found.deviation == pytest.approx(math.sqrt(2))
    assert 1.0 <= found.low <= 2.0 <= found.high <= 3.0
    left = next(sheet for sheet in sheets(table) if sheet.title == "Left out of the means")
    assert list(left.rows) == [["one", "Fidelity.psnr", "", "", "1", "1", "1"]]


def test_failed_and_unfinished_samples_are_counted():
    broken = method("one", [1.0, 2.0], failed=3)
    broken.expected = 9

    left = next(s for s in sheets(make_table(collection(broken))) if s.title == "Left out of the means")

    assert list(left.rows) == [["one", "all", "3", "4", "", "", ""]]


def test_groups_have_their_own_means():
    table = make_table(collection(method("one", [1.0, 2.0, 6.0], "aab")))

    means = {group: found["one"][PSNR].mean for group, found in table.summaries.items()}
    assert means == {ALL: 3.0, "a": 1.5, "b": 6.0}
    assert "| one | 3.00 | 1.50 | 6.00 |" in to_markdown(table, sheets(table))


def test_methods_are_compared_on_the_images_that_both_have():
    first, second = method("one", [1.0, 2.0, 3.0, 4.0]), method("two", [1.5, 2.5, 3.5])

    table = make_table(collection(first, second), against="one")

    assert table.paired["two"][PSNR] == pytest.approx((0.5, 0.5, 0.5, 3))
    assert set(table.paired) == {"two"}


def test_a_pair_with_a_value_that_is_not_finite_is_left_out():
    paired = paired_difference([1.0, math.inf, math.nan], [0.0, 0.0, 0.0])

    assert paired == pytest.approx((1.0, 1.0, 1.0, 1))


def test_the_interval_of_many_normal_values_has_the_width_that_theory_gives():
    values = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    low, high = bootstrap_interval(values, resamples=1000)

    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(4000), rel=0.1)
    assert low < float(values.mean()) < high


def test_pairing_sees_a_difference_that_hides_in_the_spread_of_images():
    spread = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 10
    first, second = method("one", spread.tolist()), method("two", (spread + 0.1).tolist())

    table = make_table(collection(first, second), against="one")

    one, two = (table.summaries[ALL][name][PSNR] for name in ("one", "two"))
    assert one.low < two.mean < one.high
    assert table.paired["two"][PSNR].low > 0
    assert "+0.10*" in to_markdown(table, sheets(table))


def test_tables_show_scaled_figures_and_csv_holds_them_as_measured():
    table = make_table(collection(method("one", [0.01, 0.03]), unit="", scale=1000.0, better="lower"))

    text = to_markdown(table, sheets(table))

    assert "psnr x 1000 ↓" in text and "20.00 ± 14.14" in text
    assert float(lines(table)[0]["mean"]) == pytest.approx(0.02)


def test_latex_escapes_what_it_would_take_for_commands():
    text = to_latex(sheets(make_table(collection(method("p2p_50%", [1.0])))))

    assert r"p2p\_50\%" in text and r"$\uparrow$" in text and text.count(r"\toprule") == 1


def test_a_method_that_looks_like_a_formula_is_text_in_csv():
    assert lines(make_table(collection(method("=1+1", [1.0]))))[0]["method"] == "'=1+1"


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"against": "tow"}, "did you mean"), ({"figures": ["pnsr"]}, "pnsr"), ({"methods": ["x*"]}, "x*")],
)
def test_what_is_not_there_is_named(settings, word):
    with pytest.raises(SettingsError, match=word.replace("*", r"\*")):
        make_table(collection(method("one", [1.0]), method("two", [1.0])), **settings)


@dataclass
class Committed:
    """A run folder with samples committed by hand."""

    directory: Path
    ids: tuple[str, ...] = ("b", "a", "c")

    def write(self, values: dict[str, dict[str, Any]], ranks: int = 1) -> None:
        store = RunStore(self.directory)
        samples = {name: LockedSample(name, name, "content", f"key {name}") for name in self.ids}
        store.prepare(Identity({}, None, {}), samples.values(), "")
        for number, (name, figures) in enumerate(values.items()):
            rows = {"edit": {"Fidelity": figures}, "source copied": {"Fidelity": {"psnr": 40.0}}}
            named = {
                kind: [f"edit/Fidelity/{k}" for k in figures if k.startswith(kind)] for kind in ("infinite", "nan")
            }
            meta = {"id": name, "edit_type": "6", "measurements": {"Metrics": {"rows": rows, **named}}}
            timings = {"batch_images": 2, "rows": 80, "inversion_rows": 20, "backward_rows": 0, "calls": 40}
            timings |= {"batch_seconds": 2.0 if number else 60.0, "warm_up": float(number == 0), "peak_resident_gib": 1}
            store.journal = Journal(store.records, number % ranks)
            store.commit(samples[name], {"meta.json": json_document(meta)}, {"timings": timings, "time": number})
        statistics = self.directory / "statistics"
        statistics.mkdir(exist_ok=True)
        about = {"figures": {"Fidelity": {"psnr": {"better": "higher", "unit": "dB", "scale": 1}}}}
        (statistics / "Metrics.json").write_bytes(json_document(about))


def test_committed_rows_are_read_with_their_costs(tmp_path):
    Committed(tmp_path / "one").write({"b": {"psnr": 1.0, "infinite": None}, "a": {"psnr": 3.0, "nan": None}})

    found = collect([tmp_path])
    table = make_table(found)

    assert [m.name for m in table.methods] == ["one", "source copied"]
    assert list(table.methods[0].groups) == ["a", "b"] and table.methods[0].expected == 3
    assert table.summaries[ALL]["one"][PSNR].mean == 2.0
    assert table.summaries[ALL]["one"]["Fidelity", "infinite"].infinite == 1
    assert table.summaries[ALL]["one"]["Fidelity", "nan"].nan == 1
    assert table.summaries[ALL]["source copied"][PSNR].mean == 40.0
    cost = table.costs["one"]
    assert (cost.rows, cost.inversion_rows, cost.calls, cost.seconds, cost.timed) == (40, 10, 40, 1.0, 1)


def test_rows_do_not_depend_on_the_processes_that_wrote_them(tmp_path):
    values = {name: {"psnr": float(ord(name))} for name in "cab"}
    Committed(tmp_path / "one" / "run").write(values)
    Committed(tmp_path / "two" / "run").write(dict(reversed(values.items())), ranks=2)

    texts = []
    for root in ("one", "two"):
        table = make_table(collect([tmp_path / root]))
        table.costs = {}
        texts.append(to_csv(table) + to_markdown(table, sheets(table)))

    assert texts[0] == texts[1]


def test_a_sample_whose_files_were_changed_does_not_count(tmp_path):
    Committed(tmp_path / "one").write({"a": {"psnr": 1.0}, "b": {"psnr": 2.0}})
    (tmp_path / "one" / "samples" / "b" / "meta.json").write_text("{}")

    assert list(collect([tmp_path]).methods[0].groups) == ["a"]


def test_the_command_writes_three_files_and_a_figure(tmp_path, capsys):
    for name, shift in (("one", 0.0), ("two", 1.0)):
        Committed(tmp_path / name).write({k: {"psnr": ord(k) + shift, "other": 1.0} for k in "abc"})

    code = main(["table", str(tmp_path), "--against", "one", "--figure", str(tmp_path / "figure.png")])

    assert code == 0
    shown = capsys.readouterr().out
    assert "Paired difference to one" in shown and "+1.00*" in shown
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        *("table.md", "table.csv", "table.tex", "figure.png")
    }


@pytest.mark.parametrize("given", ["mine", "mine.md", "mine.tex", "mine.v2"])
def test_the_name_of_the_tables_may_be_given_with_a_suffix(tmp_path, given):
    Committed(tmp_path / "one").write({"a": {"psnr": 1.0}})

    assert main(["table", str(tmp_path / "one"), "--output", str(tmp_path / given)]) == 0

    name = "mine.v2" if given == "mine.v2" else "mine"
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {name + e for e in (".md", ".csv", ".tex")}


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    Committed(tmp_path / "one").write({"a": {"psnr": 1.0}})

    assert main(["table", str(tmp_path), "--against", "tow"]) == 2
    assert "there is no such method" in capsys.readouterr().err
    assert main(["table", str(tmp_path / "nothing")]) == 2
    assert main(["table", str(tmp_path), "--resamples", "0"]) == 2


def test_a_figure_that_is_infinite_for_all_images_says_so():
    laid = sheets(make_table(collection(method("pinned", [math.inf, math.inf]), method("none", [None, None]))))

    assert [list(row) for row in laid[0].rows] == [["pinned", "infinite (all 2)"], ["none", "(n 0)"]]
