"""Metrics and data sets as a command line names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from framework.data.readers.source import DataSource
from framework.errors import SettingsError, did_you_mean
from framework.evaluation.metric import Metric
from framework.run.config import load_config
from framework.run.nodes import Builder
from framework.run.problems import Problems


def metrics_of(words: Sequence[str], known: Mapping[str, str]) -> list[Metric]:
    """Build metrics from short names and from mappings with `_target_`.

    Raises:
        SettingsError: All that is wrong with them; two metrics of one name are refused.
    """
    problems = Problems()
    builder = Builder(problems)
    metrics: list[Metric] = []
    for number, word in enumerate(words):
        described: Any = {"_target_": known[word]} if word in known else _mapping(word)
        if described is None:
            near = did_you_mean(word, known)
            problems.note(f"--metrics {word!r} is no metric{near}; give {', '.join(known)}, or {{_target_: ...}}.")
            continue
        built = builder.value(Metric, described, ("metrics", number))
        if built is not None:
            metrics.append(built.value)
    problems.done()
    names = [metric.name for metric in metrics]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SettingsError([f"--metrics names {', '.join(sorted(twice))} twice; leave one out."])
    return metrics


def data_source(word: str) -> DataSource:
    """Build a data set from a mapping with `_target_`, or from the `data` of an experiment.

    Raises:
        SettingsError: There is no such experiment, or its data set cannot be built.
    """
    described = _mapping(word)
    if described is None:
        config = load_config(word)
        described = config.values.get("data")
        if not isinstance(described, dict):
            raise SettingsError([*config.problems, f"--data {word!r}: the experiment has no `data`."])
    problems = Problems()
    built = Builder(problems).value(DataSource, described, ("data",))
    problems.done()
    assert built is not None
    source: DataSource = built.value
    return source


def _mapping(word: str) -> dict[str, Any] | None:
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return None
    return value if isinstance(value, dict) else None
