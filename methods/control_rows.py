"""What attention controls share: finding the source's rows beside the target's, and replacing rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.step import COND, UNCOND, Rows, Stream


@dataclass
class Executed:
    """Tells how many steps of the edit came before, whatever the edit skips.

    Attributes:
        first: Interval in which the edit begins, None before it does.
    """

    first: int | None = None

    def step(self, i: int) -> int:
        """Count interval i from the first executed one."""
        if self.first is None:
            self.first = i
        return i - self.first


def row_pairs(rows: Rows, branches: Iterable[str] = (UNCOND, COND)) -> list[tuple[slice, slice]]:
    """Pair the target's rows with the source's of the same branch.

    The source may be evaluated under one branch only (no guidance, or a source prompt that is its unconditional one);
    both of the target's branches then go with that.

    Returns:
        (target, source) of every branch that the call has of the target.
    """
    pairs = []
    for branch in branches:
        target = rows.of(Stream.TARGET, branch)
        other = UNCOND if branch == COND else COND
        source = rows.of(Stream.SOURCE, branch) or rows.of(Stream.SOURCE, other)
        if target is not None and source is not None:
            pairs.append((target, source))
    return pairs


def images_of(rows: Rows, block: slice) -> slice:
    """Images of the batch that a block of rows is about."""
    return slice(rows.first_image, rows.first_image + block.stop - block.start)


def with_rows(x: Tensor, *changes: tuple[slice, Tensor]) -> Tensor:
    """Return x [rows, ...] with blocks of rows replaced; x itself stays as it is."""
    parts, done = [], 0
    for block, values in sorted(changes, key=lambda change: change[0].start):
        parts += [x[done : block.start], values]
        done = block.stop
    return torch.cat([*parts, x[done:]])
