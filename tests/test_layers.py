"""Imports run downwards only, and a few other rules about the shape of the tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "framework": set(),
    "methods": {"framework"},
    "callbacks": {"framework"},
    "experiments": {"framework", "methods"},
}
# The parts of framework/, lowest tier first; a part may import its own tier and those before it, without a circle.
TIERS = (
    {"errors", "lazy", "command", "finite", "reference"},
    {"scheduler_tables"},
    {"schedule"},
    {"step"},
    {"context", "record", "data.sample"},
    {"inversion", "guidance", "control"},
    {"backbones"},
    {"network", "prompts", "prompt_limits", "notes", "contexts"},
    {"predict"},
    {"result", "callback"},
    {"hooks", "data", "needs", "rehearsal"},
    {"module"},
    {"statistics", "evaluation", "run", "report"},
    {"cli"},
)
TIER = {part: tier for tier, parts in enumerate(TIERS) for part in parts}
LONGEST = 400
# Written in halves so that this file does not name them.
HALVES = (("/wo", "rk/"), ("../sh", "ared"), ("sub", "agent"), ("/tmp", "/w/"), ("/ro", "ot/"))
ELSEWHERE = tuple((first + second).encode() for first, second in HALVES)


class Import(NamedTuple):
    """One imported module as the source names it: `a.b` also for `from a import b`, since b may be a module."""

    name: str
    line: int
    inside_function: bool
    for_types_only: bool


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import of a source text, at whatever depth; relative ones are resolved against `module`."""
    above = module.split(".") if is_package else module.split(".")[:-1]

    def visit(node: ast.AST, inside: bool, types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, inside, types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = above[: len(above) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(f"{home}.{alias.name}", node.lineno, inside, types) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from (Import(str(name), node.lineno, inside, types) for name in names)
        if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            for child in node.body:
                yield from visit(child, inside, True)
            for child in node.orelse:
                yield from visit(child, inside, types)
            return
        deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deeper, types)

    yield from visit(ast.parse(source), False, False)


def modules(*packages: str) -> Iterator[tuple[Path, str]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(*packages: str) -> Iterator[tuple[str, Path, Import]]:
    for path, module in modules(*packages):
        for found in imports(path.read_text("utf-8"), module, is_package=path.name == "__init__.py"):
            yield module, path, found


def place(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT)}:{found.line}: {found.name}"


def part(module: str) -> str:
    """The part of framework/ that a dotted name belongs to: `framework.data.folder.Folder` -> `data`."""
    names = module.split(".")[1:]
    own = ".".join(names[:2])
    return own if own in TIER else ".".join(names[:1])


def test_the_parser_sees_imports_at_every_depth_and_resolves_relative_ones():
    source = """
import a.b
from c import d
if TYPE_CHECKING:
    from e import f
class K:
    def g(self):
        from . import h
        from ..i import j
        importlib.import_module("k.l")
"""

    found = list(imports(source, "top.middle.leaf"))

    assert [(one.name, one.inside_function, one.for_types_only) for one in found] == [
        ("a.b", False, False),
        ("c.d", False, False),
        ("e.f", False, True),
        ("top.middle.h", True, False),
        ("top.i.j", True, False),
        ("k.l", True, False),
    ]


@pytest.mark.parametrize("package", BELOW)
def test_a_package_imports_only_those_below_it(package):
    above = {*BELOW, "tests", "benchmarks"} - BELOW[package] - {package}

    wrong = [place(path, found) for _, path, found in imports_of(package) if found.name.split(".")[0] in above]

    assert not wrong, f"{package} may import {sorted(BELOW[package]) or 'none of the others'}: {wrong}"


def test_every_part_of_the_framework_has_its_place_in_the_order():
    parts = {part(module) for _, module in modules("framework")} - {""}

    assert parts <= set(TIER), f"add to TIERS: {sorted(parts - set(TIER))}"


def test_the_framework_names_the_module_that_it_imports_from():
    parts = {part(module) for _, module in modules("framework")} - {""} | set(TIER)

    vague = [
        place(path, found)
        for _, path, found in imports_of("framework")
        if found.name.split(".")[0] == "framework" and part(found.name) not in parts
    ]

    assert not vague, f"import from the module that defines the name, not through the package: {vague}"


def test_inside_the_framework_imports_run_downwards():
    upwards = [
        place(path, found)
        for module, path, found in imports_of("framework")
        if found.name.startswith("framework.") and not found.for_types_only
        if TIER.get(part(found.name), -1) > TIER.get(part(module), len(TIERS))
    ]

    assert not upwards, f"imports of something higher: {upwards}"


def test_parts_of_the_framework_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module, _, found in imports_of("framework"):
        if found.name.startswith("framework.") and part(found.name) != part(module) and not found.for_types_only:
            graph.setdefault(part(module), set()).add(part(found.name))

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_torchvision_is_never_imported_at_module_level():
    wrong = [
        place(path, found)
        for _, path, found in imports_of(*BELOW, "tests", "benchmarks")
        if found.name.split(".")[0] == "torchvision" and not found.inside_function and not found.for_types_only
    ]

    assert not wrong, f"torchvision may be absent: {wrong}"


def test_no_file_has_grown_two_subjects():
    files = [path for path, _ in modules("framework", "methods", "callbacks")]

    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}

    long = {path: lines for path, lines in lengths.items() if lines > LONGEST}
    assert not long, f"more than {LONGEST} lines: {long}"


def test_the_project_speaks_of_itself_alone():
    folders = [ROOT / name for name in (*BELOW, "tests", "benchmarks", "docs", ".ci") if (ROOT / name).is_dir()]
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in folders for path in folder.rglob("*") if path.is_file()]

    named = [
        f"{path.relative_to(ROOT)}: {word.decode()}"
        for path in files
        if path.suffix not in {".pyc", ".safetensors", ".png"}
        for word in ELSEWHERE
        if word in path.read_bytes()
    ]

    assert not named, f"places or things outside the project: {named}"


@pytest.mark.parametrize("package", BELOW)
def test_a_public_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()
