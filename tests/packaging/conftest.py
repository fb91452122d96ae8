"""The project installed into a folder of its own, as `pip install .` leaves it, to be used from somewhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("framework", "methods", "callbacks", "experiments")


class Installed(NamedTuple):
    """Where the sources were copied to, where pip put them, and an empty folder to work in."""

    source: Path
    site: Path
    elsewhere: Path

    def run(self, *arguments: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments in the empty folder, with the installation before everything else."""
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.elsewhere,
            env={**os.environ, "PYTHONPATH": str(self.site), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @property
    def command(self) -> Path:
        """The console script."""
        return self.site / "bin" / "invedit"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGES:  # a copy, since pip leaves build/ behind, which would hide that data is missing
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    site = folder / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Installed(source, site, elsewhere)
