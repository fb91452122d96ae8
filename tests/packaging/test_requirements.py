"""Ranges, exact versions and public names agree with each other."""

from __future__ import annotations

import importlib
import pkgutil
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("framework", "methods", "callbacks", "experiments")


def declared() -> list[Requirement]:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", "utf-8")
    lists = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    return [Requirement(line) for lines in lists for line in lines.split("\n") if line]


def exact() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_the_exact_version_of_a_requirement_lies_in_its_range(requirement):
    version = exact()[canonicalize_name(requirement.name)]

    assert requirement.specifier.contains(version)


def test_the_makefile_installs_the_torch_of_the_constraints():
    assert f"TORCH ?= torch=={exact()['torch']}\n" in (ROOT / "Makefile").read_text("utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_of_a_package_can_be_imported(package):
    root = importlib.import_module(package)
    names = [package, *(found.name for found in pkgutil.walk_packages(root.__path__, f"{package}.") if found.ispkg)]

    for module in map(importlib.import_module, names):
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name) is not None
