"""Sub-commands of the command line that belong to the shapes world; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from framework.command import Command


def _configure_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="yaml file, or the name of a bundled training experiment"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the yaml")
    parser.add_argument("--output", help="run folder; the same as output.dir=DIR")
    parser.add_argument("--export-only", action="store_true", help="export the newest checkpoint of the run and stop")


def _train(arguments: argparse.Namespace) -> int:
    from experiments.shapes.settings import load_settings
    from framework.run.config import find_experiment

    overrides = list(arguments.overrides)
    if arguments.output:
        overrides.append(f"output.dir={arguments.output}")
    settings = load_settings(find_experiment(arguments.experiment), overrides)
    from experiments.shapes.training import export_checkpoint, train

    if arguments.export_only:
        out = Path(settings.output.export or Path(settings.output.dir) / settings.model.kind)
        export_checkpoint(settings, out)
    else:
        out = train(settings)
    print(f"pipeline: {out}")
    return 0


def _configure_shapes(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write a benchmark folder in the PIE-Bench layout, with ground truth")
    export.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write; must not hold a benchmark yet"
    )
    export.add_argument("--count", type=int, required=True, metavar="N", help="number of edits")
    export.add_argument("--seed", type=int, default=0, metavar="S")
    export.add_argument("--edits", default="all", metavar="KIND,...", help="kinds of edits, in turn (default: all)")


def _shapes(arguments: argparse.Namespace) -> int:
    from experiments.shapes.edits import EDITS
    from experiments.shapes.export import export_benchmark

    kinds = list(EDITS) if arguments.edits == "all" else arguments.edits.split(",")
    try:
        export_benchmark(arguments.output, count=arguments.count, seed=arguments.seed, kinds=kinds)
    except (ValueError, FileExistsError) as error:
        print(f"invedit shapes export: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.count} edits: {arguments.output / 'mapping_file.json'}")
    return 0


train = Command(
    "train a bundled model from a yaml experiment; resumes from its own checkpoints", _configure_train, _train
)
shapes = Command("the bundled shapes world: export a benchmark with exact ground truth", _configure_shapes, _shapes)
