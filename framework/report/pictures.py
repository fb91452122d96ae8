"""Where a page finds its pictures: linked files with thumbnails, data within the page, or a server."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from PIL import Image

from framework.report.results import Cell

THUMBNAIL = 256
"""Longest side of a thumbnail, in pixels; it is shown at half of that or so."""
SMALL_BYTES = 32 * 1024
"""Files up to this size are their own thumbnails, and go into a page as they are."""
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
"""Suffixes of pictures and their media types."""
_OURS = re.compile(r"[0-9a-f]{24}\.jpg")


class Pictures(Protocol):
    """Gives addresses of pictures for the `src` of an image, empty where there is none."""

    def thumbnail(self, cell: Cell, name: str) -> str:
        """Return where a small version of a sample's picture is found."""
        ...

    def full(self, cell: Cell, name: str) -> str:
        """Return where a sample's picture is found."""
        ...

    def figure(self, run: int, path: Path) -> str:
        """Return where a figure of a run is found."""
        ...


class Linked:
    """Links to the files of the runs; thumbnails of large pictures are written to a folder beside the page.

    A thumbnail is named by the hash of its picture, so that equal sources share one and a report that is written again
    makes only what is new. Nothing is made before `finish`.

    Args:
        page: The page to be written.
    """

    def __init__(self, page: Path) -> None:
        self._home = page.resolve().parent
        self.folder = self._home / f"{page.stem}_files"
        self._jobs: dict[str, Path] = {}

    def thumbnail(self, cell: Cell, name: str) -> str:
        entry = cell.entry.files[name]
        if entry.size <= SMALL_BYTES:
            return self.full(cell, name)
        file = f"{entry.sha256[:24]}.jpg"
        self._jobs.setdefault(file, cell.directory / name)
        return quote(f"{self.folder.name}/{file}")

    def full(self, cell: Cell, name: str) -> str:
        return self._link(cell.directory / name)

    def figure(self, run: int, path: Path) -> str:
        del run
        return self._link(path)

    def finish(self) -> list[str]:
        """Make the thumbnails that are not there yet, and remove those that no page shows any more.

        Returns:
            A sentence for every picture that cannot be read.

        Raises:
            OSError: A thumbnail cannot be written.
        """
        if self._jobs:
            self.folder.mkdir(parents=True, exist_ok=True)
        here = {path.name for path in self.folder.glob("*.jpg")} if self.folder.is_dir() else set()
        missing = [(path, self.folder / file) for file, path in self._jobs.items() if file not in here]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            problems = [problem for problem in pool.map(_shrink_file, missing) if problem]
        for file in here - set(self._jobs):
            if _OURS.fullmatch(file):
                (self.folder / file).unlink(missing_ok=True)
        if not self._jobs:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        return problems

    def _link(self, path: Path) -> str:
        relative = Path(os.path.relpath(path.resolve(), self._home)).as_posix()
        # A first part with a colon would be taken for a scheme.
        return quote(relative if relative.startswith("../") else f"./{relative}")


class Embedded:
    """Puts every picture into the page: small files as they are, others as WebP of at most `side` pixels.

    Args:
        side: Longest side of a picture.
    """

    def __init__(self, side: int = 768) -> None:
        self._side = side
        self._seen: dict[str, str] = {}

    def thumbnail(self, cell: Cell, name: str) -> str:
        """Return the picture itself: the page would otherwise hold it twice."""
        return self.full(cell, name)

    def full(self, cell: Cell, name: str) -> str:
        key = cell.entry.files[name].sha256
        if key not in self._seen:
            self._seen[key] = self._data(cell.directory / name)
        return self._seen[key]

    def figure(self, run: int, path: Path) -> str:
        del run
        return self._data(path)

    def _data(self, path: Path) -> str:
        try:
            data, kind = path.read_bytes(), TYPES[path.suffix.lower()]
            if len(data) > SMALL_BYTES:
                data, kind = _encoded(shrunk(path, self._side), "WEBP", 85), "image/webp"
        except (OSError, ValueError):
            return ""
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shrunk(path: Path, side: int) -> Image.Image:
    """Read a picture as RGB, reduced to at most `side` pixels.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    with Image.open(path) as picture:
        picture.draft("RGB", (side, side))
        small = picture.convert("RGB")
    # Averaged down to near the size, then interpolated: a tenth of the time of a long filter.
    small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return small


def thumbnail_bytes(path: Path) -> bytes:
    """Return a thumbnail as JPEG.

    Raises:
        OSError, ValueError: The picture cannot be read.
    """
    return _encoded(shrunk(path, THUMBNAIL), "JPEG", 82)


def pictures_in(names: Iterable[str]) -> list[str]:
    """Return the names that are pictures, in the order of their words and numbers: `edit-2` before `edit-10`."""
    found = [name for name in names if Path(name).suffix.lower() in TYPES]
    return sorted(found, key=lambda name: [part.zfill(8) for part in re.split(r"(\d+)", Path(name).stem)])


def _shrink_file(job: tuple[Path, Path]) -> str:
    path, thumbnail = job
    try:
        data = thumbnail_bytes(path)
    except (OSError, ValueError, Image.DecompressionBombError) as problem:
        return f"{path.name} of {path.parent.name} cannot be shown ({problem})"
    thumbnail.write_bytes(data)
    return ""


def _encoded(picture: Image.Image, kind: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=quality)
    return buffer.getvalue()
