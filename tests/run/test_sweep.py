"""One experiment file, several variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.errors import SettingsError
from framework.run.config import Config, load_config
from framework.run.sweep import build_all, expand

PARTS = "tests.run.config_parts"
METHOD = f"{{_target_: {PARTS}.Method, steps: 20}}"
REST = f"""
backbone: {{_target_: {PARTS}.ZeroNetwork}}
data: {{_target_: {PARTS}.Listed, root: .}}
"""


def experiment(folder: Path, sweep: str, *overrides: str, method: str | None = METHOD) -> Config:
    file = folder / "trial.yaml"
    file.write_text(REST + (f"method: {method}\n" if method else "") + (f"sweep: {sweep}\n" if sweep else ""))
    return load_config(file, overrides)


def problems_of(config: Config) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        build_all(config)
    return list(caught.value.problems)


@pytest.mark.parametrize("sweep", ["", "{}", "null"])
def test_an_experiment_without_a_sweep_is_its_own_only_variant(tmp_path: Path, sweep: str) -> None:
    ((name, built),) = build_all(experiment(tmp_path, sweep))

    assert name == "" and built.name == "trial"


def test_axes_are_combined_with_the_last_one_fastest(tmp_path: Path) -> None:
    built = build_all(experiment(tmp_path, "{method.skip: [12, 18], seed: [0, 1]}"))

    assert [name for name, _ in built] == ["skip=12,seed=0", "skip=12,seed=1", "skip=18,seed=0", "skip=18,seed=1"]
    assert [(e.module.inversion.skip, e.seed) for _, e in built] == [(12, 0), (12, 1), (18, 0), (18, 1)]


def test_named_values_replace_a_part_whole(tmp_path: Path) -> None:
    sweep = f"{{method: {{short: {{_target_: {PARTS}.Method, steps: 5}}, other: {{_target_: {PARTS}.OtherMethod}}}}}}"

    built = build_all(experiment(tmp_path, sweep, method=METHOD.replace("20", "20, draws: 3")))

    assert [(name, type(e.module).__name__, e.module.steps, e.module.draws) for name, e in built] == [
        ("short", "Method", 5, 1),
        ("other", "OtherMethod", 10, 1),
    ]


def test_a_part_may_be_given_by_the_sweep_alone(tmp_path: Path) -> None:
    built = build_all(experiment(tmp_path, f"{{method: {{only: {METHOD}}}}}", method=None))

    assert [name for name, _ in built] == ["only"]


def test_a_setting_is_swept_after_the_part_that_holds_it(tmp_path: Path) -> None:
    sweep = f"{{method.skip: [1, 2], method: {{short: {METHOD}}}}}"

    built = build_all(experiment(tmp_path, sweep))

    assert [(name, e.module.inversion.skip) for name, e in built] == [("skip=1,short", 1), ("skip=2,short", 2)]


def test_named_scalars_and_values_that_are_no_names_are_made_safe(tmp_path: Path) -> None:
    names = [
        v.name for v in expand(experiment(tmp_path, "{method.skip: {low: 1, high: 2}, data.root: [a/b, '../c d']}"))
    ]

    assert names == ["low,root=a-b", "low,root=-c-d", "high,root=a-b", "high,root=-c-d"]


def test_axes_that_end_alike_keep_their_whole_place(tmp_path: Path) -> None:
    names = [v.name for v in expand(experiment(tmp_path, "{method.steps: [1], data.steps: [2]}"))]

    assert names == ["method.steps=1,data.steps=2"]


def test_a_sweep_is_changed_from_the_command_line(tmp_path: Path) -> None:
    config = experiment(tmp_path, "{seed: [0, 1]}", "sweep.method.skip=[1, 2]", "sweep.seed=[7]")
    none = experiment(tmp_path, "{seed: [0, 1]}", "sweep=null")

    assert [variant.name for variant in expand(config)] == ["seed=7,skip=1", "seed=7,skip=2"]
    assert [variant.name for variant in expand(none)] == [""]


def test_overrides_inside_a_swept_part_hold_for_every_variant(tmp_path: Path) -> None:
    sweep = f"{{method: {{a: {METHOD}, b: {{_target_: {PARTS}.Method, steps: 9}}}}}}"

    every = build_all(experiment(tmp_path, sweep, "method.draws=2", "method.steps=5", method=None))
    one = build_all(experiment(tmp_path, sweep, "sweep.method.a.steps=7", method=None))

    assert [(e.module.steps, e.module.draws) for _, e in every] == [(5, 2), (5, 2)]
    assert [e.module.steps for _, e in one] == [7, 9]


def test_an_override_of_a_swept_place_itself_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(experiment(tmp_path, "{method.skip: [1, 2]}", "method.skip=3"))

    assert problem == "command line: method.skip is swept over; change sweep.method.skip, or give sweep=null."


def test_interpolations_see_the_values_of_their_variant(tmp_path: Path) -> None:
    built = build_all(experiment(tmp_path, "{seed: [3, 4]}", "method.skip=${seed}"))

    assert [e.module.inversion.skip for _, e in built] == [3, 4]


def test_variants_share_backbone_and_data(tmp_path: Path) -> None:
    (_, first), (_, second) = build_all(experiment(tmp_path, "{seed: [0, 1]}"))

    assert first.module.backbone is second.module.backbone and first.source is second.source


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("[1]", "is not a mapping"),
        ("{method.skip: 3}", "has no values"),
        ("{method.skip: []}", "has no values"),
        ("{method.skip: {}}", "has no values"),
        (f"{{method: {METHOD}}}", "has no values"),
        ("{methd.skip: [1]}", "did you mean 'method'?"),
        ("{output.dir: [a, b]}", "is the same for all variants"),
        ("{base: [a, b]}", "is the same for all variants"),
        ("{method.skip: [1, 1]}", "'skip=1' is already taken"),
        ("{data.root: [A, a]}", "is already taken"),
        (f"{{method: [{METHOD}]}}", "no readable name"),
        ("{seed: {../up: 1}}", "no name for a folder"),
        ("{seed: {samples: 1}}", "already taken"),
        (f"{{data.root: [{'x' * 120}]}}", "too long"),
    ],
)
def test_sweeps_that_cannot_be_expanded_are_refused(tmp_path: Path, sweep: str, words: str) -> None:
    problems = problems_of(experiment(tmp_path, sweep))

    assert len(problems) == 1 and words in problems[0]


def test_too_many_variants_are_refused_before_they_are_made(tmp_path: Path) -> None:
    values = list(range(200))

    with pytest.raises(SettingsError, match="makes 8000000 variants"):
        expand(experiment(tmp_path, f"{{seed: {values}, method.skip: {values}, data.count: {values}}}"))


def test_all_variants_are_checked_and_problems_name_those_they_concern(tmp_path: Path) -> None:
    problems = problems_of(experiment(tmp_path, "{method.skip: [1, 25, 30], seed: [0, 1]}", "method.stps=1"))

    assert len(problems) == 3
    assert problems[0].startswith("command line: method.stps")
    assert problems[1].startswith("[skip=25,seed=0, skip=25,seed=1] sweep: method.skip: skip=25")
    assert problems[2].startswith("[skip=30,seed=0, skip=30,seed=1] sweep: method.skip: skip=30")


def test_a_swept_key_that_does_not_exist_is_reported_once(tmp_path: Path) -> None:
    (problem,) = problems_of(experiment(tmp_path, "{method.skp: [1, 2]}"))

    assert problem.startswith("sweep: method.skp: unknown key; did you mean 'skip'?")


def test_a_faulty_sweep_hides_nothing_else(tmp_path: Path) -> None:
    config = experiment(tmp_path, f"{{sed: [0], method: {{a: {METHOD}}}}}", "data.count=x", "nonsense", method=None)

    problems = problems_of(config)

    assert len(problems) == 3
    assert "'sed' is no key" in problems[0] and "'nonsense'" in problems[1] and "data.count" in problems[2]
