"""What a method asks to be cited for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A paper, and the code that a method was compared with.

    Attributes:
        title, authors, venue: As on the paper.
        url: Where it can be read.
        code: Repository (and commit) of the authors' code, empty if there is none.
        licence: Licence of that code, in a word.
    """

    title: str
    authors: str
    venue: str
    url: str
    code: str = ""
    licence: str = ""
