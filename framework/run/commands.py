"""The commands `invedit run`, `invedit check` and `invedit list`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from framework.command import Command

if TYPE_CHECKING:
    from framework.run.build import Experiment
    from framework.run.config import Config


def _configure_run(parser: argparse.ArgumentParser) -> None:
    _experiment(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of this run (default: output.dir and the experiment's name); a sweep's variants get folders in it",
    )
    parser.add_argument("--force", action="store_true", help="take over the folder from a run that seems to be alive")
    parser.add_argument(
        "--allow-changed",
        action="store_true",
        help="go on in a folder that holds results of other settings; only what changed is computed again",
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole experiment as yaml and stop")


def _run(arguments: argparse.Namespace) -> int:
    config, experiments = _build(arguments)
    if arguments.print_config:
        _print_config(experiments)
        return 0
    from framework.run.launch import launch

    root = arguments.output if arguments.output else experiments[0][1].output.dir / config.name
    return launch(experiments, root, force=arguments.force, allow_changed=arguments.allow_changed)


def _configure_check(parser: argparse.ArgumentParser) -> None:
    _experiment(parser)


def _check(arguments: argparse.Namespace) -> int:
    config, experiments = _build(arguments)
    for name, experiment in experiments:
        count = len(experiment.source.samples())
        label = f"{config.name}/{name}" if name else config.name
        print(f"{label}: {type(experiment.module).__name__}, {count} sample{'s' if count != 1 else ''}: ok")
    return 0


def _configure_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("methods", "callbacks", "backbones", "experiments"), help="what to list")
    parser.add_argument("--json", action="store_true", help="print one json document, for programs")


def _list(arguments: argparse.Namespace) -> int:
    from framework.run.catalogue import catalogue, format_entries

    entries, failures = catalogue(arguments.kind)
    for failure in failures:
        print(f"invedit: warning: {failure}", file=sys.stderr)
    print(json.dumps([entry.as_dict() for entry in entries], indent=2) if arguments.json else format_entries(entries))
    return 0


def _experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="yaml file, or the name of a bundled experiment")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes, for example method.skip=12 data.root=pictures"
    )


def _build(arguments: argparse.Namespace) -> tuple[Config, list[tuple[str, Experiment]]]:
    from framework.run.config import load_config
    from framework.run.sweep import build_all

    config = load_config(arguments.experiment, arguments.overrides)
    return config, build_all(config)


def _print_config(experiments: list[tuple[str, Experiment]]) -> None:
    import yaml

    for name, experiment in experiments:
        if len(experiments) > 1:
            print(f"--- # {name}")
        print(yaml.safe_dump(experiment.resolved, sort_keys=False, allow_unicode=True, width=120), end="")


run = Command("invert and edit images as an experiment says", _configure_run, _run)
check = Command("check an experiment without running it", _configure_check, _check)
list_ = Command("list methods, callbacks, backbones or bundled experiments", _configure_list, _list)
