from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from callbacks._pictures import strip
from callbacks.images import Images
from framework.errors import SettingsError
from methods.edit_friendly import EditFriendlyDDPM
from methods.sdedit import SDEdit
from tests.callbacks.world import Events, GaussianPictures, batch_of, pictures, run_of


def module(**settings):
    return EditFriendlyDDPM(GaussianPictures(), **{"steps": 4, "skip": 0, **settings})


def test_a_strip_holds_its_pictures_side_by_side_with_a_gap():
    red, grey = torch.zeros(3, 2, 3), torch.full((1, 2, 5), 0.5)
    red[0] = 1

    found = strip([red, grey])

    assert found.shape == (2, 3 + 4 + 5, 3) and found.dtype == torch.uint8
    assert found[0, 0].tolist() == [255, 0, 0]
    assert found[0, 4].tolist() == [255, 255, 255]
    assert found[0, -1].tolist() == [128, 128, 128]


def test_source_reconstruction_edit_and_differences_are_in_this_order():
    result = module().edit(batch_of(pictures(2)), callbacks=[Images(gain=2.0)])

    measurement = result.measurements[1]["Images"]
    difference = ((result.edits[1][0] - result.source[1]).abs() * 2).clamp(0, 1)
    names = ["source", "reconstruction", "edit", "difference of reconstruction", "difference of edit"]
    assert measurement.values["strip"] == names
    picture = measurement.pictures["strip"]
    assert picture.shape == (16, 5 * 16 + 4 * 4, 3)
    assert torch.equal(picture[:, :16], (result.source[1] * 255).round().byte().permute(1, 2, 0))
    assert torch.equal(picture[:, -16:], (difference * 255).round().byte().permute(1, 2, 0))


def test_a_method_without_a_reconstruction_has_a_shorter_strip():
    result = SDEdit(GaussianPictures(), steps=4).edit(batch_of(pictures(1)), callbacks=[Images()])

    assert result.measurements[0]["Images"].values["strip"] == ["source", "edit", "difference of edit"]


def test_draws_are_shown_up_to_their_number():
    result = module(draws=3).edit(batch_of(pictures(1)), callbacks=[Images(most_draws=2)])

    names = result.measurements[0]["Images"].values["strip"]
    assert [name for name in names if name.startswith("edit")] == ["edit 0", "edit 1"]


def test_thumbnails_keep_to_their_budget_and_size(tmp_path):
    events = Events()
    images = pictures(3, side=32)
    images[0, 0, 0, 0] = math.nan

    run = run_of(tmp_path, module(), [batch_of(images)], [Images(budget=1, thumbnail=16)], events)

    assert [tag for _, tag, _ in events.calls] == ["4_edits/picture-1"]
    assert Image.open(run.directory / "samples" / "picture-2" / "strip.png").size == (5 * 32 + 4 * 4, 32)


def test_settings_out_of_range_are_refused_together():
    with pytest.raises(SettingsError, match="budget=-1") as error:
        Images(budget=-1, thumbnail=5)

    assert len(error.value.problems) == 2
