"""Yaml as experiments are written in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.errors import SettingsError
from framework.run.strict_yaml import parse_value, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("off", "off"),
        ("yes", "yes"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'12'", "12"),
        ("[1, a, {b: c}]", [1, "a", {"b": "c"}]),
        ("a photo of a cat", "a photo of a cat"),
        ("1: 2", {"1": 2}),
    ],
)
def test_plain_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_every_value_knows_its_line() -> None:
    document = parse_yaml("a: 1\nb:\n  - x\n  - c: 2\n", "f.yaml")

    assert document.lines[("a",)] == 1
    assert document.lines[("b", 0)] == 3
    assert document.lines[("b", 1, "c")] == 4


def test_all_duplicate_keys_are_named_with_both_lines() -> None:
    problems = parse_yaml("a: 1\nb: {x: 1,\n  x: 2}\na: 3\n", "f.yaml").problems

    assert len(problems) == 2
    assert "f.yaml:3" in problems[0] and "'x'" in problems[0] and "line 2" in problems[0]
    assert "f.yaml:4" in problems[1] and "'a'" in problems[1] and "line 1" in problems[1]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [echo]", 2, "tag !!python/object/apply:os.system"),
        ("a: !mine 3", 1, "tag !mine"),
        ("a: !!set {x}", 1, "tag !!set"),
        ("a:\n\t- 1", 2, "tab"),
        ("a: [1, 2", 1, "not valid yaml"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("a: &x [*x]", 1, "alias"),
        ("a: *b", 1, "undefined alias"),
        ("? [1]\n: 2", 1, "a key is a word"),
        ("a: b: c", 1, "not valid yaml"),
    ],
)
def test_what_is_refused_is_one_sentence_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_yaml(text, "f.yaml")

    (problem,) = caught.value.problems
    assert problem.startswith(f"f.yaml:{line}: ") and words in problem and "\n" not in problem


def test_an_unsafe_tag_runs_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    with pytest.raises(SettingsError):
        parse_yaml(f"a: !!python/object/apply:os.mkdir ['{witness}']", "f")

    assert not witness.exists()


def test_aliases_that_multiply_without_bound_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)]

    with pytest.raises(SettingsError, match="more than 100000 values"):
        parse_yaml("\n".join(lines), "f.yaml")


def test_values_nested_without_end_are_refused() -> None:
    with pytest.raises(SettingsError, match="nested too deeply"):
        parse_yaml("[" * 5000 + "]" * 5000, "f.yaml")


def test_anchors_and_merge_keys_work() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "f").values["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("content", [b"a: \xff\xfe", b"a: \x00"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(content)

    with pytest.raises(SettingsError, match=r"f\.yaml: "):
        read_yaml(file)
