from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from experiments.shapes.data import decode_reading, encode_reading
from experiments.shapes.render import render, silhouette
from experiments.shapes.sample import fits, sample_scene
from experiments.shapes.scene import OPTIONAL, SHAPES, Scene, Thing, caption, parse, reading

SCENES = [sample_scene(0, index) for index in range(200)]


def test_a_scene_depends_on_its_seed_and_number_alone() -> None:
    assert [sample_scene(0, index) for index in reversed(range(200))] == SCENES[::-1]
    assert sample_scene(1, 0) != SCENES[0]


def test_a_caption_is_read_back_as_the_words_of_its_scene() -> None:
    assert all(parse(caption(scene)) == reading(scene) for scene in SCENES)


def test_a_caption_without_optional_words_is_still_a_sentence() -> None:
    scene = Scene((Thing("large", "outlined", "orange", "circle", 32.0, 32.0),), "blue", "plain")

    assert caption(scene, OPTIONAL) == "an orange circle on a blue background"
    assert parse(caption(scene, OPTIONAL)).things == (("", "", "orange", "circle"),)


def test_a_caption_cannot_leave_out_the_colour() -> None:
    with pytest.raises(ValueError, match=r"cannot omit \['colour'\]; it can omit size, fill, texture"):
        caption(SCENES[0], ("colour",))


def test_other_sentences_are_not_captions() -> None:
    with pytest.raises(ValueError, match="'a cat' is not a caption"):
        parse("a cat")


def test_attribute_codes_hold_everything_that_a_caption_says() -> None:
    assert all(decode_reading(encode_reading(reading(scene))) == reading(scene) for scene in SCENES)


def test_a_scene_survives_json() -> None:
    assert all(Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene for scene in SCENES[:20])


def test_objects_lie_inside_the_frame_and_apart_and_differ_from_the_background() -> None:
    for scene in SCENES:
        colours = [thing.colour for thing in scene.things]
        assert fits(scene.things, scene.relation)
        assert len({*colours, scene.background}) == len(colours) + 1


def test_a_render_has_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from experiments.shapes.render import render;"
        "from experiments.shapes.sample import sample_scene;"
        "print(hashlib.sha256(b''.join(render(sample_scene(0, k)).tobytes() for k in range(9, -1, -1))).hexdigest())"
    )
    import hashlib

    here = hashlib.sha256(b"".join(render(SCENES[k]).tobytes() for k in range(9, -1, -1))).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    assert here == there


def test_every_shape_has_a_silhouette_of_its_own_inside_its_circle() -> None:
    thing = Thing("large", "solid", "red", "circle", 32.0, 32.0)
    masks = {shape: silhouette(replace(thing, shape=shape)).tobytes() for shape in SHAPES}

    assert len(set(masks.values())) == len(SHAPES)
    for mask in masks.values():
        assert 0.2 < sum(mask) / 255 / (3.1416 * thing.radius**2) < 1.0
