"""Scenes rendered once, encoded, and kept on disk, so that training spends its time on the networks."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.shapes.latents import PATCH, Projection
from experiments.shapes.render import render, silhouette
from experiments.shapes.sample import sample_scene
from experiments.shapes.scene import FILLS, RELATIONS, SIDE, WORDS, Reading, Scene, reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import CLIPTokenizer


class Codes(NamedTuple):
    """Where `encode_reading` puts what a caption says: indices into `WORDS`, -1 where there is no second object."""

    size: int = 0
    fill: int = 1
    colour: int = 2
    shape: int = 3
    second: int = 4
    texture: int = 8
    background: int = 9
    relation: int = 10


CODE = Codes()


def encode_reading(said: Reading) -> list[int]:
    """Write attributes as eleven small integers, in the order of `Codes`; relation 0 is none."""
    codes = []
    for thing in (*said.things, None)[:2]:
        for slot, name in enumerate(("size", "fill", "colour", "shape")):
            codes.append(-1 if thing is None else WORDS[name].index(thing[slot]))
    codes += [WORDS["texture"].index(said.texture), WORDS["background"].index(said.background)]
    return [*codes, 1 + RELATIONS.index(said.relation) if said.relation else 0]


def decode_reading(codes: Sequence[int]) -> Reading:
    """Turn what `encode_reading` wrote back into attributes."""
    names = ("size", "fill", "colour", "shape")
    count = 2 if codes[CODE.relation] else 1
    things = tuple(tuple(WORDS[name][codes[4 * k + slot]] for slot, name in enumerate(names)) for k in range(count))
    relation = RELATIONS[codes[CODE.relation] - 1] if codes[CODE.relation] else ""
    background, texture = WORDS["background"][codes[CODE.background]], WORDS["texture"][codes[CODE.texture]]
    return Reading(things, background, texture, relation)  # type: ignore[arg-type]


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Render scenes to one tensor, [N, 3, 64, 64] in [-1, 1]."""
    stack = np.stack([np.array(render(scene)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def region(scene: Scene) -> np.ndarray:
    """Share of every latent cell that the scene's objects cover, [16, 16] of 0..255."""
    covered = np.zeros((SIDE // PATCH, SIDE // PATCH), np.uint8)
    for thing in scene.things:
        covered = np.maximum(covered, np.array(silhouette(thing).reduce(PATCH)))
    return covered


class Cache(NamedTuple):
    """Rendered scenes: scaled latents [N, 16, 16, 16] in float16, `region`s [N, 16, 16] and attribute codes [N, 11]."""

    latents: np.ndarray
    regions: np.ndarray
    codes: np.ndarray


def cached(folder: Path, projection: Projection, *, seed: int, count: int) -> Cache:
    """Open the cache of a set of scenes; render it first if this folder does not have it.

    Args:
        folder: Where caches are kept; each is named by what determines its content.
        projection: Encoder of the images.
        seed: Seed of the set.
        count: Number of scenes, from index 0.

    Returns:
        Arrays mapped from disk. Codes fully describe the captions.
    """
    digest = hashlib.sha256(projection.matrix.numpy().tobytes() + projection.mean.numpy().tobytes())
    digest.update(json.dumps([seed, count, projection.scaling_factor, sample_scene(seed, 0).to_dict()]).encode())
    digest.update(pixels([sample_scene(seed, 1)]).numpy().tobytes())
    home = folder / f"scenes-{digest.hexdigest()[:16]}"
    if not home.exists():
        partial = folder / f".{home.name}-{os.getpid()}"
        partial.mkdir(parents=True)
        _fill(partial, projection, seed, count)
        try:
            partial.rename(home)
        except OSError:  # Another process finished first; its files are the same.
            for name in Cache._fields:
                (partial / f"{name}.npy").unlink()
            partial.rmdir()
    return Cache(*(np.load(home / f"{name}.npy", mmap_mode="r") for name in Cache._fields))


def _fill(home: Path, projection: Projection, seed: int, count: int) -> None:
    cells = SIDE // PATCH
    shapes = {
        "latents": (np.float16, (len(projection.matrix), cells, cells)),
        "regions": (np.uint8, (cells, cells)),
        "codes": (np.int8, (11,)),
    }
    arrays = {
        name: np.lib.format.open_memmap(home / f"{name}.npy", "w+", dtype=kind, shape=(count, *shape))
        for name, (kind, shape) in shapes.items()
    }
    for start in range(0, count, 512):
        scenes = [sample_scene(seed, index) for index in range(start, min(start + 512, count))]
        here = slice(start, start + len(scenes))
        arrays["latents"][here] = (projection.encode(pixels(scenes)) * projection.scaling_factor).numpy()
        arrays["regions"][here] = [region(scene) for scene in scenes]
        arrays["codes"][here] = [encode_reading(reading(scene)) for scene in scenes]
    for array in arrays.values():
        array.flush()


class Captioner:
    """Writes captions straight as tokens, from attribute codes: thousands of times faster than tokenizing sentences."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        from experiments.shapes.text import caption_words

        self.length = tokenizer.model_max_length
        self.token = {word: tokenizer(word).input_ids[1] for word in caption_words()}
        self.start, self.end, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def empty(self) -> list[int]:
        """Tokens of the empty prompt."""
        return [self.start, self.end] + [self.pad] * (self.length - 2)

    def __call__(self, codes: Sequence[int], omit: frozenset[str] = frozenset()) -> list[int]:
        """Tokens of the caption of attribute codes, padded to the tokenizer's length."""
        from experiments.shapes.scene import caption_of

        words = caption_of(decode_reading(codes), omit).split()
        tokens = [self.start, *(self.token[word] for word in words), self.end]
        return tokens + [self.pad] * (self.length - len(tokens))


def easy(codes: np.ndarray) -> np.ndarray:
    """Which rows of codes show outlines best: one object, not small, solid or outlined, on a plain background."""
    simple = np.isin(codes[:, CODE.fill], [FILLS.index("solid"), FILLS.index("outlined")])
    return (codes[:, CODE.relation] == 0) & (codes[:, CODE.texture] == 0) & (codes[:, CODE.size] > 0) & simple
