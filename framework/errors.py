"""Errors that are meant for people: what was wrong, what was got, what is allowed, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class SettingsError(ValueError):
    """Settings that cannot work, all of them together.

    Attributes:
        problems: One sentence per problem.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class SampleError(Exception):
    """One sample cannot be processed; the run goes on without it."""


class Checks:
    """Collects the problems of one object's settings and raises them together.

    Example:
        checks = Checks("EditFriendlyDDPM")
        checks.between("eta", eta, 0.0, 1.0, "paper default 1")
        checks.require(skip < steps, f"skip={skip} leaves no step of steps={steps}; give skip in [0, {steps - 1}]")
        checks.done()
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._problems: list[str] = []

    def require(self, holds: bool, problem: str) -> bool:
        """Note `problem` unless `holds`; the problem names value, allowed values and remedy. Returns `holds`."""
        if not holds:
            self._problems.append(f"{self._owner}: {problem}")
        return holds

    def between(self, name: str, value: float, low: float, high: float, hint: str = "") -> bool:
        """Require a finite number in the closed interval [low, high]; an infinite bound is no bound."""
        fits = math.isfinite(value) and low <= value <= high
        if math.isinf(low) and math.isinf(high):
            allowed = "a finite number"
        elif math.isinf(high):
            allowed = f"a finite number of at least {low:g}"
        else:
            allowed = f"a number in [{low:g}, {high:g}]"
        return self.require(fits, f"{name}={value} is not allowed; give {allowed}{f' ({hint})' if hint else ''}.")

    def one_of(self, name: str, value: object, allowed: Iterable[object], hint: str = "") -> bool:
        """Require a value out of a list; the nearest allowed word is offered."""
        choices = [str(choice) for choice in allowed]
        near = did_you_mean(str(value), choices)
        text = f"{name}={value!r} is not allowed; give one of {', '.join(choices)}{near}{f' ({hint})' if hint else ''}."
        return self.require(str(value) in choices, text)

    def done(self) -> None:
        """Raise what was noted.

        Raises:
            SettingsError: At least one problem was noted.
        """
        if self._problems:
            raise SettingsError(self._problems)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest choice, or an empty string when nothing is near."""
    near = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
