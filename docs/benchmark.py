"""`python -m docs.benchmark NAME TABLE.md`: put what `invedit table` wrote between the marks of NAME in benchmark.md.

Sections about single figures per group are taken for the figures that the page names in its mark; what several rows
were left out for is said once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).with_name("benchmark.md")
LEFT_OUT = "Left out of the means"


def spliced(page: str, name: str, table: str) -> str:
    """Return the page with a table between `<!-- begin NAME: FIGURE ... -->` and `<!-- end NAME -->`."""
    marks = re.search(rf"(<!-- begin {re.escape(name)}:([^>]*)-->\n).*?(<!-- end {re.escape(name)} -->)", page, re.S)
    if marks is None:
        raise SystemExit(f"{PAGE.name} has no marks <!-- begin {name}: ... --> and <!-- end {name} -->")
    begin, figures, end = marks.groups()
    body = "\n\n".join(_kept(_sections(table), figures.split()))
    return page[: marks.start()] + f"{begin}\n{body}\n\n{end}" + page[marks.end() :]


def _sections(table: str) -> list[str]:
    return [
        section.strip() for section in re.split(r"(?m)^(?=### |Made |\S+ is unavailable)", table) if section.strip()
    ]


def _kept(sections: Sequence[str], figures: Sequence[str]) -> list[str]:
    kept = []
    for section in sections:
        title = section.splitlines()[0].removeprefix("### ")
        if title.endswith(" per group") and title.split()[0] not in figures:
            continue
        kept.append(_shortened(section) if title == LEFT_OUT else section)
    return kept


def _shortened(section: str) -> str:
    """Say once what several methods have in common: the same numbers of the same figure."""
    lines = section.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, rows = rows[0], rows[2:]
    methods: dict[tuple[str, ...], list[str]] = {}
    for method, *cells in rows:
        methods.setdefault(tuple(cells), []).append(method)
    several = [
        (f"{len(names)} rows" if len(names) > 3 else ", ".join(names), *cells) for cells, names in methods.items()
    ]
    written = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *several)]
    return "\n".join([*(line for line in lines if not line.startswith("|")), *written])


if __name__ == "__main__":
    named, written = sys.argv[1:]
    PAGE.write_text(spliced(PAGE.read_text("utf-8"), named, Path(written).read_text("utf-8")), "utf-8")
