import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from framework.data.decode import Limits, decode, header_size
from framework.errors import SampleError
from tests.data.pictures import noise, raw_png, save, turned

LIMITS = Limits()


def pixels(path, limits=LIMITS):
    return np.asarray(decode(path, limits).picture)


def refusal(path, limits=LIMITS):
    with pytest.raises(SampleError) as caught:
        decode(path, limits)
    return str(caught.value)


def test_an_eight_bit_picture_is_read_as_it_is(tmp_path):
    array = noise(10, 12)

    read = decode(save(tmp_path / "a.png", array), LIMITS)

    assert np.array_equal(np.asarray(read.picture), array)
    assert read.notes == ()


def test_a_sixteen_bit_grey_picture_keeps_its_levels(tmp_path):
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)

    read = decode(save(tmp_path / "a.png", levels), LIMITS)

    assert np.array_equal(np.asarray(read.picture)[..., 0].ravel(), np.arange(256))
    assert read.notes == ("16 bit grey scaled to 8 by 1/257",)


def test_a_sixteen_bit_grey_tiff_keeps_its_levels(tmp_path):
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)

    assert np.array_equal(pixels(save(tmp_path / "a.tif", levels))[..., 1].ravel(), np.arange(256))


def test_sixteen_bits_per_colour_are_noted(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
    path = raw_png(tmp_path / "a.png", 8, 8, 16, 2, b"".join(b"\0" + row.tobytes() for row in deep))

    read = decode(path, LIMITS)

    assert np.abs(np.asarray(read.picture) - deep / 257).max() <= 1
    assert read.notes == ("16 bits per channel cut to 8",)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_rotation_is_applied_and_the_header_says_the_shown_size(tmp_path, suffix):
    array = np.zeros((16, 32, 3), dtype=np.uint8)
    array[:, :16] = 255
    path = turned(tmp_path / f"a.{suffix}", array, 6)  # to be shown a quarter turn clockwise: left becomes top

    read = decode(path, LIMITS)

    shown = np.asarray(read.picture).astype(int)
    assert shown.shape == (32, 16, 3) == (*header_size(path, LIMITS), 3)
    assert shown[:14].min() > 200 and shown[18:].max() < 50


def test_exif_rotation_of_sixteen_bit_grey_is_applied(tmp_path):
    levels = np.zeros((16, 32), dtype=np.uint16)
    levels[:, :16] = 65535

    shown = pixels(turned(tmp_path / "a.png", levels, 6))

    assert shown.shape == (32, 16, 3) and shown[:16].min() == 255 and shown[16:].max() == 0


def test_the_first_frame_of_an_animation_is_read_and_noted(tmp_path):
    frames = [Image.fromarray(noise(16, 16, seed=seed)) for seed in range(3)]

    for suffix in ("png", "gif", "webp"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        read = decode(path, LIMITS)
        assert read.notes == ("first frame of 3",)
        if suffix == "png":
            assert np.array_equal(np.asarray(read.picture), np.asarray(frames[0]))


def test_an_animation_is_an_error_when_strict(tmp_path):
    frames = [Image.fromarray(noise(16, 16, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])

    assert "3 frames" in refusal(tmp_path / "a.gif", Limits(strict=True))


def test_a_palette_picture_gives_its_colours(tmp_path):
    array = np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8), 8, axis=0).repeat(8, axis=1)
    Image.fromarray(array).quantize(4).save(tmp_path / "a.png")

    assert np.array_equal(pixels(tmp_path / "a.png"), array)


def test_grey_with_alpha_becomes_colour_with_alpha(tmp_path):
    array = noise(8, 8, 2)
    Image.fromarray(array, "LA").save(tmp_path / "a.png")

    read = pixels(tmp_path / "a.png")

    assert np.array_equal(read[..., 0], array[..., 0]) and np.array_equal(read[..., 3], array[..., 1])


def test_a_transparent_colour_becomes_alpha(tmp_path):
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    array[:, 4:] = 9
    Image.fromarray(array).save(tmp_path / "a.png", transparency=(9, 9, 9))

    assert np.array_equal(pixels(tmp_path / "a.png")[0, :, 3], [255] * 4 + [0] * 4)


def test_cmyk_is_converted_to_colour(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")

    assert np.array_equal(pixels(tmp_path / "a.tif")[0, 0], [255, 0, 0])


def test_a_colour_profile_that_is_not_srgb_is_applied(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"keep").replace(b"gXYZ", b"rXYZ").replace(b"keep", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    red = np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8)

    read = decode(save(tmp_path / "a.png", red, icc_profile=swapped), LIMITS)

    assert np.abs(np.asarray(read.picture).astype(int) - (0, 255, 0)).max() <= 3
    assert read.notes == ("colour profile 'swap built-in' applied",)


def test_an_srgb_profile_changes_no_pixel(tmp_path):
    array = noise(8, 8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    read = decode(save(tmp_path / "a.png", array, icc_profile=profile), LIMITS)

    assert np.array_equal(np.asarray(read.picture), array) and read.notes == ()


def test_a_damaged_colour_profile_is_ignored_and_noted(tmp_path):
    array = noise(8, 8)

    read = decode(save(tmp_path / "a.png", array, icc_profile=b"no profile"), LIMITS)

    assert np.array_equal(np.asarray(read.picture), array) and "profile ignored" in read.notes[0]


def test_float_grey_in_zero_to_one_is_scaled(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)

    read = pixels(save(tmp_path / "a.tif", values))

    assert np.array_equal(read[..., 0], np.rint(values.astype(np.float64) * 255))


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
def test_float_grey_outside_of_zero_to_one_is_refused(tmp_path, value):
    values = np.zeros((8, 8), dtype=np.float32)
    values[3, 3] = value

    assert "outside of [0, 1]" in refusal(save(tmp_path / "a.tif", values))


def test_thirty_two_bit_integers_are_refused(tmp_path):
    assert "32-bit" in refusal(save(tmp_path / "a.tif", np.zeros((8, 8), dtype=np.int32)))


def test_lab_is_converted_to_colour(tmp_path):
    Image.new("LAB", (8, 8), (255, 128, 128)).save(tmp_path / "a.tif")

    assert pixels(tmp_path / "a.tif").min() > 250


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    whole = save(tmp_path / f"a.{suffix}", noise(64, 64)).read_bytes()
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(whole[: len(whole) // 2])

    assert f"b.{suffix}" in refusal(path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()

    assert refusal(tmp_path / "a.png") == "'a.png' is empty"


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("hello")

    assert "not a picture" in refusal(tmp_path / "a.png")


def test_a_file_with_the_wrong_suffix_is_refused_with_the_right_one(tmp_path):
    save(tmp_path / "a.jpg", noise(8, 8)).rename(tmp_path / "a.png")

    assert refusal(tmp_path / "a.png") == "'a.png' is a JPEG file by its content; rename it to .jpg"


def test_a_file_without_suffix_is_read_by_its_content(tmp_path):
    save(tmp_path / "a.png", noise(8, 9)).rename(tmp_path / "a")

    assert pixels(tmp_path / "a").shape == (8, 9, 3)


def test_a_file_that_went_away_is_refused(tmp_path):
    assert "no file 'a.png'" in refusal(tmp_path / "a.png")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.png")

    assert "a pipe" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("side", [9000, 12000, 60000])
def test_a_huge_picture_is_refused_from_its_header(tmp_path, side):
    path = raw_png(tmp_path / "a.png", side, side, 8, 0, b"\0")

    assert "more than the allowed 67108864" in refusal(path)


def test_the_pixel_limit_can_be_set(tmp_path):
    path = save(tmp_path / "a.png", noise(10, 10))

    assert "allowed 99;" in refusal(path, Limits(max_pixels=99))
    assert pixels(path, Limits(max_pixels=100)).shape == (10, 10, 3)


def test_a_picture_one_pixel_wide_is_refused(tmp_path):
    assert "shortest side" in refusal(save(tmp_path / "a.png", noise(64, 1)))


def test_a_picture_without_pixels_is_refused(tmp_path):
    assert "a.png" in refusal(raw_png(tmp_path / "a.png", 0, 5, 8, 0, b"\0"))


def test_an_extreme_aspect_ratio_is_refused_with_the_limit(tmp_path):
    assert "at most 8 (max_ratio)" in refusal(save(tmp_path / "a.png", noise(8, 65)))
    assert pixels(save(tmp_path / "b.png", noise(8, 64))).shape == (8, 64, 3)
