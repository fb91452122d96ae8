from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.shapes.edits import (
    EDITS,
    Edit,
    blended_words,
    concepts,
    dilate,
    edit_mask,
    instruction,
    prompts,
    sample_edit,
)
from experiments.shapes.render import render
from experiments.shapes.scene import caption

SAMPLES = [(kind, index) for kind in EDITS for index in range(12)]


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return [sample_edit(kind, 0, index) for kind, index in SAMPLES]


def test_source_and_truth_are_equal_outside_the_mask(edits: list[Edit]) -> None:
    for edit in edits:
        source, truth = np.array(render(edit.source)), np.array(render(edit.target))
        outside = ~edit_mask(edit)
        assert np.array_equal(source[outside], truth[outside])
        assert not np.array_equal(source, truth)


def test_an_edit_changes_its_attribute_and_holds_everything_else(edits: list[Edit]) -> None:
    for edit in edits:
        if edit.thing < 0:
            assert replace(edit.target, **{edit.attribute: edit.old}) == edit.source
        elif edit.attribute != "count":
            things = list(edit.target.things)
            things[edit.thing] = replace(things[edit.thing], **{edit.attribute: edit.old})
            assert replace(edit.target, things=tuple(things)) == edit.source


def test_adding_and_deleting_leave_the_other_object_as_it_was(edits: list[Edit]) -> None:
    for edit in (edit for edit in edits if edit.attribute == "count"):
        full, rest = (edit.target, edit.source) if edit.kind == "add" else (edit.source, edit.target)
        assert rest == replace(full, things=(full.things[1 - edit.thing],), relation="")


def test_prompts_without_brackets_are_the_captions(edits: list[Edit]) -> None:
    for edit in edits:
        source, target = (prompt.replace("[", "").replace("]", "") for prompt in prompts(edit))
        assert (source, target) == (caption(edit.source), caption(edit.target))
        assert any("[" in prompt for prompt in prompts(edit))


def test_exchanged_words_leave_prompts_of_equal_length(edits: list[Edit]) -> None:
    for edit in (edit for edit in edits if edit.attribute != "count"):
        source, target = (caption(scene).split() for scene in (edit.source, edit.target))
        assert [(a, b) for a, b in zip(source, target, strict=True) if a != b] == [(edit.old, edit.new)]


def test_the_words_of_the_local_blend_occur_in_the_prompts(edits: list[Edit]) -> None:
    for edit in edits:
        words = blended_words(edit).split()
        assert len(words) == (0 if edit.thing < 0 or edit.attribute == "count" else 2)
        assert all(
            word in caption(scene).split() for word, scene in zip(words, (edit.source, edit.target), strict=False)
        )


def test_an_instruction_names_what_is_new(edits: list[Edit]) -> None:
    assert all(edit.new in instruction(edit) for edit in edits)


def test_an_edit_survives_json(edits: list[Edit]) -> None:
    assert all(Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit for edit in edits)


def test_dilation_grows_a_pixel_to_a_square_and_stops_at_the_frame() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0, 4] = True

    grown = dilate(mask, 2)

    assert np.argwhere(grown).tolist() == [[r, c] for r in range(3) for c in range(2, 7)]


def test_an_unknown_edit_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no edit 'paint'; choose from shape, add, delete"):
        sample_edit("paint", 0, 0)


def test_concepts_are_what_the_captions_exchange(edits: list[Edit]) -> None:
    for edit in edits:
        found = {item["reverse"]: item["text"] for item in concepts(edit)}
        source, target = caption(edit.source), caption(edit.target)
        assert (False in found, True in found) == (edit.kind != "delete", edit.kind != "add")
        assert found.get(False, target) in target and found.get(True, source) in source
        if edit.attribute != "count":
            assert found == {False: edit.new, True: edit.old}
