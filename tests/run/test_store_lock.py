"""One run per folder: who gets the lock, and when it is taken from somebody."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from framework.errors import SettingsError
from framework.run import lock as lock_module
from framework.run.lock import STALE_S, RunLock


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def abandoned(path: Path, **changes: Any) -> None:
    """Leave a lock behind as a killed process does, or one on another host."""
    code = f"from pathlib import Path; from framework.run.lock import RunLock; RunLock(Path({str(path)!r})).__enter__()"
    subprocess.run([sys.executable, "-c", code], check=True)
    rewrite(path, **changes)


def test_the_second_run_is_refused_by_host_and_pid_and_start(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"

    with (
        RunLock(path),
        pytest.raises(SettingsError, match=rf"process {os.getpid()} on .+ has been running .+ since 20"),
    ):
        RunLock(path).__enter__()


def test_the_lock_is_gone_afterwards_also_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"

    with pytest.raises(KeyError), RunLock(path):
        raise KeyError

    assert not path.exists()
    with RunLock(path):
        assert path.exists()


def test_the_lock_of_a_dead_process_is_taken_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.lock"
    abandoned(path)

    with caplog.at_level(logging.WARNING), RunLock(path):
        pass

    assert "is gone; its lock is taken over" in caplog.text


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    abandoned(path, pid=os.getpid())

    with RunLock(path):
        pass


def test_a_process_that_is_dead_but_not_waited_for_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    abandoned(path, pid=child.pid, born=0)
    with RunLock(path):
        child.wait()


@pytest.mark.parametrize("place", ["host", "space"])
def test_an_owner_elsewhere_is_judged_by_its_heartbeat(tmp_path: Path, place: str) -> None:
    path = tmp_path / "run.lock"
    abandoned(path, **{place: "elsewhere"})

    with pytest.raises(SettingsError, match="has been running here"):
        RunLock(path).__enter__()
    os.utime(path, (time.time(), time.time() - STALE_S - 1))
    with RunLock(path):
        pass


def test_force_takes_the_lock_and_the_former_owner_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.02)
    path = tmp_path / "run.lock"

    with RunLock(path) as first:
        with RunLock(path, force=True):
            for _ in range(200):
                if first.lost:
                    break
                time.sleep(0.02)
            assert first.lost
        assert not path.exists()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.02)
    path = tmp_path / "run.lock"

    with RunLock(path) as lock:
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > 0 and not lock.lost


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_file_without_an_owner_is_free(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.lock"
    path.write_text(content)

    with RunLock(path):
        pass


def test_of_many_that_want_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    abandoned(path)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom framework.run.lock import RunLock\n"
        f"try:\n    with RunLock(Path({str(path)!r})):\n        time.sleep(1.5)\nexcept ValueError:\n    sys.exit(3)"
    )

    contenders = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) for _ in range(5)]

    assert sorted(contender.wait() for contender in contenders) == [0, 3, 3, 3, 3]
