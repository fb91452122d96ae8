"""The paper's illustration of the noise space in the plane: what the experiment measures is what closed forms say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from framework.statistics.comoments import CoMoments
from framework.statistics.moments import Moments
from tests.run.toy import Run

REFERENCE = Path(__file__).parents[1] / "parity_data" / "cases" / "noise_space_2d" / "gaussian_2d_reference.json"
SPACES = {"native": "native_sampling", "edit-friendly": "edit_friendly"}
CHAINS = 8 * 64 * 64
VALUES = 2 * CHAINS


def reference(space: str, name: str) -> dict[str, Any]:
    """An expected figure of the linear table in 40 steps."""
    found: dict[str, Any] = json.loads(REFERENCE.read_text())["expected"][f"out.linear_40.{SPACES[space]}.{name}"]
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole experiment, as it stands."""
    folder = tmp_path_factory.mktemp("plane")
    (folder / "e.yaml").write_text(yaml.safe_dump({"base": "noise_space_2d"}))
    run = Run(folder / "e.yaml", folder / "out")
    assert run.wait() == 0, run.said()
    return folder / "out"


def states(root: Path, space: str, name: str) -> dict[str, Tensor]:
    return load_file(root / space / "statistics" / f"{name}.safetensors")


def shares(root: Path, space: str) -> Tensor:
    """Share of the angles between neighbouring maps of a chain in bins of ten degrees, [18]."""
    counts = states(root, space, "NoiseCorrelation")["position_angle_histogram"][:, 1:-1].sum(0)
    assert int(counts.sum()) == 38 * CHAINS  # 39 maps; the last step adds no noise
    return counts.view(18, 10).sum(1).double() / counts.sum()


def test_angles_of_native_noise_are_uniform(root):
    found = shares(root, "native")

    assert float((found - 1 / 18).abs().max()) < 5 * (1 / 18 / (38 * CHAINS)) ** 0.5


def test_angles_of_edit_friendly_noise_peak_at_180_degrees(root):
    found = shares(root, "edit-friendly")

    assert bool((found.diff() > 0).all())  # the larger the angle, the more of it
    assert float(found[-1] / found[0]) == pytest.approx(0.119957 / 0.0224898, rel=0.03)


@pytest.mark.parametrize("space", SPACES)
def test_angles_are_those_of_the_closed_form(root, space):
    expected = reference(space, "closed_form.angle_hist_fraction")["value"]
    bound = reference(space, "monte_carlo.angle_hist_fraction")["atol"]

    found = shares(root, space)

    assert float((found - torch.tensor(expected)).abs().max()) < bound


@pytest.mark.parametrize("space", SPACES)
def test_variance_of_every_step_is_the_closed_form(root, space):
    expected = torch.tensor(reference(space, "closed_form.variance")["value"])

    found = Moments.from_tensor(states(root, space, "NoiseStatistics")["moments"])

    assert found.n.tolist() == [VALUES] * 39 + [0]
    torch.testing.assert_close(found.variance[:39].float(), expected, rtol=5 * (2 / VALUES) ** 0.5, atol=0)


@pytest.mark.parametrize("space", SPACES)
def test_correlation_of_neighbours_is_the_closed_form(root, space):
    expected = torch.tensor(reference(space, "closed_form.corr_next")["value"])

    found = CoMoments.from_tensor(states(root, space, "NoiseCorrelation")["pairs"]).pearson[:38, 0, 1]

    torch.testing.assert_close(found.float(), expected, rtol=0, atol=5 / VALUES**0.5)


def test_the_figure_lies_beside_the_runs(root):
    with Image.open(root / "noise_space_2d.png") as picture:
        assert picture.width > 1000 and picture.height > 600
