"""`python -m docs.benchmark NAME TABLE.md`: put what `invedit table` wrote between the marks of NAME in benchmark.md.

Sections about single figures per group are taken for the figures that the page names in its mark; what several rows
were left out for is said once. Where the README has marks of NAME, it gets the means alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).with_name("benchmark.md")
README = PAGE.parents[1] / "README.md"
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
    header, *rows = _rows(section)
    methods: dict[tuple[str, ...], list[str]] = {}
    for method, *cells in rows:
        methods.setdefault(tuple(cells), []).append(method)
    several = [
        (f"{len(names)} rows" if len(names) > 3 else ", ".join(names), *cells) for cells, names in methods.items()
    ]
    written = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *several)]
    return "\n".join([*(line for line in lines if not line.startswith("|")), *written])


def _rows(section: str) -> list[list[str]]:
    """Return the table of a section, header first, without the line that divides it."""
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    )
    return [header, *rows]


def means(table: str) -> str:
    """Return the means of all images and the evaluations per image as one short table."""
    sections = {section.splitlines()[0].removeprefix("### "): section for section in _sections(table)}
    header, *rows = _rows(sections["All images"])
    costs, *spent = _rows(sections["Cost"])
    evaluations = {row[0]: row[costs.index("evaluations per image")] for row in spent}
    short = [["", *header[1:], "evaluations"], ["---"] * (len(header) + 1)]
    for row in rows:
        short.append([row[0], *(_mean(cell) for cell in row[1:]), evaluations.get(row[0], "")])
    return "\n".join(f"| {' | '.join(row)} |" for row in short)


def _mean(cell: str) -> str:
    return "" if cell.startswith("(") else re.split(" ±| \\(all", cell)[0]


def in_readme(page: str, name: str, table: str) -> str:
    """Return the README with the means between `<!-- begin NAME -->` and `<!-- end NAME -->`, if it has these marks."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in page:
        return page
    before, rest = page.split(begin)
    return f"{before}{begin}\n{means(table)}\n{end}{rest.split(end)[1]}"


def main() -> int:
    name, file = sys.argv[1:]
    table = Path(file).read_text("utf-8")
    PAGE.write_text(spliced(PAGE.read_text("utf-8"), name, table), "utf-8")
    README.write_text(in_readme(README.read_text("utf-8"), name, table), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
