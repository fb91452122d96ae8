"""The command `invedit stats`: statistics of saved inversions as tables and figures."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.command import Command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from framework.statistics.saved import SavedStatistics

_LISTED = 8


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folder, or a folder of runs such as a sweep's"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: `statistics` in the folder of all runs)"
    )
    parser.add_argument(
        "--of",
        choices=("auto", "noise_maps", "predictions", "latents", "residuals"),
        default="auto",
        help="what to measure (default: the first of noise maps, predictions, residuals and latents that there is)",
    )
    parser.add_argument("--unused", action="store_true", help="measure also steps that the edits do not use")
    parser.add_argument("--max-lag", type=int, default=4, metavar="N", help="largest lag of the autocorrelation")
    parser.add_argument(
        "--patch", type=int, metavar="N", help="side of the patches, 0 for none (default: 2 where channels are few)"
    )
    parser.add_argument("--no-plots", action="store_true", help="write tables only")


def _run(arguments: argparse.Namespace) -> int:
    from framework.errors import Checks
    from framework.run.folders import find_runs
    from framework.statistics.saved import check_any, measure_run
    from framework.statistics.structure import StructureSettings

    checks = Checks("stats")
    checks.between("--max-lag", arguments.max_lag, 0, 64)
    checks.between("--patch", arguments.patch or 0, 0, 16)
    checks.done()
    runs = find_runs(arguments.runs)
    settings = StructureSettings(arguments.max_lag, arguments.patch)
    found = []
    for run in runs:
        show = _counter(run.name) if sys.stderr.isatty() else None
        found.append(measure_run(run, of=arguments.of, unused=arguments.unused, settings=settings, progress=show))
    check_any(found)
    output = arguments.output or Path(os.path.commonpath([run.directory.resolve() for run in runs])) / "statistics"
    _write_tables(found, output)
    if not arguments.no_plots:
        _write_figures(found, output)
    _report(found, output)
    return 1 if any(one.skipped or one.not_finite for one in found) else 0


def _write_tables(found: list[SavedStatistics], output: Path) -> None:
    """Write `stats.json`, `stats-steps.parquet`, `stats-pairs.parquet` and the folded states of every run."""
    from safetensors.torch import save

    from framework.run.files import json_document, write_file
    from framework.run.names import folder_name

    output.mkdir(parents=True, exist_ok=True)
    summaries = [one.summary() for one in found]
    write_file(output / "stats.json", json_document({"runs": summaries}))
    for name in ("steps", "pairs"):
        rows = [{"run": summary["run"], **row} for summary in summaries for row in summary.get(name, ())]
        write_file(output / f"stats-{name}.parquet", _parquet(rows))
    for one in found:
        if one.images:
            states = {name: value.contiguous() for name, value in one.arrays().items()}
            write_file(output / f"stats-{folder_name(one.name)}.safetensors", save(states))


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    """Encode rows; numbers that are not finite and values that a row does not have are null."""
    import pyarrow
    import pyarrow.parquet

    from framework.run.files import plain

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [plain(row.get(name)) for row in rows] for name in names}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _write_figures(found: list[SavedStatistics], output: Path) -> None:
    from framework.run.names import folder_name
    from framework.statistics.comparison import common_figures, comparable, own_figures

    for number, group in enumerate(comparable(found), 1):
        for name, figure in common_figures(group):
            _write(figure, output / (f"{name}.png" if number == 1 else f"{name}-{number}.png"))
    for one in found:
        if one.images:
            for name, figure in own_figures(one):
                _write(figure, output / f"{folder_name(one.name)}-{name}.png")


def _write(figure: Figure, path: Path) -> None:
    from io import BytesIO

    from framework.run.files import write_file

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    write_file(path, buffer.getvalue())


def _report(found: list[SavedStatistics], output: Path) -> None:
    """Say what was measured, what was left out, and which runs could not share an axis."""
    from framework.statistics.comparison import comparable

    for one in found:
        print(f"{one.name}: {one.images} images, {one.what or 'nothing measured'}")
        for title, reasons in (("skipped", one.skipped), ("not finite", one.not_finite)):
            for name, reason in list(reasons.items())[:_LISTED]:
                print(f"  {title}: {name}: {reason}")
            if len(reasons) > _LISTED:
                print(f"  {title}: {len(reasons) - _LISTED} more, in {output / 'stats.json'}")
    groups = comparable(found)
    if len(groups) > 1:
        print("not on one axis, since maps, steps or models differ:")
        for number, group in enumerate(groups, 1):
            print(f"  {number}: {', '.join(one.name for one in group)} ({group[0].key})")
    print(f"tables and figures  {output}")


def _counter(name: str) -> Any:
    def show(done: int, total: int) -> None:
        print(f"\r{name}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


stats = Command("measure the noise space of saved inversions: tables and figures", _configure, _run)
