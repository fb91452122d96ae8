"""Problems of an experiment's settings, collected with the place where each was written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from framework.errors import SettingsError
from framework.run.strict_yaml import KeyPath


@dataclass(frozen=True)
class Origin:
    """Where a value was written.

    Attributes:
        text: File and line, or "command line", or "sweep"; for people.
        folder: Folder of the file, against which paths of Python files are resolved; None elsewhere.
    """

    text: str
    folder: Path | None = None


@dataclass
class Problems:
    """Collects sentences and raises them together.

    Attributes:
        origins: Where the values were written, by their place in the experiment.
        sentences: What was noted so far.
    """

    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)

    def add(self, path: KeyPath, problem: str) -> None:
        """Note a problem of the value at `path`."""
        origin = self.origin(path)
        where = [origin.text] if origin else []
        self.note(": ".join([*where, *([show(path)] if path else []), problem]))

    def note(self, sentence: str) -> None:
        """Note a whole sentence, once."""
        # A nearest name is a question; the comma or full stop that follows it is its own.
        sentence = re.sub(r"(; did you mean '[^']*'\?)(;|\.$)", r"\1", sentence)
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    def extend(self, sentences: Iterable[str]) -> None:
        """Note several whole sentences."""
        for sentence in sentences:
            self.note(sentence)

    def origin(self, path: KeyPath) -> Origin | None:
        """Find where the value at `path`, or the nearest one around it, was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return None

    def folder(self, path: KeyPath) -> Path | None:
        """Find the folder of the file that `path` was written in; of the file around it for an override."""
        for end in range(len(path), -1, -1):
            origin = self.origins.get(path[:end])
            if origin and origin.folder:
                return origin.folder
        return None

    def scratch(self) -> Problems:
        """Return an empty collection with the same origins, for attempts that may fail."""
        return Problems(self.origins)

    def done(self) -> None:
        """Raise what was noted.

        Raises:
            SettingsError: At least one problem was noted.
        """
        if self.sentences:
            raise SettingsError(self.sentences)


def show(path: KeyPath) -> str:
    """Write a place as an override names it: `method.controls[0].kind`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text
