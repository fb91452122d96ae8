"""Draws scenes with Pillow at four times their size and reduces them; equal scenes give equal bytes."""

from __future__ import annotations

import math
from functools import cache

from PIL import Image, ImageChops, ImageDraw

from experiments.shapes.scene import SIDE, Scene, Thing

SCALE = 4
_CANVAS = SIDE * SCALE
_STROKE = 3.2
"""Width of the line of an outlined object, in pixels."""

PALETTE = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.97, 0.55, 0.08),
    "yellow": (0.97, 0.90, 0.16),
    "green": (0.15, 0.62, 0.22),
    "blue": (0.15, 0.32, 0.86),
    "purple": (0.56, 0.18, 0.68),
    "white": (0.94, 0.94, 0.94),
    "black": (0.07, 0.07, 0.07),
}
"""Colour word -> RGB in [0, 1] before the tint."""

Colour = tuple[int, int, int]


def render(scene: Scene) -> Image.Image:
    """Draw a scene.

    Returns:
        RGB image of 64 x 64 px; the same bytes for equal scenes, in any process.
    """
    canvas = _background(scene)
    for thing in scene.things:
        main, second = _shades(thing.colour, thing.tint)
        box, outline, ink = _stencils(thing)
        if thing.fill in ("striped", "dotted"):
            canvas.paste(_pattern(thing, ink.size, main, second), box, outline)
        else:
            canvas.paste(main, (*box, box[0] + ink.width, box[1] + ink.height), ink)
    return canvas.reduce(SCALE)


def silhouette(thing: Thing) -> Image.Image:
    """Return how much of every pixel an object's shape covers, its unpainted inside included: 8-bit image, 0..255."""
    box, outline, _ = _stencils(thing)
    return _coverage(box, outline)


def paint(thing: Thing) -> Image.Image:
    """Return how much of every pixel an object hides of its background: 8-bit, 0..255; outlines hide less."""
    box, _, ink = _stencils(thing)
    return _coverage(box, ink)


def _coverage(box: tuple[int, int], stencil: Image.Image) -> Image.Image:
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    canvas.paste(stencil, box)
    return canvas.reduce(SCALE)


def _stencils(thing: Thing) -> tuple[tuple[int, int], Image.Image, Image.Image]:
    """Upper left corner on the canvas, silhouette and painted part of one object, at canvas resolution."""
    reach = math.ceil(thing.radius * 1.12 * SCALE) + 1
    left, top = round(thing.x * SCALE) - reach, round(thing.y * SCALE) - reach
    points = [(reach + x * thing.radius * SCALE, reach + y * thing.radius * SCALE) for x, y in _polygon(thing.shape)]
    outline = Image.new("L", (2 * reach + 1, 2 * reach + 1))
    ImageDraw.Draw(outline).polygon(points, fill=255)
    if thing.fill != "outlined":
        return (left, top), outline, outline
    line = Image.new("L", outline.size)
    ImageDraw.Draw(line).line(
        [*points, points[0], points[1]], fill=255, width=round(2 * _STROKE * SCALE), joint="curve"
    )
    return (left, top), outline, ImageChops.darker(line, outline)


@cache
def _polygon(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape of radius one, y downwards."""
    if shape == "circle":
        return _arc(0.0, 0.0, 0.96, 0.0, 360.0)
    if shape == "square":
        return ((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84))
    if shape == "triangle":
        return ((0.0, -1.0), (1.05, 0.86), (-1.05, 0.86))
    if shape == "diamond":
        return ((0.0, -1.1), (0.82, 0.0), (0.0, 1.1), (-0.82, 0.0))
    if shape == "star":
        turns = [math.radians(36 * k - 90) for k in range(10)]
        return tuple(
            (1.1 * r * math.cos(a), 0.06 + 1.1 * r * math.sin(a)) for a, r in zip(turns, (1.0, 0.42) * 5, strict=True)
        )
    if shape == "cross":
        return tuple(
            (x * 1.0, y * 1.0)
            for x, y in (
                *((-0.34, -1.0), (0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34)),
                *((0.34, 1.0), (-0.34, 1.0), (-0.34, 0.34), (-1.0, 0.34), (-1.0, -0.34), (-0.34, -0.34)),
            )
        )
    if shape == "heart":
        turns = [math.tau * k / 64 for k in range(64)]
        return tuple(
            (
                1.02 * math.sin(a) ** 3,
                -0.06 - (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16.0,
            )
            for a in turns
        )
    if shape == "moon":
        # An outer circle, and the part of a second circle inside it, walked backwards: both meet in the two horns.
        outer, inner, shift = 1.05, 0.86, 0.56
        meet = (outer**2 - inner**2 + shift**2) / (2 * shift)
        far = math.degrees(math.acos(meet / outer))
        near = math.degrees(math.acos((meet - shift) / inner))
        crescent = _arc(0.0, 0.0, outer, far, 360.0 - far) + _arc(shift, 0.0, inner, 360.0 - near, near)
        return tuple((x + 0.12, y) for x, y in crescent)
    raise ValueError(f"shape {shape!r} has no polygon")


def _arc(
    x: float, y: float, radius: float, start: float, stop: float, pieces: int = 48
) -> tuple[tuple[float, float], ...]:
    turns = [math.radians(start + (stop - start) * k / pieces) for k in range(pieces + 1)]
    return tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns)


def _shades(word: str, tint: tuple[float, float, float]) -> tuple[Colour, Colour]:
    """The colour itself, and the shade that its patterns alternate with."""
    base = [min(max(c + t, 0.0), 1.0) for c, t in zip(PALETTE[word], tint, strict=True)]
    towards, share = (0.0, 0.38) if word in ("white", "yellow", "orange") else (1.0, 0.45)
    other = [c + share * (towards - c) for c in base]
    return _bytes(base), _bytes(other)


def _bytes(colour: list[float]) -> Colour:
    red, green, blue = (round(255 * c) for c in colour)
    return red, green, blue


def _pattern(thing: Thing, size: tuple[int, int], main: Colour, second: Colour) -> Image.Image:
    tile = Image.new("RGB", size, main)
    draw = ImageDraw.Draw(tile)
    if thing.fill == "striped":
        period, half = 8 * SCALE * math.sqrt(2), size[1]
        at = -half - period * (1 + thing.phase[0])
        while at < size[0] + period:
            draw.polygon(
                [(at, 0), (at + period / 2, 0), (at + period / 2 + half, half), (at + half, half)], fill=second
            )
            at += period
        return tile
    step, dot = 7.5 * SCALE, 2.3 * SCALE
    for row in range(-1, int(size[1] / step) + 2):
        for column in range(-1, int(size[0] / step) + 2):
            x, y = (column + thing.phase[0]) * step, (row + thing.phase[1]) * step
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=second)
    return tile


def _background(scene: Scene) -> Image.Image:
    main, second = _shades(scene.background, scene.tint)
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), main)
    if scene.texture == "plain":
        return canvas
    if scene.texture == "gradient":
        ramp = Image.linear_gradient("L").resize((_CANVAS, _CANVAS))
        return Image.composite(Image.new("RGB", canvas.size, second), canvas, ramp)
    draw = ImageDraw.Draw(canvas)
    if scene.texture == "lined":
        period = 8 * SCALE
        for k in range(-1, _CANVAS // period + 1):
            top = round((k + scene.phase[1]) * period)
            draw.rectangle((0, top, _CANVAS, top + 3 * SCALE - 1), fill=second)
        return canvas
    cell = 8 * SCALE
    for row in range(-2, SIDE // 8 + 2):
        for column in range(-2, SIDE // 8 + 2):
            if (row + column) % 2:
                left, top = round((column + 2 * scene.phase[0]) * cell), round((row + 2 * scene.phase[1]) * cell)
                draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=second)
    return canvas
