"""How fast and how large: network evaluations, wall time and peak memory of every batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from framework.callback import EditCallback, FinishedRun
from framework.data.sample import EditBatch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult

GIB = 2**30


class Throughput(EditCallback):
    """Adds figures to the journal's line of every sample, not to results, since they differ between reruns.

    Network evaluations are counted in both ways that are in use: `calls`, forward passes whatever their batch, and
    `rows`, pictures evaluated (classifier-free guidance counts 2). Wall time ends after the device has finished. The
    first batch of a process is marked as `warm_up`: it holds what is done once. Memory is in GiB = 2^30 bytes: of the
    device where there is one (peak of this batch), else of the process (its peak so far).
    """

    def __init__(self) -> None:
        self._batches = 0
        self._started = 0.0

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        device = module.backbone.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        self._started = time.perf_counter()

    def on_edit_end(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult) -> None:
        device = module.backbone.device
        figures: dict[str, float] = {}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            figures["peak_allocated_gib"] = torch.cuda.max_memory_allocated(device) / GIB
            figures["peak_reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
        else:
            figures["peak_resident_gib"] = _peak_resident() / GIB
        seconds = time.perf_counter() - self._started
        total, inverted = result.evaluations, result.inversion_evaluations
        figures |= {
            "batch_seconds": seconds,
            "batch_images": len(result.samples),
            "seconds_per_edit": seconds / max(1, len(result.samples) * result.draws),
            "calls": total.calls,
            "rows": total.samples,
            "inversion_calls": inverted.calls,
            "inversion_rows": inverted.samples,
            "backward_rows": total.backward,
            "rows_per_second": total.samples / seconds if seconds > 0 else 0.0,
            "warm_up": float(self._batches == 0),
        }
        result.timings.update(figures)
        self._batches += 1

    def on_run_end(self, run: FinishedRun) -> None:
        """Show figures per batch in TensorBoard, in the order in which they were committed."""
        if run.writer is None:
            return
        from framework.run.journal import read_samples

        seen: set[tuple[object, object]] = set()
        step = 0
        for entry in read_samples(run.directory / "records"):
            found = entry.details.get("timings", {})
            batch = (entry.details.get("rank"), entry.details.get("time"))
            if "rows_per_second" not in found or batch in seen:
                continue
            seen.add(batch)
            for key in ("rows_per_second", "seconds_per_edit", "peak_allocated_gib", "peak_resident_gib"):
                if key in found:
                    run.writer.add_scalar(f"1_run/{key}", found[key], step)
            step += 1


def _peak_resident() -> float:
    """Peak memory of this process in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
