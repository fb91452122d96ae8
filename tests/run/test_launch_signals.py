"""Stopping: signals, stuck main threads, dead children and parents, forked workers. No Trainer, so quick."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BEGIN = """
import os, signal, subprocess, sys, time
from framework.run import signals
from framework.run.signals import Interrupts, Stopped

def say(text):
    print(text, flush=True)
"""


def start(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + body], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_stopped_with_its_exit_code(number: int) -> None:
    process = start("""
try:
    with Interrupts():
        say("ready")
        time.sleep(60)
except Stopped as stop:
    say(f"{stop.code} {stop}")
""")
    assert said(process) == "ready"

    process.send_signal(number)

    assert said(process) == f"{128 + number} stopped by {signal.Signals(number).name}"
    assert process.wait(100) == 0


def test_a_commit_is_finished_before_a_signal_is_acted_upon() -> None:
    process = start("""
try:
    with Interrupts() as interrupts:
        with interrupts.deferred():
            say("ready")
            time.sleep(0.5)
            say("committed")
        say("not reached")
except Stopped as stop:
    say(stop.code)
""")
    assert said(process) == "ready"

    process.terminate()

    assert (said(process), said(process)) == ("committed", "143")


def test_a_stop_that_somebody_swallowed_is_raised_again_when_asked() -> None:
    process = start("""
with Interrupts() as interrupts:
    try:
        say("ready")
        time.sleep(60)
    except BaseException:
        say("swallowed")
    try:
        interrupts.check()
    except Stopped as stop:
        say(stop.code)
""")
    assert said(process) == "ready"

    process.terminate()

    assert (said(process), said(process)) == ("swallowed", "143")


def test_a_process_that_is_stuck_is_ended_after_its_grace() -> None:
    process = start("""
signals.GRACE_S = 0.5
with Interrupts() as interrupts:
    interrupts._children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
    with interrupts.deferred():
        say(interrupts._children[0].pid)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(1)
""")
    child = int(said(process))

    process.terminate()

    assert process.wait(100) == 143
    assert "did not leave by itself" in process.communicate()[1]
    assert not running(child)


def test_the_second_control_c_ends_the_process_at_once() -> None:
    process = start("""
with Interrupts() as interrupts:
    with interrupts.deferred():
        say("ready")
        while True:
            time.sleep(60)
""")
    assert said(process) == "ready"

    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)

    assert process.wait(100) == 130


@pytest.mark.parametrize(("body", "code"), [("sys.exit(7)", 1), ("os.kill(os.getpid(), 9)", 1), ("sys.exit(143)", 143)])
def test_a_rank_that_ends_badly_stops_the_one_that_started_it(body: str, code: int) -> None:
    process = start(f"""
try:
    with Interrupts() as interrupts:
        started = [subprocess.Popen([sys.executable, "-c", "import os, sys; {body}"])]
        interrupts.adopt(started)
        assert not started
        time.sleep(60)
except Stopped as stop:
    say(f"{{stop.code}} {{stop}}")
""")

    assert said(process).startswith(f"{code} rank 1 ")


def test_ranks_are_told_to_stop_and_waited_for() -> None:
    process = start("""
try:
    with Interrupts() as interrupts:
        code = "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.5), sys.exit(0)))"
        code += "; print(1); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        interrupts.adopt([child])
        say("ready")
        time.sleep(60)
except Stopped:
    say(child.returncode)
""")
    assert said(process) == "ready"

    process.terminate()

    assert said(process) == "0"


def test_a_rank_whose_parent_is_gone_stops(tmp_path: Path) -> None:
    process = start(f"""
if os.fork() == 0:
    try:
        with Interrupts(has_parent=True):
            say("ready")
            time.sleep(60)
    except Stopped as stop:
        open({str(tmp_path / "said")!r}, "w").write(f"{{stop.code}} {{stop}}")
    os._exit(0)
time.sleep(60)
""")
    assert said(process) == "ready"

    process.kill()
    deadline = time.monotonic() + 100
    while not (tmp_path / "said").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)

    assert (tmp_path / "said").read_text() == "1 the process that started this rank is gone"


def test_a_forked_worker_is_terminated_without_stopping_the_run() -> None:
    process = start("""
with Interrupts() as interrupts:
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    os.kill(worker, signal.SIGTERM)
    say(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
    time.sleep(1)
    interrupts.check()
    say("goes on")
""")

    assert (said(process), said(process)) == ("-15", "goes on")
    assert process.wait(100) == 0


def test_handlers_are_as_before_afterwards() -> None:
    process = start("""
mine = lambda *_: say("mine")
signal.signal(signal.SIGTERM, mine)
before = signal.getsignal(signal.SIGINT)
with Interrupts():
    pass
assert signal.getsignal(signal.SIGTERM) is mine and signal.getsignal(signal.SIGINT) is before
assert signal.set_wakeup_fd(-1) == -1
os.kill(os.getpid(), signal.SIGTERM)
""")

    assert said(process) == "mine"
    assert process.wait(100) == 0


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
