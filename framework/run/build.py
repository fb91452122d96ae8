"""From a config to an experiment that is ready to run, with everything checked that needs no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from framework.backbones.base import Backbone
from framework.callback import EditCallback
from framework.data.readers.source import DataSource
from framework.data.sample import EditSample
from framework.errors import SettingsError
from framework.module import EditModule
from framework.prompt_limits import dropped_edits
from framework.rehearsal import rehearse
from framework.run.config import UNRESOLVED, Config, check_top_level, resolve
from framework.run.nodes import Builder, Built
from framework.run.problems import Problems
from framework.run.settings import OutputSettings, RunSettings, trainer_settings


@dataclass
class Experiment:
    """Everything that a run needs, built and checked; no weight is read and no picture opened yet.

    Attributes:
        name: Of the experiment file, without suffix.
        module: The method with its parts and its backbone.
        source: The data set.
        callbacks: Observers, Lightning's own or ours.
        trainer: Keywords for `lightning.Trainer`; the engine adds its own.
        output: Where results go and what is saved.
        seed: Seed of the run.
        resolved: The whole experiment as plain values, with the defaults of every part written out.
        file: Where it was read from.
    """

    name: str
    module: EditModule
    source: DataSource
    callbacks: list[Callback]
    trainer: dict[str, Any]
    output: OutputSettings
    seed: int
    resolved: dict[str, Any]
    file: Path | None = None


@dataclass
class Shared:
    """Backbones and data sets that several variants of an experiment have in common, so that each is read once."""

    parts: dict[str, Any] = field(default_factory=dict)

    def reuse(self, kind: str, built: Built | None) -> Any:
        """Return the part that was first built from the same settings."""
        if built is None:
            return None
        return self.parts.setdefault(f"{kind} {json.dumps(built.plain, sort_keys=True, default=str)}", built.value)


def build(config: Config, shared: Shared | None = None) -> Experiment:
    """Build an experiment; `sweep:` is not looked at (see `framework.run.sweep`).

    Args:
        config: From `load_config`.
        shared: Parts of variants that were built before.

    Raises:
        SettingsError: Everything that is wrong, each with the place where it was written.
    """
    shared = shared or Shared()
    problems = config.collect()
    values = resolve(config.without("sweep"), problems)
    check_top_level(values, problems)
    builder = Builder(problems)
    run = _run_settings(values, builder)
    backbone = _one(values, "backbone", Backbone, builder, {})
    reused = backbone._replace(value=shared.reuse("backbone", backbone)) if backbone else None
    seed = Built(run.value.seed, run.plain["seed"]) if run else None
    method = _one(values, "method", EditModule, builder, {"backbone": reused, "seed": seed})
    data = _one(values, "data", DataSource, builder, {})
    callbacks = _callbacks(values.get("callbacks"), builder)
    trainer = trainer_settings(values.get("trainer"), problems)
    if method:
        _check_combination(method.value, callbacks, problems)
    source = shared.reuse("data", data)
    if source is not None:
        _check_data(source, reused.value if reused else None, method.value if method else None, problems)
    problems.done()
    assert run and backbone and method and data
    resolved = {
        "seed": run.plain["seed"],
        "backbone": backbone.plain,
        "method": method.plain,
        "data": data.plain,
        "callbacks": [callback.plain for callback in callbacks if callback],
        "trainer": values.get("trainer") or {},
        "output": _plain_output(run.plain["output"]),
    }
    return Experiment(
        name=config.name,
        module=method.value,
        source=source,
        callbacks=[callback.value for callback in callbacks if callback],
        trainer=trainer,
        output=run.value.output,
        seed=run.value.seed,
        resolved=resolved,
        file=config.file,
    )


def _one(
    values: Mapping[str, Any], key: str, expected: type, builder: Builder, inject: Mapping[str, Built | None]
) -> Built | None:
    return builder.part(values[key], expected, (key,), inject) if key in values else None


def _run_settings(values: Mapping[str, Any], builder: Builder) -> Built | None:
    given = {key: values[key] for key in ("seed", "output") if key in values}
    return builder.value(RunSettings, given, ())


def _plain_output(output: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the `_target_` of settings whose class is not for the experiment to choose."""
    kept = {key: value for key, value in output.items() if key != "_target_"}
    return {**kept, "save": {key: value for key, value in output["save"].items() if key != "_target_"}}


def _callbacks(given: Any, builder: Builder) -> list[Built | None]:
    if given is None or given is UNRESOLVED:
        return []
    if not isinstance(given, list):
        builder.problems.add(("callbacks",), "is not a list; write - {_target_: callbacks.Images} for each callback.")
        return []
    return [builder.part(node, Callback, ("callbacks", k)) for k, node in enumerate(given)]


def _check_combination(module: EditModule, callbacks: list[Built | None], problems: Problems) -> None:
    """Note needs that nobody meets, and callbacks whose measurements would overwrite each other."""
    observers = {k: built.value for k, built in enumerate(callbacks) if built and isinstance(built.value, EditCallback)}
    for problem in module.check(list(observers.values())):
        problems.add(("method",), problem)
    names: dict[str, int] = {}
    for k, callback in observers.items():
        first = names.setdefault(callback.name, k)
        if first != k:
            both = f"callbacks[{first}] and this one both measure under the name {callback.name!r}"
            problems.add(("callbacks", k), f"{both}; remove one, or give one another name if it has that setting.")


def _check_data(source: DataSource, backbone: Backbone | None, module: EditModule | None, problems: Problems) -> None:
    """Note problems of the list of samples, picture sizes that the network cannot take, and what controls refuse."""
    samples: Sequence[EditSample] = ()
    try:
        samples = source.samples()
    except SettingsError as error:
        for problem in error.problems:
            problems.add(("data",), problem)
    if backbone is None:
        return
    for problem in dropped_edits(samples, backbone):
        problems.add(("data",), problem)
    try:
        loader = source.loader(backbone.image_size, multiple=backbone.multiple, channels=backbone.image_channels)
        for problem in rehearse(module, samples, loader) if module else ():
            problems.add(("method", "controls"), problem)
    except SettingsError as error:
        for problem in error.problems:
            problems.add(("data",), problem)
