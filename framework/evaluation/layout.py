"""Tables as text: markdown and LaTeX for people, csv for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from framework.evaluation.paired import Paired
from framework.evaluation.published import COLUMNS, PublishedRow
from framework.evaluation.rows import Key, csv_cell
from framework.evaluation.table import ALL, Summary, Table

_ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(frozen=True)
class Sheet:
    """One rectangle of text.

    Attributes:
        title: What it shows.
        header: Titles of the columns, the first of them of the methods.
        rows: Texts, each as long as the header.
        note: What the reader has to know of it; may be empty.
        detail: Whether it is for files rather than for a screen.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    detail: bool = False


def sheets(table: Table) -> list[Sheet]:
    """Lay a table out: all samples, published rows, per group, paired differences, cost, and what was left out."""
    laid = [_overall(table)]
    if table.published:
        laid.append(_published(table))
    if table.groups:
        laid += [_groups(table, key) for key in table.figures]
    if table.against is not None:
        laid.append(_differences(table))
    if table.costs:
        laid.append(_costs(table))
    left = _left_out(table)
    return [*laid, left] if left.rows else laid


def to_markdown(table: Table, laid: Sequence[Sheet]) -> str:
    """Write sheets as markdown."""
    parts = []
    for sheet in laid:
        lines = [f"### {sheet.title}", "", *([sheet.note, ""] if sheet.note else [])]
        lines += [_line(sheet.header), "|---" * len(sheet.header) + "|", *(_line(row) for row in sheet.rows)]
        parts.append("\n".join(lines))
    for metric, reason in table.unavailable.items():
        parts.append(f"{metric} is unavailable: {reason}")
    if table.versions or table.days:
        when = f" on {' to '.join(dict.fromkeys((table.days[0], table.days[-1])))}" if table.days else ""
        parts.append(f"Made{when}" + (f" with {', '.join(table.versions)}" if table.versions else "") + ".")
    return "\n\n".join(parts) + "\n"


def to_latex(laid: Sequence[Sheet]) -> str:
    r"""Write sheets as LaTeX tables for the package booktabs."""
    parts = []
    for sheet in laid:
        body = [" & ".join(map(_tex, row)) + r" \\" for row in (sheet.header, *sheet.rows)]
        caption = _tex(f"{sheet.title}. {sheet.note}".rstrip())
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(sheet.header) - 1)}}}", r"\toprule", body[0], r"\midrule"]
        lines += [*body[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """Write every number, unscaled, one line per method, group and figure, and per paired difference."""
    text = io.StringIO()
    about = ("unit", "better", "scale")
    numbers = ("mean", "deviation", "low", "high", "n", "missing", "nan", "infinite")
    names = ("method", "against", "group", "metric", "figure", *about, *numbers, "source", "verified")
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()

    def write(method: str, key: Key, values: dict[str, Any], **more: str) -> None:
        known = {name: table.about.get(key, {}).get(name, "") for name in about}
        shown = {name: "" if isinstance(x, float) and math.isnan(x) else x for name, x in values.items()}
        writer.writerow({"method": csv_cell(method), "metric": key[0], "figure": key[1], **known, **shown, **more})

    for group, methods in table.summaries.items():
        for method, figures in methods.items():
            for key, summary in figures.items():
                write(method, key, asdict(summary), group=csv_cell(group))
    for method, differences in table.paired.items():
        for key, paired in differences.items():
            write(method, key, paired._asdict(), against=csv_cell(table.against or ""))
    for method, cost in table.costs.items():
        for name, value in asdict(cost).items():
            write(method, ("cost", name), {"mean": value})
    for row in table.published:
        for key, value in row.values.items():
            if key in table.figures:
                verified = "yes" if key in row.verified else "no"
                write(_published_name(row), key, {"mean": value, "n": 700}, source=row.source, verified=verified)
    return text.getvalue()


def _overall(table: Table) -> Sheet:
    rows = [
        [method.name, *(_summary(table, key, table.summaries[ALL][method.name].get(key)) for key in table.figures)]
        for method in table.methods
    ]
    counts = [len(method.groups) for method in table.methods if not method.fixed]
    least, most = min(counts, default=0), max(counts, default=0)
    images = f"{most} images" if least == most else f"{least} to {most} images"
    note = f"{images}; mean ± standard deviation over images [95 % bootstrap interval of the mean]."
    return Sheet("All images", ["", *_titles(table)], rows, note)


def _published(table: Table) -> Sheet:
    keys = [key for key in COLUMNS.values() if key in table.figures]
    titles = dict(zip(table.figures, _titles(table), strict=True))
    own = table.summaries[ALL]
    rows = [
        [method.name, *(_mean(table, key, own[method.name].get(key)) for key in keys), ""] for method in table.methods
    ]
    for row in table.published:
        found = [key for key in keys if key in row.values]
        if found:
            cells = [_published_value(table, row, key) if key in found else "" for key in keys]
            rows.append([_published_name(row), *cells, row.source])
    note = (
        "Published rows: means over the 700 images of PIE-Bench, saved as JPEG of quality 75: compare them only with "
        "runs on the same images, model and settings. ? marks numbers that were not verified in the publication named."
    )
    return Sheet("Beside published rows", ["", *(titles[key] for key in keys), "source"], rows, note)


def _published_name(row: PublishedRow) -> str:
    return f"published: {row.method} ({row.model})"


def _published_value(table: Table, row: PublishedRow, key: Key) -> str:
    return f"{row.values[key] * _scale(table, key):.2f}" + ("" if key in row.verified else "?")


def _groups(table: Table, key: Key) -> Sheet:
    rows = []
    for method in table.methods:
        found = [table.summaries[group][method.name].get(key) for group in (ALL, *table.groups)]
        rows.append([method.name, *(_mean(table, key, summary) for summary in found)])
    sizes = [max(len([g for g in m.groups.values() if g == group]) for m in table.methods) for group in table.groups]
    header = ["", "all", *(f"{group} (n {size})" for group, size in zip(table.groups, sizes, strict=True))]
    return Sheet(f"{_titles(table)[table.figures.index(key)]} per group", header, rows, detail=True)


def _differences(table: Table) -> Sheet:
    rows = [
        [method, *(_difference(table, key, figures.get(key)) for key in table.figures)]
        for method, figures in table.paired.items()
    ]
    note = (
        f"Value of the method minus that of {table.against}, image by image over the images that both have: mean "
        "[95 % bootstrap interval]; * where the interval holds no zero."
    )
    return Sheet(f"Paired difference to {table.against}", ["", *_titles(table)], rows, note)


def _costs(table: Table) -> Sheet:
    columns: list[tuple[str, Callable[[Any], str]]] = [
        ("forward passes per batch", lambda c: _number(c.calls)),
        ("evaluations per image", lambda c: _number(c.rows)),
        ("of the inversion", lambda c: _number(c.inversion_rows)),
        ("with gradient", lambda c: _number(c.backward_rows)),
        (
            "seconds per image",
            lambda c: _spread(c.seconds, c.seconds_deviation) + ("" if c.timed else " (first batch)"),
        ),
        ("images timed", lambda c: str(c.timed)),
        ("peak GiB", lambda c: _number(c.peak_gib)),
    ]
    rows = [[method, *(show(cost) for _, show in columns)] for method, cost in table.costs.items()]
    note = (
        "An evaluation is one picture through the network once (guidance counts 2); a forward pass is one call, "
        "whatever its batch. Seconds leave out loading, metrics, saving and the first batch of a process."
    )
    return Sheet("Cost", ["", *(title for title, _ in columns)], rows, note)


def _left_out(table: Table) -> Sheet:
    rows = []
    for method in table.methods:
        unfinished = method.expected - len(method.groups) - method.failed
        if method.failed or unfinished:
            rows.append([method.name, "all", str(method.failed), str(unfinished), "", "", ""])
        for key, summary in table.summaries[ALL][method.name].items():
            apart = (summary.missing, summary.nan, summary.infinite)
            if any(apart):
                rows.append([method.name, ".".join(key), "", "", *(str(count) if count else "" for count in apart)])
    header = ["", "figure", "failed", "unfinished", "no value", "NaN", "infinite"]
    return Sheet("Left out of the means", header, rows, "Numbers of images.")


def _titles(table: Table) -> list[str]:
    """Name the columns: the figure, with its metric where two have it, its unit, scale and better direction."""
    short = [figure for _, figure in table.figures]
    return [title(table, key, qualified=short.count(key[1]) > 1) for key in table.figures]


def title(table: Table, key: Key, *, qualified: bool = False) -> str:
    """Name a figure with its unit, scale and better direction; `qualified`: and with its metric."""
    about = table.about.get(key, {})
    unit, scale = about.get("unit", ""), about.get("scale", 1)
    name = ".".join(key) if qualified else key[1]
    more = [f"[{unit}]"] if unit else []
    more += [f"x {scale:g}"] if scale != 1 else []
    return " ".join([name, *more, _ARROWS.get(about.get("better", ""), "")]).rstrip()


def _summary(table: Table, key: Key, summary: Summary | None) -> str:
    if summary is None:
        return ""
    if not summary.n:
        return f"infinite (all {summary.infinite})" if summary.infinite else "(n 0)"
    scale, digits = _scale(table, key), _digits(table, key)
    mean, deviation, low, high = (x * scale for x in (summary.mean, summary.deviation, summary.low, summary.high))
    apart = summary.missing + summary.nan + summary.infinite
    count = f" (n {summary.n})" if apart else ""
    spread = "" if math.isnan(deviation) else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{spread} [{low:.{digits}f}, {high:.{digits}f}]{count}"


def _mean(table: Table, key: Key, summary: Summary | None) -> str:
    if summary is None or not summary.n:
        return ""
    return f"{summary.mean * _scale(table, key):.{_digits(table, key)}f}"


def _difference(table: Table, key: Key, paired: Paired | None) -> str:
    if paired is None or not paired.n:
        return ""
    scale, digits = _scale(table, key), _digits(table, key)
    mean, low, high = (x * scale for x in (paired.mean, paired.low, paired.high))
    mark = "*" if low > 0 or high < 0 else ""
    return f"{mean:+.{digits}f}{mark} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _scale(table: Table, key: Key) -> float:
    return float(table.about.get(key, {}).get("scale", 1))


def _digits(table: Table, key: Key) -> int:
    """Three digits for shares, else two, as tables of the field have."""
    means = [abs(s[key].mean) for s in table.summaries[ALL].values() if key in s and s[key].n]
    return 3 if max(means, default=0) * _scale(table, key) <= 1 else 2


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"


def _spread(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.3g}" + ("" if math.isnan(deviation) else f" ± {deviation:.2g}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def _tex(text: str) -> str:
    return "".join(_escaped(text))


def _escaped(text: str) -> Iterator[str]:
    special = {"\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    for character in text:
        yield special.get(character, character)
