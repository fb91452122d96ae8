import numpy as np
import pytest
import torch
from PIL import Image

from framework.data import EditSample, Folder, ImageLoader, RunLengthMask
from framework.errors import SettingsError
from tests.data.pictures import noise, save


def sample(path, **changes):
    return EditSample(**{"id": path.stem, "image": path, "source": "a", "target": "b", **changes})


def test_a_picture_is_loaded_as_the_benchmark_scripts_do(tmp_path):
    array = noise(24, 40)

    image, frame, notes = ImageLoader((16, 16)).load(sample(save(tmp_path / "a.png", array)))

    resized = np.asarray(Image.fromarray(array[:, 8:32]).resize((16, 16)))
    expected = torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(image, expected) and image.dtype == torch.float32
    assert frame.box == (0, 8, 24, 32) and frame.network == (16, 16) and notes == ()


def test_the_network_size_is_known_before_the_picture_is_loaded(tmp_path):
    one = sample(save(tmp_path / "a.png", noise(37, 52)))

    for resize in ("crop", "pad", "stretch", "native"):
        loader = ImageLoader(None if resize == "native" else (16, 24), resize=resize)
        assert loader.network_size(one) == tuple(loader.load(one)[0].shape[1:])


def test_transparent_pixels_show_the_background_and_never_the_hidden_colours(tmp_path):
    array = np.full((16, 16, 4), (200, 0, 0, 255), dtype=np.uint8)
    array[8:, :, 3] = 0
    one = sample(save(tmp_path / "a.png", array))

    image, _, notes = ImageLoader((16, 16), background=(0, 0, 255)).load(one)

    levels = ((image + 1) * 127.5).round().permute(1, 2, 0)
    assert (levels[:8] == torch.tensor([200.0, 0, 0])).all() and (levels[8:] == torch.tensor([0.0, 0, 255])).all()
    assert "background (0, 0, 255)" in notes[0]


def test_an_opaque_alpha_channel_needs_no_note(tmp_path):
    array = np.full((16, 16, 4), 255, dtype=np.uint8)

    assert ImageLoader((16, 16)).load(sample(save(tmp_path / "a.png", array)))[2] == ()


def test_alpha_is_the_mask_when_asked_and_the_colours_stay(tmp_path):
    array = np.full((16, 16, 4), (200, 0, 0, 255), dtype=np.uint8)
    array[8:, :, 3] = 0
    one = sample(save(tmp_path / "a.png", array))
    loader = ImageLoader((16, 16), alpha="mask")

    image, frame, _ = loader.load(one)
    mask, notes = loader.load_mask(one, frame)

    assert image.std(dim=(1, 2)).max() == 0
    assert mask.shape == (1, 16, 16) and mask[0, :8].sum() == 0 and mask[0, 8:].min() == 1
    assert notes == ("mask: taken from the transparency",)


def test_a_mask_of_its_own_comes_before_alpha(tmp_path):
    array = np.full((16, 16, 4), 255, dtype=np.uint8)
    one = sample(save(tmp_path / "a.png", array), mask=RunLengthMask((0, 16), None, False))
    loader = ImageLoader((16, 16), alpha="mask")

    mask, notes = loader.load_mask(one, loader.load(one)[1])

    assert mask[0, 0].min() == 1 and mask[0, 1:].max() == 0 and notes == ()


def test_a_mask_that_vanishes_in_the_crop_is_noted(tmp_path):
    one = sample(save(tmp_path / "a.png", noise(16, 48)), mask=RunLengthMask((0, 3), None, False))
    loader = ImageLoader((16, 16))

    mask, notes = loader.load_mask(one, loader.load(one)[1])

    assert mask.sum() == 0 and "nothing of it is left" in notes[0]


def test_grey_networks_get_one_channel(tmp_path):
    array = np.full((16, 16, 3), 51, dtype=np.uint8)

    image, _, _ = ImageLoader((16, 16), channels=1).load(sample(save(tmp_path / "a.png", array)))

    assert image.shape == (1, 16, 16) and torch.allclose(image, torch.tensor(-0.6))


def test_equal_prompts_are_noted(tmp_path):
    one = sample(save(tmp_path / "a.png", noise(16, 16)), target="a")

    assert "a reconstruction" in ImageLoader((16, 16)).load(one)[2][0]


def test_a_batch_keeps_what_loads_and_lists_what_does_not(tmp_path):
    good = [sample(save(tmp_path / f"{name}.png", noise(16, 20, seed=3))) for name in "ac"]
    (tmp_path / "b.png").write_text("no picture")
    bad = sample(tmp_path / "b.png")
    masked = sample(save(tmp_path / "d.png", noise(16, 20)), mask=tmp_path / "b.png")

    batch = ImageLoader((16, 16)).batch([good[0], bad, masked, good[1]])

    assert batch.samples == tuple(good) and batch.images.shape == (2, 3, 16, 16)
    assert len(batch.frames) == len(batch.notes) == 2 and batch.masks is None
    assert [one.id for one, _ in batch.failed] == ["b", "d"] and "not a picture" in batch.failed[0][1]


def test_a_batch_of_failures_has_no_images(tmp_path):
    batch = ImageLoader((16, 24)).batch([sample(tmp_path / "a.png")])

    assert batch.samples == () and batch.images.shape == (0, 3, 16, 24) and batch.masks is None
    assert len(batch.failed) == 1


def test_a_sample_without_mask_beside_one_with_a_mask_has_ones(tmp_path):
    path = save(tmp_path / "a.png", noise(16, 16))

    batch = ImageLoader((16, 16)).batch([sample(path), sample(path, mask=RunLengthMask((), None, True))])

    assert batch.masks.shape == (2, 1, 16, 16) and batch.masks[0].min() == 1 and batch.masks[1].sum() == 60


def test_pictures_of_different_network_sizes_do_not_share_a_batch(tmp_path):
    paths = [save(tmp_path / "a.png", noise(16, 16)), save(tmp_path / "b.png", noise(16, 24))]

    batch = ImageLoader(None, resize="native").batch([sample(path) for path in paths])

    assert len(batch.samples) == 1 and "network size" in batch.failed[0][1]


@pytest.mark.parametrize(
    ("size", "options"),
    [((60, 64), {}), ((0, 8), {}), (None, {}), ((64, 64), {"channels": 4}), ((64, 64), {"resize": "zoom"})],
)
def test_settings_that_do_not_suit_the_network_are_refused(size, options):
    with pytest.raises(SettingsError):
        ImageLoader(size, **options)


def test_the_options_of_a_source_reach_its_loader():
    loader = Folder("x", resize="pad", padding="background", background=(1, 2, 3), size=32, min_side=2).loader((64, 64))

    assert (loader.size, loader.resize, loader.padding, loader.background) == ((32, 32), "pad", "background", (1, 2, 3))
    assert loader.limits.min_side == 2
    assert Folder("x").loader((64, 64)).size == (64, 64)
    assert Folder("x", resize="native").loader((64, 64)).size is None
