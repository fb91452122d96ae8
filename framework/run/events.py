"""TensorBoard's event files: one writer at a time, and no run dies because a curve could not be written."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

_log = logging.getLogger(__name__)
_SUFFIX = ".summary"


class GuardedWriter:
    """A SummaryWriter whose failures are reported once and then ignored: records are the truth, curves a view of them.

    Args:
        writer: The SummaryWriter; None writes nothing.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        if self._writer is None:
            return _nothing
        value = getattr(self._writer, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self._writer is None:
                return None
            try:
                return value(*arguments, **keywords)
            except OSError as problem:
                self._writer = None
                warn_once(problem)
                return None

        return call


class EventsLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, writing to `events/` of a run folder behind a `GuardedWriter`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory), name="", version="events", default_hp_metric=False)
        self._guarded: GuardedWriter | None = None

    @property
    def experiment(self) -> Any:
        """The guarded SummaryWriter on rank zero; elsewhere Lightning's dummy."""
        if self._guarded is None:
            try:
                writer = super().experiment
            except OSError as problem:
                warn_once(problem)
                writer = None
            self._guarded = GuardedWriter(writer)
        return self._guarded

    def save(self) -> None:
        """Write `hparams.yaml` beside the events, where possible."""
        try:
            super().save()
        except OSError as problem:
            warn_once(problem)


def summary_writer(events: Path) -> GuardedWriter:
    """Open the event file for figures over a whole run.

    They are folded anew whenever a run ends, so the file of an earlier end is removed first: TensorBoard would show
    the points of both.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter

        events.mkdir(parents=True, exist_ok=True)
        for old in events.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                old.unlink()
        return GuardedWriter(SummaryWriter(str(events), filename_suffix=_SUFFIX))
    except OSError as problem:
        warn_once(problem)
        return GuardedWriter(None)


@contextlib.contextmanager
def quiet_event_threads() -> Iterator[None]:
    """Let TensorBoard's writing thread die without a traceback; the writer raises its error again at the next call."""
    usual = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError) or "tensorboard" not in type(arguments.thread).__module__:
            usual(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


def warn_once(problem: OSError) -> None:
    """Say that curves are lost, once for each reason; the caller goes on without them."""
    _warn(problem.strerror or str(problem))


@functools.cache
def _warn(reason: str) -> None:
    _log.warning("TensorBoard events cannot be written (%s); the run goes on without them, its records whole.", reason)


def _nothing(*arguments: Any, **keywords: Any) -> None:
    del arguments, keywords
