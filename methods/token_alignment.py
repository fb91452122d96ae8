"""Where the words of a prompt stand among its tokens, and which source positions target positions correspond to.

Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or: Prompt-to-Prompt Image Editing with Cross Attention Control (ICLR
2023, arXiv 2208.01626), as in the authors' code (google/prompt-to-prompt, `seq_aligner.py` and `ptp_utils.py`).

Text position 0 is the start token; the tokens of the prompt begin at 1, then come the end token and padding. A mapper
is a matrix [L, L], rows the source positions and columns the target positions: P_target = P_source @ mapper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from framework.errors import SettingsError, did_you_mean
from framework.step import Token

WordRule = Literal["lengths", "offsets"]
"""How words are found among tokens: by adding up the lengths of decoded tokens, as the authors do, or by offsets.

With "lengths" words are what stands between single spaces, in the case and with the punctuation of the prompt. With
"offsets" a word or phrase is found in any case and without its punctuation; accents and double spaces do no harm.
"""

Tokens = Callable[[str], Sequence[Token]]
Window = float | Sequence[float]
"""Share of the steps: f means from 0 to f, a pair from its first to its second number."""


def word_positions(text: str, word: str | int, tokens: Sequence[Token], rule: WordRule = "lengths") -> list[int]:
    """Find the text positions of a word; every occurrence counts.

    Args:
        text: The prompt.
        word: The word, or its number from 0 (prompts split at spaces).
        tokens: Tokens of the prompt.
        rule: See `WordRule`.

    Returns:
        Positions in ascending order; empty when the prompt has no such word.

    Source: google/prompt-to-prompt `get_word_inds` for "lengths".
    """
    if rule == "offsets":
        return _positions_by_offset(text, word, tokens)
    words = text.split(" ")
    wanted = {word} if isinstance(word, int) else {number for number, entry in enumerate(words) if entry == word}
    positions, number, filled = [], 0, 0
    for position, token in enumerate(tokens, 1):
        if number >= len(words):
            break
        if number in wanted:
            positions.append(position)
        filled += len(token.text)
        if filled >= len(words[number]):
            number, filled = number + 1, 0
    return positions


def _positions_by_offset(text: str, word: str | int, tokens: Sequence[Token]) -> list[int]:
    if isinstance(word, int):
        spans = [match.span() for match in re.finditer(r"\S+", text)][word : word + 1]
    else:
        phrase = r"\s+".join(re.escape(part) for part in word.split())
        spans = (
            [match.span() for match in re.finditer(rf"(?<!\w){phrase}(?!\w)", text, re.IGNORECASE)] if phrase else []
        )
    return [
        position
        for position, token in enumerate(tokens, 1)
        if any(token.start < end and start < token.end for start, end in spans)
    ]


def positions_of(
    text: str, word: str | int, tokens: Sequence[Token], length: int, rule: WordRule, use: str
) -> list[int]:
    """Find the text positions of a word that must be there.

    Args:
        text, word, tokens, rule: See `word_positions`.
        length: L, text positions of the network.
        use: What the word is for, as an error says it.

    Raises:
        SettingsError: The prompt has no such word, or the text encoder does not see it.
    """
    positions = word_positions(text, word, tokens, rule)
    if not positions:
        words = text.split()
        near = did_you_mean(str(word), words)
        hint = "" if rule == "offsets" else " (case and punctuation count; word_rule='offsets' is less strict)"
        raise SettingsError([f"{use}: {word!r} is not a word of {text!r}{near}{hint}; give one of {', '.join(words)}."])
    seen = [position for position in positions if position < length - 1]
    if not seen:
        raise SettingsError(
            [
                f"{use}: {word!r} stands beyond the {length - 2} tokens of {text!r} that the text encoder sees; "
                "shorten the prompt."
            ]
        )
    return seen


def replacement_mapper(
    source: str, target: str, tokens: Tokens, length: int, *, rule: WordRule = "lengths", fix_tail: bool = False
) -> Tensor:
    """Map words one to one between prompts of equally many words.

    A word of s tokens that becomes one of t tokens gives each of them the sum of its maps, divided by t.

    Args:
        source, target: The prompts.
        tokens: Prompt -> its tokens.
        length: L, text positions of the network.
        rule: See `WordRule`.
        fix_tail: What follows the last replaced word reads its own source columns. The authors read columns shifted
            by the difference in tokens there; False repeats that.

    Returns:
        [L, L] in float64.

    Raises:
        SettingsError: The prompts have different numbers of words.

    Source: google/prompt-to-prompt `get_replacement_mapper_`.
    """
    split = (lambda text: text.split(" ")) if rule == "lengths" else str.split
    words, new_words = split(source), split(target)
    if len(words) != len(new_words):
        raise SettingsError(
            [
                f"edit='replace' exchanges words one by one, but {source!r} has {len(words)} words and {target!r} has "
                f"{len(new_words)}; use edit='refine', or prompts of equally many words."
            ]
        )
    differing = [number for number, pair in enumerate(zip(words, new_words, strict=True)) if pair[0] != pair[1]]
    of = [positions_of(source, number, tokens(source), length, rule, "edit='replace'") for number in differing]
    to = [positions_of(target, number, tokens(target), length, rule, "edit='replace'") for number in differing]
    mapper = torch.zeros(length, length, dtype=torch.float64)
    i = j = done = 0
    while i < length and j < length:
        if done < len(of) and of[done][0] == i:
            here, there = of[done], to[done]
            if len(here) == len(there):
                mapper[here, there] = 1
            else:
                mapper[torch.tensor(here)[:, None], torch.tensor(there)] = 1 / len(there)
            done, i, j = done + 1, i + len(here), j + len(there)
            continue
        mapper[i if fix_tail or done < len(of) else j, j] = 1
        i, j = i + 1, j + 1
    return mapper


def refinement_mapper(source: str, target: str, tokens: Tokens, length: int) -> tuple[list[int], list[int]]:
    """Align the tokens of two prompts: which target tokens are kept from the source, and which are new.

    Global alignment of the token ids with free gaps, +1 for equal and -1 for different tokens, so that different
    tokens are never aligned. Of equally good alignments an insertion is taken before a deletion before a match, read
    from the end.

    Returns:
        The source position of every target position, -1 for new ones, and 1 where there is one, [L] each. Beyond the
        target's end every position is its own.

    Source: google/prompt-to-prompt `get_mapper`, `global_align`.
    """
    x, y = (_framed([token.id for token in tokens(text)], length) for text in (source, target))
    return aligned_ids(x, y, length)


def aligned_ids(x: Sequence[int], y: Sequence[int], length: int) -> tuple[list[int], list[int]]:
    """Align the token ids of a source x with those of a target y, which fill at most `length` positions.

    Returns:
        As `refinement_mapper`.
    """
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            match = score[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], match)
    aligned = [-1] * len(y)
    i, j = len(x), len(y)
    while i > 0 and j > 0:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            aligned[j] = i
    mapper = [*aligned, *range(len(y), length)]
    return mapper, [int(position >= 0) for position in aligned] + [1] * (length - len(y))


def refinement_matrix(source: str, target: str, tokens: Tokens, length: int) -> tuple[Tensor, Tensor]:
    """Write `refinement_mapper` as a mapper [L, L], and the share [L] of the target's own map; float64."""
    position, aligned = refinement_mapper(source, target, tokens, length)
    kept = torch.tensor(aligned, dtype=torch.float64)
    mapper = torch.zeros(length, length, dtype=torch.float64)
    mapper[position, torch.arange(length)] = kept
    return mapper, 1 - kept


def _framed(ids: Sequence[int], length: int) -> list[int]:
    """Put start and end token, of which only the identity matters, around what the encoder sees."""
    return [-1, *ids[: length - 2], -2]


def window_bounds(window: Window, steps: int) -> tuple[int, int]:
    """First and last + 1 of the steps in a window, int(share * steps)."""
    start, end = (0.0, window) if isinstance(window, (int, float)) else window
    return int(start * steps), int(end * steps)


def word_windows(
    target: str,
    windows: Window | Mapping[str, Window],
    steps: int,
    tokens: Sequence[Token],
    length: int,
    *,
    rule: WordRule = "lengths",
    strict: bool = True,
) -> Tensor:
    """Say in which steps each text position of the target is edited.

    Args:
        target: The prompt.
        windows: One window, or word -> window; `default_` is the window of all other words, by default all steps.
        steps: N. Bounds are int(share * (N + 1)), as in the authors' code.
        tokens: Tokens of the target.
        length: L.
        rule: See `WordRule`.
        strict: Refuse words that the prompt does not have.

    Returns:
        [N + 1, L] of 0 and 1, float64; the last row is never used.

    Source: google/prompt-to-prompt `get_time_words_attention_alpha`.
    """
    named = dict(windows) if isinstance(windows, Mapping) else {"default_": windows}
    alpha = torch.zeros(steps + 1, length, dtype=torch.float64)
    start, end = window_bounds(named.pop("default_", 1.0), steps + 1)
    alpha[start:end] = 1
    for word, window in named.items():
        if not strict and not word_positions(target, word, tokens, rule):
            continue
        positions = positions_of(target, word, tokens, length, rule, "window of a word")
        start, end = window_bounds(window, steps + 1)
        alpha[:, positions] = 0
        alpha[start:end, positions] = 1
    return alpha


def token_table(
    source: Sequence[Token], target: Sequence[Token], mapper: Tensor, own: Tensor, equalizer: Tensor
) -> list[dict[str, Any]]:
    """Write a mapping down token by token of the target: where its map comes from.

    Args:
        source, target: Tokens of the prompts.
        mapper: [L, L], source positions to target positions.
        own: [L], share of the target's own map.
        equalizer: [L], factors.

    Returns:
        Per token that the text encoder sees: position, text, source (position, text and weight of each), own, factor.
    """
    seen = mapper.shape[0] - 2
    texts = {position: token.text for position, token in enumerate(source[:seen], 1)} | {0: "<start>"}
    rows = []
    for position, token in enumerate(target[:seen], 1):
        found = mapper[:, position].nonzero().flatten().tolist()
        come = [
            {"position": n, "token": texts.get(n, "<end>"), "weight": round(float(mapper[n, position]), 6)}
            for n in found
        ]
        share, factor = float(own[position]), float(equalizer[position])
        rows.append({"position": position, "token": token.text, "source": come, "own": share, "factor": factor})
    return rows
