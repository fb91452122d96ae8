import dataclasses
import json
import shutil

import pytest

from framework.data import EditSample, Folder, RunLengthMask, content_hash, manifest_lines
from framework.errors import SampleError
from tests.data.pictures import noise, save


@pytest.fixture
def sample(tmp_path):
    return EditSample(
        "a",
        save(tmp_path / "a.png", noise(8, 8)),
        "source",
        "target",
        mask=save(tmp_path / "m.png", noise(8, 8, 1)),
        extra={"b": [1, 2], "a": "\u732b"},
    )


def test_the_hash_depends_on_every_content_and_on_no_place_or_name(sample, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(sample.image, moved / "other.png")
    changes = {
        "image": save(tmp_path / "b.png", noise(8, 8, seed=1)),
        "mask": RunLengthMask((1, 2)),
        "source": "x",
        "target": "x",
        "negative": "x",
        "instruction": "x",
        "edit_type": "x",
        "blend_source": "x",
        "blend_target": "x",
        "extra": {},
    }

    known = content_hash(sample)

    assert len(known) == 64
    assert content_hash(dataclasses.replace(sample, id="z", image=moved / "other.png")) == known
    assert len({known} | {content_hash(dataclasses.replace(sample, **{k: v})) for k, v in changes.items()}) == 11


def test_the_hash_does_not_depend_on_the_order_of_extra_keys(sample):
    other = dataclasses.replace(sample, extra={"a": "\u732b", "b": [1, 2]})

    assert content_hash(other) == content_hash(sample)


def test_the_mask_s_size_and_border_count(sample):
    masks = [RunLengthMask((1, 2)), RunLengthMask((1, 2), (8, 8)), RunLengthMask((1, 2), (8, 8), False)]

    assert len({content_hash(dataclasses.replace(sample, mask=mask)) for mask in masks}) == 3


def test_a_sample_that_cannot_be_read_has_no_hash(sample):
    sample.image.unlink()

    with pytest.raises(SampleError, match=r"a\.png"):
        content_hash(sample)


def test_the_lock_has_a_line_per_sample_with_relative_paths(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png", noise(8, 8))
    source = Folder(tmp_path, target="x")
    samples = source.samples()
    samples[1].image.unlink()

    first, second = manifest_lines(samples, source.folder)

    assert first == {"id": "a", "image": "a.png", "hash": content_hash(samples[0]), "problem": None}
    assert second["hash"] is None and "b.png" in second["problem"]
    assert json.dumps([first, second])
