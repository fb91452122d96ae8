"""Stopping a run: on SIGTERM and Ctrl-C, when another rank dies, and when the process that started this one is gone.

Lightning notes SIGTERM in a flag that predicting never reads, and ends everything with SIGKILL when a rank fails. Here
the first signal raises `Stopped` in the main thread, wherever it is but in the middle of a commit; since everything
that is finished is on disk, the run can be abandoned there. A watching thread sees the signal even while the main
thread waits inside a collective or a long network call, and ends the process when it does not leave in time.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

GRACE_S = 20.0
"""Seconds that the main thread has for leaving after a signal; schedulers usually kill after 30."""
POLL_S = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The run ends early, in good order. No Exception, so that nobody takes it for a failing sample.

    Attributes:
        code: Exit code of the process.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


class Interrupts:
    """Watches for reasons to stop while a run goes on; a context of the main thread.

    Args:
        has_parent: Whether this is a rank that another process started and that must not outlive it.
    """

    def __init__(self, *, has_parent: bool = False) -> None:
        self._children: list[subprocess.Popen[Any]] = []
        self._parent = os.getppid() if has_parent else None
        self._pid = os.getpid()
        self._stop: Stopped | None = None
        self._raised = False
        self._deferred = 0
        self._deadline: float | None = None
        self._before: dict[int, Any] = {}
        self._wakeup = -1
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._keep_watching, name="invedit-interrupts", daemon=True)

    def __enter__(self) -> Interrupts:
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            os.register_at_fork(after_in_child=self._let_go)
            self.install()
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deferred += 1
        self.end_children(failed=kind is not None)
        self._ended.set()
        os.write(self._pipe[1], b"\0")
        self._watch.join()
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for end in self._pipe:
            os.close(end)

    @property
    def children_failed(self) -> bool:
        """Whether a rank that this process started has ended with an error."""
        return any(child.returncode for child in self._children)

    def install(self) -> None:
        """Put our handlers in place, again after somebody else replaced them. Does nothing outside the main thread."""
        if self._before:
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def adopt(self, children: list[subprocess.Popen[Any]]) -> None:
        """Take over the watch over ranks that this process started; the list is emptied, which retires its watcher."""
        self._children += children
        children.clear()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the body finish before a signal is acted upon."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        self.check()

    def check(self) -> None:
        """Raise `Stopped` if there is reason to stop; also when it was raised before where somebody swallowed it."""
        if self._stop is not None and not self._deferred:
            self._raised = True
            raise self._stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._stop is None:
            self._stop = _on_signal(number)
        if not self._raised:
            self.check()

    def _keep_watching(self) -> None:
        first: float | None = None
        while not self._ended.wait(0):
            ready, _, _ = select.select([self._pipe[0]], [], [], POLL_S)
            now = time.monotonic()
            numbers = list(os.read(self._pipe[0], 64)) if ready else []
            for number in numbers:
                if number not in _SIGNALS:
                    continue
                if self._stop is None:
                    self._stop = _on_signal(number)
                # Ctrl-C again, by a person and not by the terminal and the first rank both: at once.
                if number == signal.SIGINT and first is not None and now - first > 1.0:
                    self._leave_at_once()
                first = first or now
            self._look_around()
            if self._stop is not None:
                self._deadline = self._deadline or now + GRACE_S
                if now > self._deadline:
                    self._leave_at_once()

    def _look_around(self) -> None:
        """Find reasons to stop that no signal tells of."""
        if self._stop is not None:
            return
        for rank, child in enumerate(self._children, start=1):
            code = child.poll()
            if code:
                signalled = code > 128 and code - 128 in _SIGNALS
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                self._stop = Stopped(code if signalled else 1, f"rank {rank} {how}")
        if self._parent is not None and os.getppid() != self._parent:
            self._stop = Stopped(1, "the process that started this rank is gone")
        if self._stop is not None and self._before:
            # Runs our handler in the main thread, out of a system call if need be.
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)

    def end_children(self, *, failed: bool) -> None:
        """Wait for the ranks that this process started, after telling them to stop if this one failed."""
        for child in self._children:
            if failed and child.poll() is None:
                with contextlib.suppress(OSError):
                    child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in self._children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def _leave_at_once(self) -> None:
        assert self._stop is not None
        for child in self._children:
            if child.poll() is None:
                child.kill()
        print(f"invedit: {self._stop}; the process did not leave by itself and is ended.", file=sys.stderr, flush=True)
        os._exit(self._stop.code)

    def _let_go(self) -> None:
        """In a forked child (a worker that loads images): signals mean what they always mean."""
        if self._ended.is_set() or os.getpid() == self._pid:
            return
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)


def _on_signal(number: int) -> Stopped:
    return Stopped(128 + number, f"stopped by {signal.Signals(number).name}")
