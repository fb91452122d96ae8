"""Everything that the report and the plugin show, as one json document; it holds text only, never html."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.report.noise import figure_title, noise_charts, noise_figures
from framework.report.pictures import Pictures, pictures_in
from framework.report.prompts import prompt_difference
from framework.report.results import Cell, RunResults, read_manifest_hash
from framework.report.summary import About, Figure, cost, figures_of, fixed_rows, measured, summaries

_EDIT = re.compile(r"edit(-\d+)?")
_ATTENTION = re.compile(r"attention(?:-(.+))?")
MOST_PROBLEMS = 200
"""Most problems that are named one by one."""


def build_document(title: str, runs: Sequence[RunResults], pictures: Pictures) -> dict[str, Any]:
    """Describe some runs for a page.

    Args:
        title: What the runs are together.
        runs: The runs, in the order of their columns.
        pictures: Gives addresses of pictures.

    Returns:
        `title`, `time` (seconds since 1970), `metrics`, `runs` (rows of the table), `rows` (samples with one cell per
        run), `noise` (charts), `figures`, `problems`. The modules in `assets/` say what they read of each.
    """
    abouts = figures_of(runs)
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    if len(problems) > MOST_PROBLEMS:
        problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS} more"]
    return {
        "title": title,
        "time": time.time(),
        "metrics": [
            {"key": f"{f.callback}/{f.metric}.{f.name}", "label": a.label, "better": a.better, "unit": a.unit}
            for f, a in abouts.items()
        ],
        "runs": [_run(run, abouts) for run in runs],
        "rows": _rows(runs, abouts, pictures),
        "noise": noise_charts(runs),
        "figures": _figures(runs, pictures),
        "problems": problems,
    }


def _run(run: RunResults, abouts: Mapping[Figure, About]) -> dict[str, Any]:
    done, failed = run.done, run.failed
    start: Mapping[str, Any] = run.starts[-1] if run.starts else {}
    own, fixed = summaries(run), fixed_rows(run)
    return {
        "name": run.name,
        "method": next((str(cell.meta["method"]) for cell in done if "method" in cell.meta), ""),
        "seed": next((cell.meta["seed"] for cell in done if "seed" in cell.meta), None),
        "status": run.status,
        "owner": run.owner,
        "total": len(run.samples),
        "done": len(done),
        "failed": len(failed),
        "metrics": [own[figure].shown(about) if figure in own else None for figure, about in abouts.items()],
        "fixed": {
            row: [values[figure].shown(about) if figure in values else None for figure, about in abouts.items()]
            for row, values in fixed.items()
        },
        **cost(run),
        "folder": str(run.directory),
        "config": run.config,
        "environment": start.get("environment") or {},
        "host": start.get("host") or "",
        "processes": start.get("world_size") or 1,
        "started": run.starts[0].get("time") if run.starts else None,
        "manifest": read_manifest_hash(run.directory),
    }


def _rows(runs: Sequence[RunResults], abouts: Mapping[Figure, About], pictures: Pictures) -> list[dict[str, Any]]:
    """Line samples up across runs; the same id with another picture or prompt is another row."""
    found: dict[tuple[str, str], list[Cell | None]] = {}
    for index, run in enumerate(runs):
        for sample in run.samples:
            cell = run.cells.get(sample.id)
            if cell is not None:
                found.setdefault((sample.id, sample.content), [None] * len(runs))[index] = cell
    contents: dict[str, int] = {}
    rows = []
    for (name, _), cells in found.items():
        contents[name] = contents.get(name, 0) + 1
        rows.append(_row(name, contents[name], cells, abouts, pictures))
    return rows


def _row(
    name: str, version: int, cells: Sequence[Cell | None], abouts: Mapping[Figure, About], pictures: Pictures
) -> dict[str, Any]:
    shown = next((cell for cell in cells if cell is not None and cell.meta), None)
    meta: Mapping[str, Any] = shown.meta if shown is not None else {}
    prompts: Mapping[str, Any] = meta.get("prompts") or {}
    source, target = prompt_difference(str(prompts.get("source") or ""), str(prompts.get("target") or ""))
    holder = next((cell for cell in cells if cell is not None and _named(cell, "source")), None)
    rows, columns = (meta.get("frame") or {}).get("original") or (1, 1)
    return {
        "id": name,
        "version": version,
        "type": str(meta.get("edit_type") or ""),
        "instruction": str(meta.get("instruction") or ""),
        "source": source,
        "target": target,
        "negative": str(prompts.get("negative") or ""),
        "size": [columns, rows],
        "picture": _picture(holder, _named(holder, "source"), pictures) if holder is not None else None,
        "cells": [None if cell is None else _cell(cell, abouts, pictures) for cell in cells],
    }


def _cell(cell: Cell, abouts: Mapping[Figure, About], pictures: Pictures) -> dict[str, Any]:
    if not cell.done:
        return {"failed": cell.entry.reason or "no reason was noted"}
    names = pictures_in(cell.files)
    values = dict(measured(cell))
    reconstruction = _named(cell, "reconstruction")
    described: dict[str, Any] = {
        "edits": [_picture(cell, name, pictures) for name in names if _EDIT.fullmatch(Path(name).stem)],
        "reconstruction": pictures.full(cell, reconstruction) if reconstruction else "",
        "metrics": [about.shown(values.get(figure)) for figure, about in abouts.items()],
        "evaluations": (cell.meta.get("evaluations") or {}).get("total", {}).get("samples"),
        "seconds": cell.entry.details.get("seconds"),
        "words": [],
        "more": [],
    }
    for name in names:
        stem = Path(name).stem
        attention = _ATTENTION.fullmatch(stem)
        if attention:
            described["words"].append([attention[1] or "all words", pictures.full(cell, name)])
        elif not _EDIT.fullmatch(stem) and stem not in ("source", "reconstruction"):
            described["more"].append([stem.replace("-", " ").replace("_", " "), pictures.full(cell, name)])
    notes = [str(note) for note in cell.meta.get("notes") or ()]
    return described | {key: value for key, value in (("notes", notes), ("problems", cell.problems)) if value}


def _picture(cell: Cell, name: str, pictures: Pictures) -> list[str]:
    return [pictures.thumbnail(cell, name), pictures.full(cell, name)]


def _named(cell: Cell | None, stem: str) -> str:
    """Return the file of a cell's picture of this name; empty if it has none."""
    if cell is None:
        return ""
    return next((name for name in pictures_in(cell.files) if Path(name).stem == stem), "")


def _figures(runs: Sequence[RunResults], pictures: Pictures) -> list[dict[str, Any]]:
    """Group the figures that runs left by what they show."""
    found: dict[str, list[list[Any]]] = {}
    for index, run in enumerate(runs):
        for path in noise_figures(run):
            found.setdefault(figure_title(path), []).append([index, pictures.figure(index, path)])
    return [{"title": title, "items": items} for title, items in sorted(found.items())]
