"""Starting TensorBoard for a folder of runs: on this machine only, with the settings that its pages are made for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

from framework.errors import SettingsError

HOST = "127.0.0.1"
PORTS = 100
"""How many ports are tried."""


def free_port(first: int) -> int:
    """Find the first port from `first` on at which nobody listens on this machine.

    Raises:
        SettingsError: The number is no port, or all that were tried are taken.
    """
    if not 1 <= first <= 65_535:
        raise SettingsError([f"--port {first} is no port; give a number from 1 to 65535."])
    last = min(first + PORTS, 65_536)
    for port in range(first, last):
        with socket.socket() as probe:
            # As a server would: ports of connections that have just ended are free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise SettingsError([f"all ports from {first} to {last - 1} are taken; give another --port."])


def tensorboard_arguments(root: Path, port: int) -> list[str]:
    """Return the command line of TensorBoard."""
    return [
        *("--logdir", str(root.resolve()), "--host", HOST, "--port", str(port)),
        # The run writes curves as it goes on and figures at its end, in two files of one folder.
        *("--reload_multifile", "true", "--reload_interval", "5"),
        # By default ten pictures and 500 of the values of a tag are kept.
        *("--samples_per_plugin", "images=100,histograms=1000,scalars=10000,text=100"),
        *("--window_title", f"{root.resolve().name} - invedit"),
    ]


def serve(root: Path, port: int) -> int:
    """Run TensorBoard until it is interrupted.

    Args:
        root: Folder of runs.
        port: First port to try; the next free one is taken.

    Returns:
        Exit code: 0 after Ctrl-C or SIGTERM, that of TensorBoard where it ended by itself.

    Raises:
        SettingsError: There is no such folder, or no free port.
    """
    if not root.is_dir():
        raise SettingsError([f"{root} is not a folder; give a folder of runs, such as runs/."])
    for candidate in range(port, port + PORTS):
        code = _serve(root, free_port(candidate))
        if code is not None:
            return code
    raise SettingsError([f"somebody takes every port from {port} on; give another --port."])


def _serve(root: Path, port: int) -> int | None:
    """Run TensorBoard at one port. Returns its exit code, 0 if it was interrupted; None if the port was taken."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *tensorboard_arguments(root, port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # In a session of its own, so that Ctrl-C reaches it only by way of this process, once.
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"},
    )
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    said: deque[str] = deque(maxlen=30)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "Press CTRL+C to quit" in line:
                print(f"dashboard  http://{HOST}:{port}/  (Ctrl-C ends it)", flush=True)
        code = process.wait()
        if code and any("already in use" in line for line in said):
            return None
        if code:
            print("".join(said), end="", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("dashboard  ended", flush=True)
        return 0
    finally:
        _end(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[str]) -> None:
    """End TensorBoard, and with it the reader of event files that it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _interrupt(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt
