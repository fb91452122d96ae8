"""What callbacks share when a run ends: reading committed measurements, writing figures beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from framework.callback import CommittedSample, FinishedRun
from framework.run.files import json_document, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 50
"""Most ids named in a summary."""


def measured(run: FinishedRun, name: str) -> Iterator[tuple[CommittedSample, Mapping[str, Any]]]:
    """Iterate over samples that a callback measured, in the order of their ids: the sample and its values."""
    for sample in run.samples():
        values = sample.meta.get("measurements", {}).get(name)
        if values is not None:
            yield sample, values


def alike(
    run: FinishedRun,
    name: str,
    needed: str,
    key: Callable[[Mapping[str, Any], dict[str, Tensor]], Any],
    left: dict[str, str],
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Tensor]]]:
    """Iterate over the measurements that may be merged with the first one.

    Args:
        run: The finished run.
        name: Of the callback.
        needed: Tensor that a measurement must hold.
        key: What must be equal: steps, levels, kind of maps.
        left: Filled with id -> reason of the samples that are left out.

    Returns:
        Id, values and tensors of each sample, in the order of the ids.
    """
    first: tuple[str, Any] | None = None
    prefix = f"{name}."
    for sample, values in measured(run, name):
        tensors = {key[len(prefix) :]: x for key, x in sample.statistics().items() if key.startswith(prefix)}
        if needed not in tensors:
            left[sample.id] = "nothing was measured"
            continue
        own = key(values, tensors)
        first = first or (sample.id, own)
        if own == first[1]:
            yield sample.id, values, tensors
        else:
            left[sample.id] = f"measured on other steps than {first[0]}"


def statistics_folder(run: FinishedRun) -> Path:
    """Return the folder of a run's merged figures, made if it is not there."""
    folder = run.directory / "statistics"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_summary(run: FinishedRun, name: str, summary: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `<name>.json` and, where there are tensors, `<name>.safetensors`."""
    from safetensors.torch import save

    folder = statistics_folder(run)
    if tensors:
        write_file(folder / f"{name}.safetensors", save({key: x.contiguous() for key, x in tensors.items()}))
    write_file(folder / f"{name}.json", json_document(summary))


def write_figure(run: FinishedRun, name: str, figure: Figure) -> None:
    """Write `<name>.png`, without anything that differs between reruns."""
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    write_file(statistics_folder(run) / f"{name}.png", buffer.getvalue())


def shortened(reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return reasons by id for a summary, the first of them and the number of all."""
    return {"count": len(reasons), "first": dict(list(reasons.items())[:LISTED])}
