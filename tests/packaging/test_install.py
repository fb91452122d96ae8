"""A plain installation is complete and works from any folder."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

PACKAGES = ("framework", "methods", "callbacks", "experiments")
HEAVY = {"torch", "lightning", "diffusers", "transformers", "tensorboard", "matplotlib", "pyarrow", "numpy", "scipy"}


def cpu_seconds(action: Callable[[], CompletedProcess[str]], tries: int = 3) -> float:
    """Least processor time of a child process; unlike wall time it hardly depends on what else runs."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(tries):
        before = used()
        assert action().returncode == 0
        times.append(used() - before)
    return min(times)


def imported(trace: str) -> set[str]:
    """Top-level names in what `python -X importtime` prints."""
    lines = (line for line in trace.splitlines() if line.startswith("import time:"))
    return {line.split("|")[-1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_installed_package_is_used_rather_than_the_checkout(installed, package):
    done = installed.run("-c", f"import {package}; print({package}.__file__)")

    assert done.stdout.strip() == str(installed.site / package / "__init__.py"), done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_that_lies_in_a_package_is_installed(installed, package):
    here = {path.relative_to(installed.source) for path in (installed.source / package).rglob("*") if path.is_file()}

    missing = sorted(str(path) for path in here if not (installed.site / path).is_file())

    assert not missing, f"not installed; name them under [options.package_data]: {missing}"


def test_tests_and_benchmarks_are_not_installed(installed):
    names = {path.name for path in installed.site.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")}

    assert names <= {*PACKAGES, "bin"}


@pytest.fixture(scope="module")
def entries(installed):
    """Entry points of the installed distribution: group -> names."""
    code = """
import json
from importlib.metadata import distribution
print(json.dumps([(entry.group, entry.name) for entry in distribution("invedit").entry_points]))
"""
    pairs = json.loads(installed.run("-c", code).stdout)
    return {group: {name for other, name in pairs if other == group} for group, _ in pairs}


def test_the_distribution_names_its_command_and_sub_commands(entries):
    assert entries["console_scripts"] == {"invedit"}
    assert entries["invedit.commands"] >= {"run", "check", "list", "shapes", "train"}


def test_help_lists_every_sub_command(installed, entries):
    done = installed.run(installed.command, "--help")

    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in entries["invedit.commands"])


def test_help_imports_nothing_heavy(installed):
    done = installed.run("-X", "importtime", installed.command, "--help")

    assert done.returncode == 0, done.stderr
    assert "argparse" in imported(done.stderr)
    assert not imported(done.stderr) & HEAVY


def test_help_takes_less_than_a_second(installed):
    assert cpu_seconds(lambda: installed.run(installed.command, "--help")) < 1


def test_importing_the_packages_takes_less_than_a_second(installed):
    assert cpu_seconds(lambda: installed.run("-c", f"import {', '.join(PACKAGES)}")) < 1


def test_importing_the_packages_imports_nothing_heavy(installed):
    done = installed.run("-X", "importtime", "-c", f"import {', '.join(PACKAGES)}")

    assert imported(done.stderr) >= set(PACKAGES)
    assert not imported(done.stderr) & HEAVY


def test_a_bundled_experiment_is_found_by_its_name_from_any_folder(installed):
    done = installed.run(installed.command, "check", "quickstart")

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_module_and_the_command_are_the_same_program(installed):
    command = installed.run(installed.command, "list", "experiments", "--json")
    module = installed.run("-m", "framework.cli", "list", "experiments", "--json")

    assert command.returncode == 0, command.stderr
    assert command.stdout == module.stdout
    assert "quickstart" in command.stdout
