"""What the overlap of found and true masks says about masks whose overlap is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import MaskOverlap
from tests.callbacks.world import GaussianPictures, Run, batch_of, pictures


def measure(found: list[Tensor], truth: Tensor | None, draws: int = 1, failures: Any = ()) -> list[dict[str, Any]]:
    """Show masks [B * draws, K, h, w] of every step to the callback."""
    callback, module = MaskOverlap(), SimpleNamespace(backbone=GaussianPictures())
    count = len(found[0]) // draws
    batch = batch_of(pictures(count, side=8), masks=truth)
    callback.on_edit_start(None, module, batch)  # type: ignore[arg-type]
    for masks in found:
        callback.on_denoise_step(None, module, SimpleNamespace(found={"masks": masks}))  # type: ignore[arg-type]
    result = SimpleNamespace(samples=batch.samples, draws=draws, failures=dict.fromkeys(failures, "failed"))
    measurements = callback.on_edit_end(None, module, batch, result)  # type: ignore[arg-type]
    return [dict(measurement.values) for measurement in measurements]


def left_half(rows: int = 1, side: int = 8) -> Tensor:
    mask = torch.zeros(rows, 1, side, side)
    mask[..., : side // 2] = 1
    return mask


def test_a_mask_is_compared_at_the_size_of_the_picture() -> None:
    found = torch.zeros(1, 1, 4, 4)
    found[..., 0, :] = 1  # the upper quarter, half of it inside the left half

    (values,) = measure([found], left_half())

    assert values["precision"] == 0.5 and values["recall"] == 0.25 and values["share"] == 0.25
    assert values["iou"] == pytest.approx(0.125 / 0.625)
    assert values["chance"] == pytest.approx(values["iou"])  # independent of the truth, as it happens


def test_masks_of_several_concepts_are_joined() -> None:
    found = torch.zeros(1, 2, 8, 8)
    found[:, 0, :, :2], found[:, 1, :, 2:4] = 1, 1

    (values,) = measure([found], left_half())

    assert values["iou"] == values["recall"] == 1


def test_steps_without_a_mask_do_not_count() -> None:
    (values,) = measure([torch.zeros(1, 1, 8, 8), left_half()], left_half())

    assert values["iou"] == 1
    assert values["by_step"]["iou"] == [None, 1]


def test_draws_of_an_image_are_averaged_and_failed_images_left_out() -> None:
    found = torch.cat([left_half(), 1 - left_half(), left_half(), left_half()])

    first, second = measure([found], left_half(2), draws=2, failures=[1])

    assert first["iou"] == 0.5
    assert second == {}


@pytest.mark.parametrize("truth", [None, torch.zeros(1, 1, 8, 8)])
def test_without_a_true_mask_there_is_no_overlap(truth: Tensor | None) -> None:
    (values,) = measure([left_half()], truth)

    assert values.get("iou") is None


def test_the_summary_averages_images_step_by_step(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def values(iou: float, course: list[float | None]) -> dict[str, Any]:
        rest = {"chance": 0.1, "precision": 1.0, "recall": iou, "share": 0.1}
        return {"iou": iou, **rest, "by_step": {"iou": course, "chance": course}}

    samples = [values(0.2, [0.2]), values(0.4, [None, 0.4])]
    committed = [SimpleNamespace(id=str(k), meta={"measurements": {"MaskOverlap": v}}) for k, v in enumerate(samples)]
    run.samples = lambda: iter(committed)  # type: ignore[method-assign,assignment,return-value]

    MaskOverlap().on_run_end(run)  # type: ignore[arg-type]

    summary = run.summary("MaskOverlap")
    assert summary["images"] == 2 and summary["mean"]["iou"] == pytest.approx(0.3)
    assert summary["by_step"]["iou"] == [0.2, 0.4]
    assert "MaskOverlap.png" in run.files()
