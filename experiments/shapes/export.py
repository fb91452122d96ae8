"""Writes edits of the shapes world as a benchmark folder in the layout of PIE-Bench, with their exact truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shapes.edits import EDITS, blended_words, concepts, edit_mask, instruction, prompts, sample_edit
from experiments.shapes.render import render


def run_lengths(mask: np.ndarray) -> list[int]:
    """Write a mask [H, W] of bool as a flat list of (start, length) pairs over its row-major pixels."""
    edges = np.diff(np.concatenate(([0], mask.ravel().astype(np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [int(value) for pair in zip(starts, ends - starts, strict=True) for value in pair]


def export_benchmark(folder: Path, *, count: int, seed: int = 0, kinds: Sequence[str] = tuple(EDITS)) -> None:
    """Write `mapping_file.json`, `annotation_images/` and `ground_truth/`.

    Equal arguments write equal bytes. Masks carry no frame: read them with `border: false`. Kinds take turns, so that
    every kind is represented as evenly as `count` allows. The key `shapes_edit` of an entry holds the edit for
    `Edit.from_dict`, the key `concepts` the edit as semantic guidance takes it.

    Args:
        folder: Where to; made if it is missing.
        count: Number of edits.
        seed: Seed of the set.
        kinds: Kinds of edits from `EDITS`.

    Raises:
        ValueError: No such kind, or a count below one.
        FileExistsError: The folder holds a benchmark already.
    """
    unknown = [kind for kind in kinds if kind not in EDITS]
    if unknown or not kinds:
        raise ValueError(f"no edit {', '.join(map(repr, unknown)) or 'given'}; choose from {', '.join(EDITS)}")
    if count < 1:
        raise ValueError(f"count={count}: a benchmark has at least one edit")
    if (folder / "mapping_file.json").exists():
        raise FileExistsError(f"{folder} holds a benchmark already; give another folder or delete this one")
    entries: dict[str, Any] = {}
    for number in range(count):
        kind = kinds[number % len(kinds)]
        edit = sample_edit(kind, seed, number)
        key = f"{number:012d}"
        path = f"{EDITS[kind]}_{kind}/{key}.png"
        for root, scene in (("annotation_images", edit.source), ("ground_truth", edit.target)):
            file = folder / root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            render(scene).save(file, format="PNG")
        source, target = prompts(edit)
        entries[key] = {
            "image_path": path,
            "original_prompt": source,
            "editing_prompt": target,
            "editing_instruction": instruction(edit),
            "editing_type_id": EDITS[kind],
            "blended_word": blended_words(edit),
            "concepts": concepts(edit),
            "mask": run_lengths(edit_mask(edit)),
            "shapes_edit": edit.to_dict(),
        }
    (folder / "mapping_file.json").write_text(json.dumps(entries, indent=1) + "\n")
