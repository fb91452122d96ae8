"""Writing files so that a reader sees a whole file or none, at whatever moment the writer dies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.tmp-[0-9]+$")


class StoreError(RuntimeError):
    """Results cannot be written: disk full, permission lost, folder gone. What was committed stays valid."""


def store_error(path: Path, problem: OSError) -> StoreError:
    """Say which file could not be written and what to do about it."""
    remedy = "Make the folder writable"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space"
    return StoreError(
        f"{path} cannot be written: {problem.strerror or problem}. {remedy} and run the same command again; the "
        "samples that are finished are kept."
    )


def write_file(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one: afterwards `path` holds `data` on the disk, or what it held before.

    Raises:
        StoreError: The file cannot be written; the temporary file is removed.
    """
    stage_file(path, data)
    publish_files([path])


def stage_file(path: Path, data: bytes) -> None:
    """Write and sync the temporary file of `path`; `publish_files` gives it its name.

    Raises:
        StoreError: It cannot be written; nothing is left behind.
    """
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise store_error(path, problem) from problem


def publish_files(paths: Sequence[Path]) -> None:
    """Rename staged files, all in one folder, to their names and sync the folder.

    Raises:
        StoreError: A rename failed.
    """
    for path in paths:
        try:
            os.replace(_temporary(path), path)
        except OSError as problem:
            raise store_error(path, problem) from problem
    if paths:
        sync_folder(paths[0].parent)


def discard_files(paths: Sequence[Path]) -> None:
    """Remove the staged files of these paths, as far as there are any, and their folders if nothing else is in them."""
    for path in paths:
        with contextlib.suppress(OSError):
            _temporary(path).unlink()
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes to a descriptor; a disk may take them in pieces."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names within a folder durable; file systems that cannot are left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file name is one that `stage_file` uses."""
    return _TEMPORARY.search(name) is not None


def bytes_digest(data: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Turn a value into what json holds: mappings with string keys, lists, strings, finite numbers, booleans, None.

    A number that is not finite becomes None: json has no word for it, and a reader must not take it for a figure.

    Raises:
        TypeError: The value is none of these and no path.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain(value.item())
    raise TypeError(f"a {type(value).__name__} cannot be written as json; give numbers, strings, lists or mappings")


def json_line(value: Any) -> bytes:
    """Encode a value as one line of json, keys sorted, with its end of line; equal values give equal bytes."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def json_document(value: Any) -> bytes:
    """Encode a value as json to be read by people, keys sorted; equal values give equal bytes."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")
