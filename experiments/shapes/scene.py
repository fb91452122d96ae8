"""What a scene of the shapes world is, and the sentence that describes it.

A scene has one object on a textured background, or two objects beside or above each other. Its caption says the
attributes in `WORDS` and nothing else; exact positions, radii, tints and pattern phases are parts of the scene that no
caption mentions, and every edit keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SIDE = 64
"""Width and height of an image, in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "medium", "large")
FILLS = ("solid", "striped", "dotted", "outlined")
TEXTURES = ("plain", "checkered", "gradient", "lined")
RELATIONS = ("left of", "above")

WORDS: Mapping[str, tuple[str, ...]] = {
    "size": SIZES,
    "fill": FILLS,
    "colour": COLOURS,
    "shape": SHAPES,
    "texture": TEXTURES,
    "background": COLOURS,
}
"""Attribute -> the words that it can take. The first four belong to an object, the others to the background."""

OPTIONAL = ("size", "fill", "texture")
"""Attributes that a caption may leave out and stay a sentence that names its object."""

RADII = {"small": (9.5, 11.0), "medium": (13.5, 15.0), "large": (19.0, 21.5)}
"""Size -> smallest and largest radius in pixels; the gaps between them keep the words apart."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    `size`, `fill`, `colour` and `shape` are words of the caption. `x`, `y` is the centre in pixels, `spread` in [0, 1]
    places the radius within the range of its size, `tint` is added to the colour's RGB (-0.06..0.06 each), `phase` in
    [0, 1)^2 shifts the pattern of the fill.
    """

    size: str
    fill: str
    colour: str
    shape: str
    x: float
    y: float
    spread: float = 0.5
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    phase: tuple[float, float] = (0.0, 0.0)

    @property
    def radius(self) -> float:
        """Radius of the object in pixels."""
        low, high = RADII[self.size]
        return low + self.spread * (high - low)

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Size, fill, colour and shape, in the order of the caption."""
        return self.size, self.fill, self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """Objects on a background: everything that the renderer draws.

    `relation` is "" for one object; with two, the first is "left of" or "above" the second. `tint` and `phase` belong
    to the background.
    """

    things: tuple[Thing, ...]
    background: str
    texture: str
    relation: str = ""
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    phase: tuple[float, float] = field(default=(0.0, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain values for json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        """Rebuild a scene from what `to_dict` returned, also after a round trip through json."""
        things = tuple(
            Thing(**{**thing, "tint": tuple(thing["tint"]), "phase": tuple(thing["phase"])})
            for thing in values["things"]
        )
        return cls(**{**values, "things": things, "tint": tuple(values["tint"]), "phase": tuple(values["phase"])})


@dataclass(frozen=True)
class Reading:
    """What a caption names: one tuple of (size, fill, colour, shape) per object; a word left out is ""."""

    things: tuple[tuple[str, str, str, str], ...]
    background: str
    texture: str
    relation: str = ""


def reading(scene: Scene) -> Reading:
    """Return the attributes of a scene that a full caption names."""
    return Reading(tuple(thing.words for thing in scene.things), scene.background, scene.texture, scene.relation)


def caption(scene: Scene, omit: Collection[str] = ()) -> str:
    """Describe a scene in one sentence, such as "a large striped red circle on a plain blue background".

    Args:
        scene: The scene.
        omit: Attributes to leave out, from `OPTIONAL`.

    Raises:
        ValueError: An attribute to leave out is not optional.
    """
    return caption_of(reading(scene), omit)


def caption_of(said: Reading, omit: Collection[str] = ()) -> str:
    """Write the sentence that names given attributes; see `caption`."""
    unknown = set(omit) - set(OPTIONAL)
    if unknown:
        raise ValueError(f"a caption cannot omit {sorted(unknown)}; it can omit {', '.join(OPTIONAL)}")
    skipped = [name in omit for name in ("size", "fill", "colour", "shape")]
    phrases = [_phrase([word for word, skip in zip(words, skipped, strict=True) if not skip]) for words in said.things]
    ground = _phrase(
        [said.background, "background"] if "texture" in omit else [said.texture, said.background, "background"]
    )
    return f" {said.relation} ".join(phrases) + f" on {ground}"


def _phrase(words: list[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _either(words: tuple[str, ...]) -> str:
    return "|".join(words)


_THING = rf"an? (?:({_either(SIZES)}) )?(?:({_either(FILLS)}) )?({_either(COLOURS)}) ({_either(SHAPES)})"
_CAPTION = re.compile(
    rf"{_THING}(?: ({_either(RELATIONS)}) {_THING})? on an? (?:({_either(TEXTURES)}) )?({_either(COLOURS)}) background"
)


def parse(text: str) -> Reading:
    """Read a caption back into its attributes; `parse(caption(scene)) == reading(scene)`.

    Raises:
        ValueError: The sentence is not one that `caption` writes.
    """
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not a caption of the shapes world; write for instance "
            "'a large striped red circle on a plain blue background'"
        )
    groups = [group or "" for group in match.groups()]
    first, relation, second = tuple(groups[:4]), groups[4], tuple(groups[5:9])
    return Reading((first, second) if relation else (first,), groups[10], groups[9], relation)  # type: ignore[arg-type]
