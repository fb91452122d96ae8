from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import entry_points

import pytest

from framework.cli import main
from framework.errors import SettingsError
from framework.report.dashboard import HOST, free_port, tensorboard_arguments
from framework.run.launch import AFTERWARDS, _afterwards
from tests.report.world import World, document_of, sweep


def test_the_report_command_writes_the_page_and_says_where(tmp_path, capsys):
    sweep(tmp_path / "runs")

    assert main(["report", str(tmp_path / "runs")]) == 0

    assert capsys.readouterr().out == f"report  {tmp_path / 'runs' / 'report.html'}\n"
    assert document_of(tmp_path / "runs" / "report.html")["title"] == "runs"


def test_several_folders_become_one_page(tmp_path, capsys):
    for name in ("a", "b"):
        World(tmp_path / name, ["s"]).finish("s")

    output = tmp_path / "new" / "both.html"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(output)]) == 0

    assert [run["name"] for run in document_of(output)["runs"]] == ["a", "b"]
    assert "both.html" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused_with_exit_code_2(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    World(tmp_path / "run", ["s"]).finish("s")

    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith("invedit: ")


def test_a_report_that_fails_does_not_fail_the_run(tmp_path, capsys, caplog):
    _afterwards(tmp_path)

    assert "report could not be made" in caplog.text
    assert f"invedit dashboard {tmp_path}" in capsys.readouterr().out


def test_what_is_installed_names_the_report_and_the_plugin():
    assert "report" in {entry.name for entry in entry_points(group=AFTERWARDS)}
    assert entry_points(group="tensorboard_plugins")["invedit"].load().__name__ == "Loader"


def test_a_taken_port_moves_to_the_next_free_one():
    with socket.socket() as first:
        first.bind((HOST, 0))
        first.listen()
        taken = first.getsockname()[1]

        assert taken < free_port(taken) <= taken + 100


@pytest.mark.parametrize("port", [0, -1, 70_000])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(SettingsError, match=r"no port; give a number from 1 to 65535"):
        free_port(port)


def test_tensorboard_listens_on_this_machine_only(tmp_path):
    arguments = tensorboard_arguments(tmp_path, 7000)

    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert "--bind_all" not in arguments


def test_a_root_that_is_no_folder_is_refused(tmp_path, capsys):
    assert main(["dashboard", str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def _heed_interrupts() -> None:
    """Undo what a shell does to jobs in the background, and to all that they start: ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_dashboard_takes_the_next_port_answers_and_ends_cleanly(tmp_path):
    sweep(tmp_path / "runs", ("x",), 1)
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        command = [sys.executable, "-m", "framework.cli", "dashboard", str(tmp_path / "runs"), "--port", str(taken)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
            preexec_fn=_heed_interrupts,
        )
        try:
            said = process.stdout.readline()
            assert said.startswith("dashboard  http://127.0.0.1:"), said + process.stderr.read()
            address = said.split()[1]
            assert f":{taken}/" not in address
            with urllib.request.urlopen(f"{address}data/plugin/invedit/data", timeout=120) as answer:
                assert b'"name": "x"' in answer.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
        rest = process.stdout.read()
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
    assert rest == "dashboard  ended\n"
    assert "Traceback" not in errors
    port = int(address.rstrip("/").rpartition(":")[2])
    deadline = time.monotonic() + 60
    while listens(port):  # its reader of event files may take a moment longer than itself
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
