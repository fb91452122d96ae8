"""Measuring the maps of many steps in few calls: for small maps, calls cost more than arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

VALUES_PER_CALL = 2**17
"""Values that are measured at once, if not a single map has more: in float64 about what a processor's cache holds."""


def measure_steps(
    maps: Tensor, measure: Callable[[Tensor, Tensor], Mapping[str, Tensor]], values_per_call: int = VALUES_PER_CALL
) -> dict[str, Tensor]:
    """Measure maps of several steps, some at a time.

    Args:
        maps: [steps, groups, ...].
        measure: From maps [n, ...] and the group of each [n] to figures [n, ...] by name.
        values_per_call: Most values at once.

    Returns:
        Figures [steps, groups, ...] by name.
    """
    steps, groups = maps.shape[:2]
    flat, group = maps.flatten(0, 1), torch.arange(groups, device=maps.device).repeat(steps)
    size = max(1, values_per_call // max(1, flat[0].numel()))
    parts = [measure(*part) for part in zip(flat.split(size), group.split(size), strict=True)]
    return {name: torch.cat([part[name] for part in parts]).unflatten(0, (steps, groups)) for name in parts[0]}
