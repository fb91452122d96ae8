"""PIE-Bench (Direct Inversion, ICLR 2024) and folders laid out like it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.data.readers.documents import read_json, read_text
from framework.data.readers.entry import Entry
from framework.data.readers.manifest import find_document
from framework.data.readers.source import EntrySource
from framework.errors import did_you_mean

_KNOWN = (
    "image_path",
    "original_prompt",
    "editing_prompt",
    "editing_instruction",
    "editing_type_id",
    "blended_word",
    "mask",
)


@dataclass(kw_only=True)
class PieBench(EntrySource):
    """`<root>/mapping_file.json`, one object of entries by id, and `<root>/annotation_images/<image_path>`.

    Keys beyond the benchmark's own go to `extra`. The data are given out by a form and are never downloaded.

    Attributes:
        mapping: Name of the mapping file in the root.
        images: Folder that image paths are relative to.
        strip_brackets: Whether the characters [ and ] are removed from the prompts, as the benchmark does; nothing
            else is cleaned, so two blanks can remain. InfEdit's rows keep the brackets: false.
        border: Whether masks get their outermost rows and columns set, as the benchmark does.
        mask_size: Rows and columns that the run lengths count in; None for those of each picture (512 x 512 there).
        types: Only these `editing_type_id`s ("0".."9"); None for all.
    """

    mapping: str = "mapping_file.json"
    images: str = "annotation_images"
    strip_brackets: bool = True
    border: bool = True
    mask_size: Sequence[int] | None = None
    types: Sequence[str | int] | None = None

    def entries(self, root: Path, problems: list[str]) -> Iterable[Entry]:
        path = find_document(root, None if root.is_file() else self.mapping, [], problems)
        mapping = read_json(path.name, read_text(path), problems) if path else None
        if path is None or mapping is None:
            return
        if not isinstance(mapping, Mapping):
            problems.append(f"{path.name}: holds a {type(mapping).__name__}; give one object of entries by id.")
            return
        wanted = None if self.types is None else {str(kind) for kind in self.types}
        self._check_types(wanted, mapping, path.name, problems)
        for name, value in mapping.items():
            where = f"{path.name}, id {name!r}"
            if not isinstance(value, Mapping):
                problems.append(f"{where}: is of type {type(value).__name__}; give keys and values.")
                continue
            missing = [key for key in ("image_path", "original_prompt", "editing_prompt") if key not in value]
            for key in missing:
                problems.append(f"{where}: has no {key!r}{did_you_mean(key, map(str, value))}.")
            if not missing and (wanted is None or str(value.get("editing_type_id")) in wanted):
                yield self._entry(where, name, value, problems)

    def _check_types(self, wanted: set[str] | None, mapping: Mapping[str, Any], name: str, problems: list[str]) -> None:
        held = {str(value.get("editing_type_id")) for value in mapping.values() if isinstance(value, Mapping)}
        for kind in sorted((wanted or set()) - held):
            problems.append(f"types: no sample of {name} has the type {kind!r}; it has {', '.join(sorted(held))}.")

    def _entry(self, where: str, name: str, value: Mapping[str, Any], problems: list[str]) -> Entry:
        blend_source, blend_target = self._blended(where, value.get("blended_word"), problems)
        runs = value.get("mask")
        image = value["image_path"]
        return Entry(
            where=where,
            id=name,
            image=f"{self.images}/{image}" if isinstance(image, str) and self._is_inside(image) else image,
            source=self._prompt(value["original_prompt"]),
            target=self._prompt(value["editing_prompt"]),
            instruction=value.get("editing_instruction"),
            edit_type=value.get("editing_type_id"),
            blend_source=blend_source,
            blend_target=blend_target,
            mask=None if runs is None else {"rle": runs, "size": self.mask_size, "border": self.border},
            extra={str(key): other for key, other in value.items() if key not in _KNOWN},
        )

    def _is_inside(self, image: str) -> bool:
        # An absolute path must reach the path check as it is written, or joining would hide it.
        return bool(image.strip()) and not image.startswith("/")

    def _prompt(self, prompt: object) -> object:
        if isinstance(prompt, str) and self.strip_brackets:
            return prompt.replace("[", "").replace("]", "")
        return prompt

    def _blended(self, where: str, words: object, problems: list[str]) -> tuple[str | None, str | None]:
        if words is None or words == "":
            return None, None
        pair = words.split() if isinstance(words, str) else []
        if len(pair) != 2:
            problems.append(f'{where}: blended_word={words!r} is not allowed; give "" or "source_word target_word".')
            return None, None
        return pair[0], pair[1]
