"""Attention control at the geometry of Stable Diffusion 1.5, on random weights and 64 x 64 latents, rows of one image.

`python -m benchmarks.attention` prints, as ratios of one run,

    forward/<control>        forward pass under a control over the uncontrolled fused one with equal rows, at most 1.25
    stock/<control>          the same over diffusers' materialising AttnProcessor without control, below 1
    layers/<control>         self-attention at 64 x 64 positions alone over that processor's, at most 0.5
    memory/<control>         peak memory of the forward pass over the uncontrolled one's, at most 1.2

where the step is one at which every window is open. On a CPU, times are those of the process, so that a loaded machine
changes little.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from benchmarks.measure import arguments, finish, report
from framework.backbones.attention import controlled_network
from framework.backbones.base import ControlHandle
from framework.backbones.sites import unet_sites
from framework.context import Context, Texts
from framework.control import Control
from framework.schedule import Schedule, training_table
from framework.step import COND, UNCOND, Condition, Row, Rows, Stream, Token
from methods import FeatureInjection, LocalBlend, MutualSelfAttention, PromptToPrompt
from methods.unified_attention import UnifiedAttention

SIDE, WIDTH, LENGTH, STEPS, STEP = 64, 768, 77, 50, 10
SOURCE, TARGET = "a photo of a cat in the snow", "a photo of a red dog in the deep snow"
TWO = tuple(Row(stream, branch) for branch in (UNCOND, COND) for stream in (Stream.SOURCE, Stream.TARGET))
THREE = tuple(
    Row(stream, branch) for branch in (UNCOND, COND) for stream in (Stream.SOURCE, Stream.TARGET, Stream.LAYOUT)
)
CASES: dict[str, tuple[Sequence[Control], tuple[Row, ...]]] = {
    "p2p": ([PromptToPrompt("refine", cross=0.8, self_attention=0.4)], TWO),
    "p2p-blend": ([LocalBlend([["cat"], ["dog"]], start=0.0), PromptToPrompt("refine")], TWO),
    "masactrl": ([MutualSelfAttention()], TWO),
    "pnp": ([FeatureInjection()], TWO),
    "uac": ([UnifiedAttention(local_words=["dog"])], THREE),
}
PARTS = ("layers", "forwards")
Run = Callable[[], Any]


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.set_defaults(rounds=3)
    parser.add_argument("--only", choices=CASES, nargs="*", default=list(CASES), help="controls to measure")
    parser.add_argument("--parts", choices=PARTS, nargs="*", default=PARTS, help="what to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.device, getattr(torch, options.dtype))
    held = []
    for rows in dict.fromkeys(CASES[name][1] for name in options.only):
        cases = {name: CASES[name][0] for name in options.only if CASES[name][1] == rows}
        if "layers" in options.parts:
            held += bench.layers(cases, rows, options.rounds)
        if "forwards" in options.parts:
            held += bench.forwards(cases, rows, options.rounds)
    return finish(held)


class Bench:
    """The network, and inputs for it."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        torch.manual_seed(0)
        with torch.device("meta"):
            self.unet: Any = UNet2DConditionModel(sample_size=SIDE, cross_attention_dim=WIDTH, attention_head_dim=8)
        self.unet = self.unet.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        for name, parameter in self.unet.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            else:
                torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        self.sites = unet_sites(self.unet)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.device, self.dtype)

    @contextmanager
    def under(self, controls: Sequence[Control], rows: tuple[Row, ...]) -> Iterator[ControlHandle | None]:
        """Install controls in a step at which they act; with none the network keeps diffusers' fused processors."""
        if not controls:
            yield None
            return
        ctx = context()
        states = [control.begin(ctx, self.sites, (SIDE, SIDE)) for control in controls]
        with controlled_network(self.unet, self.sites, controls, states) as handle:
            named = Rows(rows, (1,) * len(rows))
            handle.enter(named, 0)  # controls count from the first step they are asked about
            handle.enter(named, STEP)
            assert all(handle.active)
            yield handle

    def forward(self, controls: Sequence[Control], rows: tuple[Row, ...]) -> Run:
        z, text = self.draw(len(rows), 4, SIDE, SIDE), self.draw(len(rows), LENGTH, WIDTH)
        t = torch.full((len(rows),), 500, device=self.device)

        @torch.no_grad()
        def run() -> None:
            with self.under(controls, rows):
                self.unet(z, t, encoder_hidden_states=text, return_dict=False)

        return run

    def forwards(self, cases: dict[str, Sequence[Control]], rows: tuple[Row, ...], rounds: int) -> list[bool]:
        """Whole forward passes of the same rows: fused, materialising, and under every control."""
        runs = {"fused": self.forward((), rows)} | {n: self.forward(c, rows) for n, c in cases.items()}
        runs["stock"] = self.stock(self.forward((), rows))
        seconds, peaks = measured(runs, rounds, self.device)
        held = []
        for name in cases:
            about = {"rows": len(rows), "seconds": statistics.median(seconds[name])}
            held.append(report(f"forward/{name}", ratio(seconds, name, "fused"), 1.25, **about))
            held.append(report(f"stock/{name}", ratio(seconds, name, "stock"), 1.0, **about))
            held.append(report(f"memory/{name}", peaks[name] / peaks["fused"], 1.2, mib=peaks[name] / 2**20))
        report(f"memory/stock-{len(rows)}-rows", peaks["stock"] / peaks["fused"], None, mib=peaks["stock"] / 2**20)
        return held

    def layers(self, cases: dict[str, Sequence[Control]], rows: tuple[Row, ...], rounds: int) -> list[bool]:
        """The self-attention layers at 64 x 64 positions alone, each on hidden states of its width."""
        chosen = [self.unet.get_submodule(s.name) for s in self.sites if s.kind == "self" and s.scale == 1]
        states = [self.draw(len(rows), SIDE * SIDE, layer.to_q.in_features) for layer in chosen]

        @torch.no_grad()
        def run() -> None:
            for layer, hidden in zip(chosen, states, strict=True):
                layer(hidden)

        def under(controls: Sequence[Control]) -> Run:
            def controlled() -> None:
                with self.under(controls, rows) as handle:
                    run()
                    assert handle is not None
                    handle.announced.clear()  # the other places were not meant to be reached

            return controlled

        runs = {"fused": run} | {name: under(controls) for name, controls in cases.items()} | {"stock": self.stock(run)}
        seconds, _ = measured(runs, rounds, self.device)
        return [
            report(
                f"layers/{name}",
                ratio(seconds, name, "stock"),
                0.5,
                rows=len(rows),
                over_fused=ratio(seconds, name, "fused"),
                seconds=statistics.median(seconds[name]),
            )
            for name in cases
        ]

    def stock(self, run: Run) -> Run:
        """Let a run use diffusers' processor that forms all probabilities."""

        def stocked() -> None:
            with ExitStack() as stack:
                stack.callback(self.unet.set_attn_processor, AttnProcessor2_0())
                self.unet.set_attn_processor(AttnProcessor())
                run()

        return stocked


def context() -> Context:
    """One image with a prompt for its source and one for its target."""
    empty = Condition(torch.zeros(1, LENGTH, WIDTH))
    rows = [Row(stream, branch) for stream in Stream for branch in (UNCOND, COND)]
    config = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    }  # fmt: skip
    return Context(
        schedule=Schedule.from_alphas_cumprod(training_table(config), list(range(981, 0, -20)), final_alpha="first"),
        conditions=dict.fromkeys(rows, empty),
        texts=Texts((SOURCE,), (TARGET,), ("",)),
        streams=tuple(Stream),
        draw=lambda purpose, count: torch.zeros(count, 1),
        extra=[{}],
        tokens=word_tokens,
    )


def word_tokens(text: str) -> list[Token]:
    """One token per word."""
    return [Token(sum(map(ord, found[0])), found[0], *found.span()) for found in re.finditer(r"\S+", text)]


def measured(runs: dict[str, Run], rounds: int, device: str) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Time runs in turns, and take their peak memory above what was there before.

    The first turn only warms up, unless it is the only one.
    """
    peaks: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + (rounds > 1)):
        order = list(runs.items())
        for name, run in order if turn % 2 == 0 else reversed(order):
            spent, peaks[name] = measure(run, device)
            if turn or rounds == 1:
                seconds[name].append(spent)
    return seconds, peaks


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def measure(run: Run, device: str) -> tuple[float, float]:
    """Seconds, of the process on a CPU and of the wall clock on a device, and largest memory in bytes above before.

    Memory is not a number where the system does not tell.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, started = torch.cuda.memory_allocated(), time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - started, float(torch.cuda.max_memory_allocated() - before)
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if status.exists():
        clear.write_text("5")  # resets VmHWM
    held, clock = _kibibytes(status, "VmRSS"), time.process_time()
    run()
    return time.process_time() - clock, 1024 * (_kibibytes(status, "VmHWM") - held)


def _kibibytes(status: Path, key: str) -> float:
    if not status.exists():
        return float("nan")
    return int(next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1])


if __name__ == "__main__":
    sys.exit(main())
