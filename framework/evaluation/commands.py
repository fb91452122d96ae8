"""The command `invedit table`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from framework.command import Command
from framework.errors import SettingsError

FORMATS = ("markdown", "csv", "latex")
_SUFFIX = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}


def _configure_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folder, or a folder of runs such as a sweep's"
    )
    parser.add_argument("--against", metavar="METHOD", help="compare every method with this one, image by image")
    parser.add_argument(
        "--figures",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help='columns, for example success "ReconstructionPSNR.*"',
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="PATTERN", help='rows, for example "ddim*" direct')
    parser.add_argument(
        "--by",
        default="edit_type",
        metavar="KEY",
        help="what images are grouped by: a place in meta.json (default edit_type), for example extra.shapes_edit.kind",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, without suffix: FILE.md, FILE.csv and FILE.tex (default: table in RUN_DIR, or here when "
        "several folders are given)",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the first two figures against each other")
    parser.add_argument(
        "--resamples", type=int, default=2000, metavar="N", help="bootstrap samples of every interval (default 2000)"
    )


def _table(arguments: argparse.Namespace) -> int:
    from framework.evaluation.layout import sheets, to_csv, to_latex, to_markdown
    from framework.evaluation.rows import collect
    from framework.evaluation.table import make_table
    from framework.run.files import write_file

    if arguments.resamples < 1:
        raise SettingsError([f"--resamples {arguments.resamples} is not allowed; give at least 1."])
    table = make_table(
        collect(arguments.runs, by=arguments.by),
        against=arguments.against,
        figures=arguments.figures,
        methods=arguments.methods,
        resamples=arguments.resamples,
    )
    laid = sheets(table)
    texts = {"markdown": to_markdown(table, laid), "csv": to_csv(table), "latex": to_latex(laid)}
    print(to_markdown(table, [sheet for sheet in laid if not sheet.detail]))
    output = arguments.output or (arguments.runs[0] if len(arguments.runs) == 1 else Path()) / "table"
    for name in FORMATS:
        path = output.with_name(output.name + _SUFFIX[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, texts[name].encode("utf-8", "backslashreplace"))
        print(f"{name:<9} {path}")
    if arguments.figure:
        from framework.evaluation.figure import write_scatter

        write_scatter(table, arguments.figure)
        print(f"{'figure':<9} {arguments.figure}")
    return 0


table = Command(
    "compare runs: means with intervals, per edit type, paired on the same images, costs", _configure_table, _table
)
