"""Wall time of an edit over the bare calls of the same network, and evaluations against the formula.

`python -m benchmarks.overhead`: at most 1.05 with no callbacks and 1.10 with statistics, at batch 8; all
statistics of the noise lab cost at most 1.05 of the same edit without them, and a point in TensorBoard after every
batch 1.03 of that.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.measure import (
    arguments,
    bare_unet,
    batch_of,
    edit_run,
    finish,
    interleaved,
    load,
    record_calls,
    report,
)
from callbacks import NoiseCorrelation, NoiseStatistics, NoiseStructure
from framework.guidance import ClassifierFree
from methods import DDIM, CycleDiffusion, EditFriendlyDDPM, SDEdit

STEPS = 10


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=200, help="images of the memory measurement")
    parser.add_argument("--only-noise-lab", action="store_true", help="leave the comparison with bare calls out")
    options = parser.parse_args()
    backbone = load(options)
    batch = batch_of(backbone, options.batch)
    guidance = ClassifierFree(target=5.0, source=2.0, inversion=2.0)
    per_image = {  # network evaluations of one image: inversion + edit, with both rows of source and target
        "edit_friendly": (
            EditFriendlyDDPM(backbone, steps=STEPS, skip=3, guidance=guidance),
            2 * STEPS + 4 * (STEPS - 3),
        ),
        "ddim": (DDIM(backbone, steps=STEPS, guidance=guidance), 2 * STEPS + 4 * STEPS),
        "cycle_diffusion": (CycleDiffusion(backbone, steps=STEPS, strength=0.7, guidance=guidance), 2 * 7 + 4 * 7),
        "sdedit": (SDEdit(backbone, steps=STEPS, strength=0.7, guidance=guidance), 2 * 7),
    }
    held = []
    for name in ("edit_friendly", "ddim"):
        held += _noise_lab(name, per_image[name][0], batch, options)
    if options.only_noise_lab:
        return finish(held)
    for name, (module, formula) in per_image.items():
        edit = edit_run(module, batch)
        calls = record_calls(module, edit)
        rows = sum(z.shape[0] for z, _, _ in calls)
        share = rows / (formula * options.batch)  # neither more nor fewer than the formula says
        held.append(report(f"evaluations/{name}", max(share, 1 / share), 1.0, rows=rows, calls=len(calls)))
        bare = bare_unet(backbone, calls)
        timing = interleaved(edit, bare, options.rounds, options.device, options.clock)
        held.append(report(f"overhead/{name}", limit=1.05, batch=options.batch, **timing))
        watchers = [NoiseStatistics()] + ([NoiseCorrelation()] if name in ("edit_friendly", "cycle_diffusion") else [])
        timing = interleaved(edit_run(module, batch, watchers), bare, options.rounds, options.device, options.clock)
        held.append(report(f"overhead_with_statistics/{name}", limit=1.10, batch=options.batch, **timing))
    held.append(_memory(per_image["edit_friendly"][0], options))
    return finish(held)


def _noise_lab(name: str, module: Any, batch: Any, options: Any) -> list[bool]:
    """Time an edit with all statistics over one without, and with a point in TensorBoard over one with statistics."""
    of = "noise_maps" if name == "edit_friendly" else "predictions"
    watchers = [NoiseStatistics(), NoiseCorrelation(of=of), NoiseStructure()]
    plain, watched = edit_run(module, batch), edit_run(module, batch, watchers)
    timing = interleaved(watched, plain, options.rounds, options.device, options.clock)
    held = [report(f"statistics/{name}", limit=1.05, batch=options.batch, clock=options.clock, **timing)]
    with tempfile.TemporaryDirectory() as folder:
        logged = _with_points(watched, Path(folder), options.batch)
        timing = interleaved(logged, watched, options.rounds, options.device, options.clock)
    held.append(report(f"tensorboard/{name}", limit=1.03, batch=options.batch, clock=options.clock, **timing))
    return held


def _with_points(edit: Callable[[], Any], folder: Path, images: int) -> Callable[[], None]:
    """Edit, then write the curves as after every batch of a run, from the journal lines of its samples."""
    from torch.utils.tensorboard import SummaryWriter

    from framework.run.board import LiveBoard
    from framework.run.store import RunStore

    store = RunStore(folder)
    (store.samples / "sample").mkdir(parents=True)
    store.records.mkdir()
    figures = {name: {"over_steps": {value: 1.0}} for name, value in (("A", "variance"), ("B", "correlation"))}
    (store.samples / "sample" / "meta.json").write_text(json.dumps({"measurements": figures}))
    writer = SummaryWriter(str(folder / "events"))
    trainer: Any = SimpleNamespace(is_global_zero=True, logger=SimpleNamespace(experiment=writer))
    board = LiveBoard(store, "", every=0.0)
    module: Any = None
    board.on_predict_start(trainer, module)
    count = 0

    def run() -> None:
        nonlocal count
        edit()
        details = {"peak_memory": 1, "timings": {"rows": 100, "batch_images": images}}
        with (store.records / "rank-0.jsonl").open("a") as journal:
            for _ in range(images):
                line = {"kind": "sample", "id": f"s{count}", "status": "done", "folder": "sample", "details": details}
                journal.write(json.dumps(line) + "\n")
                count += 1
        board.on_predict_batch_end(trainer, module, None, None, 0)

    return run


def _memory(module: EditFriendlyDDPM, options: object) -> bool:
    """Resident memory over many images: the second half of a run may not need more than the first."""
    images, size = getattr(options, "images", 200), getattr(options, "batch", 8)
    batch = batch_of(module.backbone, size)
    edited, levels = 0, []
    while edited < images:
        module.edit(batch, callbacks=[NoiseStatistics()])
        edited += size
        levels.append(_resident())
    half = len(levels) // 2
    before, after = max(levels[1 : half + 1]), max(levels[half + 1 :])
    return report("memory/flat", after / before, 1.05, images=edited, mib_first_half=before, mib_second_half=after)


def _resident() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if torch.version.hip is None else 1)


if __name__ == "__main__":
    sys.exit(main())
