"""The recorded cases that the project carries, and the rules by which they are judged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.case import Case, compare, find_cases
from tests.parity.replays import REPLAYS
from tests.parity.runner import replay, run

DATA = Path(__file__).resolve().parent.parent / "parity_data"
CASES = [case for case in find_cases(DATA / "cases") if case.method in REPLAYS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.name}")
def test_the_project_repeats_what_the_authors_code_did(case: Case) -> None:
    lines = replay(case, DATA / "models")

    assert lines
    assert not [line for line in lines if not line.ok]


def test_every_method_with_a_replay_has_a_case() -> None:
    assert {case.method for case in CASES} == set(REPLAYS)


def test_a_value_outside_its_tolerance_fails_and_names_the_error() -> None:
    verdict = compare(torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]), {"atol": 0.01, "rtol": 0.01})

    assert not verdict.ok
    assert verdict.error == pytest.approx(0.1)
    assert verdict.tolerance == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("got", "want", "ok"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], True),
        ([0.0, 1.0], [math.nan, 1.0], False),
        ([math.nan, 1.0], [0.0, 1.0], False),
        ([math.inf, 1.0], [math.inf, 1.0], True),
        ([math.inf, 1.0], [-math.inf, 1.0], False),
    ],
)
def test_what_is_not_finite_must_meet_its_like(got: list[float], want: list[float], ok: bool) -> None:
    assert compare(torch.tensor(got), torch.tensor(want), {"atol": 1e9, "rtol": 0}).ok is ok


def test_a_share_of_mask_cells_may_differ() -> None:
    got, want = torch.zeros(100), torch.zeros(100)
    got[:3] = 1

    assert compare(got, want, {"atol": 0, "rtol": 0, "mismatch_fraction": 0.03}).ok
    assert not compare(got, want, {"atol": 0, "rtol": 0, "mismatch_fraction": 0.02}).ok


def test_shapes_must_agree() -> None:
    assert not compare(torch.zeros(2, 1), torch.zeros(2), {"atol": 1, "rtol": 1}).ok


def test_nested_values_are_compared_number_by_number() -> None:
    wanted = {"a": {"b": 100.0}, "c": 1.0}

    assert compare({"a": {"b": 100.5}, "c": 1.0}, wanted, {"atol": 0, "rtol": 0.01}).ok
    assert not compare({"a": {"b": 100.0}, "c": 1.5}, wanted, {"atol": 0, "rtol": 0.01}).ok
    assert not compare({"a": {"b": 100.0}}, wanted, {"atol": 0, "rtol": 1}).ok


def _write_case(folder: Path, **changes: Any) -> Path:
    about = {
        "method": "unheard_of", "case": "one", "source": "", "adapted": "", "model": None, "prompts": {},
        "settings": {},
        "conventions": "", "notes": "", "inputs": {}, "expected": {"out.x": {"value": 1.0, "atol": 0, "rtol": 0}},
    }  # fmt: skip
    path = folder / "one.json"
    path.write_text(json.dumps({**about, **changes}))
    return path


def test_a_case_without_a_replay_fails_the_command(tmp_path: Path) -> None:
    _write_case(tmp_path)
    printed: list[str] = []

    assert run(find_cases(tmp_path), DATA / "models", write=printed.append) == 1
    assert "no replay" in printed[0]
    assert printed[-1] == "0 passed, 1 failed"


def test_a_missing_model_fails_the_command(tmp_path: Path) -> None:
    _write_case(tmp_path, method="sdedit", model="tiny-elsewhere")
    printed: list[str] = []

    assert run(find_cases(tmp_path), DATA / "models", write=printed.append) == 1
    assert "tiny-elsewhere" in printed[0]


def test_an_empty_folder_fails_the_command(tmp_path: Path) -> None:
    assert run(find_cases(tmp_path), DATA / "models", write=lambda line: None) == 1


def test_folders_may_be_links_and_rows_may_be_json(tmp_path: Path) -> None:
    (tmp_path / "cases").symlink_to(DATA / "cases" / "sdedit")
    printed: list[str] = []

    assert run(find_cases(tmp_path), DATA / "models", as_json=True, write=printed.append) == 0
    assert set(json.loads(printed[0])) >= {"method", "case", "tensor", "error", "tolerance", "ok"}
