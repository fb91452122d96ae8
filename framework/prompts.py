"""Encoded prompts, each encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from framework.backbones.base import Backbone
from framework.step import Condition


class PromptCache:
    """Encodes prompts one by one, so that a row's bits do not depend on the other prompts of its batch.

    Args:
        backbone: Whose text encoders to use.
        size: Prompts kept; when it is full the cache starts again.
    """

    def __init__(self, backbone: Backbone, size: int = 4096) -> None:
        self._backbone = backbone
        self._size = size
        self._known: dict[str, Condition] = {}

    def condition(self, prompts: Sequence[str], device: torch.device) -> Condition:
        """Return one row per prompt, on a device."""
        wanted = dict.fromkeys(prompts)
        if len(self._known) + len(wanted) > self._size:
            self._known = {}
        for prompt in wanted:
            if prompt not in self._known:
                self._known[prompt] = self._backbone.encode_prompt([prompt])
        return Condition.cat([self._known[prompt] for prompt in prompts]).map(lambda x: x.to(device))
