import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.frames import frame_for, inside, mask_to_network, restore, seen, to_network, to_picture
from framework.data.sample import Frame
from tests.data.pictures import noise

MODES = ["crop", "pad", "stretch", "native"]
SIZES = [(64, 64), (48, 80), (80, 48), (33, 97), (512, 300), (9, 9)]


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("original", SIZES)
@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_a_result_returns_with_the_size_of_what_the_network_saw(resize, original, size):
    frame = frame_for(original, size, resize=resize, multiple=8)

    back = restore(torch.zeros(3, *frame.network), frame)

    top, left, bottom, right = seen(frame)
    assert tuple(back.shape) == (3, bottom - top, right - left)
    if resize != "crop":
        assert (bottom - top, right - left) == original


def test_crop_takes_the_centred_square():
    frame = frame_for((48, 81), (64, 64), resize="crop", multiple=8)

    assert frame == Frame((48, 81), (0, 16, 48, 64), (64, 64))


def test_crop_takes_the_aspect_ratio_of_a_network_that_is_not_square():
    frame = frame_for((100, 100), (32, 64), resize="crop", multiple=8)

    assert frame.box == (25, 0, 75, 100)


def test_pad_surrounds_the_whole_picture():
    frame = frame_for((48, 80), (64, 64), resize="pad", multiple=8)

    assert frame.box == (-16, 0, 64, 80)
    assert inside(frame) == (13, 0, 51, 64)


def test_native_rounds_to_the_nearest_multiple_and_never_to_zero():
    sizes = {original: frame_for(original, None, resize="native", multiple=8).network for original in [*SIZES, (3, 12)]}

    assert sizes[(64, 64)] == (64, 64)
    assert sizes[(33, 97)] == (32, 96)
    assert sizes[(512, 300)] == (512, 304)
    assert sizes[(3, 12)] == (8, 16)


def test_crop_loads_as_the_benchmark_scripts_do():
    array = noise(70, 101)

    loaded = to_network(Image.fromarray(array), frame_for((70, 101), (32, 32), resize="crop", multiple=8))

    offset = (101 - 70) // 2
    expected = Image.fromarray(array[:, offset : offset + 70]).resize((32, 32))  # bicubic is Pillow's default
    assert np.array_equal(loaded, np.asarray(expected))


def test_a_picture_of_the_network_size_is_not_resampled():
    array = noise(64, 64)

    for resize in MODES:
        frame = frame_for((64, 64), (64, 64), resize=resize, multiple=8)
        assert np.array_equal(to_network(Image.fromarray(array), frame), array)


def test_plain_margins_have_the_background_and_reflected_ones_mirror_the_picture():
    array = noise(16, 32)
    frame = frame_for((16, 32), (32, 32), resize="pad", multiple=8)

    plain = to_network(Image.fromarray(array), frame, padding="background", background=(1, 2, 3))
    mirrored = to_network(Image.fromarray(array), frame, padding="reflect")

    assert np.array_equal(plain[8:24], array) and (plain[:8] == (1, 2, 3)).all() and (plain[24:] == (1, 2, 3)).all()
    assert np.array_equal(mirrored[8:24], array)
    assert np.array_equal(mirrored[7], array[1]) and np.array_equal(mirrored[24], array[-2])


def test_reflected_margins_may_be_wider_than_the_picture():
    frame = frame_for((8, 64), (64, 64), resize="pad", multiple=8)

    assert to_network(Image.fromarray(noise(8, 64)), frame).shape == (64, 64, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_margins_suit_grey_pictures(channels):
    array = noise(16, 32, channels)
    frame = frame_for((16, 32), (32, 32), resize="pad", multiple=8)

    plain = to_network(Image.fromarray(array), frame, padding="background", background=(255, 255, 255))

    assert plain.shape == (32, 32, 3)[: 2 + (channels > 1)] and plain[0].min() == 255


def test_loading_with_margins_and_returning_gives_the_picture_back():
    array = noise(16, 32)
    frame = frame_for((16, 32), (32, 32), resize="pad", multiple=8)
    loaded = torch.from_numpy(to_network(Image.fromarray(array), frame).copy()).permute(2, 0, 1) / 127.5 - 1

    back = to_picture(restore(loaded, frame))

    assert np.array_equal(np.asarray(back), array)


def test_a_gradient_survives_the_way_to_the_network_and_back():
    ramp = np.linspace(0, 255, 90).astype(np.uint8)
    array = np.repeat(np.tile(ramp, (60, 1))[..., None], 3, axis=2)

    for resize in ("pad", "stretch", "native"):
        frame = frame_for((60, 90), (64, 64), resize=resize, multiple=8)
        loaded = torch.from_numpy(to_network(Image.fromarray(array), frame).copy()).permute(2, 0, 1) / 127.5 - 1
        back = np.asarray(to_picture(restore(loaded, frame))).astype(int)
        assert back.shape == array.shape and np.abs(back - array).max() <= 4


def test_restoring_stays_in_range_and_keeps_dtype_and_batch():
    image = torch.where(torch.rand(2, 3, 32, 32) > 0.5, 1.0, -1.0).to(torch.float16)

    back = restore(image, frame_for((50, 70), (32, 32), resize="stretch", multiple=8))

    assert back.shape == (2, 3, 50, 70) and back.dtype == torch.float16 and back.abs().max() <= 1


def test_a_mask_is_resized_by_nearest_neighbours_and_margins_are_not_to_be_edited():
    mask = np.ones((16, 32), dtype=bool)
    mask[:, 16:] = False

    placed = mask_to_network(mask, frame_for((16, 32), (64, 64), resize="pad", multiple=8))

    expected = np.zeros((64, 64), dtype=bool)
    expected[16:48, :32] = True
    assert np.array_equal(placed, expected)


def test_a_mask_is_cropped_like_its_picture():
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, 5:15] = True

    assert mask_to_network(mask, frame_for((10, 20), (32, 32), resize="crop", multiple=8)).all()


def test_every_level_comes_back_from_the_unit_range():
    levels = torch.arange(256, dtype=torch.float32)

    picture = to_picture((levels / 127.5 - 1).reshape(1, 16, 16))

    assert np.array_equal(np.asarray(picture).ravel(), np.arange(256))


def test_a_picture_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        to_picture(torch.full((3, 8, 8), float("nan")))
