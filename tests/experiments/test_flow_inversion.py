"""Experiments on inversions of flows: points of the plane in closed form, and the figures over a sweep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.flow_inversion.figures import mean_of, place_of
from experiments.flow_inversion.points import MEANS, VARIANCES, WEIGHTS, MixturePoints, NoiseError, exact_noise
from framework.backbones import GaussianMixture
from framework.evaluation.rows import MethodRows
from framework.guidance import ClassifierFree
from framework.network import Network
from framework.run.build import build
from framework.run.config import load_config
from framework.run.sweep import expand
from framework.step import Condition
from methods.euler_flow import EulerFlow

ROOT = Path(__file__).resolve().parents[2]


def points(side: int = 8, **settings: Any) -> MixturePoints:
    return MixturePoints(side=side, **settings)


def test_every_point_is_a_mixture_of_its_own() -> None:
    network = points(4)
    alone = GaussianMixture(
        [list(m) for m in MEANS], list(VARIANCES), weights=list(WEIGHTS), kind="flow", shape=(2, 1, 1)
    )
    z, t = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([900.0, 500, 100])

    together = network(z, t, network.encode_prompt(["", "", ""]))

    for row in range(3):
        single = alone(z[row, :, 1, 2].view(1, 2, 1, 1), t[row : row + 1], Condition())
        torch.testing.assert_close(together[row, :, 1, 2], single.flatten(), rtol=0, atol=1e-12)


def test_a_picture_stands_for_points_of_the_mixture_and_nothing_else_matters() -> None:
    network = points(64)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    z = network.encode_image(images)

    assert torch.equal(z[1:], network.encode_image(images[1:]))
    assert float((z[0] - z[1]).abs().mean()) > 0.5
    mean = sum(w * torch.tensor(m) for w, m in zip(WEIGHTS, MEANS, strict=True))
    torch.testing.assert_close(z.mean((0, 2, 3)).float(), mean, rtol=0, atol=0.06)


def test_the_flows_own_noise_is_where_fine_steps_lead() -> None:
    network = points(4)
    z = network.encode_image(torch.rand(1, 3, 4, 4))
    engine = Network(network, network.schedule(2))

    coarse, fine, finest = (exact_noise(engine, z, network.encode_prompt([""]), n) for n in (10, 100, 200))

    assert float((fine - finest).abs().max()) < 1e-5 < float((coarse - finest).abs().max())


def test_the_error_of_the_noise_falls_at_first_order_for_euler() -> None:
    errors = []
    for steps in (50, 100):
        network = points(8)
        module = EulerFlow(network, steps=steps, guidance=ClassifierFree(1.0))
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        result = module.edit(module.batch(image, source="a", target="b"), callbacks=[NoiseError()])
        errors.append(result.measurements[0]["NoiseError"].values["rows"]["edit"]["NoiseError"]["rmse"])

    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


def test_a_runs_name_says_where_it_stands() -> None:
    place = place_of("mixture,euler,steps=10", "steps", ("mixture", "shapes"))

    assert place is not None and (place.row, place.curve, place.x) == ("mixture", "euler", 10.0)
    assert place_of("mixture,euler", "steps", ("mixture",)) is None
    assert place_of("other,euler,steps=10", "steps", ("mixture",)) is None


def test_means_leave_out_what_is_not_finite() -> None:
    values = {"a": 1.0, "b": 4.0, "c": math.inf, "d": None, "e": 0.0}
    method = MethodRows("m", values={("M", "f"): values})

    assert mean_of(method, ("M", "f"))[0] == pytest.approx(5 / 3)
    assert mean_of(method, ("M", "f"), log=True)[0] == pytest.approx(2)
    assert mean_of(method, ("M", "f"), ["a", "b"])[0] == pytest.approx(2.5)
    assert math.isnan(mean_of(method, ("M", "g"))[0])


SWEEPS = ("flow_inversion_2d", "euler_vs_ddim", "euler_vs_ddim_diffusion", "two_stage_ablation", "injection_window")


@pytest.mark.parametrize("name", SWEEPS)
def test_the_experiments_build(name: str, tmp_path: Path) -> None:
    config = load_config(str(ROOT / "experiments" / f"{name}.yaml"), [])
    variants = expand(config)

    for variant in (variants[0], variants[-1]):
        assert build(variant.config).module.check() == []


def test_a_sweep_draws_its_curves_and_paths(tmp_path: Path) -> None:
    import yaml

    from tests.run.toy import Run

    text = yaml.safe_load((ROOT / "experiments" / "flow_inversion_2d.yaml").read_text())
    methods = {name: text["sweep"]["method"][name] for name in ("euler-noisy-end", "fireflow")}
    text["sweep"] = {"method": methods, "method.steps": [2, 4]}
    text["callbacks"][-1]["variants"] = ["fireflow,steps=4"]
    text["backbone"]["side"] = 4
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(text))

    run = Run(tmp_path / "e.yaml", tmp_path / "out")

    assert run.wait() == 0, run.said()
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"flow_inversion_2d.png", "flow_paths_2d.png"}
