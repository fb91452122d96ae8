"""One line of a manifest as it was read, and the checks that make a sample of it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from framework.data.files import has_control, resolve_file
from framework.data.sample import EditSample, RunLengthMask
from framework.errors import SampleError

_LARGEST_MASK = 1 << 28


@dataclass(frozen=True)
class Entry:
    """What a manifest says about one sample; every value may still be wrong.

    Attributes:
        where: Place in the manifest, for messages ("line 3").
        id: Name of the sample; None stands for the stem of the picture's file name.
        image: Path of the picture, relative to the folder of the data set.
        mask: None, a path, or a mapping with `rle` and, if given, `size` and `border`.
        source, target, negative, instruction, edit_type, blend_source, blend_target, extra: As in `EditSample`.
    """

    where: str
    image: object
    source: object
    target: object
    id: object = None
    negative: object = ""
    instruction: object = None
    edit_type: object = None
    blend_source: object = None
    blend_target: object = None
    mask: object = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The id, or the stem of the picture's file name; empty when neither is text."""
        return self.id if isinstance(self.id, str) else stem(self.image)

    @property
    def place(self) -> str:
        """Where to look, with the id where there is one."""
        known = not isinstance(self.id, str) or repr(self.id) in self.where
        return self.where if known else f"{self.where}, id {self.id!r}"


def check_entry(
    entry: Entry, folder: Path, problems: list[str], *, allow_absolute: bool = False, strict: bool = False
) -> EditSample | None:
    """Make a sample of an entry, or say everything that is wrong with it.

    Args:
        entry: What was read.
        folder: Folder of the data set, absolute.
        problems: Receives one sentence per problem.
        allow_absolute: Whether paths may lead out of the folder.
        strict: Whether a blended word that is not in its prompt is a problem.

    Returns:
        The sample, or None when it has a problem.
    """
    found: list[str] = []

    def attempt(check: Any, *args: Any) -> Any:
        try:
            return check(*args)
        except SampleError as problem:
            found.append(str(problem))
            return None

    image = attempt(lambda: resolve_file(entry.image, folder, allow_absolute=allow_absolute))
    name = attempt(_id, entry.id, entry.image)
    source = attempt(_prompt, "source", entry.source, True)
    target = attempt(_prompt, "target", entry.target, False)
    negative = attempt(_prompt, "negative", entry.negative, True)
    instruction, edit_type, blend_source, blend_target = (
        attempt(_label, key, getattr(entry, key))
        for key in ("instruction", "edit_type", "blend_source", "blend_target")
    )
    mask = attempt(lambda: _mask(entry.mask, folder, allow_absolute))
    attempt(_extra, entry.extra)
    if strict:
        attempt(_word_in_prompt, "source", blend_source, source)
        attempt(_word_in_prompt, "target", blend_target, target)
    if found:
        problems.extend(f"{entry.place}: {problem}." for problem in found)
        return None
    return EditSample(
        name, image, source, target, negative, instruction, edit_type, blend_source, blend_target, mask, entry.extra
    )


def check_ids(named: Sequence[tuple[str, str]], problems: list[str]) -> None:
    """Find ids that are used twice or that a file system could take for each other.

    Args:
        named: Place in the manifest and id of each sample.
        problems: Receives one sentence per clash, with all places.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for where, name in named:
        if not name:
            continue
        groups.setdefault(_folded(name), []).append((where, name))
    for group in groups.values():
        if len(group) == 1:
            continue
        names = {name for _, name in group}
        places = "; ".join(f"{where} ({name!r})" if len(names) > 1 else where for where, name in group)
        clash = "differ only by case or unicode form" if len(names) > 1 else f"share the id {group[0][1]!r}"
        problems.append(f"{len(group)} samples {clash}: {places}. Give each its own `id`.")


def stem(image: object) -> str:
    """The default id of a sample: the name of its picture without folder and suffix."""
    return PurePosixPath(image).stem if isinstance(image, str) else ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _id(value: object, image: object) -> str:
    if value is None:
        value = stem(image)
    if not isinstance(value, str):
        raise SampleError(f"id={value!r} is of type {_kind(value)}; ids are text, so put it in quotes")
    if not value.strip() or has_control(value):
        raise SampleError(f"id={value!r} is not a name; give text without control characters")
    return value


def _prompt(name: str, value: object, may_be_empty: bool) -> str:
    if not isinstance(value, str):
        raise SampleError(f"{name}={value!r} is of type {_kind(value)}; a prompt is text")
    if has_control(value):
        raise SampleError(f"{name}={value!r} holds control characters; remove line breaks, tabs and the like")
    if value and not value.strip():
        raise SampleError(f"{name}={value!r} holds only spaces; give words" + (' or ""' if may_be_empty else ""))
    if not value and not may_be_empty:
        raise SampleError(f"{name} is empty; give the prompt of the edit")
    return unicodedata.normalize("NFC", value)


def _label(name: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise SampleError(f"{name}={value!r} is of type {_kind(value)}; give text")
    if has_control(value):
        raise SampleError(f"{name}={value!r} holds control characters; remove line breaks, tabs and the like")
    return unicodedata.normalize("NFC", value) or None


def _word_in_prompt(name: str, word: str | None, prompt: str | None) -> None:
    if word and prompt is not None and word.lower() not in prompt.lower():
        raise SampleError(f"the blended word {word!r} is not in the {name} prompt {prompt!r}")


def _mask(value: object, folder: Path, allow_absolute: bool) -> Path | RunLengthMask | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        try:
            return resolve_file(value, folder, allow_absolute=allow_absolute)
        except SampleError as problem:
            raise SampleError(f"mask: {problem}") from None
    unknown = sorted(str(key) for key in value if key not in ("rle", "size", "border"))
    if unknown or "rle" not in value:
        raise SampleError(
            f"mask={dict(value)!r} is not allowed; give a path or {{rle: [start, length, ...], size: [H, W]}}"
        )
    border = value.get("border", True)
    if not isinstance(border, bool):
        raise SampleError(f"mask: border={border!r} is not allowed; give true or false")
    return RunLengthMask(_pairs(value["rle"]), _size(value.get("size")), border)


def _pairs(value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise SampleError(f"mask: the run lengths are of type {_kind(value)}; give a list start, length, start, length")
    for number in value:
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise SampleError(f"mask: the run lengths hold {number!r}; starts and lengths are integers of at least 0")
    if len(value) % 2:
        raise SampleError(f"mask: the run lengths have {len(value)} numbers; starts and lengths come in pairs")
    return tuple(value)


def _size(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, Sequence) else ()
    if len(sides) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides):
        raise SampleError(f"mask: size={value!r} is not allowed; give [rows, columns]")
    if sides[0] * sides[1] > _LARGEST_MASK:
        raise SampleError(f"mask: size={value!r} has more than {_LARGEST_MASK} pixels")
    return sides[0], sides[1]


def _extra(extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        try:
            json.dumps({key: value}, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise SampleError(
                f"the value of {key!r} cannot be written as JSON; give text, numbers, lists, maps"
            ) from None


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
