"""Draws random scenes: one generator per (seed, index), so that a scene does not depend on how many were drawn before
or in which process.
"""

from __future__ import annotations

import random

from experiments.shapes.scene import COLOURS, FILLS, RELATIONS, SHAPES, SIDE, SIZES, TEXTURES, Scene, Thing

MARGIN = 2.0
"""Smallest distance in pixels between the frame and the circle of an object; two medium objects may use it up."""

GAP = 2.0
"""Smallest distance in pixels between the circles of two objects along their relation."""


def generator(seed: int, index: int, purpose: str) -> random.Random:
    """Return the generator of one sample; equal arguments give equal draws everywhere."""
    return random.Random(f"shapes/{purpose}/{seed}/{index}")


def sample_scene(seed: int, index: int, objects: int | None = None) -> Scene:
    """Draw the scene of a number.

    Args:
        seed: Seed of a whole set.
        index: Number of the scene within the set.
        objects: 1 or 2; None draws one object in 60 % of the scenes.

    Raises:
        ValueError: Another number of objects.
    """
    rng = generator(seed, index, "scene")
    count = rng.choices((1, 2), (0.6, 0.4))[0]
    if objects not in (None, 1, 2):
        raise ValueError(f"objects={objects}: a scene has 1 or 2 objects")
    return draw_scene(rng, count if objects is None else objects)


def draw_scene(rng: random.Random, objects: int) -> Scene:
    """Draw a scene with one or two objects from a generator."""
    background, *colours = rng.sample(COLOURS, 1 + objects)
    shapes = rng.sample(SHAPES, objects)
    sizes = [rng.choice(SIZES if objects == 1 else SIZES[:2]) for _ in range(objects)]
    spreads = [_number(rng, 0.0, 1.0) for _ in range(objects)]
    things = [
        Thing(size, rng.choice(FILLS), colour, shape, 0.0, 0.0, spread, _tint(rng), _phase(rng))
        for size, colour, shape, spread in zip(sizes, colours, shapes, spreads, strict=True)
    ]
    relation = rng.choice(RELATIONS) if objects == 2 else ""
    places = _places(rng, [thing.radius for thing in things], relation)
    things = [
        Thing(*thing.words, x, y, thing.spread, thing.tint, thing.phase)
        for thing, (x, y) in zip(things, places, strict=True)
    ]
    return Scene(tuple(things), background, rng.choice(TEXTURES), relation, _tint(rng), _phase(rng))


def fits(things: tuple[Thing, ...], relation: str) -> bool:
    """Whether all objects lie inside the frame and, where there are two, apart from each other along their relation."""
    margin = MARGIN if len(things) == 1 else 0.0
    places = [(at, thing.radius) for thing in things for at in (thing.x, thing.y)]
    inside = all(radius + margin <= at <= SIDE - margin - radius for at, radius in places)
    if len(things) < 2:
        return inside
    first, second = things
    away = second.x - first.x if relation == "left of" else second.y - first.y
    return inside and away >= first.radius + second.radius + GAP


def _places(rng: random.Random, radii: list[float], relation: str) -> list[tuple[float, float]]:
    def anywhere(radius: float) -> float:
        return _number(rng, MARGIN + radius, SIDE - MARGIN - radius)

    if len(radii) == 1:
        return [(anywhere(radii[0]), anywhere(radii[0]))]
    first, second = radii
    slack = SIDE - 2 * MARGIN - GAP - 2 * (first + second)
    before, between = sorted((rng.random() * slack, rng.random() * slack))
    along = (round(MARGIN + before + first, 3), round(MARGIN + between + 2 * first + GAP + second, 3))
    # Across the relation the centres differ by at most 6 px, so that "left of" is never read as "above".
    middle = _number(rng, 20.0, 44.0)
    across = [
        round(min(max(middle + rng.uniform(-3.0, 3.0), MARGIN + radius), SIDE - MARGIN - radius), 3) for radius in radii
    ]
    pairs = list(zip(along, across, strict=True))
    return pairs if relation == "left of" else [(y, x) for x, y in pairs]


def _number(rng: random.Random, low: float, high: float) -> float:
    return round(rng.uniform(low, high), 3)


def _tint(rng: random.Random) -> tuple[float, float, float]:
    return _number(rng, -0.05, 0.05), _number(rng, -0.05, 0.05), _number(rng, -0.05, 0.05)


def _phase(rng: random.Random) -> tuple[float, float]:
    return _number(rng, 0.0, 1.0), _number(rng, 0.0, 1.0)
