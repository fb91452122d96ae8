from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.shapes.colour import ColourShare, colour_share
from experiments.shapes.edits import sample_edit
from experiments.shapes.render import PALETTE, render
from framework.errors import SettingsError


def test_a_picture_of_one_colour_has_all_of_it_and_nothing_of_another() -> None:
    for word, value in PALETTE.items():
        picture = torch.tensor(value).view(3, 1, 1).expand(3, 8, 8)
        assert colour_share(picture, word) == 1
        assert colour_share(picture, "red" if word != "red" else "blue") == 0


def test_a_colour_edit_moves_the_share_from_the_old_colour_to_the_new() -> None:
    edit = sample_edit("colour", 0, 3)
    pictures = [
        torch.from_numpy(np.array(render(s), np.float32) / 255).permute(2, 0, 1) for s in (edit.source, edit.target)
    ]

    gained = [colour_share(pictures[1], word) - colour_share(pictures[0], word) for word in (edit.new, edit.old)]

    assert gained[0] > 0.02 and gained[1] < -0.02


def test_an_unknown_colour_is_refused() -> None:
    with pytest.raises(SettingsError, match="colour='pink'"):
        ColourShare("pink")
