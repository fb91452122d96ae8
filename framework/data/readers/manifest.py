"""A plain manifest: one entry per sample, as JSON lines, a JSON list or a YAML list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.data.readers.documents import Item, read_list
from framework.data.readers.entry import Entry, stem
from framework.data.readers.source import EntrySource
from framework.errors import did_you_mean

SUFFIXES = (".jsonl", ".yaml", ".yml", ".json")
_FIELDS = {
    "id": "id",
    "image": "image",
    "source": "source",
    "target": "target",
    "negative": "negative",
    "instruction": "instruction",
    "type": "edit_type",
    "blend_source": "blend_source",
    "blend_target": "blend_target",
    "mask": "mask",
}


@dataclass(kw_only=True)
class Manifest(EntrySource):
    """Entries with the keys id, image, source, target, mask, type, negative, instruction, blend_source, blend_target.

    `image` and `target` are needed; `id` is the stem of the picture unless given; `source` is empty unless given. A
    list of targets makes samples `<id>/<k>`, k = 0, 1, ... `mask` is a path or run lengths with the rule of PIE-Bench,
    {rle: [start, length, ...], size: [H, W], border: true}. Every other key goes to `extra`.

    Attributes:
        file: Name of the manifest in the root; None when the root is the manifest itself or holds exactly one
            `manifest.jsonl`, `.yaml`, `.yml` or `.json`.
    """

    file: str | None = None

    def entries(self, root: Path, problems: list[str]) -> Iterable[Entry]:
        path = find_document(root, self.file, [f"manifest{suffix}" for suffix in SUFFIXES], problems)
        for item in read_list(path, problems) if path else []:
            if not isinstance(item.value, Mapping):
                problems.append(f"{item.where}: is of type {type(item.value).__name__}; give keys and values.")
            elif _has_keys(item, problems):
                yield from _entries_of(item)


def find_document(root: Path, file: str | None, names: list[str], problems: list[str]) -> Path | None:
    """Find the manifest: the root itself, the file that is named, or the only one that has one of the names.

    Args:
        root: Absolute folder or file.
        file: Name below the root, or None.
        names: Where to look without a name; may be patterns.
        problems: Receives why there is none.
    """
    if root.is_file():
        if file is not None:
            problems.append(f"is a file already; leave out file={file!r}.")
            return None
        return root
    found = [root / file] if file is not None else sorted({path for name in names for path in root.glob(name)})
    if len(found) == 1 and found[0].is_file():
        return found[0]
    held = sorted(path.name for path in root.iterdir())
    if file is not None:
        problems.append(f"has no file {file!r}; it holds {', '.join(held[:8]) or 'nothing'}{did_you_mean(file, held)}.")
    elif found:
        problems.append(f"has several manifests ({', '.join(path.name for path in found)}); name one with `file`.")
    else:
        problems.append(f"has no {', '.join(names)}; name the manifest with `file`.")
    return None


def _has_keys(item: Item, problems: list[str]) -> bool:
    missing = [key for key in ("image", "target") if key not in item.value]
    others = [str(key) for key in item.value if key not in _FIELDS]
    for key in missing:
        problems.append(f"{item.where}: has no {key!r}{did_you_mean(key, others)}.")
    return not missing


def _entries_of(item: Item) -> Iterator[Entry]:
    known: dict[str, Any] = {name: item.value[key] for key, name in _FIELDS.items() if key in item.value}
    known.setdefault("source", "")
    if known.get("negative", "") is None:
        del known["negative"]
    extra = {str(key): value for key, value in item.value.items() if key not in _FIELDS}
    targets = known.pop("target")
    if not isinstance(targets, list):
        yield Entry(where=item.where, target=targets, extra=extra, **known)
        return
    base = known.pop("id", None)
    name = stem(known["image"]) if base is None else base
    for number, target in enumerate(targets):
        numbered = f"{name}/{number}" if isinstance(name, str) else name
        yield Entry(where=f"{item.where}, target {number}", target=target, id=numbered, extra=extra, **known)
