"""Masks: run lengths and mask pictures to boolean arrays of the original size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from framework.data.decode import Limits, decode
from framework.data.frames import nearest
from framework.data.sample import RunLengthMask

THRESHOLD = 128


def decode_run_lengths(mask: RunLengthMask, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Decode (start, length) pairs over the row-major flattened mask, 0-based.

    Each pair sets [start, min(start + length, H W)); runs may overlap and come in any order; a run that starts at or
    past the end adds nothing. With `border` the first and last row and column are set afterwards, so that an empty list
    gives a frame of one pixel.

    Args:
        mask: The pairs.
        size: Rows and columns where the mask does not say its own.

    Raises:
        ValueError: Nobody says a size, or there is an odd number of values.

    Source: PIE-Bench, evaluation script of Direct Inversion.
    """
    rows, columns = _size_of(mask, size)
    if len(mask.pairs) % 2:
        raise ValueError(f"{len(mask.pairs)} run-length values; starts and lengths come in pairs")
    flat = np.zeros(rows * columns, dtype=bool)
    for start, length in zip(mask.pairs[::2], mask.pairs[1::2], strict=True):
        flat[start : start + length] = True
    decoded = flat.reshape(rows, columns)
    if mask.border:
        decoded[[0, -1], :] = True
        decoded[:, [0, -1]] = True
    return decoded


def read_mask(
    mask: Path | RunLengthMask, size: tuple[int, int], limits: Limits
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Read a mask at the size of its picture.

    A mask picture is grey, at least 128 of 255 = edit. A mask of another size is resized by nearest neighbours.

    Args:
        mask: Path of a mask picture, or run lengths.
        size: Rows and columns of the sample's picture.
        limits: What mask pictures are accepted.

    Returns:
        Boolean [H, W] and what had to be decided.

    Raises:
        SampleError: The mask picture cannot be read.
    """
    notes: list[str] = []
    if isinstance(mask, RunLengthMask):
        decoded = decode_run_lengths(mask, size)
        ends = (start + length for start, length in zip(mask.pairs[::2], mask.pairs[1::2], strict=True))
        if any(end > decoded.size for end in ends):
            notes.append("mask: run lengths beyond the end clipped")
    else:
        read = decode(mask, limits)
        grey = np.asarray(read.picture.convert("RGB").convert("L"))
        decoded = grey >= THRESHOLD
        notes.extend(f"mask: {note}" for note in read.notes)
        if not np.isin(grey, (0, 255)).all():
            notes.append(f"mask: values between black and white, cut at {THRESHOLD}")
    if decoded.shape != size:
        rows, columns = decoded.shape
        notes.append(f"mask: {columns} x {rows} pixels, resized to the picture's {size[1]} x {size[0]}")
        decoded = nearest(decoded, size)
    return decoded, (*notes, *describe_uniform(decoded))


def describe_uniform(mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """Say so when a mask selects nothing or everything: region metrics are then undefined."""
    if not mask.any():
        return ("mask: all 0, nothing is to be edited",)
    return ("mask: all 1, everything is to be edited",) if mask.all() else ()


def _size_of(mask: RunLengthMask, size: tuple[int, int] | None) -> tuple[int, int]:
    known = mask.size or size
    if known is None:
        raise ValueError("the size of a run-length mask is not known; give rows and columns")
    return known
