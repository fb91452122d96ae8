"""Building experiments: everything is checked, everything is reported, nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.errors import SettingsError
from framework.run.build import Experiment, Shared, build
from framework.run.config import Config, load_config
from framework.run.settings import OWNED_BY_ENGINE
from tests.run import config_parts

PARTS = "tests.run.config_parts"
EXPERIMENT = f"""
seed: 3
backbone: {{_target_: {PARTS}.ZeroNetwork}}
method:
  _target_: {PARTS}.Method
  skip: 12
  guidance: {{target: 5}}
data: {{_target_: {PARTS}.Listed, root: .}}
callbacks:
  - {{_target_: {PARTS}.Watch, metrics: [{{_target_: {PARTS}.Distance}}]}}
"""


@pytest.fixture(autouse=True)
def no_weights() -> Iterator[None]:
    config_parts.LOADS.clear()
    yield
    assert config_parts.LOADS == []


@pytest.fixture
def config(tmp_path: Path) -> Any:
    file = tmp_path / "trial.yaml"
    file.write_text(EXPERIMENT)

    def load(*overrides: str) -> Config:
        return load_config(file, overrides)

    return load


def problems_of(config: Config) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        build(config)
    return list(caught.value.problems)


def test_an_experiment_is_built_from_its_file(config: Any) -> None:
    experiment: Experiment = build(config("trainer.devices=2", "output.save.format=webp"))

    assert isinstance(experiment.module, config_parts.Method)
    assert isinstance(experiment.module.backbone, config_parts.ZeroNetwork)
    assert experiment.module.seed == experiment.seed == 3
    assert experiment.module.inversion == config_parts.NoRecord(12)
    assert (experiment.module.guidance.target, experiment.module.guidance.source) == (5.0, 3.5)
    assert [sample.id for sample in experiment.source.samples()] == ["s0", "s1"]
    assert [type(callback).__name__ for callback in experiment.callbacks] == ["Watch"]
    assert experiment.trainer == {"devices": 2}
    assert (experiment.output.dir, experiment.output.save.format) == (Path("runs"), "webp")
    assert experiment.name == "trial"


def test_the_resolved_experiment_has_all_defaults_and_is_an_experiment_itself(config: Any, tmp_path: Path) -> None:
    first = build(config("trainer.devices=1"))
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(first.resolved))

    again = build(load_config(file))

    assert again.resolved == first.resolved
    assert first.resolved["method"]["steps"] == 50 and first.resolved["method"]["guidance"]["source"] == 3.5
    assert first.resolved["output"] == {"dir": "runs", "save": {"format": "png", "quality": 90, "inversion": False}}
    assert "backbone" not in first.resolved["method"] and "seed" not in first.resolved["method"]


def test_writing_a_default_out_changes_nothing(config: Any) -> None:
    assert build(config("method.steps=50", "output.dir=runs")).resolved == build(config()).resolved


def test_all_problems_of_an_experiment_come_together(config: Any) -> None:
    problems = problems_of(
        config(
            "outpt=1",
            "seed=-1",
            "backbone.model=gone",
            "method.skp=1",
            "method.steps=many",
            "method.guidance.targt=1",
            "data.count=0",
            "callbacks[0].evry=2",
            "trainer.device=1",
            "trainer.precision=16",
            "output.save.format=gif",
            "output.save.quality=0",
            "broken",
        )
    )

    places = [problem.split(": ")[1] for problem in problems]
    assert sorted(places) == sorted(
        [
            *("'broken' is not an override; write key=value, for example method.skip=12.", "outpt", "seed"),
            *("backbone.model", "method.skp", "method.steps", "method.guidance.targt", "data", "data"),
            *("callbacks[0].evry", "trainer.device", "trainer.precision", "output.save.format", "output.save.quality"),
        ]
    )


def test_a_method_is_checked_although_its_backbone_failed(config: Any) -> None:
    problems = problems_of(config("backbone.model=gone", "method.skip=60"))

    assert len(problems) == 2
    assert "method.skip: skip=60 leaves no step" in problems[1]


def test_keys_of_the_old_method_are_reported_when_an_override_names_another(config: Any) -> None:
    problems = problems_of(config(f"method._target_={PARTS}.OtherMethod"))

    assert ["method.skip" in problems[0], "method.guidance" in problems[1]] == [True, True]
    assert all("unknown key; OtherMethod has strength" in problem for problem in problems)


def test_a_part_of_the_wrong_kind_is_refused(config: Any) -> None:
    problems = problems_of(
        config(f"method.guidance={{_target_: {PARTS}.Watch}}", f"callbacks=[{{_target_: {PARTS}.Window, start: 0}}]")
    )

    assert "method.guidance._target_" in problems[0] and "is no Guidance" in problems[0]
    assert "callbacks[0]._target_" in problems[1] and "is no Callback" in problems[1]


@pytest.mark.parametrize("key", ["backbone", "seed"])
def test_what_stands_at_the_top_level_is_refused_inside_the_method(config: Any, key: str) -> None:
    (problem,) = problems_of(config(f"method.{key}=1"))

    assert f"method.{key}: is given by the engine" in problem


def test_missing_top_level_keys_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("seed: 1")

    problems = problems_of(load_config(file))

    assert len(problems) == 3
    for key, problem in zip(("backbone", "method", "data"), problems, strict=True):
        assert f"the key {key!r} is missing" in problem


def test_a_training_experiment_is_sent_to_its_own_command(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model: {}\ntraining: {}")

    (problem,) = problems_of(load_config(file))

    assert "invedit train" in problem


def test_a_need_that_nothing_meets_is_refused_with_both_names(config: Any) -> None:
    (problem,) = problems_of(config(f"callbacks=[{{_target_: {PARTS}.NoiseWatch}}]"))

    assert "NoiseWatch needs noise maps" in problem and "NoRecord" in problem


def test_two_callbacks_that_measure_under_one_name_are_refused(config: Any) -> None:
    node = f"{{_target_: {PARTS}.Watch}}"

    (problem,) = problems_of(config(f"callbacks=[{node}, {node}]"))

    assert "callbacks[1]: callbacks[0] and this one" in problem
    assert len(build(config(f"callbacks=[{node}, {{_target_: {PARTS}.Watch, label: b}}]")).callbacks) == 2


@pytest.mark.parametrize("callbacks", ["{}", "Watch", "[callbacks.Watch]", "{_target_: x.Y}"])
def test_callbacks_are_a_list_of_parts(config: Any, callbacks: str) -> None:
    (problem,) = problems_of(config(f"callbacks={callbacks}"))

    assert ": callbacks" in problem and "_target_" in problem


def test_a_picture_size_that_the_network_cannot_take_is_refused(config: Any) -> None:
    problems = problems_of(config("data.size=20"))

    assert len(problems) == 1 and "data: " in problems[0] and "8" in problems[0]


@pytest.mark.parametrize("key", sorted(OWNED_BY_ENGINE))
def test_trainer_keys_that_the_engine_owns_are_refused_with_the_reason(config: Any, key: str) -> None:
    (problem,) = problems_of(config(f"trainer.{key}=1"))

    assert problem.endswith(f"trainer.{key}: is the engine's: {OWNED_BY_ENGINE[key]}.")


def test_keys_that_the_engine_owns_exist() -> None:
    import inspect

    from lightning.pytorch import Trainer

    assert set(OWNED_BY_ENGINE) <= set(inspect.signature(Trainer.__init__).parameters)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.acelerator=cpu", "did you mean 'accelerator'?"),
        ("trainer.accelerator=cpuu", "did you mean 'cpu'?"),
        ("trainer.accelerator=3", "give text"),
        ("trainer.strategy=dpp", "did you mean 'ddp'?"),
        ("trainer.devices=0", "a number of at least 1"),
        ("trainer.devices=[]", "a number of at least 1"),
        ("trainer.devices=two", "a number of at least 1"),
        ("trainer.devices=1.5", "a whole number"),
        ("trainer.num_nodes=0", "at least 1"),
        ("trainer.max_epochs=3", "trains nothing"),
        ("trainer=3", "a mapping"),
    ],
)
def test_trainer_settings_are_checked_before_anything_starts(config: Any, override: str, words: str) -> None:
    (problem,) = problems_of(config(override))

    assert words in problem


@pytest.mark.parametrize("devices", ["auto", "2", "-1", "[0, 1]", "'0,1'"])
def test_trainer_settings_that_lightning_takes_pass(config: Any, devices: str) -> None:
    assert (
        "devices"
        in build(config(f"trainer.devices={devices}", "trainer.strategy=ddp", "trainer.accelerator=cpu")).trainer
    )


@pytest.mark.parametrize("seed", ["-1", "1.5", "true", "one", "null", str(2**63)])
def test_a_seed_is_a_whole_number_that_fits(config: Any, seed: str) -> None:
    (problem,) = problems_of(config(f"seed={seed}"))

    assert "seed: " in problem and "a whole number" in problem


def test_equal_backbones_and_data_sets_of_variants_are_one_object(config: Any) -> None:
    shared = Shared()

    first, second = build(config(), shared), build(config("method.skip=3"), shared)
    other = build(config("backbone.model=large"), shared)

    assert first.module.backbone is second.module.backbone and first.source is second.source
    assert other.module.backbone is not first.module.backbone


def test_interpolation_problems_are_reported_with_the_others_and_once(config: Any) -> None:
    problems = problems_of(config("method.skip=${nowhere}", "seed=${seed}", "data.count=none"))

    assert len(problems) == 3


def test_a_class_of_ones_own_stands_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"from {PARTS} import Method\n\n\nclass Mine(Method):\n    pass\n", encoding="utf-8"
    )
    file = tmp_path / "x.yaml"
    file.write_text(EXPERIMENT.replace(f"{PARTS}.Method", "mine.py:Mine"))

    experiment = build(load_config(file))

    assert type(experiment.module).__name__ == "Mine"
    assert experiment.resolved["method"]["_target_"] == "mine.py:Mine"
