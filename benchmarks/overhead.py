"""Wall time of an edit over the bare calls of the same network, and evaluations against the formula.

`python -m benchmarks.overhead`: at most 1.05 with no callbacks and 1.10 with statistics, at batch 8.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

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
from callbacks import NoiseCorrelation, NoiseStatistics
from framework.guidance import ClassifierFree
from methods import DDIM, CycleDiffusion, EditFriendlyDDPM, SDEdit

STEPS = 10


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=200, help="images of the memory measurement")
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
    for name, (module, formula) in per_image.items():
        edit = edit_run(module, batch)
        calls = record_calls(module, edit)
        rows = sum(z.shape[0] for z, _, _ in calls)
        share = rows / (formula * options.batch)  # neither more nor fewer than the formula says
        held.append(report(f"evaluations/{name}", max(share, 1 / share), 1.0, rows=rows, calls=len(calls)))
        bare = bare_unet(backbone, calls)
        timing = interleaved(edit, bare, options.rounds, options.device)
        held.append(report(f"overhead/{name}", limit=1.05, batch=options.batch, **timing))
        watchers = [NoiseStatistics()] + ([NoiseCorrelation()] if name in ("edit_friendly", "cycle_diffusion") else [])
        timing = interleaved(edit_run(module, batch, watchers), bare, options.rounds, options.device)
        held.append(report(f"overhead_with_statistics/{name}", limit=1.10, batch=options.batch, **timing))
    held.append(_memory(per_image["edit_friendly"][0], options))
    return finish(held)


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
