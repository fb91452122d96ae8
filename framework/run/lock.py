"""One run per folder: the lock that says who is writing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from framework.errors import SettingsError
from framework.run.files import json_line, write_all

HEARTBEAT_S = 15.0
"""Seconds between two signs of life."""
STALE_S = 120.0
"""Silence after which an owner on another host or in another container counts as dead; here one can look."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host, pid: The process.
        space: Which process numbers `pid` belongs to: containers of one host name may have their own.
        born: Start of the process in clock ticks since boot, as numbers are used again; 0 if unknown.
        start: When the lock was taken, in words.
        token: Random, to recognise one's own lock.
    """

    host: str
    pid: int
    space: str
    born: int
    start: str
    token: str

    def alive(self, silence: float) -> bool:
        """Whether the owner may still be writing, `silence` seconds after its last heartbeat."""
        if (self.host, self.space) != (socket.gethostname(), _space()):
            return silence < STALE_S
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        born = _born(self.pid)
        return born >= 0 and (0 in (born, self.born) or born == self.born)


class RunLock:
    """Holds `run.lock` of a folder as a context; a thread beats while it is held.

    Args:
        path: The lock file.
        force: Take the lock from an owner who seems to be alive.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = path
        self._force = force
        self._mine = Owner(
            socket.gethostname(),
            os.getpid(),
            _space(),
            _born(os.getpid()),
            time.strftime("%Y-%m-%d %H:%M:%S %z"),
            secrets.token_hex(8),
        )
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_beating, name="invedit-lock", daemon=True)
        self.lost = False

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            SettingsError: Another run holds it, or the file cannot be written.
        """
        try:
            with _exclusive(self.path) as descriptor:
                other, silence = _read(descriptor)
                if other is not None:
                    self._consider(other, silence)
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                write_all(descriptor, json_line(asdict(self._mine)))
                os.fsync(descriptor)
        except OSError as problem:
            raise SettingsError([f"{self.path}: cannot be written: {problem.strerror or problem}."]) from problem
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._beat.join()
        with contextlib.suppress(OSError), _exclusive(self.path, create=False) as descriptor:
            if _read(descriptor)[0] == self._mine:
                self.path.unlink()

    def _consider(self, other: Owner, silence: float) -> None:
        who = f"{self.path.parent}: process {other.pid} on {other.host} has been running here since {other.start}"
        if not other.alive(silence):
            _log.warning("%s, and is gone; its lock is taken over.", who)
        elif self._force:
            _log.warning("%s; its lock is taken because --force was given.", who)
        else:
            raise SettingsError(
                [f"{who}. Wait for it, choose another folder, or stop it; --force takes the folder away from it."]
            )

    def _keep_beating(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            # A full disk or a hiccup of a network file system is no reason to give up a run.
            with contextlib.suppress(OSError):
                try:
                    with _exclusive(self.path, create=False) as descriptor:
                        self.lost = _read(descriptor)[0] != self._mine
                        if not self.lost:
                            os.utime(self.path)
                except FileNotFoundError:
                    self.lost = True
            if self.lost:
                return


def living_owner(path: Path) -> Owner | None:
    """Say who is writing to the folder of a lock file; None if nobody is. Changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        owner, silence = _read(descriptor)
        return owner if owner is not None and owner.alive(silence) else None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _exclusive(path: Path, *, create: bool = True) -> Iterator[int]:
    """Open the lock file for reading, deciding and writing while nobody else does."""
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Its last owner may have removed the file while we waited; then ours is nobody's.
            if _same_file(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> tuple[Owner | None, float]:
    """Return the owner that the open file names, and the seconds since its last heartbeat."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    content = os.read(descriptor, 10_000)
    silence = max(0.0, time.time() - os.fstat(descriptor).st_mtime)
    try:
        return Owner(**json.loads(content)), silence
    except (ValueError, TypeError):
        # Empty (just made, or its writer died between truncating and writing): nobody's.
        return None, silence


def _born(pid: int) -> int:
    """When a process started; -1 for one that is dead and only not yet waited for, 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
