"""A folder of pictures with captions beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.data.files import resolve_file
from framework.data.readers.documents import read_text
from framework.data.readers.entry import Entry
from framework.data.readers.source import EntrySource
from framework.errors import SampleError, SettingsError

PICTURES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
_MASK = "_mask"
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Folder(EntrySource):
    """Pictures of one folder, in the order of their names, each with an optional caption file and mask.

    `<stem>.txt` holds the source prompt in its first line and one target prompt in every further line; with several
    targets the ids are `<stem>/<k>`, k = 0, 1, ... `<stem>_mask.png` is the region to be edited. Sub-folders and hidden
    files are left alone.

    Attributes:
        target: Target prompt of pictures whose caption file has none, or a list of them.
        source: Source prompt of pictures without a caption file.
    """

    target: str | Sequence[str] | None = None
    source: str = ""

    def entries(self, root: Path, problems: list[str]) -> Iterable[Entry]:
        if not root.is_dir():
            problems.append("is a file; give the folder that holds the pictures, or use framework.data.Manifest.")
            return
        names = sorted(path.name for path in root.iterdir() if not path.name.startswith(".") and not path.is_dir())
        pictures = [name for name in names if Path(name).suffix.lower() in PICTURES]
        stems = {Path(name).stem for name in pictures}
        masks = {name for name in pictures if Path(name).stem.endswith(_MASK)}
        self._check_lonely(names, masks, stems, problems)
        if not pictures:
            held = ", ".join(names[:8]) or "no file"
            problems.append(f"has no picture ({', '.join(sorted(PICTURES))}); it holds {held}.")
        for name in pictures:
            if name not in masks:
                yield from self._entries_of(root, name, masks, problems)

    def _check_lonely(self, names: list[str], masks: set[str], stems: set[str], problems: list[str]) -> None:
        for name in sorted(masks):
            picture = Path(name).stem.removesuffix(_MASK)
            if picture not in stems:
                problems.append(f"{name} is a mask by its name, but there is no picture {picture!r}; rename one.")
            elif Path(name).suffix.lower() != ".png":
                problems.append(f"{name} is a mask by its name, but masks are PNG files; convert or rename it.")
        lonely = [name for name in names if name.endswith(".txt") and Path(name).stem not in stems]
        if lonely and self.strict:
            problems.extend(f"{name} has no picture beside it; add or remove one." for name in lonely)
        elif lonely:
            _log.warning("%s: %d text files have no picture beside them: %s", self.root, len(lonely), ", ".join(lonely))

    def _entries_of(self, root: Path, name: str, masks: set[str], problems: list[str]) -> Iterable[Entry]:
        stem = Path(name).stem
        mask = f"{stem}{_MASK}.png"
        source, targets = self.source, self._default_targets()
        caption = root / f"{stem}.txt"
        if caption.exists() or caption.is_symlink():
            try:
                source, *own = read_text(resolve_file(caption.name, root, allow_absolute=self.allow_absolute)).split(
                    "\n"
                )
            except (SampleError, SettingsError) as problem:
                problems.append(f"{name}: {problem}")
                return
            while own and not own[-1].strip():
                own.pop()
            source, targets = source.strip(), [line.strip() for line in own] or targets
        if not targets:
            problems.append(f"{name}: has no target prompt; write one into {caption.name}, line 2, or give `target`.")
        for number, target in enumerate(targets):
            yield Entry(
                where=name if len(targets) == 1 else f"{name}, target {number}",
                image=name,
                source=source,
                target=target,
                id=stem if len(targets) == 1 else f"{stem}/{number}",
                mask=mask if mask in masks else None,
            )

    def _default_targets(self) -> list[str]:
        if self.target is None:
            return []
        return [self.target] if isinstance(self.target, str) else list(self.target)
