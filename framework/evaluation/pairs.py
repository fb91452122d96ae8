"""Pictures to be measured after the editing: of a finished run, or of a folder of results made elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framework.backbones.base import Backbone
from framework.data.decode import Limits, decode
from framework.data.frames import nearest, seen
from framework.data.masks import read_mask
from framework.data.readers.source import DataSource
from framework.data.sample import EditSample, Frame, RunLengthMask
from framework.errors import SampleError, SettingsError
from framework.run.finished import StoredRun

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LIMITS = Limits()


@dataclass(frozen=True)
class Pair:
    """One source with its results, as files.

    Attributes:
        sample: Its description.
        source: The source picture.
        edits: One file per draw.
        reconstruction: The source as the method walked it back, or None.
        key: What the results were made with; empty where nobody says.
        frame: Which part of the source the pictures show; None for all of it.
    """

    sample: EditSample
    source: Path
    edits: tuple[Path, ...]
    reconstruction: Path | None = None
    key: str = ""
    frame: Frame | None = None


@dataclass(frozen=True)
class Pictures:
    """A pair as it is measured; pictures are [3, H, W] float32 in [0, 1], the mask [1, H, W] of 0 and 1 or None."""

    source: Tensor
    edits: tuple[Tensor, ...]
    reconstruction: Tensor | None
    mask: Tensor | None


@dataclass
class Results(ABC):
    """Where pictures lie.

    Attributes:
        directory: Folder that the rows are written to.
        missing: Sample -> why it cannot be measured; filled by `pairs`.
        notes: What the reader of the rows has to know.
    """

    directory: Path
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def pairs(self) -> Iterator[Pair]:
        """Iterate over what there is, in the sorted order of the ids."""

    @property
    def backbone(self) -> Backbone | None:
        """The model that made the pictures, not yet loaded, for metrics that ask for its picture code."""
        return None

    def load(self, pair: Pair) -> Pictures:
        """Read the pictures of one pair.

        Raises:
            SampleError: A file cannot be read, or a result has another size than its source.
        """
        source = _picture(pair.source)
        size = (source.shape[-2], source.shape[-1])
        edits = tuple(_sized(self._panel(_picture(path), size), size, path) for path in pair.edits)
        back = pair.reconstruction
        reconstruction = None if back is None else _sized(_picture(back), size, back)
        mask = None
        if pair.sample.mask is not None:
            mask = torch.from_numpy(_mask(pair.sample.mask, size, pair.frame).astype(np.float32))[None]
        return Pictures(source, edits, reconstruction, mask)

    def _panel(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        return picture


@dataclass
class RunResults(Results):
    """The committed samples of a run. Masks are not among them and are read again from the data set."""

    def __post_init__(self) -> None:
        self.run = StoredRun(self.directory)
        self._backbone, self._samples = self._experiment()

    @property
    def backbone(self) -> Backbone | None:
        """The run's own model."""
        return self._backbone

    def pairs(self) -> Iterator[Pair]:
        """Iterate over finished samples; failed and unfinished ones are missing."""
        for name, entry in self.run.state.failed.items():
            self.missing[name] = f"failed: {entry.reason}"
        for stored in self.run.samples():
            pictures = sorted(path for path in stored.directory.iterdir() if path.suffix in SUFFIXES)
            found = {path.stem: path for path in pictures}
            edits = tuple(path for stem, path in found.items() if _is_edit(stem))
            if "source" not in found or not edits:
                self.missing[stored.id] = "its folder holds no source or no edit"
                continue
            sample = self._samples.get(stored.id) or _described(stored.id, found["source"], stored.meta)
            key = str(stored.meta.get("key", ""))
            source = self._source(found["source"], sample)
            yield Pair(sample, source, edits, found.get("reconstruction"), key, _frame(stored.meta))

    def _source(self, stored: Path, sample: EditSample) -> Path:
        """Take the data set's picture for one that was saved with loss, as published rows do, if nothing was cut."""
        if stored.suffix == ".png" or sample.image == stored:
            return stored
        try:
            same = _picture(sample.image).shape == _picture(stored).shape
        except (SampleError, OSError):
            return stored
        return sample.image if same else stored

    def _experiment(self) -> tuple[Backbone | None, Mapping[str, EditSample]]:
        """Build the run's experiment again, as far as model and data are still there."""
        from framework.run.build import build
        from framework.run.config import load_config

        try:
            experiment = build(load_config(self.directory / "config.yaml"))
            samples = {sample.id: sample for sample in experiment.source.samples()}
        except SettingsError as error:
            self.notes.append(
                "the experiment of config.yaml cannot be built here, so that there are no masks and no model: "
                + " ".join(error.problems)
            )
            return None, {}
        return experiment.module.backbone, samples


@dataclass
class FolderResults(Results):
    """Results made elsewhere: `<directory>/<path of the source in the data set>`, or `<directory>/<id>`, any suffix.

    Attributes:
        data: The data set that the results belong to.
        last_panel: Results that are larger than their source are strips of panels, of which the one at the bottom right
            is the result (the files of PIE-Bench's scripts).
    """

    data: DataSource | None = None
    last_panel: bool = False

    def pairs(self) -> Iterator[Pair]:
        """Iterate over the samples of the data set that have a result."""
        assert self.data is not None
        for sample in sorted(self.data.samples(), key=lambda sample: sample.id):
            path = self._find(sample)
            if path is None:
                self.missing[sample.id] = "there is no result"
            else:
                yield Pair(sample, sample.image, (path,))

    def _find(self, sample: EditSample) -> Path | None:
        assert self.data is not None
        places = [self.directory / sample.id]
        with_folders = sample.image.parts
        # Benchmarks mirror the folders of their pictures, with or without the first ones.
        places += [self.directory.joinpath(*with_folders[k:]) for k in range(1, len(with_folders))]
        for place in places:
            for candidate in (place, *(place.with_name(place.stem + suffix) for suffix in SUFFIXES)):
                if candidate.is_file() and candidate.suffix.lower() in SUFFIXES and candidate != sample.image:
                    return candidate
            named = [place.with_name(place.name + suffix) for suffix in SUFFIXES]
            found = next((candidate for candidate in named if candidate.is_file()), None)
            if found is not None:
                return found
        return None

    def _panel(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        if self.last_panel and picture.shape[-2] >= size[0] and picture.shape[-1] >= size[1]:
            return picture[..., picture.shape[-2] - size[0] :, picture.shape[-1] - size[1] :]
        return picture


def _is_edit(stem: str) -> bool:
    return stem == "edit" or (stem.startswith("edit-") and stem[5:].isdigit())


def _described(name: str, image: Path, meta: Mapping[str, Any]) -> EditSample:
    prompts = meta.get("prompts") or {}
    blend_source, blend_target = meta.get("blend") or (None, None)
    return EditSample(
        name,
        image,
        prompts.get("source") or "",
        prompts.get("target") or "",
        prompts.get("negative") or "",
        meta.get("instruction"),
        meta.get("edit_type"),
        blend_source,
        blend_target,
        extra=meta.get("extra") or {},
    )


def _picture(path: Path) -> Tensor:
    pixels = np.array(decode(path, _LIMITS).picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _mask(mask: Path | RunLengthMask, size: tuple[int, int], frame: Frame | None) -> NDArray[np.bool_]:
    """Read a mask, which is that of the whole source, and cut it as the pictures were."""
    if frame is None:
        return read_mask(mask, size, _LIMITS)[0]
    top, left, bottom, right = seen(frame)
    return nearest(read_mask(mask, frame.original, _LIMITS)[0][top:bottom, left:right], size)


def _frame(meta: Mapping[str, Any]) -> Frame | None:
    known = meta.get("frame")
    if not isinstance(known, Mapping):
        return None
    top, left, bottom, right = known["box"]
    rows, columns = known["original"]
    return Frame((rows, columns), (top, left, bottom, right), tuple(known["network"]))


def _sized(picture: Tensor, size: tuple[int, int], path: Path) -> Tensor:
    own = (picture.shape[-2], picture.shape[-1])
    if own != size:
        raise SampleError(f"{path.name} has {own[1]} x {own[0]} pixels, its source {size[1]} x {size[0]}")
    return picture
