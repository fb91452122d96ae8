"""Experiments, the files they are based on, overrides and interpolations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework.errors import SettingsError
from framework.run import config as config_module
from framework.run.config import Config, find_experiment, load_config, resolve


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def values(config: Config) -> dict[str, Any]:
    problems = config.collect()
    found = resolve(config, problems)
    problems.done()
    return found


def problems_of(config: Config) -> list[str]:
    problems = config.collect()
    resolve(config, problems)
    return problems.sentences


def test_base_files_are_merged_in_order_and_the_experiment_comes_last(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="seed: 1\nmethod: {steps: 1, skip: 1}\ncallbacks: [1, 2]",
        b="seed: 2\nmethod: {steps: 2}",
        c="base: [a.yaml, b.yaml]\nmethod: {eta: 3}\ncallbacks: [3]",
    )

    found = values(load_config(tmp_path / "c.yaml"))

    assert found == {"seed": 2, "method": {"steps": 2, "skip": 1, "eta": 3}, "callbacks": [3]}


def test_base_files_have_base_files_and_may_be_a_single_name(tmp_path: Path) -> None:
    write(tmp_path, a="seed: 1", b="base: a.yaml\ntrainer: {devices: 2}", c="base: b.yaml")

    assert values(load_config(tmp_path / "c.yaml")) == {"seed": 1, "trainer": {"devices": 2}}


def test_a_mapping_with_another_target_replaces_the_one_it_is_based_on(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="method: {_target_: x.A, skip: 3, guidance: {_target_: g.G, scale: 1}}",
        same="base: a.yaml\nmethod: {guidance: {scale: 2}}",
        other="base: a.yaml\nmethod: {_target_: x.B}",
    )

    assert values(load_config(tmp_path / "same.yaml"))["method"]["guidance"] == {"_target_": "g.G", "scale": 2}
    assert values(load_config(tmp_path / "other.yaml"))["method"] == {"_target_": "x.B"}


def test_files_that_are_based_on_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, a="base: b.yaml", b="base: a.yaml")

    with pytest.raises(SettingsError, match=r"based on each other: a\.yaml -> b\.yaml -> a\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_the_same_base_file_may_be_reached_twice(tmp_path: Path) -> None:
    write(tmp_path, a="seed: 1", b="base: a.yaml", c="base: a.yaml", d="base: [b.yaml, c.yaml]")

    assert values(load_config(tmp_path / "d.yaml")) == {"seed": 1}


def test_all_missing_base_files_are_named_together(tmp_path: Path) -> None:
    write(tmp_path, a="seed: 1\nbase: [x.yaml, y.yaml, 3]")

    with pytest.raises(SettingsError) as caught:
        load_config(tmp_path / "a.yaml", ["nonsense"])

    text = str(caught.value)
    assert "'nonsense'" in text and "'x.yaml'" in text and "'y.yaml'" in text and "a.yaml:2" in text
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("- 1", "does not hold a mapping"), ("3", "mapping")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, a=text)

    with pytest.raises(SettingsError, match=words):
        load_config(tmp_path / "a.yaml")


def test_overrides_replace_the_value_they_name_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, a="method: {_target_: x.A, skip: 3}\ncallbacks: [{_target_: c.C, bins: 8}, {_target_: c.D}]")

    config = load_config(
        tmp_path / "a.yaml",
        [
            "method.skip=12",
            "method._target_=x.B",
            "method.guidance.target=5",
            "callbacks[0].bins=[1, 2]",
            "callbacks.1={_target_: c.E}",
            "data.root=a=b",
            "trainer.devices=2",
            "method.text='12'",
        ],
    )

    assert values(config) == {
        "method": {"_target_": "x.B", "skip": 12, "guidance": {"target": 5}, "text": "12"},
        "callbacks": [{"_target_": "c.C", "bins": [1, 2]}, {"_target_": "c.E"}],
        "data": {"root": "a=b"},
        "trainer": {"devices": 2},
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("skip", "write key=value"),
        ("=3", "write key=value"),
        ("a..b=3", "not a place"),
        ("callbacks[x].a=3", "not a place"),
        ("callbacks[7].a=3", "list of 1"),
        ("callbacks.name=3", "list of 1"),
        ("seed.part=3", "seed is 0"),
        ("base=[x.yaml]", "base cannot be changed"),
        ("data.root=[1", "put it in quotes"),
    ],
)
def test_overrides_that_fit_nowhere_are_named(tmp_path: Path, override: str, words: str) -> None:
    write(tmp_path, a="seed: 0\ncallbacks: [{a: 1}]")

    (problem,) = load_config(tmp_path / "a.yaml", [override]).problems

    assert problem.startswith("command line: ") and words in problem


def test_a_problem_says_where_its_value_was_written(tmp_path: Path) -> None:
    write(tmp_path, a="seed: 1\nmethod:\n  steps: 1\n  skip: 2", b="base: a.yaml\nmethod:\n  skip: 3")
    problems = load_config(tmp_path / "b.yaml", ["method.eta=2"]).collect()

    places = [problems.origin(("method", key)) for key in ("steps", "skip", "eta")]

    found = [place.text for place in places if place]
    assert found == [f"{tmp_path}/a.yaml:3", f"{tmp_path}/b.yaml:3", "command line"]


def test_interpolations_are_filled_in(tmp_path: Path) -> None:
    write(tmp_path, a="seed: 3\ndata: {seed: '${seed}', root: 'x/${seed}', copy: '${method}'}\nmethod: {skip: 2}")

    assert values(load_config(tmp_path / "a.yaml"))["data"] == {"seed": 3, "root": "x/3", "copy": {"skip": 2}}


def test_all_broken_interpolations_are_named_together(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="seed: ${data.root}\n"
        "data: {root: '${seed}', x: '${nowhere}', y: '${sum:1,2}', z: '???'}\n"
        "method: {self: '${method}'}",
    )

    text = "\n".join(problems_of(load_config(tmp_path / "a.yaml")))

    assert "seed: an interpolation leads back to itself" in text
    assert "data.root: an interpolation leads back to itself" in text
    assert "data.x: " in text and "'nowhere'" in text
    assert "data.y: " in text and "sum" in text
    assert "data.z: must be given" in text
    assert "method.self: an interpolation leads back to itself" in text


def test_mappings_that_hold_each_other_are_found_out_at_once(tmp_path: Path) -> None:
    write(tmp_path, a="data: {x: '${method}', y: '${method}'}\nmethod: {x: '${data}', y: '${data}'}")

    problems = problems_of(load_config(tmp_path / "a.yaml"))

    assert len(problems) == 2 and all("leads back to itself" in problem for problem in problems)


def test_an_unclosed_interpolation_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, a="data: {root: '${seed'}")

    (problem,) = problems_of(load_config(tmp_path / "a.yaml"))

    assert "interpolation" in problem


def test_experiments_are_found_by_path_then_by_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = tmp_path / "bundled"
    (bundled / "shapes").mkdir(parents=True)
    write(bundled, quickstart="seed: 1")
    write(bundled / "shapes", unet="seed: 2")
    monkeypatch.setattr(config_module.importlib.resources, "files", lambda package: bundled)
    monkeypatch.chdir(tmp_path)

    names = ("quickstart", "quickstart.yaml", "experiments/quickstart.yaml")
    found = [find_experiment(name) for name in (*names, "shapes/unet", "experiments/shapes/unet.yaml")]
    (tmp_path / "quickstart.yaml").write_text("seed: 3")

    assert found == [bundled / "quickstart.yaml"] * 3 + [bundled / "shapes" / "unet.yaml"] * 2
    assert find_experiment("quickstart") == Path("quickstart.yaml")
    with pytest.raises(SettingsError, match="did you mean 'quickstart'"):
        find_experiment("quikstart")
    with pytest.raises(SettingsError, match="is not a file"):
        find_experiment("bundled")


def test_a_base_file_may_be_a_bundled_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    write(bundled, quickstart="seed: 1")
    monkeypatch.setattr(config_module.importlib.resources, "files", lambda package: bundled)
    write(tmp_path, a="base: [quickstart]", b="base: [quickstrt.yaml]")

    assert values(load_config(tmp_path / "a.yaml")) == {"seed": 1}
    with pytest.raises(SettingsError, match="did you mean 'quickstart'"):
        load_config(tmp_path / "b.yaml")


def test_bundled_experiments_travel_with_the_package() -> None:
    assert "shapes/unet" in config_module.bundled_experiments()
