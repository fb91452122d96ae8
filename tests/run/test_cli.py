"""The command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework import cli
from framework.errors import SettingsError
from tests.run.test_config_build import EXPERIMENT, PARTS

ROOT = Path(__file__).resolve().parents[2]
OURS = {
    "run": "framework.run.commands:run",
    "check": "framework.run.commands:check",
    "list": "framework.run.commands:list_",
}


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = dict(OURS)
    monkeypatch.setattr(
        cli.importlib.metadata,
        "entry_points",
        lambda group: [EntryPoint(name, value, group) for name, value in found.items()],
    )
    return found


@pytest.fixture
def file(tmp_path: Path, entries: dict[str, str]) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def launch(experiments: Any, root: Path, *, force: bool, allow_changed: bool) -> int:
        calls.append(([name for name, _ in experiments], root, force, allow_changed))
        return 1

    monkeypatch.setattr("framework.run.launch.launch", launch)
    return calls


def run(*words: str | Path) -> int:
    return cli.main([str(word) for word in words])


def installed(folder: Path, entries: dict[str, str]) -> dict[str, str]:
    """Make a folder that looks installed, with these commands; returns an environment that finds it."""
    info = folder / "invedit_trial-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: invedit-trial\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[invedit.commands]", *lines]))
    return {"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def test_help_takes_less_than_a_second_and_imports_nothing_heavy(tmp_path: Path) -> None:
    environment = installed(tmp_path, OURS)
    code = "import sys; from framework.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    started = time.perf_counter()

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )

    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in OURS)
    heavy = {"torch", "numpy", "lightning", "diffusers", "omegaconf", "yaml", "PIL"}
    assert not heavy & set(done.stdout.splitlines()[-1].replace("'", "").strip("[]").split(", "))
    assert seconds < 1


@pytest.mark.parametrize("command", ["run", "check", "list"])
def test_every_command_explains_itself(entries: Any, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(command, "--help")

    assert left.value.code == 0 and "usage: invedit" in capsys.readouterr().out


def test_a_command_that_cannot_be_loaded_is_named_and_the_others_stay(
    entries: dict[str, str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries |= {"broken": "no_such_package.commands:go", "strange": "framework.errors:SettingsError"}

    assert run("check", file) == 0

    text = capsys.readouterr().err
    assert "'broken'" in text and "no_such_package" in text and "'strange'" in text and "Traceback" not in text


def test_a_program_without_commands_says_that_it_is_not_installed(
    entries: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    entries.clear()

    assert run("check", "x.yaml") == 2
    assert "pip install" in capsys.readouterr().err


def test_check_says_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", file, "sweep.method.skip=[1, 2]", "data.count=1") == 0

    assert capsys.readouterr().out.splitlines() == [
        "trial/skip=1: Method, 1 sample: ok",
        "trial/skip=2: Method, 1 sample: ok",
    ]


def test_problems_come_together_on_stderr_with_exit_code_two(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run("run", file, "method.skp=1", "trainer.logger=false", "data.root=3")

    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == "invedit: 3 problems" and len(lines) == 4 and "Traceback" not in said.err


def test_a_process_with_invalid_settings_exits_with_two_and_no_traceback(file: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    environment = installed(tmp_path / "site", OURS)

    done = subprocess.run(
        [sys.executable, "-m", "framework.cli", "run", str(file), "method.skp=1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 2
    assert "did you mean 'skip'?" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_experiment_that_does_not_exist_is_a_problem(entries: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "quickstrat") == 2
    assert "there is no experiment 'quickstrat'" in capsys.readouterr().err


def test_run_hands_the_experiment_over_and_returns_what_came_of_it(file: Path, launched: list[Any]) -> None:
    assert run("run", file) == 1
    assert run("run", file, "output.dir=elsewhere") == 1
    assert run("run", file, "--output", "there", "--force", "--allow-changed") == 1
    assert run("run", file, "sweep.seed=[0, 1]") == 1

    assert launched == [
        ([""], Path("runs/trial"), False, False),
        ([""], Path("elsewhere/trial"), False, False),
        ([""], Path("there"), True, True),
        (["seed=0", "seed=1"], Path("runs/trial"), False, False),
    ]


def test_overrides_may_stand_on_both_sides_of_options(file: Path, launched: list[Any]) -> None:
    assert run("run", file, "method.steps=30", "--output", "there", "sweep.seed=[5]") == 1
    assert run("run", "--output", "there", file, "--force", "sweep.seed=[6]") == 1

    assert [names for names, *_ in launched] == [["seed=5"], ["seed=6"]]


@pytest.mark.parametrize("words", [("--unknown",), ("--unknown=3",), ("--output", "x", "stray")])
def test_words_that_nobody_knows_are_refused(
    file: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run("run", file, *words)

    assert left.value.code == 2 and "unrecognised arguments" in capsys.readouterr().err


def test_the_whole_experiment_is_printed_as_yaml(
    file: Path, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", file, "--print-config") == 0
    single = list(yaml.safe_load_all(capsys.readouterr().out))
    assert run("run", file, "--print-config", "sweep.seed=[0, 1]") == 0
    several = list(yaml.safe_load_all(capsys.readouterr().out))

    assert launched == []
    assert single[0]["method"]["steps"] == 50
    assert [one["seed"] for one in several] == [0, 1]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(SettingsError(["one", "two"]), 2, "2 problems\n  one\n  two\n"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_errors_of_a_run_become_exit_codes(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, code: int, words: str
) -> None:
    def launch(*arguments: Any, **options: Any) -> int:
        raise error

    monkeypatch.setattr("framework.run.launch.launch", launch)

    assert run("run", file) == code
    assert words in capsys.readouterr().err


def test_output_that_nobody_reads_any_more_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-m", "framework.cli", "list", "experiments"],
        env=installed(tmp_path, OURS),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )

    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_methods_are_listed_with_their_settings(entries: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "methods", "--json") == 0

    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    ddim = found["DDIM"]
    assert (ddim["kind"], ddim["target"]) == ("method", "methods.ddim.DDIM") and ddim["summary"]
    settings = {setting["name"]: setting for setting in ddim["settings"]}
    assert settings["steps"] == {
        "name": "steps",
        "type": "a whole number",
        "required": False,
        "default": 50,
        "decides": False,
    }
    assert settings["guidance"]["default"]["_target_"] == "framework.guidance.ClassifierFree"
    assert settings["draws"]["decides"] and "backbone" not in settings and "seed" not in settings
    assert found["DDIMInversion"]["kind"] == "inversion"


def test_methods_are_listed_for_reading(entries: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "methods") == 0

    text = capsys.readouterr().out
    assert "DDIM  (method)" in text and "steps: a whole number; default 50" in text
    assert "draws: a whole number; chosen by the method" in text


def test_bundled_experiments_are_listed_with_their_first_comment(
    entries: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", "experiments", "--json") == 0

    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["shapes/unet"]["kind"] == "training" and found["shapes/unet"]["summary"]
    assert (
        found["quickstart"]["kind"] == "experiment" and found["quickstart"]["target"] == "experiments/quickstart.yaml"
    )


def test_what_cannot_be_imported_is_named_and_the_rest_is_listed(
    entries: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from framework.run import catalogue

    package = tmp_path / "my_callbacks"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from framework.lazy import lazy_exports\n"
        "__getattr__, __all__ = lazy_exports(__name__, {'good': ['Good'], 'bad': ['Bad']})\n"
    )
    (package / "good.py").write_text(f"from {PARTS} import Watch\n\n\nclass Good(Watch):\n    'Is good.'\n")
    (package / "bad.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(catalogue._PACKAGES, "callbacks", "my_callbacks")

    assert run("list", "callbacks", "--json") == 0

    said = capsys.readouterr()
    assert [entry["summary"] for entry in json.loads(said.out)] == ["Is good."]
    assert "my_callbacks.Bad is left out" in said.err and "no_such_module" in said.err
