"""Dispatch of our hooks to callbacks, by bound methods collected once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from framework.callback import EditCallback, Measurement
from framework.control import Control
from framework.data.sample import EditBatch
from framework.step import Latents, Step

if TYPE_CHECKING:  # upward, for annotations only
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


class CallbackError(Exception):
    """A callback raised in one of its hooks; names both."""


class Hooks:
    """The callbacks of one run and the module's own hooks.

    A hook that nobody overrides costs nothing: no `Step` is built for it.

    Args:
        module: Whose `on_invert_step` and `on_denoise_step` come first and may replace a step's result.
        callbacks: Observers, called afterwards in their order.
        trainer: Passed on to callbacks; None outside a Trainer.
    """

    def __init__(self, module: EditModule, callbacks: Sequence[EditCallback], trainer: Trainer | None) -> None:
        self._module, self._trainer = module, trainer
        self.callbacks = tuple(callbacks)
        self._start = self._overridden("on_edit_start")
        self._invert = self._overridden("on_invert_step")
        self._denoise = self._overridden("on_denoise_step")
        self._end = self._overridden("on_edit_end")
        self._failed = self._overridden("on_edit_failed")
        self._own_invert = module.own_hook("on_invert_step")
        self._own_denoise = module.own_hook("on_denoise_step")

    @property
    def wants_invert_steps(self) -> bool:
        """Whether anybody looks at inversion steps."""
        return bool(self._invert) or self._own_invert is not None

    @property
    def wants_denoise_steps(self) -> bool:
        """Whether anybody looks at denoising steps."""
        return bool(self._denoise) or self._own_denoise is not None

    def controls(self) -> tuple[Control, ...]:
        """Return the callbacks' readers of attention."""
        return tuple(control for callback in self.callbacks for control in callback.controls())

    def edit_start(self, batch: EditBatch) -> None:
        """Announce a batch."""
        for hook in self._start:
            self._call(hook, batch)

    def invert_step(self, step: Step) -> Latents | None:
        """Show an inversion step; returns the module's replacement of its result, if any."""
        return self._step(step, self._own_invert, self._invert)

    def denoise_step(self, step: Step) -> Latents | None:
        """Show a denoising step; returns the module's replacement of its result, if any."""
        return self._step(step, self._own_denoise, self._denoise)

    def edit_end(self, batch: EditBatch, result: EditResult) -> None:
        """Collect what the callbacks measured into `result.measurements`."""
        result.measurements = [{} for _ in result.samples]
        for hook in self._end:
            found: Sequence[Measurement] | None = self._call(hook, batch, result)
            if found is None:
                continue
            callback: Any = getattr(hook, "__self__", None)
            if len(found) != len(result.samples):
                raise CallbackError(
                    f"{callback.name}.on_edit_end returned {len(found)} measurements for {len(result.samples)} "
                    "samples; return one per sample, or None"
                )
            for measurements, measurement in zip(result.measurements, found, strict=True):
                measurements[callback.name] = measurement

    def edit_failed(self, batch: EditBatch, reason: str) -> None:
        """Announce that a whole batch failed."""
        for hook in self._failed:
            self._call(hook, batch, reason)

    def _overridden(self, name: str) -> list[Callable[..., Any]]:
        return [
            getattr(callback, name)
            for callback in self.callbacks
            if getattr(type(callback), name) is not getattr(EditCallback, name)
        ]

    def _step(
        self, step: Step, own: Callable[[Step], Latents | None] | None, observers: Sequence[Callable[..., Any]]
    ) -> Latents | None:
        replaced = own(step) if own is not None else None
        if observers:
            seen = step if replaced is None else replace(step, z_next=replaced)
            for hook in observers:
                self._call(hook, seen)
        return replaced

    def _call(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return hook(self._trainer, self._module, *arguments)
        except CallbackError:
            raise
        except Exception as problem:
            owner = type(getattr(hook, "__self__", hook)).__name__
            name = getattr(hook, "__name__", "hook")
            raise CallbackError(f"{owner}.{name} raised {type(problem).__name__}: {problem}") from problem
