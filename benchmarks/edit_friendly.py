"""Edit-friendly inversion with all levels in large calls, against one level after another.

`python -m benchmarks.edit_friendly` prints the ratio of their times (below 1: the large calls are faster) for one image
and for a batch, and the largest difference of their noise maps relative to the largest map.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.measure import arguments, batch_of, finish, interleaved, load, report
from framework.backbones.base import Backbone
from framework.data.sample import EditBatch
from framework.record import Record
from methods import EditFriendlyDDPM


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    backbone = load(options)
    held = []
    for count in sorted({1, options.batch}):
        batch = batch_of(backbone, count)
        timing = interleaved(
            lambda batch=batch: invert(backbone, batch, sequential=False),
            lambda batch=batch: invert(backbone, batch, sequential=True),
            options.rounds,
            options.device,
        )
        held.append(report(f"edit_friendly_batched_over_sequential/batch_{count}", limit=1.0, **timing))
    together, alone = invert(backbone, batch, sequential=False), invert(backbone, batch, sequential=True)
    assert together.noise_maps is not None and alone.noise_maps is not None
    difference = float((together.noise_maps - alone.noise_maps).abs().max() / alone.noise_maps.abs().max())
    held.append(report("edit_friendly_difference", difference, 1e-3 if options.dtype == "float32" else None))
    return finish(held)


@torch.no_grad()
def invert(backbone: Backbone, batch: EditBatch, *, sequential: bool) -> Record:
    return EditFriendlyDDPM(backbone, steps=20, skip=7, sequential=sequential).invert(batch)


if __name__ == "__main__":
    sys.exit(main())
