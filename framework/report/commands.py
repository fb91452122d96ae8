"""The commands `invedit report` and `invedit dashboard`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from framework.command import Command

PORT = 6006


def _configure_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folder, or a folder of runs such as a sweep's"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="page to write (default: report.html in RUN_DIR, or here when several folders are given)",
    )
    parser.add_argument(
        "--single-file",
        action="store_true",
        help="put all pictures into the page, to send it; for small runs",
    )


def _report(arguments: argparse.Namespace) -> int:
    from framework.report.page import write_report
    from framework.run.files import StoreError

    try:
        page = write_report(arguments.runs, arguments.output, single_file=arguments.single_file)
    except (StoreError, OSError) as problem:
        print(f"invedit: {problem}", file=sys.stderr)
        return 1
    print(f"report  {page}")
    return 0


def _configure_dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of runs")
    parser.add_argument(
        "--port",
        type=int,
        default=PORT,
        metavar="N",
        help=f"port (default {PORT}); the next free one if it is taken",
    )


def _dashboard(arguments: argparse.Namespace) -> int:
    from framework.report.dashboard import serve

    return serve(arguments.root, arguments.port)


report = Command("write an html report of runs, also while they go on", _configure_report, _report)
dashboard = Command("start TensorBoard on this machine for a folder of runs", _configure_dashboard, _dashboard)
