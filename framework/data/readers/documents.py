"""Text files that hold lists of entries: JSON lines, JSON, YAML. Problems are named with line and reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from framework.errors import SettingsError


class Item(NamedTuple):
    """One member of a document: where it stands ("line 3", "entry 2") and what it says."""

    where: str
    value: Any


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without byte-order mark.

    Raises:
        SettingsError: It cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise SettingsError([f"{path} is not UTF-8 text (byte {problem.start}); save it as UTF-8."]) from None
    except OSError as problem:
        raise SettingsError([f"{path} cannot be read: {problem.strerror or problem}."]) from None


def read_list(path: Path, problems: list[str]) -> list[Item]:
    """Read the members of a manifest: `.jsonl` one per line, `.json` a list, `.yaml` a list.

    Args:
        path: The manifest; its suffix says what it is.
        problems: Receives what is wrong with single lines or with the document.
    """
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        return list(_json_lines(path.name, text, problems))
    if path.suffix.lower() == ".json":
        members = read_json(path.name, text, problems)
        items = [Item(f"{path.name}, entry {number}", value) for number, value in enumerate(members or [], start=1)]
        return items if _is_list(path.name, members, problems) else []
    if path.suffix.lower() in (".yaml", ".yml"):
        return _yaml_list(path.name, text, problems)
    problems.append(f"{path.name}: the suffix {path.suffix!r} is not allowed; give .jsonl, .json, .yaml or .yml.")
    return []


def read_json(where: str, text: str, problems: list[str]) -> Any:
    """Parse JSON that names no key twice and holds no NaN; None and a problem when it does not parse."""
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as problem:
        problems.append(f"{where}, line {problem.lineno}, column {problem.colno}: this is not JSON: {problem.msg}.")
    except (ValueError, RecursionError) as problem:
        problems.append(f"{where}: {problem}.")
    return None


def _json_lines(name: str, text: str, problems: list[str]) -> Iterator[Item]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        before = len(problems)
        try:
            value = json.loads(line, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        except json.JSONDecodeError as problem:
            problems.append(f"{place}, column {problem.colno}: this is not JSON: {problem.msg}.")
        except (ValueError, RecursionError) as problem:
            problems.append(f"{place}: {problem}.")
        if len(problems) == before:
            yield Item(place, value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {key!r} is given twice; keep one")
        seen[key] = value
    return seen


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; give a finite number or null")


def _is_list(where: str, value: object, problems: list[str]) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return True
    if value is not None:
        problems.append(f"{where}: holds a {type(value).__name__}, not a list; give a list of entries.")
    return False


class _Loader(yaml.SafeLoader):
    """Safe YAML in which dates stay text and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is given twice; keep one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml_list(name: str, text: str, problems: list[str]) -> list[Item]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, RecursionError) as problem:
        problems.append(_yaml_problem(name, problem))
        return []
    if not isinstance(node, yaml.SequenceNode):
        if node is not None:
            problems.append(f"{name}: holds no list; give a list of entries.")
        return []
    items = []
    for child in node.value:
        place = f"{name}, line {child.start_mark.line + 1}"
        try:
            items.append(Item(place, loader.construct_object(child, deep=True)))
        except (yaml.YAMLError, RecursionError, ValueError, TypeError) as problem:
            problems.append(_yaml_problem(place, problem))
    return items


def _yaml_problem(place: str, problem: Exception) -> str:
    if isinstance(problem, yaml.MarkedYAMLError) and problem.problem_mark is not None:
        mark = problem.problem_mark
        return f"{place} (line {mark.line + 1}, column {mark.column + 1}): this is not safe YAML: {problem.problem}."
    return f"{place}: this is not safe YAML: {' '.join(str(problem).split())}."
