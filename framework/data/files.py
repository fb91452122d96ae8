"""Where files may lie: roots of data sets, paths inside them, and the rule that only regular files are opened."""

from __future__ import annotations

import importlib.resources
import os
import stat
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from framework.errors import SampleError, SettingsError, did_you_mean

PACKAGE_PREFIX = "package:"
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)}
_SHOWN = 8


def resolve_root(root: str | Path) -> Path:
    """Find the folder or file that a data set is read from.

    Args:
        root: A path, relative ones against the working directory, or `package:NAME/inner/path` for data that is
            installed with the Python package NAME.

    Returns:
        The absolute path with symbolic links resolved; it exists.

    Raises:
        SettingsError: Nothing is there; the message names what is near.
    """
    text = str(root)
    if text.startswith(PACKAGE_PREFIX):
        wanted = _inside_package(text)
    elif not text.strip() or has_control(text):
        raise SettingsError([f"root={text!r} is not a path; give the folder or the manifest of the data set."])
    else:
        wanted = Path.cwd() / Path(text).expanduser()
    try:
        return wanted.resolve(strict=True)
    except (OSError, RuntimeError):
        raise SettingsError([f"root={text!r} does not exist. {_what_is_near(wanted)}"]) from None


def _inside_package(text: str) -> Path:
    package, _, inner = text.removeprefix(PACKAGE_PREFIX).partition("/")
    if ".." in PurePosixPath(inner).parts:
        raise SettingsError([f"root={text!r} leads out of the package {package!r}; give a path without '..'."])
    try:
        base = importlib.resources.files(package)
    except (ImportError, ValueError, TypeError) as problem:
        hint = "write package:NAME/inner/path, for example package:experiments/shapes/scenes"
        raise SettingsError([f"root={text!r} names a package that cannot be imported ({problem}); {hint}."]) from None
    found = base.joinpath(inner) if inner else base
    if not isinstance(found, Path):
        raise SettingsError([f"root={text!r} is not in plain files; install the package {package!r} unpacked."])
    return found


def _what_is_near(wanted: Path) -> str:
    parent, missing = wanted.parent, wanted.name
    while not parent.is_dir() and parent != parent.parent:
        parent, missing = parent.parent, parent.name
    try:
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        names = []
    listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{parent} has no {missing!r}; it holds {listed or 'nothing'}{did_you_mean(missing, names)}."


def resolve_file(text: object, folder: Path, *, allow_absolute: bool = False) -> Path:
    """Find a file that a manifest names.

    Args:
        text: What the manifest says: a path relative to the folder, written with "/".
        folder: Folder of the data set, absolute and free of symbolic links (see `resolve_root`).
        allow_absolute: Whether the path may be absolute and may lead out of the folder.

    Returns:
        The path below the folder, not yet opened.

    Raises:
        SampleError: The path is unsafe, leads out of the folder, or names no regular file that can be read.
    """
    if not isinstance(text, str) or not text.strip():
        raise SampleError(f"the path {text!r} is not allowed; give the name of a file as text")
    if has_control(text):
        raise SampleError(f"the path {text!r} holds control characters; rename the file")
    if not allow_absolute:
        _refuse_unsafe(text)
    path = folder / text
    if not (allow_absolute or Path(os.path.normpath(path)).is_relative_to(folder)):
        raise SampleError(f"the path {text!r} leads out of {folder}; set allow_absolute: true if it is meant")
    try:
        real = path.resolve(strict=True)
        require_regular(real)
    except FileNotFoundError:
        raise SampleError(f"there is no file {text!r} in {folder}") from None
    except RuntimeError:  # a loop of symbolic links, up to Python 3.12
        raise SampleError(f"the path {text!r} is a loop of symbolic links") from None
    except OSError as problem:
        raise SampleError(f"the path {text!r} cannot be used: {problem.strerror or problem}") from None
    if not (allow_absolute or real.is_relative_to(folder)):
        raise SampleError(f"the link {text!r} leads out of {folder}; set allow_absolute: true if it is meant")
    return path


def _refuse_unsafe(text: str) -> None:
    if "\\" in text or PureWindowsPath(text).drive:
        raise SampleError(f"the path {text!r} is written for Windows; write it with '/', relative to the root")
    if PurePosixPath(text).is_absolute():
        raise SampleError(f"the path {text!r} is absolute; write it relative to the root or set allow_absolute: true")
    for part in PurePosixPath(text).parts:
        if part.split(".")[0].strip().lower() in _RESERVED:
            raise SampleError(f"the path {text!r} uses the reserved device name {part!r}; rename it")


def require_regular(path: Path) -> None:
    """Refuse what is not a regular, readable file; nothing is opened, so a pipe cannot block.

    Raises:
        SampleError: What the path is instead.
        OSError: It cannot be looked at.
    """
    status = path.stat()
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(status.st_mode):
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise SampleError(f"{path.name!r} is {kind}, not a file")
    if not os.access(path, os.R_OK):
        raise SampleError(f"{path.name!r} may not be read; change its permissions")


def has_control(text: str) -> bool:
    """Whether the text holds control characters or halves of surrogate pairs, which no file and no prompt should."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
