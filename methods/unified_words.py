"""Which source positions the words of a target take their maps from, as unified attention control aligns them.

Xu, Huang, Pan, Ma, Chai: Inversion-Free Image Editing with Natural Language (CVPR 2024, arXiv 2312.04965), as in the
authors' code (sled-group/InfEdit eaac91e, `seq_aligner.py`). To Prompt-to-Prompt's refinement it adds one rule: where
words were exchanged, the pair of old and new token whose features are nearest is aligned as well, so that a cat's map
becomes a dog's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.context import Context
from framework.errors import SettingsError, did_you_mean
from framework.step import Token
from methods.token_alignment import Tokens, refinement_mapper


@dataclass(frozen=True)
class UnifiedWords:
    """How the positions of one target prompt correspond to its source's; CPU.

    Attributes:
        mapper: [L] source position of every target position, -1 for inserted tokens.
        aligned: [L] 1 where there is one.
        local: [L] 1 at the tokens of the local words (what the edit is about).
        mutual: [L] 1 at the tokens of the mutual words (what source and target share).
    """

    mapper: Tensor
    aligned: Tensor
    local: Tensor
    mutual: Tensor

    def matrix(self) -> Tensor:
        """Return the A of the edited map [L, L]: source positions to target positions."""
        length = len(self.mapper)
        mapper = torch.zeros(length, length, dtype=torch.float64)
        mapper[self.mapper, torch.arange(length)] = self.aligned
        return mapper


@dataclass(frozen=True)
class Tracked:
    """Tokens whose maps make masks, K per image; images with fewer repeat a column without a mark.

    Attributes:
        theirs: [B, L, K], what a column takes from the maps of source or layout.
        own: [B, L, K], what it takes from the target's.
        marks: [B, 3, K] of 0 and 1: tokens of local words, of mutual words alone, of both.
        has_local: [B] booleans.
    """

    theirs: Tensor
    own: Tensor
    marks: Tensor
    has_local: Tensor


def unified_words(
    source: str,
    target: str,
    tokens: Tokens,
    features: tuple[Tensor, Tensor],
    *,
    local: Sequence[str] = (),
    mutual: Sequence[str] = (),
    crossed: bool = True,
) -> UnifiedWords:
    """Align two prompts and mark the words that blending looks at.

    Args:
        source, target: The prompts.
        tokens: Prompt -> its tokens.
        features: [L, D] text features of source and target.
        local, mutual: Words or phrases of the target, in the order of the prompt.
        crossed: Compare as the authors' code does, which reads the source's features at target positions and the
            target's at source positions; False compares every token's own features.

    Raises:
        SettingsError: A word is not in the target (or not in that order, or not seen by the text encoder), or a mutual
            word does not stand in both prompts.

    Source: InfEdit `get_mapper`, steps as in its code.
    """
    length = len(features[0])
    positions, found = refinement_mapper(source, target, tokens, length)
    old, new = (list(tokens(text))[: length - 2] for text in (source, target))
    words = {name: _phrase_tokens(phrases, tokens) for name, phrases in (("local", local), ("mutual", mutual))}
    local_marks = _marked(target, new, words["local"], length, "local", local)
    mutual_marks = _marked(target, new, words["mutual"], length, "mutual", mutual)
    for position in range(1, length):
        if positions[position] >= 0 or positions[position - 1] < 0:
            continue
        end = next(j for j in range(position, length) if positions[j] >= 0)
        pair = _nearest(range(position, end), range(positions[position - 1] + 1, positions[end]), features, crossed)
        if pair is None:
            continue
        taken, come_from = pair
        positions[taken], found[taken] = come_from, 1
        if old[come_from - 1].id in words["local"]:
            local_marks[taken] = 1
    for position in range(1, len(new) + 1):
        come_from = positions[position]
        same = 0 < come_from <= len(old) and old[come_from - 1].id == new[position - 1].id
        if mutual_marks[position] and not same:
            raise SettingsError(
                [
                    f"mutual word: {new[position - 1].text!r} of {target!r} has no counterpart in {source!r}; mutual "
                    "words are those that both prompts share."
                ]
            )
    return UnifiedWords(torch.tensor(positions), torch.tensor(found, dtype=torch.float64), local_marks, mutual_marks)


def _phrase_tokens(phrases: Sequence[str], tokens: Tokens) -> list[int]:
    return [token.id for phrase in phrases for token in tokens(phrase)]


def _marked(
    target: str, tokens: Sequence[Token], wanted: Sequence[int], length: int, kind: str, phrases: Sequence[str]
) -> Tensor:
    """Mark the wanted tokens in one walk through the target, each after the one before."""
    marks, done = torch.zeros(length, dtype=torch.float64), 0
    for position, token in enumerate(tokens, 1):
        if done < len(wanted) and token.id == wanted[done]:
            marks[position], done = 1, done + 1
    if done < len(wanted):
        words = target.split()
        near = "".join(did_you_mean(phrase, words) for phrase in phrases if phrase not in words)
        raise SettingsError(
            [
                f"{kind} words: not all of {', '.join(map(repr, phrases))} were found in {target!r}{near}; give words "
                "of the target prompt, in its order, within what the text encoder sees."
            ]
        )
    return marks


def _nearest(
    targets: Sequence[int], sources: Sequence[int], features: tuple[Tensor, Tensor], crossed: bool
) -> tuple[int, int] | None:
    """Return the pair (target position, source position) of the greatest cosine similarity, compared in float32."""
    if not sources:
        return None
    of_source, of_target = (F.normalize(x.detach().float().cpu(), dim=-1) for x in features)
    if crossed:
        likeness = of_source[list(targets)] @ of_target[list(sources)].T
    else:
        likeness = of_target[list(targets)] @ of_source[list(sources)].T
    best = int(likeness.argmax())
    return targets[best // len(sources)], sources[best % len(sources)]


def tracked_tokens(words: Sequence[UnifiedWords]) -> Tracked | None:
    """Find the tokens that masks are made from; None where no image has any."""
    chosen = [((entry.local + entry.mutual) > 0).nonzero().flatten().tolist() for entry in words]
    count = max(map(len, chosen))
    if count == 0:
        return None
    theirs, owns, marks = [], [], []
    for entry, positions in zip(words, chosen, strict=True):
        columns = torch.tensor(positions + [0] * (count - len(positions)))
        real = torch.arange(count) < len(positions)
        theirs.append(entry.matrix()[:, columns])
        owns.append(torch.diag(1 - entry.aligned)[:, columns])
        local, mutual = entry.local[columns] > 0, entry.mutual[columns] > 0
        marks.append(torch.stack([local, mutual & ~local, local & mutual]) & real)
    return Tracked(
        torch.stack(theirs),
        torch.stack(owns),
        torch.stack(marks).double(),
        torch.tensor([bool(entry.local.any()) for entry in words]),
    )


def own_words(ctx: Context, image: int) -> Sequence[str]:
    """Return the words that a sample says its edit is about, those of the target; none where it says nothing."""
    words: Any = ctx.extra[image].get("blend_words") if image < len(ctx.extra) else None
    if words is None and image < len(ctx.blend):
        words = ctx.blend[image]
    if not words or len(words) != 2 or not words[1]:
        return ()
    return [words[1]] if isinstance(words[1], str) else list(words[1])
