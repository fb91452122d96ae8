"""The folders of zero-shot image-to-image translation (pix2pix-zero): one per task, such as `cat2dog`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from framework.data.files import resolve_file
from framework.data.readers.documents import read_text
from framework.data.readers.entry import Entry
from framework.data.readers.folder import PICTURES
from framework.data.readers.source import EntrySource
from framework.errors import SampleError, SettingsError, did_you_mean

_TASK = re.compile(r"(?P<source>[^\W\d][\w-]*?)2(?P<target>[^\W\d][\w-]*)")


class Task(NamedTuple):
    """A folder and what it asks for; `cat2cat_with_crown` leads from "cat" to "cat with crown"."""

    name: str
    source: str
    target: str

    @classmethod
    def of(cls, name: str) -> Task | None:
        """Read a folder's name; None where it names no task."""
        found = _TASK.fullmatch(name)
        return found and cls(name, *(found[side].replace("_", " ") for side in ("source", "target")))


@dataclass(kw_only=True)
class ZeroShot(EntrySource):
    """`<root>/<source>2<target>/*.png|jpg|...`, each picture with its caption in `<stem>.txt`; ids are `<task>/<stem>`.

    The target prompt is the caption with the target's words in the place of the source's. Banks of sentences about a
    word, `<sentences>/<word>.txt` with one sentence per line, go to every sample of a task that has both, as
    `source_sentences` and `target_sentences` in `extra`, where `methods.pix2pix_zero` takes its edit direction from.

    Attributes:
        tasks: Folders to read; None for every folder that is named like a task.
        caption: Of pictures without a caption file; "{source}" stands for the task's word. None: each must have one.
        target: Target prompt of all pictures, with "{source}" and "{target}"; None exchanges the words in the caption.
        sentences: Folder of the banks, below the root.
    """

    tasks: Sequence[str] | None = None
    caption: str | None = None
    target: str | None = None
    sentences: str = "sentences"

    def entries(self, root: Path, problems: list[str]) -> Iterable[Entry]:
        if not root.is_dir():
            problems.append("is a file; give the folder that holds the folders of the tasks.")
            return
        for task in self._tasks(root, problems):
            banks = self._banks(root, task, problems)
            names = sorted(path.name for path in (root / task.name).iterdir() if _is_picture(path))
            if not names:
                problems.append(f"{task.name} has no picture ({', '.join(sorted(PICTURES))}).")
            for name in names:
                entry = self._entry(root, task, f"{task.name}/{name}", banks, problems)
                if entry is not None:
                    yield entry

    def _tasks(self, root: Path, problems: list[str]) -> list[Task]:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        named = folders if self.tasks is None else list(self.tasks)
        tasks = {name: Task.of(name) for name in named}
        if self.tasks is None:
            if not any(tasks.values()):
                held = ", ".join(folders[:8]) or "no folder"
                problems.append(f"has no folder named like a task, <source>2<target>; it holds {held}.")
        else:
            for name in named:
                if name not in folders:
                    problems.append(f"tasks: there is no folder {name!r}{did_you_mean(name, folders)}.")
                elif tasks[name] is None:
                    problems.append(f"tasks: {name!r} is not <source>2<target>; rename the folder.")
        return [task for name, task in tasks.items() if task is not None and name in folders]

    def _banks(self, root: Path, task: Task, problems: list[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for side, word in (("source_sentences", task.source), ("target_sentences", task.target)):
            name = f"{self.sentences}/{word.replace(' ', '_')}.txt"
            if (root / name).exists():
                lines = self._text(root, name, problems).split("\n")
                found[side] = [line.strip() for line in lines if line.strip()]
                if not found[side]:
                    problems.append(f"{name} holds no sentence; give one per line.")
        return found if len(found) == 2 else {}  # the direction leads from one bank to the other

    def _entry(
        self, root: Path, task: Task, picture: str, banks: dict[str, list[str]], problems: list[str]
    ) -> Entry | None:
        stem = picture.rpartition(".")[0]
        file = f"{stem}.txt"
        words = {"source": task.source, "target": task.target}
        if (root / file).exists():
            caption = self._text(root, file, problems).strip()
        elif self.caption is not None:
            caption = _filled(self.caption, words)
        else:
            problems.append(f"{picture}: has no caption; write it into {file}, or give `caption`.")
            return None
        target: str | None
        if self.target is not None:
            target = _filled(self.target, words)
        else:
            target, count = re.subn(rf"\b{re.escape(task.source)}\b", lambda _: task.target, caption)
            if not count:
                problems.append(
                    f"{picture}: the caption {caption!r} has no word {task.source!r} to exchange; give `target`, for "
                    'example "a photo of a {target}".'
                )
                return None
        return Entry(
            where=picture,
            image=picture,
            source=caption,
            target=target,
            id=stem,
            edit_type=task.name,
            extra={"task": task.name, **banks},
        )

    def _text(self, root: Path, name: str, problems: list[str]) -> str:
        try:
            return read_text(resolve_file(name, root, allow_absolute=self.allow_absolute))
        except (SampleError, SettingsError) as problem:
            problems.append(f"{name}: {problem}")
            return ""


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and not path.is_dir()


def _filled(text: str, words: dict[str, str]) -> str:
    """Put words in place of {source} and {target}; other braces stay as they are."""
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", word)
    return text
