"""From an edited batch to committed samples: the callback that encodes results and hands them to the store."""

from __future__ import annotations

import io
import os
import resource
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from framework.callback import EditCallback
from framework.data.frames import restore, to_picture
from framework.data.readers.source import DataSource
from framework.data.sample import EditBatch, EditSample, Frame
from framework.network import Evaluations
from framework.result import EditResult
from framework.run.files import StoreError, json_document
from framework.run.finished import META, STATISTICS
from framework.run.journal import Journal
from framework.run.lock import RunLock
from framework.run.names import folder_name
from framework.run.settings import SaveSettings
from framework.run.signals import Interrupts, Stopped
from framework.run.store import LockedSample, RunStore

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class Encoder:
    """Turns one sample of a result into files; equal results give equal bytes.

    Attributes:
        save: What is written, and in which format.
        about: What `meta.json` says about every sample of the run (method, seed).
    """

    save: SaveSettings
    about: Mapping[str, Any]

    def files(self, sample: LockedSample, batch: EditBatch, result: EditResult, index: int) -> dict[str, bytes]:
        """Encode everything that is kept of a sample.

        Returns:
            Name -> content.

        Raises:
            ValueError: A picture is not finite.
            TypeError: A callback measured something that json does not hold.
        """
        measured = result.measurements[index] if result.measurements else {}
        files = dict(self._pictures(batch.frames[index], result, index))
        for callback, measurement in measured.items():
            for name, picture in measurement.pictures.items():
                name = f"{folder_name(name)}.png"
                files[f"{folder_name(callback)}.{name}" if name in files else name] = _encode(_levels(picture), "png")
        tensors = {f"{callback}.{name}": value for callback, m in measured.items() for name, value in m.tensors.items()}
        if tensors:
            files[STATISTICS] = _safetensors(tensors)
        if self.save.inversion:
            files |= self._inversion(result, index)
        described = self._meta(sample, batch, result, index)
        files[META] = json_document(described | {"measurements": {name: m.values for name, m in measured.items()}})
        return files

    def _pictures(self, frame: Frame, result: EditResult, index: int) -> Iterator[tuple[str, bytes]]:
        edits = result.edits[index]
        names = ["edit"] if len(edits) == 1 else [f"edit-{k}" for k in range(len(edits))]
        pictures = {"source": result.source[index], "reconstruction": result.reconstructions[index]}
        for name, picture in (pictures | dict(zip(names, edits, strict=True))).items():
            if picture is not None:
                # On the CPU, so that a device's own resampling does not show in the result.
                framed = restore(picture.detach().cpu() * 2 - 1, frame)
                yield (
                    name + _SUFFIXES[self.save.format],
                    _encode(to_picture(framed), self.save.format, self.save.quality),
                )

    def _inversion(self, result: EditResult, index: int) -> dict[str, bytes]:
        files = {}
        for draw in range(result.draws):
            record = result.record.image(index * result.draws + draw)
            name = "inversion" if result.draws == 1 else f"inversion-{draw}"
            files[f"{name}.safetensors"] = _safetensors(record.tensors())
            files[f"{name}.json"] = json_document(record.describe())
        return files

    def _meta(self, sample: LockedSample, batch: EditBatch, result: EditResult, index: int) -> dict[str, Any]:
        described = batch.samples[index]
        return {
            **self.about,
            "id": sample.id,
            "key": sample.key,
            "prompts": {"source": described.source, "target": described.target, "negative": described.negative},
            "instruction": described.instruction,
            "edit_type": described.edit_type,
            "blend": [described.blend_source, described.blend_target],
            "extra": described.extra,
            "frame": asdict(batch.frames[index]),
            "notes": [*batch.notes[index], *(result.notes[index] if result.notes else ())],
            **({"controls": result.controls[index]} if result.controls and result.controls[index] else {}),
            "draws": result.draws,
            "evaluations": {
                "inversion": _per_sample(result.inversion_evaluations, len(batch.samples)),
                "total": _per_sample(result.evaluations, len(batch.samples)),
            },
        }


class ResultWriter(Callback):
    """Commits every sample of a batch that is not finished yet, and notes those that failed.

    Args:
        store: The run folder, with this rank's journal.
        samples: The locked samples, by id.
        finished: Ids that were finished before, as rank zero found them; the other ranks are told in `setup`.
        encoder: Makes the files.
        source: Whose `on_error` and `max_failures` are kept.
        interrupts: Asked after every sample whether to stop.
        lock: The lock of the folder; None on other ranks than zero.
    """

    def __init__(
        self,
        store: RunStore,
        samples: Mapping[str, LockedSample],
        finished: frozenset[str],
        *,
        encoder: Encoder,
        source: DataSource,
        interrupts: Interrupts,
        lock: RunLock | None,
    ) -> None:
        self._store, self._samples, self._finished = store, samples, finished
        self._encoder, self._source = encoder, source
        self._interrupts, self._lock = interrupts, lock
        self._started = time.time()
        self._about: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree with the other ranks on what is finished, and note the start of this process."""
        self._interrupts.adopt(getattr(trainer.strategy.launcher, "procs", []))
        shared = trainer.strategy.broadcast((self._finished, self._started))
        self._finished, self._started = shared
        self._about = {
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._store.journal = Journal(self._store.records, trainer.global_rank)
        about = {
            "time": time.time(),
            "environment": environment(),
            "measures": _measures(getattr(trainer, "callbacks", ())),
        }
        self._store.journal.note("start", {**self._about, **about})

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back, which Lightning has just taken."""
        self._interrupts.install()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the batch.

        Raises:
            StoreError: Something cannot be written.
            Stopped: By a signal, or because too many samples failed.
        """
        details = {**self._about, "batch": batch_idx, "time": time.time(), **_memory()}
        failed = list(batch.failed)
        if isinstance(outputs, EditResult):
            details["seconds"] = outputs.seconds / max(1, len(batch.samples))
            details["timings"] = outputs.timings
            for index, sample in enumerate(batch.samples):
                if index in outputs.failures:
                    failed.append((sample, outputs.failures[index]))
                elif sample.id not in self._finished:
                    problem = self._commit(batch, outputs, index, details)
                    failed += [] if problem is None else [(sample, problem)]
        else:
            failed += [(sample, outputs.reason) for sample in batch.samples]
        for sample, reason in failed:
            self._fail(sample, reason, details)
        if failed:
            self._consider_stopping()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for the other ranks; the only time that one waits for another."""
        try:
            trainer.strategy.barrier("invedit: all samples are committed")
        except RuntimeError as problem:
            time.sleep(1.0)  # the interrupts have noticed by then which rank it was
            self._interrupts.check()
            raise Stopped(1, "another rank ended before its samples were finished") from problem

    def _commit(self, batch: EditBatch, result: EditResult, index: int, details: dict[str, Any]) -> str | None:
        """Commit one sample; returns the problem if it cannot be encoded."""
        if self._lock is not None and self._lock.lost:
            raise StoreError(f"{self._store.directory} was taken over by another run; this one stops.")
        sample = self._samples[batch.samples[index].id]
        try:
            files = self._encoder.files(sample, batch, result, index)
        except (ValueError, TypeError) as problem:
            return f"the result cannot be written: {problem}"
        with self._interrupts.deferred():
            self._store.commit(sample, files, details)
        return None

    def _fail(self, sample: EditSample, reason: str, details: dict[str, Any]) -> None:
        if sample.id not in self._finished:
            with self._interrupts.deferred():
                self._store.fail(self._samples[sample.id], reason, details)

    def _consider_stopping(self) -> None:
        """Count the failures of all ranks since this run began, from their journals, and compare with the policy."""
        failed = {
            name: entry
            for name, entry in self._store.failures(self._samples).items()
            if float(entry.details.get("time", 0)) >= self._started
        }
        allowed = 0 if self._source.on_error == "stop" else self._source.max_failures
        if failed and allowed is not None and len(failed) > allowed:
            name, entry = list(failed.items())[-1]
            policy = "on_error: stop" if self._source.on_error == "stop" else f"max_failures: {allowed}"
            raise Stopped(1, f"stopped by data {policy}; {len(failed)} failed, such as {name!r}: {entry.reason}")


def environment() -> dict[str, Any]:
    """Versions and threads of this process, for the journal: what may explain a difference in the last bits."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"threads": torch.get_num_threads(), "cuda": torch.version.cuda}
    for name in ("invedit", "torch", "lightning", "diffusers", "transformers", "numpy", "pillow", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found


def _measures(callbacks: Iterable[Any]) -> dict[str, Any]:
    """Say how the figures of metrics are to be read, for those who look at a run before its tables are written."""
    return {
        callback.name: {"figures": {m.name: {f.name: f.about() for f in m.figures} for m in callback.metrics}}
        for callback in callbacks
        if isinstance(callback, EditCallback) and hasattr(callback, "metrics")
    }


def _memory() -> dict[str, int]:
    """Peak memory of this process so far, in bytes."""
    found = {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        found["peak_device_memory"] = torch.cuda.max_memory_allocated()
    return found


def _per_sample(evaluations: Evaluations, count: int) -> dict[str, float]:
    """Rows per sample, forwards and with gradients; whole numbers where they are."""
    values = {"samples": evaluations.samples / count, "backward": evaluations.backward / count}
    return {name: int(value) if value.is_integer() else value for name, value in values.items()}


def _levels(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.detach().cpu().contiguous().numpy())


def _encode(picture: Image.Image, kind: str, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG", compress_level=6)
    else:
        picture.save(buffer, kind.upper(), quality=quality)
    return buffer.getvalue()


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    content: bytes = save({name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)})
    return content
