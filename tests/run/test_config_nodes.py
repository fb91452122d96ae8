"""Values against the constructors that take them, and the classes that `_target_` names."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from framework.control import Control
from framework.errors import SettingsError
from framework.guidance import ClassifierFree, Guidance
from framework.run.nodes import Builder, Built
from framework.run.problems import Origin, Problems
from framework.run.strict_yaml import parse_yaml
from framework.run.targets import REQUIRED, locate, parameters, target_of
from tests.run.config_parts import Colour, Distance, Metric, Nudge, Window

NUDGE = "tests.run.config_parts.Nudge"


def built(text: str, expected: Any = Control) -> tuple[Built | None, list[str]]:
    builder = Builder(Problems())
    return builder.part(parse_yaml(text, "f").values, expected, ("part",)), builder.problems.sentences


def nudge(settings: str) -> Nudge:
    found, problems = built(f"{{_target_: {NUDGE}, {settings}}}")
    assert problems == [] and found is not None
    assert isinstance(found.value, Nudge)
    return found.value


def problems_of(settings: str) -> list[str]:
    found, problems = built(f"{{_target_: {NUDGE}, {settings}}}")
    assert found is None
    return problems


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ("kind: refine", "kind", "refine"),
        ("words: [a, b]", "words", ("a", "b")),
        ("weights: {cat: 2}", "weights", {"cat": 2.0}),
        ("span: [0, 1]", "span", (0.0, 1.0)),
        ("colour: BLUE", "colour", Colour.BLUE),
        ("colour: b", "colour", Colour.BLUE),
        ("folder: x/y", "folder", Path("x/y")),
        ("folder: null", "folder", None),
        ("strength: 2", "strength", 2.0),
        ("strength: [1, 2]", "strength", [1.0, 2.0]),
        ("window: {start: 0.5}", "window", Window(0.5)),
        ("enabled: false", "enabled", False),
        ("anything: {a: [1, x]}", "anything", {"a": (1, "x")}),
    ],
)
def test_values_become_what_the_constructor_asks_for(settings: str, name: str, value: object) -> None:
    found = getattr(nudge(settings), name)

    if name == "anything":
        found = {key: tuple(item) for key, item in found.items()}
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("settings", "place", "words"),
    [
        ("kind: replce", "part.kind", "one of replace, refine; did you mean 'replace'?"),
        ("words: cat", "part.words", "a list of texts"),
        ("words: [a, 3]", "part.words[1]", "give text; put it in quotes"),
        ("weights: {cat: two}", "part.weights.cat", "a number"),
        ("weights: [1]", "part.weights", "a mapping"),
        ("span: [0]", "part.span", "got 1 values; give 2"),
        ("span: [0, x]", "part.span[1]", "a number"),
        ("colour: GREEN", "part.colour", "one of RED, BLUE"),
        ("folder: 3", "part.folder", "a path"),
        ("strength: strong", "part.strength", "a number or a list of numbers"),
        ("strength: [1, x]", "part.strength[1]", "a number"),
        ("strength: true", "part.strength", "a number"),
        ("strength: .nan", "part.strength", "a number"),
        ("strength: '1.5'", "part.strength", "a number"),
        ("enabled: 1", "part.enabled", "true or false"),
        ("enabled: off", "part.enabled", "true or false"),
        ("enabled: null", "part.enabled", "got nothing; give true or false"),
        ("window: {stop: 1}", "part.window", "Window needs the key 'start'; give a number"),
        ("window: {start: 2}", "part.window.start", "in [0, 1]"),
        ("window: 3", "part.window", "a mapping of settings (start, stop)"),
        ("wrds: [a]", "part.wrds", "unknown key; did you mean 'words'?"),
        ("span: [1, 0]", "part.span", "ends before it begins"),
    ],
)
def test_values_that_do_not_fit_are_named_with_their_place(settings: str, place: str, words: str) -> None:
    (problem,) = problems_of(settings)

    assert problem.startswith(f"{place}: ") and words in problem


def test_all_problems_of_a_part_and_its_parts_are_found_in_one_go() -> None:
    problems = problems_of("kind: x, wrds: a, window: {start: 5, stp: 1}, weights: {a: b, c: d}, span: [1, 0]")

    places = [problem.partition(": ")[0] for problem in problems]
    assert places == [
        *("part.kind", "part.wrds", "part.window.stp", "part.window.start"),
        *("part.weights.a", "part.weights.c", "part.span"),
    ]


def test_a_complaint_that_may_be_about_a_default_is_left_out() -> None:
    problems = problems_of("span: [0, x]")

    assert len(problems) == 1


def test_what_a_part_was_built_from_is_written_out_with_its_defaults() -> None:
    found, _ = built(f"{{_target_: {NUDGE}, kind: refine, window: {{start: 0}}}}")

    assert found is not None
    assert found.plain == {
        "_target_": NUDGE,
        "kind": "refine",
        "words": [],
        "weights": {},
        "span": [0.0, 1.0],
        "window": {"_target_": "tests.run.config_parts.Window", "start": 0.0, "stop": 1.0},
        "colour": "RED",
        "folder": None,
        "strength": 1.0,
        "enabled": True,
        "anything": None,
    }


def test_a_part_written_out_builds_the_same_part_again() -> None:
    first, _ = built(f"{{_target_: {NUDGE}, kind: refine, window: {{start: 0}}, strength: [1, 2], colour: b}}")
    assert first is not None

    again = Builder(Problems()).part(first.plain, Control, ("part",))

    assert again == first


def test_a_mapping_without_target_changes_the_part_that_stands_there() -> None:
    default = ClassifierFree(source=3.5, target=15.0)
    builder = Builder(Problems())

    found = builder.value(Guidance, {"target": 5}, ("guidance",), default)
    missed = builder.value(Guidance, {"targt": 5, "source": -1}, ("guidance",), default)

    assert found is not None and found.value == ClassifierFree(source=3.5, target=5.0)
    assert missed is None
    assert [problem.partition(": ")[0] for problem in builder.problems.sentences] == [
        "guidance.targt",
        "guidance.source",
    ]


def test_a_mapping_without_target_and_without_a_default_asks_for_one() -> None:
    builder = Builder(Problems())

    assert builder.value(Guidance, {"target": 5}, ("guidance",)) is None
    assert "_target_ of a framework.guidance.Guidance" in builder.problems.sentences[0]


@pytest.mark.parametrize("value", [5, "framework.guidance.ClassifierFree", ["x"], None])
def test_a_part_that_is_no_mapping_is_refused(value: object) -> None:
    builder = Builder(Problems())

    assert builder.part(value, Guidance, ("guidance",)) is None
    assert "a mapping with the _target_ of a framework.guidance.Guidance" in builder.problems.sentences[0]


def test_parts_inside_lists_and_untyped_values_are_built() -> None:
    builder = Builder(Problems())
    node = {"_target_": "tests.run.config_parts.Distance", "order": 1}

    listed = builder.value(Sequence[Metric], [node], ("metrics",))
    untyped = builder.value(Any, {"x": [node]}, ("anything",))

    assert listed is not None and isinstance(listed.value[0], Distance) and listed.value[0].order == 1
    assert untyped is not None and isinstance(untyped.value["x"][0], Distance)


def test_a_part_without_the_methods_of_a_protocol_is_refused() -> None:
    builder = Builder(Problems())

    assert builder.part({"_target_": "tests.run.config_parts.Window", "start": 0}, Metric, ("metric",)) is None
    assert "is no Metric: it has no compare" in builder.problems.sentences[0]


def test_a_constructor_that_fails_is_a_problem_not_a_traceback() -> None:
    found, problems = built("{_target_: tests.run.config_parts.Broken}", Any)

    assert found is None
    assert problems == ["part: Broken could not be built: RuntimeError: no such device."]


def test_what_the_engine_gives_may_not_be_written() -> None:
    builder = Builder(Problems())
    node = {"_target_": NUDGE, "kind": "refine"}

    assert builder.part(node, Control, ("part",), {"kind": Built("refine", "refine")}) is None
    assert "part.kind: is given by the engine" in builder.problems.sentences[0]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("framework.guidence.ClassifierFree", "framework has no 'guidence'; did you mean 'guidance'?"),
        ("framework.guidance.ClasifierFree", "did you mean 'ClassifierFree'?"),
        ("framwork.guidance.ClassifierFree", "there is no package 'framwork'; did you mean 'framework'?"),
        ("framework.guidance", "is a module, not a class"),
        ("framework.guidance.Guidance", "is abstract"),
        ("framework.guidance.classifier_free", "is a function, not a class"),
        ("tests.run.config_parts.Window", "is no Guidance"),
        ("tests.run.config_parts.Watch", "is no Guidance (its kind is EditCallback)"),
        ("ClassifierFree", "names no class"),
        ("framework..guidance", "names no class"),
        ("nowhere.py:Thing", "there is no file nowhere.py"),
        ("3", "names no class"),
    ],
)
def test_a_target_that_cannot_be_used_is_named_with_the_nearest(target: str, words: str) -> None:
    found, problems = built(f"{{_target_: '{target}'}}", Guidance)

    assert found is None
    (problem,) = problems
    assert problem.startswith("part._target_: ") and words in problem


def test_a_target_is_text() -> None:
    assert "give the dotted path of a class" in built("{_target_: 3}", Guidance)[1][0]


def user_file(folder: Path, text: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return file


MINE = """
    from __future__ import annotations
    from dataclasses import dataclass
    from framework.guidance import ClassifierFree

    @dataclass(frozen=True)
    class Mine(ClassifierFree):
        extra: int = 1
"""


def test_a_class_in_a_file_of_ones_own_is_found_beside_the_experiment_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    user_file(tmp_path / "here", MINE.replace("extra: int = 1", "extra: int = 2"))
    user_file(tmp_path / "there", MINE)
    monkeypatch.chdir(tmp_path / "here")
    problems = Problems({("part",): Origin("x.yaml:1", tmp_path / "there")})

    beside = Builder(problems).part({"_target_": "mine.py:Mine"}, Guidance, ("part",))
    working = Builder(Problems()).part({"_target_": "mine.py:Mine", "extra": 3}, Guidance, ("part",))

    assert beside is not None and beside.value.extra == 1 and beside.plain["_target_"] == "mine.py:Mine"
    assert working is not None and working.value.extra == 3
    assert type(working.value) is not type(beside.value)
    assert target_of(type(beside.value)) == "mine.py:Mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("class Mime: ...", "has no class 'Mine'; did you mean 'Mime'?"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_file_of_ones_own_that_fails_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = user_file(tmp_path, text)

    with pytest.raises(SettingsError) as caught:
        locate(f"{file}:Mine", [Path.cwd()])

    (problem,) = caught.value.problems
    assert words in problem and "mine.py" in problem and "\n" not in problem


def test_a_module_whose_own_import_fails_is_told_from_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("import another_missing_module")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(
        SettingsError, match=r"importing broken_plugin failed: ModuleNotFoundError.*another_missing_module"
    ):
        locate("broken_plugin.Part", [])


class Base:
    def __init__(self, *, steps: int, skip: int = 0) -> None: ...


class Forwarding(Base):
    def __init__(self, size: Literal["a", "b"] = "a", **rest: Any) -> None:
        super().__init__(**rest)


class Open:
    def __init__(self, size: int = 1, **rest: Any) -> None: ...


def test_keywords_that_are_handed_on_belong_to_the_next_constructor() -> None:
    known, takes_others = parameters(Forwarding)

    assert set(known) == {"size", "steps", "skip"} and not takes_others
    assert known["steps"].hint is int and known["steps"].default is REQUIRED


def test_a_constructor_that_swallows_any_keyword_takes_plain_values() -> None:
    known, takes_others = parameters(Open)

    assert set(known) == {"size"} and takes_others
