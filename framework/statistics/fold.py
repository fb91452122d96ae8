"""Folding states of images and draws into one, in an order that does not depend on who computed them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class Mergeable(Protocol):
    """A state about groups of values that can be joined with another state about the same kind of groups."""

    def merge(self, other: Self) -> Self:
        """Return the state of the values of both."""
        ...

    def select(self, index: int) -> Self:
        """Return the state at one index of the first axis of groups."""
        ...


State = TypeVar("State", bound=Mergeable)


def fold(states: Iterable[State]) -> State | None:
    """Merge states one after the other; None if there are none.

    Merging rounds, so the order decides the last bits: give the states in the sorted order of their images' ids.
    """
    total: State | None = None
    for state in states:
        total = state if total is None else total.merge(state)
    return total


def fold_draws(state: State, draws: int) -> State:
    """Merge along the first axis of groups, which holds the draws of one image."""
    total = fold(state.select(draw) for draw in range(draws))
    assert total is not None
    return total


def to_float64(values: Tensor) -> Tensor:
    """Return the values detached and in float64, on their device where it has float64, else on the CPU."""
    values = values.detach()
    if values.device.type == "mps":
        values = values.cpu()
    return values.to(torch.float64)
