"""What the benchmarks share: the bundled model, inputs, interleaved timing, and the form of a result."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framework.backbones import StableDiffusion
from framework.backbones.base import Backbone
from framework.callback import EditCallback
from framework.data.sample import EditBatch, EditSample, Frame
from framework.module import EditModule
from framework.network import Network
from framework.result import EditResult

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def arguments(description: str) -> argparse.ArgumentParser:
    """Start the arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="shapes", help="hub id, diffusers folder, or the bundled model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8, help="images that share network calls")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved repetitions; the median ratio counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu counts this process alone, where others share the machine"
    )
    return parser


def load(options: argparse.Namespace, family: Callable[..., Backbone] = StableDiffusion) -> Backbone:
    """Load the model of the arguments on its device."""
    torch.set_num_threads(options.threads)
    backbone = family(options.model, dtype=options.dtype)
    backbone.load()
    backbone.to(options.device)
    return backbone


def batch_of(backbone: Backbone, count: int) -> EditBatch:
    """Make random pictures of the model's size with prompts of its world."""
    rows, columns = backbone.image_size or (64, 64)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, backbone.image_channels, rows, columns, generator=generator) * 2 - 1
    source, target = (
        "a large solid red circle on a plain blue background",
        "a large solid green star on a plain blue background",
    )
    samples = tuple(EditSample(f"image-{i}", Path("unused"), source, target) for i in range(count))
    frame = Frame((rows, columns), (0, 0, rows, columns), (rows, columns))
    return EditBatch(samples, images, None, (frame,) * count, ((),) * count)


def record_calls(module: EditModule, run: Callable[[], Any]) -> list[tuple[Tensor, Tensor, Any]]:
    """Run once and keep what the network was given, call by call."""
    calls: list[tuple[Tensor, Tensor, Any]] = []
    original = Network._forward

    def forward(self: Network, z: Tensor, t: Tensor, condition: Any) -> Tensor:
        calls.append((z.detach().clone(), t.clone(), condition))
        return original(self, z, t, condition)

    Network._forward = forward  # type: ignore[method-assign]
    try:
        run()
    finally:
        Network._forward = original  # type: ignore[method-assign]
    return calls


def bare_unet(backbone: StableDiffusion, calls: Sequence[tuple[Tensor, Tensor, Any]]) -> Callable[[], None]:
    """Call the same network, with its stock processors, in a plain loop over the recorded inputs."""
    inputs = [
        (z.to(backbone.dtype), t.long(), None if c.text is None else c.text.to(backbone.dtype)) for z, t, c in calls
    ]
    unet: Any = backbone.unet

    @torch.no_grad()
    def run() -> None:
        for z, t, text in inputs:
            unet(z, t, encoder_hidden_states=text, return_dict=False)

    return run


def seconds(run: Callable[[], Any], device: str = "cpu", clock: str = "wall") -> float:
    """Time one run by one of `CLOCKS`, the device synchronised at both ends."""
    if device != "cpu":
        torch.cuda.synchronize()
    now = CLOCKS[clock]
    started = now()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return now() - started


class _LiveBytes(TorchDispatchMode):
    """Adds up the memory of all tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(run: Callable[[], Any], device: str = "cpu") -> int:
    """Most memory that a run's own tensors take at once: from the allocator on a device, by counting on the CPU."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with _LiveBytes() as counted:
        run()
    return counted.peak


def interleaved(
    one: Callable[[], Any], other: Callable[[], Any], rounds: int, device: str = "cpu", clock: str = "wall"
) -> dict[str, float]:
    """Time two runs alternately; returns the median of the pairs' ratios, its quartiles, and the median seconds."""
    seconds(one, device, clock), seconds(other, device, clock)  # warm-up
    pairs = []
    for turn in range(rounds):  # each goes first in turn, so that a drift of the machine hits both
        if turn % 2:
            second, first = seconds(other, device, clock), seconds(one, device, clock)
        else:
            first, second = seconds(one, device, clock), seconds(other, device, clock)
        pairs.append((first, second))
    ratios = sorted(first / second for first, second in pairs)
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "seconds": statistics.median(first for first, _ in pairs),
        "seconds_other": statistics.median(second for _, second in pairs),
    }


def report(name: str, ratio: float, limit: float | None, **more: Any) -> bool:
    """Print one line of the benchmark; returns whether the limit holds."""
    holds = limit is None or ratio <= limit
    print(
        json.dumps({"name": name, "ratio": float(f"{ratio:.4g}"), "limit": limit, "ok": holds, **_rounded(more)}),
        flush=True,
    )
    return holds


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}


def finish(held: Sequence[bool]) -> int:
    """Exit code of a benchmark."""
    if not all(held):
        print(f"{sum(not h for h in held)} of {len(held)} limits do not hold", file=sys.stderr)
    return 0 if all(held) else 1


def edit_run(module: EditModule, batch: EditBatch, callbacks: Sequence[EditCallback] = ()) -> Callable[[], Any]:
    """Edit from latents and embeddings to latents and measurements; pictures are encoded before and not decoded."""
    from framework.finite import FiniteWatch
    from framework.hooks import Hooks

    hooks = Hooks(module, callbacks, None)
    with torch.no_grad():
        z0, ctx = module.prepare(batch, hooks)

    @torch.no_grad()
    def run() -> None:
        hooks.edit_start(batch)
        network = Network(module.backbone, module.edit_schedule, module.max_rows)
        watch = FiniteWatch()
        record = module.record_latents(z0, ctx, network)
        final = module.denoise_latents(record, ctx, network, hooks, watch)
        failures = watch.failures(len(batch.samples), module.draws)
        none: list[Any] = [None] * len(batch.samples)
        counted = network.evaluations
        hooks.edit_end(
            batch,
            EditResult(
                batch.samples, batch.images, [[] for _ in none], none, record, final, None, failures, counted, counted
            ),
        )

    return run
