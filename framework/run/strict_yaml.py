"""Yaml as experiments are written in it: plain values only, every key once, every problem with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from framework.errors import SettingsError

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and indices of lists, outermost first."""

_MAX_VALUES = 100_000
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2: no `on`/`off` booleans, no dates, no base 60, 1e-3 is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_SCALARS: tuple[tuple[str, str, str | None], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
for _kind, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        _PREFIX + _kind, re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first or ""]
    )


@dataclass(frozen=True)
class Document:
    """What a yaml file says.

    Attributes:
        values: Mappings, lists, strings, numbers, booleans and None.
        lines: Line of every value, counted from one.
        problems: What the strict form refuses though it can be read, one sentence each.
    """

    values: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_yaml(path: Path) -> Document:
    """Read a yaml file.

    Raises:
        SettingsError: The file cannot be read or is not yaml.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(
            [f"{path}: not UTF-8 text; byte {error.start} is {error.object[error.start]:#x}."]
        ) from None
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}."]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Read yaml text; `name` stands for the file in messages.

    Raises:
        SettingsError: The text is not one yaml document.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise SettingsError([_sentence(error, name)]) from None
    try:
        root = loader.get_single_node()
        if root is None:
            return Document(None)
        walker = _Walker(name)
        walker.visit(root, ())
        values = None if walker.fatal else loader.construct_document(root)
    except RecursionError:
        raise SettingsError([f"{name}: values are nested too deeply."]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError([_sentence(error, name)]) from None
    finally:
        loader.dispose()
    if walker.fatal:
        raise SettingsError(walker.problems)
    return Document(values, walker.lines, tuple(walker.problems))


def parse_value(text: str) -> Any:
    """Read one value from a command line: a number, a boolean, null, [a, list], {a: mapping}, or a string.

    Raises:
        SettingsError: The text is none of these.
    """
    document = parse_yaml(text, "value")
    if document.problems:
        raise SettingsError(document.problems)
    return document.values


class _Walker:
    """Visits every value once: notes its line, repeated keys and tags, and stops at structures without end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self.fatal = False
        self._open: list[yaml.Node] = []

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        if any(node is other for other in self._open):
            self._refuse(node, "an alias stands inside the value that it names; write the value out")
            return
        if len(self.lines) >= _MAX_VALUES:
            if not self.fatal:
                self._refuse(node, f"more than {_MAX_VALUES} values once aliases are written out")
            return
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in _PLAIN_TAGS:
            self._refuse(node, f"the tag {_short(node.tag)} is refused; an experiment holds plain values only")
            return
        self._open.append(node)
        for key, child in self._children(node):
            self.visit(child, (*path, key))
        self._open.pop()

    def _children(self, node: yaml.Node) -> Iterator[tuple[str | int, yaml.Node]]:
        if isinstance(node, yaml.SequenceNode):
            yield from enumerate(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, child in list(node.value):
                if key.tag == _PREFIX + "merge":
                    # What is merged has been visited where it was named.
                    continue
                if not isinstance(key, yaml.ScalarNode) or key.tag not in _PLAIN_TAGS:
                    self._refuse(key, "a key is a word, not a list, a mapping or a tagged value")
                    continue
                line = key.start_mark.line + 1
                if key.value in seen:
                    first = f"the first is on line {seen[key.value]}"
                    self.problems.append(f"{self.name}:{line}: the key {key.value!r} stands here twice; {first}.")
                seen.setdefault(key.value, line)
                key.tag = _PREFIX + "str"
                yield key.value, child

    def _refuse(self, node: yaml.Node, problem: str) -> None:
        self.fatal = True
        self.problems.append(f"{self.name}:{node.start_mark.line + 1}: {problem}.")


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag


def _sentence(error: Exception, name: str) -> str:
    """Put a parser's error into one line with its place."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = str(error.problem or "not yaml")
        if "'\\t'" in problem:
            return f"{place}: a tab stands where spaces are needed; yaml is indented by spaces."
        if isinstance(error, yaml.composer.ComposerError) and "another document" in problem:
            return f"{place}: a second document begins; an experiment file holds one."
        return f"{place}: not valid yaml: {problem}{f' ({error.context})' if error.context else ''}."
    return f"{name}: not valid yaml: {' '.join(str(error).split())}."
