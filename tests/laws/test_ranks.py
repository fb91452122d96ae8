"""Results do not depend on the number of processes, for every method, and neither do merged statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import yaml
from PIL import Image

from framework.backbones import GaussianMixture
from framework.backbones.choice import asks_for_places
from framework.module import EditModule
from tests.few_steps import FEW_STEPS, method_classes
from tests.run.toy import Run, run_ranks, tree


def _without_attention(kind: Literal["diffusion", "flow"]) -> list[type[EditModule]]:
    """Every method for a kind of model that does not need attention, which the mixture does not have."""
    network = GaussianMixture([0.0, 1.0], 0.5, kind=kind)
    built = {method: method(backbone=network, **FEW_STEPS[method.__name__]) for method in method_classes()}
    return [
        method
        for method, module in built.items()
        if not any(map(asks_for_places, (*module.controls, *module.guidance.controls())))
        and network.form in module.inversion.forms
    ]


METHODS = {kind: _without_attention(kind) for kind in ("diffusion", "flow")}


def _experiment(folder: Path, count: int, kind: str) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for index in range(count):
        picture = Image.new("RGB", (8, 8), (40 * index, 90, 200 - 30 * index))
        picture.putpixel((index, 2), (255, 255, 0))
        picture.save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text("low\nhigh\n")
    methods = {
        method.__name__: {
            "_target_": f"{method.__module__}.{method.__name__}",
            **{
                key: value
                for key, value in FEW_STEPS[method.__name__].items()
                if value == [] or isinstance(value, (int, float, str))
            },
        }
        for method in METHODS[kind]
    }
    path = folder / "all.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "backbone": {
                    "_target_": "framework.backbones.GaussianMixture",
                    "means": [0.0, 1.0],
                    "variances": 0.5,
                    "kind": kind,
                    "texts": {"low": [1, 0], "high": [0, 1]},
                },
                "data": {
                    "_target_": "framework.data.Folder", "root": str(pictures), "batch_size": 2, "resize": "native",
                },
                "callbacks": [{"_target_": "callbacks.NoiseStatistics"}],
                "trainer": {"accelerator": "cpu", "devices": 1},
                "sweep": {"method": methods},
            }
        )
    )  # fmt: skip
    return path


@pytest.mark.parametrize(("count", "kind"), [(5, "diffusion"), (3, "diffusion"), (1, "diffusion"), (3, "flow")])
def test_every_method_writes_the_same_bytes_with_one_process_and_with_two(
    tmp_path: Path, count: int, kind: str
) -> None:
    experiment = _experiment(tmp_path, count, kind)

    one = Run(experiment, tmp_path / "one")
    assert one.wait() == 0, one.said()
    two = run_ranks(experiment, tmp_path / "two", 2)
    assert [run.wait() for run in two] == [0, 0], [run.said() for run in two]

    alone, shared = _results(tmp_path / "one"), _results(tmp_path / "two")
    assert {name.split("/")[0] for name in alone} == {method.__name__ for method in METHODS[kind]}
    assert sum(name.endswith("edit.png") for name in alone) == count * len(METHODS[kind])
    assert set(alone) == set(shared)
    assert [name for name in alone if alone[name] != shared[name]] == []


def _results(output: Path) -> dict[str, bytes]:
    """Return everything that may not depend on how a run went: samples and merged statistics."""
    return {name: content for name, content in tree(output).items() if {"samples", "statistics"} & {*name.split("/")}}
