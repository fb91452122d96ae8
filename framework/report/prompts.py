"""What differs between two prompts, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

Segments = list[tuple[str, bool]]
"""Pieces of a text in their order, each with whether it differs."""

_WORDS = re.compile(r"\s+|[^\W_]+(?:['\u2019-][^\W_]+)*|.", re.DOTALL)


def prompt_difference(source: str, target: str) -> tuple[Segments, Segments]:
    """Mark the words of two prompts that the other one does not have at that place.

    The pieces of each side joined are the prompt as it was. Between two changed words a space counts as changed.
    """
    a, b = _WORDS.findall(source), _WORDS.findall(target)
    words_a, words_b = ([word for word in words if not word.isspace()] for words in (a, b))
    same_a, same_b = set[int](), set[int]()
    for block in SequenceMatcher(None, words_a, words_b, autojunk=False).get_matching_blocks():
        same_a |= set(range(block.a, block.a + block.size))
        same_b |= set(range(block.b, block.b + block.size))
    return _segments(a, same_a), _segments(b, same_b)


def _segments(words: list[str], same: set[int]) -> Segments:
    segments: Segments = []
    gap, at = "", 0
    for word in words:
        if word.isspace():
            gap += word
            continue
        changed = at not in same
        at += 1
        if segments and segments[-1][1] == changed:
            segments[-1] = (segments[-1][0] + gap + word, changed)
        elif segments and changed:  # an unchanged piece takes the spaces beside it
            segments[-1] = (segments[-1][0] + gap, False)
            segments.append((word, True))
        else:
            segments += [(gap, False), (word, True)] if gap and changed else [(gap + word, changed)]
        gap = ""
    return [*segments, *([(gap, False)] if gap else [])]
