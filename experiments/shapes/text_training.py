"""Teaches the text encoder its own captions before it meets images, so that the denoiser finds every attribute well
separated from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from experiments.shapes.data import Captioner
from experiments.shapes.scene import OPTIONAL, RELATIONS, WORDS

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection


def caption_tokens(captioner: Captioner, codes: np.ndarray, rng: np.random.Generator, omit: float) -> Tensor:
    """Captions of attribute codes [N, 11] as tokens [N, length]; each optional word is left out with probability
    `omit`.
    """
    rows = []
    for row in codes.tolist():
        left_out = frozenset(name for name in OPTIONAL if rng.random() < omit)
        rows.append(captioner(row, left_out))
    return torch.tensor(rows)


class AttributeHeads(nn.Module):
    """Linear classifiers of everything that a caption says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        thing = [len(WORDS[name]) for name in ("size", "fill", "colour", "shape")]
        self.sizes = [*thing, *thing, len(WORDS["texture"]), len(WORDS["background"]), 1 + len(RELATIONS)]
        self.linear = nn.Linear(width, sum(self.sizes))

    def loss(self, features: Tensor, codes: Tensor) -> Tensor:
        """Mean cross entropy of features [N, width] against codes [N, 11]; -1 is not counted."""
        parts = self.linear(features).split(self.sizes, dim=1)
        losses = [
            nn.functional.cross_entropy(part, codes[:, k], ignore_index=-1)
            for k, part in enumerate(parts)
            if bool((codes[:, k] >= 0).any())
        ]
        return torch.stack(losses).mean()


def pretrain_text(
    encoder: CLIPTextModel | CLIPTextModelWithProjection,
    captioner: Captioner,
    codes: np.ndarray,
    *,
    steps: int,
    batch: int = 128,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> float:
    """Train a text encoder to say, at the end of a caption, everything that the caption said.

    Args:
        encoder: Trained in place; with a projection, that too.
        captioner: Writes the captions.
        codes: Attribute codes [N, 11] to draw from.
        steps: Steps of the optimiser.
        batch: Captions per step.
        seed: Seed of the heads and of the draws.
        report: Receives a line now and then.

    Returns:
        The last loss, in nats per attribute.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    heads = AttributeHeads(encoder.config.hidden_size)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=max(steps, 2))
    loss = torch.zeros(())
    for step in range(steps):
        rows = codes[rng.integers(len(codes), size=batch)].astype(np.int64)
        tokens = caption_tokens(captioner, rows, rng, 0.0)
        longest = int((tokens != captioner.pad).sum(1).max()) + 2
        said = encoder(tokens[:, :longest])
        ends = (tokens == captioner.end).int().argmax(1)
        # With a projection the end of the caption leaves through it.
        end = said.text_embeds if "text_embeds" in said else said[0][torch.arange(batch), ends]
        loss = heads.loss(end, torch.from_numpy(rows))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            report(f"text encoder: step {step}, loss {loss.item():.4f}")
    return loss.item()
