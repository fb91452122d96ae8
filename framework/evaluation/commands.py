"""The commands `invedit evaluate` and `invedit table`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from framework.command import Command
from framework.errors import SettingsError

FORMATS = ("markdown", "csv", "latex")
_LISTED = 10
_METRICS = {
    "pixels": "framework.evaluation.PixelMetrics",
    "lpips": "framework.evaluation.LPIPS",
    "structure": "framework.evaluation.StructureDistance",
    "clip": "framework.evaluation.CLIPSimilarity",
    "dino": "framework.evaluation.DINOSimilarity",
    "reconstruction": "framework.evaluation.ReconstructionPSNR",
    "shapes": "experiments.shapes.metric.EditSuccess",
}
"""Short names of metrics for the command line; names of classes, which are looked up when they are asked for."""
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
        help="file to write: FILE.md, FILE.csv and FILE.tex (default: table in RUN_DIR, or here when "
        "several folders are given)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="put the published rows of PIE-Bench beside one's own, with their sources",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the first two figures against each other")
    parser.add_argument(
        "--resamples", type=int, default=2000, metavar="N", help="bootstrap samples of every interval (default 2000)"
    )


def _table(arguments: argparse.Namespace) -> int:
    from framework.evaluation.layout import sheets, to_csv, to_latex, to_markdown
    from framework.evaluation.published import published_rows
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
        published=published_rows() if arguments.published else (),
    )
    laid = sheets(table)
    texts = {"markdown": to_markdown(table, laid), "csv": to_csv(table), "latex": to_latex(laid)}
    print(to_markdown(table, [sheet for sheet in laid if not sheet.detail]))
    output = arguments.output or (arguments.runs[0] if len(arguments.runs) == 1 else Path()) / "table"
    output = output.with_suffix("") if output.suffix in _SUFFIX.values() else output
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


def _configure_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="run folder, folder of runs such as a sweep's, or with --data a folder of results made elsewhere",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["pixels", "lpips", "structure", "clip"],
        metavar="METRIC",
        help=f"any of {', '.join(_METRICS)}, or a mapping such as "
        "'{_target_: framework.evaluation.LPIPS, net: alex, model: DIR}' (default: those of PIE-Bench)",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="what results made elsewhere belong to: an experiment whose `data` is meant, or a mapping such as "
        "'{_target_: framework.data.PieBench, root: DIR}'",
    )
    parser.add_argument(
        "--last-panel", action="store_true", help="results larger than their source are strips; the last panel counts"
    )
    parser.add_argument("--fixed-rows", action="store_true", help="measure also the fixed rows of the metrics")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images measured together (default 8)")


def _evaluate(arguments: argparse.Namespace) -> int:
    from framework.evaluation.choice import data_source, metrics_of
    from framework.evaluation.evaluate import Evaluation, evaluate
    from framework.evaluation.pairs import FolderResults, Results, RunResults
    from framework.run.folders import find_runs

    if arguments.batch_size < 1:
        raise SettingsError([f"--batch-size {arguments.batch_size} is not allowed; give at least 1."])
    metrics = metrics_of(arguments.metrics, _METRICS)
    found: list[Results] = []
    if arguments.data is not None:
        lost = [path for path in arguments.results if not path.is_dir()]
        if lost:
            raise SettingsError([f"{path} is not a folder; give a folder of results." for path in lost])
        source = data_source(arguments.data)
        found += [FolderResults(path, data=source, last_panel=arguments.last_panel) for path in arguments.results]
    else:
        found += [RunResults(folder.directory) for folder in find_runs(arguments.results)]
    code = 0
    for results in found:
        evaluation = Evaluation(
            results,
            metrics,
            batch_size=arguments.batch_size,
            device=_device(arguments.device),
            fixed_rows=arguments.fixed_rows,
        )
        path = evaluate(evaluation)
        print(f"{path}: {evaluation.measured} images measured, {len(results.missing)} missing")
        for name, reason in list(results.missing.items())[:_LISTED]:
            print(f"  {name}  {reason}")
        if len(results.missing) > _LISTED:
            print(f"  and {len(results.missing) - _LISTED} more, in {path.with_suffix('.json').name}")
        for note in results.notes:
            print(f"  {note}")
        for name, reason in evaluation.unavailable.items():
            print(f"  {name} is unavailable: {reason}")
        code = max(code, int(bool(results.missing)))
    return code


def _device(name: str) -> str:
    import torch

    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as problem:
            reason = " ".join(str(problem).split())
            raise SettingsError([f"--device {name!r} cannot be used ({reason[:120]}); give cpu or auto."]) from None
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


table = Command(
    "compare runs: means with intervals, per edit type, paired on the same images, costs", _configure_table, _table
)
evaluate = Command(
    "measure the pictures of finished runs, or of folders of results made elsewhere", _configure_evaluate, _evaluate
)
