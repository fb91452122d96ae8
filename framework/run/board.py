"""What TensorBoard shows of a run: live curves over images, and at the end its settings, figures and failures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.run.events import warn_once
from framework.run.finished import META, StoredRun
from framework.run.journal import journals
from framework.run.store import RunStore

LAYOUT: Mapping[str, Mapping[str, tuple[str, list[str]]]] = {
    "Noise maps": {
        "variance per step": ("Multiline", [r"^2_noise/variance$"]),
        "variance, mean over images and 1 sd": (
            "Margin",
            ["2_noise/variance_of_images", "2_noise/variance_of_images_low", "2_noise/variance_of_images_high"],
        ),
        "correlation with the next step": ("Multiline", [r"^2_noise/correlation$"]),
        "angle to the next step": ("Multiline", [r"^2_noise/angle$"]),
        "so far, over images": ("Multiline", [r"^2_noise/so_far_.*"]),
    },
    "Latents": {
        "standard deviation per level": ("Multiline", [r"^3_latent/sd_.*"]),
        "mean per level": ("Multiline", [r"^3_latent/mean_.*"]),
    },
    "Throughput": {
        "images": ("Multiline", [r"^1_run/images_(done|failed)$"]),
        "images per second": ("Multiline", [r"^1_run/images_per_second$"]),
        "network rows per second": ("Multiline", [r"^1_run/rows_per_second_so_far$"]),
        "peak memory, GiB": ("Multiline", [r"^1_run/peak_memory_gib$"]),
    },
}
"""The Custom Scalars page: category -> chart -> kind and tags."""
FAILURES = 50
"""Most failures that are listed."""
_GIB = 2**30
_PLAIN = (int, float, str)


class LiveBoard(Callback):
    """Writes curves over images while a run goes on, from the journals of all ranks; rank zero alone has a writer.

    The curves are views of committed samples: the samples of every rank count, and no rank waits for another.

    Args:
        store: The run folder.
        config: The resolved experiment as yaml.
        every: Seconds between points, at least; a last point follows when all ranks are done.
    """

    def __init__(self, store: RunStore, config: str, *, every: float = 10.0) -> None:
        self._store, self._config, self._every = store, config, every
        self._read: dict[Path, int] = {}
        self._folders: dict[str, str] = {}
        self._failed: set[str] = set()
        self._totals: dict[str, list[float]] = {}
        self._rows, self._peak, self._before = 0.0, 0.0, 0
        self._started = self._last = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout and the settings, so that they are there from the first point on."""
        if not trainer.is_global_zero:
            return
        self._collect()  # what earlier runs finished counts as done, not as speed
        self._before, self._rows = len(self._folders), 0.0
        self._started = self._last = time.monotonic()
        writer = _writer(trainer)
        writer.add_custom_scalars({name: dict(charts) for name, charts in LAYOUT.items()})
        writer.add_text("1_run/config", _code(self._config), 0)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a point if it is time to."""
        if trainer.is_global_zero and time.monotonic() - self._last >= self._every:
            self._write(_writer(trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the last point. The result writer, which comes before, has waited for the other ranks by now."""
        if trainer.is_global_zero:
            self._write(_writer(trainer))

    def _write(self, writer: Any) -> None:
        self._collect()
        self._last = time.monotonic()
        seconds = max(self._last - self._started, 1e-9)
        done = len(self._folders)
        points = {
            "1_run/images_done": float(done),
            "1_run/images_failed": float(len(self._failed)),
            "1_run/images_per_second": (done - self._before) / seconds,
            "1_run/peak_memory_gib": self._peak / _GIB,
        }
        if self._rows:
            points["1_run/rows_per_second_so_far"] = self._rows / seconds
        for name, (count, total) in self._totals.items():
            points[f"2_noise/so_far_{name}"] = total / count
        for tag, value in points.items():
            writer.add_scalar(tag, value, done + len(self._failed))
        writer.flush()

    def _collect(self) -> None:
        """Read what the journals say beyond what was read before."""
        for line in self._lines():
            if line.get("kind") != "sample" or not isinstance(line.get("id"), str):
                continue
            details = line.get("details") or {}
            if line.get("status") != "done":
                self._failed.add(line["id"])
                continue
            self._failed.discard(line["id"])
            known = line["id"] in self._folders
            self._folders[line["id"]] = str(line.get("folder"))
            self._peak = max(self._peak, float(details.get("peak_memory") or 0))
            timings = details.get("timings") or {}
            self._rows += float(timings.get("rows") or 0) / max(1.0, float(timings.get("batch_images") or 1))
            if not known:
                self._add_measurements(self._folders[line["id"]])

    def _add_measurements(self, folder: str) -> None:
        """Add what callbacks say about all steps of a sample together, `over_steps`."""
        try:
            meta = json.loads((self._store.samples / folder / META).read_bytes())
        except (OSError, ValueError):
            return
        for values in meta.get("measurements", {}).values():
            for name, value in (values.get("over_steps") or {}).items():
                if value is not None:
                    total = self._totals.setdefault(name, [0.0, 0.0])
                    total[0] += 1
                    total[1] += value

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Read whole new lines of all journals; a torn last line is read when it is whole."""
        for path in journals(self._store.records):
            try:
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    for raw in file:
                        if not raw.endswith(b"\n"):
                            break
                        self._read[path] = self._read.get(path, 0) + len(raw)
                        line = _parsed(raw)
                        if line is not None:
                            yield line
            except OSError:
                continue


def write_board(run: StoredRun, resolved: Mapping[str, Any]) -> None:
    """Write what is known once a run has ended: its row of the HParams table, and its failures.

    Args:
        run: The run, with its writer.
        resolved: The whole experiment.
    """
    if run.writer is None:
        return
    state = run.state
    rows = [f"| {_cell(name)} | {_cell(entry.reason or '')} |" for name, entry in list(state.failed.items())[:FAILURES]]
    counts = f"{len(state.done)} of {state.total} samples done, {len(state.failed)} failed."
    table = "\n".join(["", "", "| sample | reason |", "|---|---|", *rows]) if rows else ""
    run.writer.add_text("1_run/failures", counts + table, 0)
    write_hparams(run.writer, parameters(resolved), figures(run))


def parameters(resolved: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Return the settings that tell methods apart: of the method, its parts and the model, and the seed.

    Classes are told by their names, and what is true or false in words: the table would show 0.0000.
    """
    found: dict[str, int | float | str] = {}
    for key in ("backbone", "method"):
        _flatten(resolved.get(key) or {}, key, found, depth=3)
    found["seed"] = resolved.get("seed", 0)
    return dict(sorted(found.items()))


def figures(run: StoredRun) -> dict[str, float]:
    """Return what a run amounts to: means of its metrics and its cost. Figures that are not finite are left out.

    The table of methods sorts by name and shows the first columns, so metrics come in a group before all others.
    """
    found: dict[str, float] = {}
    seconds = [entry.details.get("seconds") for entry in run.state.done.values()]
    known = [float(value) for value in seconds if isinstance(value, (int, float))]
    if known:
        found["1_run/seconds_per_image"] = sum(known) / len(known)
    totals: dict[str, list[float]] = {}
    for sample in run.samples():
        _add(
            totals,
            "1_run/evaluations_per_image",
            (sample.meta.get("evaluations") or {}).get("total", {}).get("samples"),
        )
        for values in (sample.meta.get("measurements") or {}).values():
            for name, value in (values.get("over_steps") or {}).items():
                _add(totals, f"0_figures/noise_{name}", value)
            for metric, group in ((values.get("rows") or {}).get("edit") or {}).items():
                for figure, value in group.items() if isinstance(group, Mapping) else ():
                    _add(totals, f"0_figures/{metric}_{figure}", value)
    return found | {name: total / count for name, (count, total) in sorted(totals.items())}


def write_hparams(writer: Any, settings: Mapping[str, Any], values: Mapping[str, float]) -> None:
    """Write one row of the HParams table into the writer's own run; `add_hparams` would begin another run.

    What columns there are is left to TensorBoard, which joins the settings of all runs, those that differ first. A list
    of columns, as PyTorch writes it, would be taken from one run for all.
    """
    from torch.utils.tensorboard.summary import hparams

    for tag, value in values.items():
        writer.add_scalar(tag, value, 0)
    try:
        file = writer._get_file_writer()
        for summary in hparams(dict(settings), dict(values))[1:] if file is not None else ():
            file.add_summary(summary)
    except OSError as problem:
        warn_once(problem)


def _flatten(values: Any, place: str, found: dict[str, Any], depth: int) -> None:
    if isinstance(values, Mapping) and depth:
        for key, value in values.items():
            if key == "_target_":
                found[place] = re.split("[.:]", str(value))[-1]
            else:
                _flatten(value, f"{place}.{key}", found, depth - 1)
    elif isinstance(values, bool):
        found[place] = str(values).lower()
    elif isinstance(values, _PLAIN):
        found[place] = values


def _add(totals: dict[str, list[float]], name: str, value: Any) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        total = totals.setdefault(name, [0.0, 0.0])
        total[0] += 1
        total[1] += value


def _writer(trainer: Trainer) -> Any:
    logger: Any = trainer.logger
    return logger.experiment


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _code(text: str) -> str:
    """Markdown of a text as it is: indented, since a fence could be closed by the text."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return flat if len(flat) <= 300 else f"{flat[:297]}..."
