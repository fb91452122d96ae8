"""Edits of scenes, with the exact result and the exact region that changes.

An edit changes one attribute, or adds or deletes one object. Everything that no caption says (places, radii within
their size, tints, phases of patterns) is the same in the source and in the true target.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.shapes.render import paint, silhouette
from experiments.shapes.sample import draw_scene, fits, generator
from experiments.shapes.scene import WORDS, Scene, Thing, caption

EDITS = {
    "shape": "1",
    "add": "2",
    "delete": "3",
    "size": "5",
    "colour": "6",
    "fill": "7",
    "background": "8",
    "texture": "8",
}
"""Kind of edit -> type id of PIE-Bench (1 object, 2 add, 3 delete, 5 pose, 6 colour, 7 material, 8 background)."""

_TRIES = 200


@dataclass(frozen=True)
class Edit:
    """One edit with its truth.

    `attribute` is the attribute that changes, or "count" when an object comes or goes; `thing` numbers the object
    concerned (in the scene that has it), -1 for the background; `old` and `new` are the words exchanged, "" where an
    object comes or goes.
    """

    kind: str
    source: Scene
    target: Scene
    attribute: str
    thing: int
    old: str = ""
    new: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as plain values for json."""
        return {
            "kind": self.kind,
            "attribute": self.attribute,
            "thing": self.thing,
            "old": self.old,
            "new": self.new,
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Edit:
        """Rebuild an edit from what `to_dict` returned, also after a round trip through json."""
        scenes = {name: Scene.from_dict(values[name]) for name in ("source", "target")}
        return cls(**{**values, **scenes})


def sample_edit(kind: str, seed: int, index: int) -> Edit:
    """Draw the edit of a number.

    Args:
        kind: One of `EDITS`.
        seed: Seed of a whole set.
        index: Number of the edit within the set; sets of different kinds hold different scenes.

    Raises:
        ValueError: No such kind.
    """
    if kind not in EDITS:
        raise ValueError(f"no edit {kind!r}; choose from {', '.join(EDITS)}")
    rng = generator(seed, index, f"edit-{kind}")
    for _ in range(_TRIES):
        edit = _draw(kind, rng)
        if edit is not None:
            return edit
    raise RuntimeError(f"no scene of {_TRIES} allows the edit {kind!r}; the limits of the world contradict each other")


def _draw(kind: str, rng: random.Random) -> Edit | None:
    if kind in ("add", "delete"):
        full, gone = draw_scene(rng, 2), rng.randrange(2)
        rest = replace(full, things=(full.things[1 - gone],), relation="")
        source, target = (rest, full) if kind == "add" else (full, rest)
        return Edit(kind, source, target, "count", gone)
    source = draw_scene(rng, rng.choices((1, 2), (0.6, 0.4))[0])
    if kind in ("background", "texture"):
        old = getattr(source, kind)
        taken = {old} | ({thing.colour for thing in source.things} if kind == "background" else set())
        new = rng.choice([word for word in WORDS[kind] if word not in taken])
        return Edit(kind, source, replace(source, **{kind: new}), kind, -1, old, new)
    at = rng.randrange(len(source.things))
    choices = []
    for word in WORDS[kind]:
        things = tuple(replace(thing, **{kind: word}) if k == at else thing for k, thing in enumerate(source.things))
        target = replace(source, things=things)
        if _allowed(kind, source, target, at):
            choices.append((word, target))
    if not choices:
        return None
    new, target = rng.choice(choices)
    return Edit(kind, source, target, kind, at, getattr(source.things[at], kind), new)


def _allowed(kind: str, source: Scene, target: Scene, at: int) -> bool:
    thing = target.things[at]
    others = [other for k, other in enumerate(target.things) if k != at]
    if source == target or not fits(target.things, target.relation):
        return False
    if kind == "colour":
        return thing.colour != target.background and all(other.colour != thing.colour for other in others)
    if kind == "shape":
        return all(other.shape != thing.shape for other in others)
    return not (kind == "size" and others and thing.size == "large")


def edit_mask(edit: Edit) -> np.ndarray:
    """Return the pixels that an edit may change, [64, 64] of bool.

    For an object, every pixel that its silhouette touches before or after; for the background, every pixel that no
    object hides wholly. Source and true target are equal everywhere else.
    """
    if edit.thing < 0:
        return np.array([np.array(paint(thing)) for thing in edit.source.things]).max(0) < 255
    scenes = {"add": (edit.target,), "delete": (edit.source,)}.get(edit.kind, (edit.source, edit.target))
    touched = [np.array(silhouette(scene.things[edit.thing])) for scene in scenes]
    return np.array(touched).max(0) > 0


def dilate(mask: np.ndarray, pixels: int = 2) -> np.ndarray:
    """Grow a mask [H, W] of bool by a number of pixels in the eight directions."""
    grown = np.pad(mask, pixels)
    height, width = mask.shape
    shifts = [grown[r : r + height, c : c + width] for r in range(2 * pixels + 1) for c in range(2 * pixels + 1)]
    return np.logical_or.reduce(shifts)


def prompts(edit: Edit) -> tuple[str, str]:
    """Source and target caption with the changed words in [brackets], as PIE-Bench marks them."""
    source, target = caption(edit.source), caption(edit.target)
    if edit.kind in ("add", "delete"):
        full, more = (edit.target, target) if edit.kind == "add" else (edit.source, source)
        first, second = (_phrase(thing) for thing in full.things)
        extra = f"{first} {full.relation}" if edit.thing == 0 else f"{full.relation} {second}"
        start = 0 if edit.thing == 0 else len(first) + 1
        more = f"{more[:start]}[{extra}]{more[start + len(extra) :]}"
        return (source, more) if edit.kind == "add" else (more, target)
    return _bracket(source, edit, edit.old), _bracket(target, edit, edit.new)


def instruction(edit: Edit) -> str:
    """The edit as a request in words."""
    if edit.kind in ("add", "delete"):
        full = edit.target if edit.kind == "add" else edit.source
        thing, other = full.things[edit.thing], full.things[1 - edit.thing]
        if edit.kind == "delete":
            return f"delete the {thing.colour} {thing.shape}"
        where = {("left of", 0): "left of", ("left of", 1): "right of", ("above", 0): "above", ("above", 1): "below"}
        return f"add {_phrase(thing)} {where[full.relation, edit.thing]} the {other.colour} {other.shape}"
    if edit.thing < 0:
        return f"make the background {edit.new}"
    thing = edit.source.things[edit.thing]
    if edit.kind == "shape":
        return f"change the {thing.colour} {thing.shape} to a {edit.new}"
    return f"make the {thing.colour} {thing.shape} {edit.new}"


def blended_words(edit: Edit) -> str:
    """The word of the source and the word of the target that local blends look at; "" for backgrounds and where an
    object comes or goes.
    """
    if edit.thing < 0 or edit.attribute == "count":
        return ""
    return f"{edit.source.things[edit.thing].shape} {edit.target.things[edit.thing].shape}"


def concepts(edit: Edit) -> list[dict[str, Any]]:
    """Say an edit as concepts of semantic guidance: the new word and, reversed, the old one, or the object that comes
    or goes.
    """
    if edit.attribute == "count":
        thing = (edit.target if edit.kind == "add" else edit.source).things[edit.thing]
        return [{"text": _phrase(thing), "reverse": edit.kind == "delete"}]
    return [{"text": edit.new, "reverse": False}, {"text": edit.old, "reverse": True}]


def _phrase(thing: Thing) -> str:
    return f"a {' '.join(thing.words)}"


def _bracket(text: str, edit: Edit, word: str) -> str:
    """Mark a word where the edit exchanges it; captions have a fixed order, so its place follows from the attribute."""
    words = text.split()
    if edit.thing < 0:
        at = len(words) - (3 if edit.kind == "texture" else 2)
    else:
        after = words.index("a", 1) if edit.thing else 0
        at = after + 1 + ("size", "fill", "colour", "shape").index(edit.kind)
    if words[at] != word:
        raise AssertionError(f"{text!r} does not hold {word!r} at word {at}")
    return " ".join([*words[:at], f"[{word}]", *words[at + 1 :]])
