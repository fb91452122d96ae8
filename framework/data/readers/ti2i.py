"""The YAML family of ImageNet-R-TI2I: the benchmarks of Plug-and-Play, edit-friendly DDPM and FlowEdit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from framework.data.readers.documents import Item, read_list
from framework.data.readers.entry import Entry, stem
from framework.data.readers.manifest import find_document
from framework.data.readers.source import EntrySource
from framework.errors import did_you_mean

_KNOWN = ("id", "init_img", "input_img", "source_prompt", "target_prompts", "target_codes")


@dataclass(kw_only=True)
class TI2I(EntrySource):
    """A YAML list of pictures with several target prompts each; every target becomes a sample `<stem>/<code or k>`.

    Keys: `init_img` (FlowEdit's runner says `input_img`), `source_prompt` (empty unless given), `target_prompts`, and
    `target_codes` (names of the targets; where there are fewer than prompts the index k = 0, 1, ... is used). Paths may
    start with "/" or "./" and are relative to the root all the same; blanks round prompts are removed. An entry may
    carry an `id` in place of the stem. Every other key goes to `extra`.

    Attributes:
        file: Name of the YAML file in the root; None when the root is the file itself or holds exactly one.
    """

    file: str | None = None

    def entries(self, root: Path, problems: list[str]) -> Iterable[Entry]:
        path = find_document(root, self.file, ["*.yaml", "*.yml"], problems)
        for item in read_list(path, problems) if path else []:
            if not isinstance(item.value, Mapping):
                problems.append(f"{item.where}: is of type {type(item.value).__name__}; give keys and values.")
            elif _is_complete(item, problems):
                yield from self._entries_of(item)

    def _entries_of(self, item: Item) -> Iterator[Entry]:
        value = item.value
        image = value.get("init_img", value.get("input_img"))
        if isinstance(image, str) and not self.allow_absolute:
            image = image.removeprefix(".").lstrip("/") if image.startswith(("/", "./")) else image
        codes = value.get("target_codes") or []
        for number, target in enumerate(value["target_prompts"]):
            code = codes[number] if number < len(codes) else number
            yield Entry(
                where=f"{item.where}, target {number}",
                id=f"{value.get('id', stem(image))}/{code}",
                image=image,
                source=_stripped(value.get("source_prompt") or ""),
                target=_stripped(target),
                extra={str(key): other for key, other in value.items() if key not in _KNOWN},
            )


def _stripped(prompt: object) -> object:
    return prompt.strip() if isinstance(prompt, str) else prompt


def _is_complete(item: Item, problems: list[str]) -> bool:
    before = len(problems)
    value = item.value
    names = [str(key) for key in value]
    if "init_img" not in value and "input_img" not in value:
        problems.append(f"{item.where}: has no 'init_img'{did_you_mean('init_img', names)}.")
    prompts = value.get("target_prompts")
    if prompts is None:
        problems.append(f"{item.where}: has no 'target_prompts'{did_you_mean('target_prompts', names)}.")
    elif not isinstance(prompts, list) or not prompts:
        problems.append(f"{item.where}: target_prompts={prompts!r} is not allowed; give a list of prompts.")
    codes = value.get("target_codes")
    if codes is not None and not isinstance(codes, list):
        problems.append(f"{item.where}: target_codes={codes!r} is not allowed; give a list of names.")
    return len(problems) == before
