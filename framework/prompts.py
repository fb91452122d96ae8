"""Encoded prompts, each encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Prompt
from framework.step import Condition

_KEPT_MEANS = 256
"""Sets of sentences whose mean features are kept."""


class PromptCache:
    """Encodes prompts one by one, so that a row's bits do not depend on the other prompts of its batch.

    Args:
        backbone: Whose text encoders to use.
        size: Prompts kept; when it is full the cache starts again.
    """

    def __init__(self, backbone: Backbone, size: int = 4096) -> None:
        self._backbone = backbone
        self._size = size
        self._known: dict[Prompt, Condition] = {}
        self._means: dict[tuple[str, ...], Tensor] = {}

    def condition(self, prompts: Sequence[Prompt], device: torch.device) -> Condition:
        """Return one row per prompt, on a device."""
        wanted = dict.fromkeys(prompts)
        if len(self._known) + len(wanted) > self._size:
            self._known = {}
        for prompt in wanted:
            if prompt not in self._known:
                self._known[prompt] = self._encode(prompt)
        return Condition.cat([self._known[prompt] for prompt in prompts]).map(lambda x: x.to(device))

    def _encode(self, prompt: Prompt) -> Condition:
        if isinstance(prompt, str):
            return self._backbone.encode_prompt([prompt])
        there = self._backbone.encode_prompt([prompt.text])
        if there.text is None:
            return there
        direction = self._mean(prompt.towards) - self._mean(prompt.away)
        return replace(there, text=(there.text.to(direction) + direction).to(there.text))

    def _mean(self, sentences: tuple[str, ...]) -> Tensor:
        """Average the features of sentences, at least in float32, [1, L, D]; kept, since sets can be large."""
        if sentences not in self._means:
            total: Tensor | None = None
            for sentence in sentences:
                text = self._backbone.encode_prompt([sentence]).text
                assert text is not None
                wide = text.to(torch.promote_types(text.dtype, torch.float32))
                total = wide if total is None else total + wide
            assert total is not None
            if len(self._means) >= _KEPT_MEANS:
                self._means = {}
            self._means[sentences] = total / len(sentences)
        return self._means[sentences]
