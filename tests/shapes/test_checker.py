from __future__ import annotations

import json
import math

import pytest
import torch

from experiments.shapes.checker import (
    ATTRIBUTES,
    CERTAIN,
    WEIGHTS,
    accuracies,
    certain_attributes,
    codes_of,
    measure_edit,
    read,
    read_codes,
)
from experiments.shapes.data import pixels
from experiments.shapes.edits import EDITS, Edit, sample_edit
from experiments.shapes.sample import sample_scene
from experiments.shapes.scene import Scene, reading


def image(scene: Scene) -> torch.Tensor:
    return pixels([scene])[0] / 2 + 0.5


def measured(result: Scene, edit: Edit) -> dict[str, float]:
    return measure_edit(image(result), edit, source_round_trip=image(edit.source), truth=image(edit.target))


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return [sample_edit(kind, 5, index) for kind in EDITS for index in range(4)]


def test_every_attribute_of_true_renders_is_read_well_enough_to_certify_edits() -> None:
    scenes = [sample_scene(97, index) for index in range(300)]

    figures = accuracies(read_codes(pixels(scenes) / 2 + 0.5), codes_of([reading(scene) for scene in scenes]))

    # Of 300 images with a true rate of 99.4 % (the least of the shipped figures), under 97 % has odds of one in 10,000.
    assert min(figures.values()) >= 0.97
    assert json.loads((WEIGHTS / "checker.json").read_text())["accuracy"].keys() == figures.keys()
    assert certain_attributes() == frozenset(ATTRIBUTES)


def test_the_shipped_figures_were_measured_above_the_limit() -> None:
    figures = json.loads((WEIGHTS / "checker.json").read_text())

    assert min(figures["accuracy"].values()) >= CERTAIN
    assert min(figures["accuracy_after_round_trip"].values()) >= CERTAIN
    assert (WEIGHTS / "model.safetensors").stat().st_size < 2_000_000


def test_the_true_target_succeeds_and_touches_nothing_outside(edits: list[Edit]) -> None:
    results = [measured(edit.target, edit) for edit in edits]

    assert sum(result["success"] for result in results) >= len(edits) - 1
    assert all(result["truth_psnr"] == pytest.approx(100.0) for result in results)
    assert all(
        result["outside_psnr"] == pytest.approx(100.0) for result in results if not math.isnan(result["outside_psnr"])
    )
    assert all(result["joint_success"] == result["success"] for result in results)


def test_the_copied_source_has_no_success(edits: list[Edit]) -> None:
    results = [measured(edit.source, edit) for edit in edits]

    assert all(result["success"] == 0 and result["success_attribute"] == 0 for result in results)
    assert all(result["truth_psnr"] < 40 for result in results)


def test_the_right_words_on_another_background_position_do_not_count_as_joint_success() -> None:
    edit = sample_edit("colour", 5, 0)
    elsewhere = Scene(edit.target.things, edit.target.background, edit.target.texture, edit.target.relation)
    damaged = image(elsewhere)
    damaged[:, :, 40:] = damaged[:, :, 40:].roll(9, dims=1) * 0.4

    result = measure_edit(damaged, edit, source_round_trip=image(edit.source), truth=image(edit.target))

    assert result["outside_psnr"] < 20 and result["joint_success"] == 0


def test_outside_fidelity_is_the_psnr_of_what_changed_outside_the_grown_mask() -> None:
    edit = sample_edit("colour", 5, 1)
    shifted = image(edit.target) + 0.1

    result = measure_edit(shifted, edit, source_round_trip=image(edit.source), truth=image(edit.target))

    assert result["outside_psnr"] == pytest.approx(20.0, abs=1e-4)
    assert result["truth_psnr"] == pytest.approx(20.0, abs=1e-4)


def test_reading_an_image_gives_the_words_of_its_caption() -> None:
    scenes = [sample_scene(96, index) for index in range(20)]

    seen = read(pixels(scenes) / 2 + 0.5)

    assert sum(a == reading(b) for a, b in zip(seen, scenes, strict=True)) >= 17


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\); the checker reads \[B, 3, 64, 64\]"):
        read_codes(torch.zeros(1, 3, 32, 32))
