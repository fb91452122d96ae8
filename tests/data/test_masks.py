import numpy as np
import pytest

from framework.data.decode import Limits
from framework.data.masks import decode_run_lengths, read_mask
from framework.data.sample import RunLengthMask
from framework.errors import SampleError
from tests.data.pictures import save

LIMITS = Limits(min_side=1)


def runs(*pairs, size=(4, 6), border=False):
    return RunLengthMask(pairs, size, border)


def test_runs_fill_the_flattened_mask_row_by_row():
    mask = decode_run_lengths(runs(4, 4))

    assert np.flatnonzero(mask).tolist() == [4, 5, 6, 7]


def test_runs_may_overlap_and_come_in_any_order():
    mask = decode_run_lengths(runs(12, 3, 2, 4, 4, 4))

    assert np.flatnonzero(mask).tolist() == [2, 3, 4, 5, 6, 7, 12, 13, 14]


def test_a_run_is_clipped_at_the_end_and_one_beyond_it_adds_nothing():
    mask = decode_run_lengths(runs(22, 10, 24, 3, 10**12, 5))

    assert np.flatnonzero(mask).tolist() == [22, 23]


def test_an_empty_list_with_border_is_a_frame_of_one_pixel():
    mask = decode_run_lengths(runs(size=(512, 512), border=True))

    assert mask.sum() == 2044
    assert not mask[1:-1, 1:-1].any()


def test_an_odd_number_of_values_is_refused():
    with pytest.raises(ValueError, match="come in pairs"):
        decode_run_lengths(runs(1, 2, 3))


def test_run_lengths_without_a_size_count_in_the_picture():
    mask, notes = read_mask(RunLengthMask((6, 1), None, False), (4, 6), LIMITS)

    assert mask.shape == (4, 6) and mask[1, 0] and notes == ()


def test_run_lengths_beyond_the_end_are_noted():
    assert "clipped" in read_mask(runs(22, 10), (4, 6), LIMITS)[1][0]


def test_a_mask_picture_is_cut_at_128_and_says_so(tmp_path):
    grey = np.array([[0, 127], [128, 255]], dtype=np.uint8)

    mask, notes = read_mask(save(tmp_path / "m.png", grey), (2, 2), LIMITS)

    assert mask.tolist() == [[False, False], [True, True]]
    assert notes == ("mask: values between black and white, cut at 128",)


def test_a_binary_mask_of_the_right_size_needs_no_note(tmp_path):
    grey = np.array([[0, 255], [255, 255]], dtype=np.uint8)

    assert read_mask(save(tmp_path / "m.png", grey), (2, 2), LIMITS)[1] == ()


def test_a_mask_of_another_size_is_resized_by_nearest_neighbours_and_says_so(tmp_path):
    grey = np.array([[0, 255]], dtype=np.uint8)

    mask, notes = read_mask(save(tmp_path / "m.png", grey), (2, 4), LIMITS)

    assert mask.tolist() == [[False, False, True, True]] * 2
    assert notes == ("mask: 2 x 1 pixels, resized to the picture's 4 x 2",)


@pytest.mark.parametrize(("level", "word"), [(0, "all 0"), (255, "all 1")])
def test_a_mask_that_selects_nothing_or_everything_is_noted(tmp_path, level, word):
    path = save(tmp_path / "m.png", np.full((4, 4), level, dtype=np.uint8))

    assert word in read_mask(path, (4, 4), LIMITS)[1][0]


def test_a_mask_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "m.png").write_text("no mask")

    with pytest.raises(SampleError, match=r"m\.png"):
        read_mask(tmp_path / "m.png", (4, 4), LIMITS)
