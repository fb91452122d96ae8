"""How far a run has come, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from framework.callback import EditCallback
from framework.data.sample import EditBatch
from framework.errors import Checks
from framework.result import EditResult
from framework.step import Step

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from framework.module import EditModule


class Progress(EditCallback):
    """Shows images done and in all, the step of the current batch, network evaluations per second and the time left.

    On a terminal two bars; elsewhere a plain line now and then. Only the process of rank zero speaks, and of its own
    share of the images.

    Args:
        every: Seconds between plain lines, at least.
    """

    def __init__(self, *, every: float = 10.0) -> None:
        checks = Checks("Progress")
        checks.between("every", every, 0, 86_400)
        checks.done()
        self.every = every
        self._display: _Bars | _Lines | None = None
        self._reset(0)

    def _reset(self, total: int) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._rows = 0
        self._started = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how many images there are for this process."""
        todo = getattr(getattr(trainer, "datamodule", None), "todo", ())
        self._reset(sum(len(batch) for batch in todo[trainer.global_rank :: trainer.world_size]))
        share = f" (rank 0 of {trainer.world_size})" if trainer.world_size > 1 else ""
        self._open(share) if trainer.is_global_zero else self._close()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images of a batch, edited or failed."""
        fine = isinstance(outputs, EditResult)
        failed = len(batch.failed) + (len(outputs.failures) if fine else len(batch.samples))
        self._count(len(batch.samples) + len(batch.failed), failed)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how it ended."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        if trainer is None:
            self._reset(len(batch.samples))
            self._open("")

    def on_invert_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        self._rows = module.evaluations.samples
        if self._display is not None:
            self._display.step("inverting", step.index + 1, step.total, self._words)

    def on_denoise_step(self, trainer: Trainer | None, module: EditModule, step: Step) -> None:
        self._rows = module.evaluations.samples
        if self._display is not None:
            self._display.step("denoising", step.index + 1, step.total, self._words)

    def on_edit_end(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult) -> None:
        self._rows = module.evaluations.samples
        if trainer is None:
            self._count(len(batch.samples), len(result.failures))
            self._close()

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        if trainer is None:
            self._close()

    def _count(self, images: int, failed: int) -> None:
        self._done += images
        self._failed += failed
        if self._display is not None:
            self._display.images(self._done, self._words)

    def _words(self) -> str:
        """Rates and what is left, in words."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        words = [f"{self._rows / seconds:.1f} evaluations/s"]
        if self._failed:
            words.insert(0, f"{self._failed} failed")
        if 0 < self._done < self._total:
            words.append(f"about {_duration(seconds * (self._total - self._done) / self._done)} left")
        elif self._done:
            words.append(f"{_duration(seconds)} in all")
        return ", ".join(words)

    def _open(self, share: str) -> None:
        self._close()
        kind = _Bars if sys.stderr.isatty() else _Lines
        self._display = kind(sys.stderr, self._total, share, self.every)

    def _close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.close(self._words)


class _Lines:
    """Plain lines, for logs."""

    def __init__(self, stream: TextIO, total: int, share: str, every: float) -> None:
        self._stream, self._total, self._share, self._every = stream, total, share, every
        self._done = 0
        self._last = time.monotonic()
        self._said = -1

    def images(self, done: int, words: Any) -> None:
        """Say how many images are done, if it is time to."""
        self._done = done
        if time.monotonic() - self._last >= self._every:
            self._say(words())

    def step(self, phase: str, index: int, total: int, words: Any) -> None:
        """Say where the current batch is, if nothing was said for long."""
        if time.monotonic() - self._last >= self._every:
            self._say(f"{phase} step {index}/{total}, {words()}")

    def close(self, words: Any) -> None:
        """Say the last word, unless it was said."""
        if self._said != self._done or self._done < self._total:
            self._say(words())

    def _say(self, words: str) -> None:
        self._last, self._said = time.monotonic(), self._done
        print(f"{self._done}/{self._total} images{self._share}, {words}", file=self._stream, flush=True)


class _Bars:
    """Two bars, for terminals."""

    def __init__(self, stream: TextIO, total: int, share: str, every: float) -> None:
        from tqdm import tqdm

        del every
        self._drawn = 0.0
        form = "{desc} {n_fmt}/{total_fmt} |{bar}| {postfix}"
        self._images = tqdm(total=total, desc=f"images{share}", file=stream, bar_format=form, position=0, leave=True)
        self._steps = tqdm(total=1, desc="", file=stream, bar_format=form, position=1, leave=False)

    def images(self, done: int, words: Any) -> None:
        """Move the bar of images."""
        self._images.n = done
        self._images.set_postfix_str(words())

    def step(self, phase: str, index: int, total: int, words: Any) -> None:
        """Move the bar of steps."""
        del words
        self._steps.total, self._steps.n = total, index
        self._steps.set_description_str(phase, refresh=False)
        # The bar's own clock, so that quick steps are not slowed down by drawing.
        if index == total or time.monotonic() - self._drawn >= 0.1:
            self._drawn = time.monotonic()
            self._steps.refresh()

    def close(self, words: Any) -> None:
        """Leave the bar of images as it is."""
        self._images.set_postfix_str(words())
        self._steps.close()
        self._images.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
