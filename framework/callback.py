"""Callbacks observe inversions and edits; what they measure is committed with each sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lightning.pytorch.callbacks import Callback
from torch import Tensor

from framework.control import Control
from framework.data.sample import EditBatch
from framework.step import Need, Step

if TYPE_CHECKING:  # upward, for annotations only
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


@dataclass(frozen=True)
class Measurement:
    """What a callback found out about one sample; everything on the CPU, nothing that differs between reruns.

    Attributes:
        tensors: Kept in the sample's `statistics.safetensors` as `<callback>.<name>`.
        values: Numbers, texts and lists for the sample's `meta.json`.
        pictures: uint8 [H, W, 3] each, written as `<name>.png`.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


class CommittedSample(Protocol):
    """One finished sample, as it lies on disk."""

    id: str
    directory: Path
    meta: Mapping[str, Any]

    def statistics(self) -> dict[str, Tensor]:
        """Read `statistics.safetensors`; empty where nothing was measured."""
        ...


class FinishedRun(Protocol):
    """A run all of whose ranks have finished, as rank zero sees it."""

    directory: Path
    writer: Any
    """TensorBoard's SummaryWriter, or None."""

    def samples(self) -> Iterator[CommittedSample]:
        """Iterate over committed samples in the sorted order of their ids."""
        ...


class EditCallback(Callback):
    """An observer of edits, for a Trainer or for `EditModule.edit(..., callbacks=[...])` (then `trainer` is None).

    It never steers: tensors it sees are live and must not be changed, and return values other than `on_edit_end`'s are
    ignored. Between `on_edit_start` and `on_edit_end` it keeps sums on the device and copies nothing to the host.

    Class attributes:
        needs: What it asks of the parts; building an experiment fails when a need cannot be met.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def name(self) -> str:
        """Prefix of this callback's measurements; two callbacks of one run must not share it."""
        return type(self).__name__

    def controls(self) -> Sequence[Control]:
        """Return controls that read attention while denoising; they may change nothing. Default none."""
        return ()

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        """A batch is about to be inverted and edited."""

    def on_invert_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        """One step of the inversion was made."""

    def on_denoise_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        """One step of denoising was made."""

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement] | None:
        """A batch was edited. Returns one measurement per sample of the batch, or None."""
        return None

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        """A whole batch failed; forget what was collected since `on_edit_start`."""

    def on_run_end(self, run: FinishedRun) -> None:
        """Every sample is committed; fold the measurements of all samples into figures. Rank zero only."""
