"""What all data sets have in common: their options, and how entries of a manifest become checked samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from framework.data.files import resolve_root
from framework.data.readers.entry import Entry, check_entry, check_ids
from framework.data.sample import EditSample
from framework.errors import Checks, SettingsError

if TYPE_CHECKING:
    from framework.data.images import ImageLoader

# Pillow refuses pictures from here on whatever we allow: twice its MAX_IMAGE_PIXELS.
_PILLOW_LIMIT = 2 * 89_478_485


@dataclass(kw_only=True)
class DataSource(ABC):
    """A data set: which samples there are, and how their pictures are to be loaded.

    Attributes:
        root: Folder (or manifest file) of the data set; relative paths count from the working directory,
            `package:NAME/inner/path` means data installed with a Python package.
        batch_size: Most samples that go through the network together, at least 1.
        resize: How a picture becomes the network's size. `crop`: the centre part of the network's aspect ratio, the
            result shows this part only; `pad`: the whole picture with margins; `stretch`: the whole picture, squeezed;
            `native`: the picture's own size, rounded to what the network can take.
        size: Rows and columns of the network's picture, or one number for a square; None for the model's own size.
        padding: Margins of `pad`: `reflect` mirrors the picture, `background` is a plain colour.
        background: Colour (red, green, blue), 0..255, below transparent pixels and in plain margins.
        alpha: What transparency means: `composite` puts the picture on the background; `mask` keeps the colours and
            takes what is less than half opaque as the region to be edited, unless the sample has a mask of its own.
        on_error: `skip` goes on when a sample fails, `stop` ends the run.
        max_failures: Number of failed samples above which the run ends; None for no bound.
        limit: Only the first `limit` samples; None for all.
        num_workers: Processes that load pictures ahead; 0 loads in the main process.
        allow_absolute: Whether paths may be absolute and may lead out of the root.
        strict: Whether what is otherwise noted (further frames of an animation, blended words that are not in the
            prompt, captions without a picture) is an error.
        max_pixels: Largest picture, in pixels, read from the header before anything is decoded.
        min_side: Shortest side of a picture, in pixels.
        max_ratio: Largest ratio of a picture's sides.

    Raises:
        SettingsError: Options outside of what is allowed, all together.
    """

    root: str | Path = field(kw_only=False)
    batch_size: int = 1
    resize: str = "crop"
    size: int | Sequence[int] | None = None
    padding: str = "reflect"
    background: Sequence[int] = (255, 255, 255)
    alpha: str = "composite"
    on_error: str = "skip"
    max_failures: int | None = None
    limit: int | None = None
    num_workers: int = 0
    allow_absolute: bool = False
    strict: bool = False
    max_pixels: int = 8192 * 8192
    min_side: int = 8
    max_ratio: float = 8.0

    def __post_init__(self) -> None:
        checks = Checks(type(self).__name__)
        checks.require(
            isinstance(self.root, (str, Path)), f"root={self.root!r} is not a path; give the folder of the data set."
        )
        checks.one_of("resize", self.resize, ("crop", "pad", "stretch", "native"))
        checks.one_of("padding", self.padding, ("reflect", "background"))
        checks.one_of("alpha", self.alpha, ("composite", "mask"))
        checks.one_of("on_error", self.on_error, ("skip", "stop"))
        _integer(checks, "batch_size", self.batch_size, 1)
        _integer(checks, "num_workers", self.num_workers, 0)
        _integer(checks, "min_side", self.min_side, 1)
        _integer(checks, "max_pixels", self.max_pixels, 1, _PILLOW_LIMIT)
        for name, value, low in (("max_failures", self.max_failures, 0), ("limit", self.limit, 1)):
            if value is not None:
                _integer(checks, name, value, low)
        for name in ("allow_absolute", "strict"):
            value = getattr(self, name)
            checks.require(isinstance(value, bool), f"{name}={value!r} is not allowed; give true or false.")
        if checks.require(
            _is_number(self.max_ratio), f"max_ratio={self.max_ratio!r} is not a number; give one of at least 1."
        ):
            checks.between("max_ratio", self.max_ratio, 1, float("inf"))
        self._check_size(checks)
        colour = self.background
        fits = isinstance(colour, Sequence) and len(colour) == 3 and all(_is_int(c) and 0 <= c <= 255 for c in colour)
        checks.require(fits, f"background={colour!r} is not a colour; give [red, green, blue], each in 0..255.")
        checks.done()

    def _check_size(self, checks: Checks) -> None:
        sides = (self.size, self.size) if isinstance(self.size, int) else self.size
        fits = sides is None or (
            isinstance(sides, Sequence) and len(sides) == 2 and all(_is_int(n) and n > 0 for n in sides)
        )
        checks.require(fits, f"size={self.size!r} is not allowed; give [rows, columns] or one number for a square.")
        if self.resize == "native":
            problem = f"size={self.size!r} contradicts resize: native; leave one of the two out."
            checks.require(self.size is None, problem)

    @property
    def network_size(self) -> tuple[int, int] | None:
        """Rows and columns that the settings ask for; None when the model or the picture decides."""
        if self.size is None or isinstance(self.size, int):
            return None if self.size is None else (self.size, self.size)
        return self.size[0], self.size[1]

    @property
    def folder(self) -> Path:
        """The folder that paths are relative to, absolute.

        Raises:
            SettingsError: There is no such folder.
        """
        root = resolve_root(self.root)
        return root if root.is_dir() else root.parent

    def loader(self, size: tuple[int, int] | None = None, *, multiple: int = 8, channels: int = 3) -> ImageLoader:
        """Build the image loader that these options describe.

        Args:
            size: The model's own rows and columns, used unless the options name a size.
            multiple: Both sides of the network's picture are multiples of this.
            channels: 3 for colour, 1 for grey.

        Raises:
            SettingsError: The size does not fit the multiple, or nobody says a size.
        """
        from framework.data.images import ImageLoader

        return ImageLoader(
            None if self.resize == "native" else self.network_size or size,
            multiple=multiple,
            resize=self.resize,
            channels=channels,
            padding=self.padding,
            background=(self.background[0], self.background[1], self.background[2]),
            alpha=self.alpha,
            strict=self.strict,
            max_pixels=self.max_pixels,
            min_side=self.min_side,
            max_ratio=self.max_ratio,
        )

    @abstractmethod
    def samples(self) -> list[EditSample]:
        """List the samples in their fixed order. Cheap: no picture is opened.

        Raises:
            SettingsError: All problems of the data set together, each with file, place and reason.
        """


@dataclass(kw_only=True)
class EntrySource(DataSource):
    """A data set whose samples are read as entries and checked here. A reader of a new format overrides `entries`."""

    @abstractmethod
    def entries(self, root: Path, problems: list[str]) -> Iterable[Entry]:
        """Read the data set.

        Args:
            root: Absolute folder or file, which exists.
            problems: Receives one sentence per problem that leaves no entry.
        """

    def samples(self) -> list[EditSample]:
        root = resolve_root(self.root)
        folder = root if root.is_dir() else root.parent
        problems: list[str] = []
        checked: list[EditSample] = []
        entries = list(self.entries(root, problems))
        if not entries and not problems:
            problems.append("holds no sample.")
        for entry in entries[: self.limit]:
            sample = check_entry(entry, folder, problems, allow_absolute=self.allow_absolute, strict=self.strict)
            if sample is not None:
                checked.append(sample)
        check_ids([(entry.where, entry.name) for entry in entries], problems)
        if problems:
            raise SettingsError([f"{type(self).__name__} {self.root}: {problem}" for problem in problems])
        return checked


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(checks: Checks, name: str, value: object, low: int, high: float = float("inf")) -> None:
    allowed = f"an integer of at least {low}" if high == float("inf") else f"an integer in [{low}, {high:.0f}]"
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    checks.require(fits, f"{name}={value!r} is not allowed; give {allowed}.")
