"""Replaying on latents: a method's own loops with given conditions and given draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.backbones import StableDiffusion
from framework.callback import EditCallback
from framework.context import Context, Texts
from framework.finite import FiniteWatch
from framework.hooks import Hooks
from framework.module import EditModule
from framework.network import Network
from framework.record import Record
from framework.schedule import Schedule
from framework.scheduler_tables import training_table
from framework.step import COND, UNCOND, Condition, Latents, Row, Step, Stream
from tests.parity.case import Case

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip


@lru_cache(maxsize=2)
def tiny_sd(models: Path) -> StableDiffusion:
    """Load the tiny Stable Diffusion in float64, once."""
    backbone = StableDiffusion(str(models / "tiny-sd"), dtype="float64")
    backbone.load()
    return backbone


def network_of(case: Case, models: Path) -> StableDiffusion:
    """Return the tiny Stable Diffusion, its output taken for what the case says."""
    if case.settings.get("clip_sample", False):
        raise NotImplementedError("clip_sample=true")
    backbone = tiny_sd(models)
    backbone.prediction_type = case.settings.get("prediction_type", "epsilon")
    return backbone


def case_schedule(case: Case, timesteps: Sequence[int] | None = None) -> Schedule:
    """Build the schedule that a case's settings describe; its list of timesteps is binding."""
    settings = case.settings
    if case.has("in.alphas_cumprod"):
        table = case.tensors["in.alphas_cumprod"]
    else:
        table = training_table({key: settings.get(key, value) for key, value in SCHEDULER.items()})
    steps = list(settings["timesteps"] if timesteps is None else timesteps)
    final = "one" if settings.get("set_alpha_to_one", False) else "first"
    return Schedule.from_alphas_cumprod(table, steps, final_alpha=final, stride=len(table) // settings["num_steps"])


@dataclass
class Seen(EditCallback):
    """Keeps every step that a loop shows."""

    inverted: list[Step] = field(default_factory=list)
    denoised: list[Step] = field(default_factory=list)

    def on_invert_step(self, trainer: Any, module: Any, step: Step) -> None:
        self.inverted.append(step)

    def on_denoise_step(self, trainer: Any, module: Any, step: Step) -> None:
        self.denoised.append(step)

    def trajectory(self, stream: Stream) -> Tensor:
        """Stack a stream's latents after each denoising step."""
        return torch.stack([step.z_next[stream] for step in self.denoised])


class LatentRun:
    """One method on given latents.

    Args:
        module: The method.
        conditions: Text embeddings of its rows.
        draws: Purpose of a draw -> [count, B, C, H, W].
        source: Source prompt, where it matters that it is empty.
    """

    def __init__(
        self, module: EditModule, conditions: Mapping[Row, Tensor], draws: Mapping[str, Tensor], source: str = "given"
    ) -> None:
        self.module = module
        self.seen = Seen()
        self.hooks = Hooks(module, [self.seen], None)
        self.network = Network(module.backbone, module.edit_schedule)
        self.ctx = Context(
            schedule=module.edit_schedule,
            conditions={row: Condition(text=text) for row, text in conditions.items()},
            texts=Texts((source,), ("target",), ("",)),
            streams=module.streams,
            draw=lambda purpose, count: _exactly(draws[purpose], count),
            on_invert_step=self.hooks.invert_step,
        )

    @torch.no_grad()
    def invert(self, z0: Tensor) -> Record:
        return self.module.record_latents(z0, self.ctx, self.network)

    @torch.no_grad()
    def denoise(self, record: Record) -> Latents:
        return self.module.denoise_latents(record, self.ctx, self.network, self.hooks, FiniteWatch())


def rows(source: Tensor, target: Tensor, uncond: Tensor, negative: Tensor | None = None) -> dict[Row, Tensor]:
    """Name the embeddings of a source and a target with their unconditional ones."""
    return {
        Row(Stream.SOURCE, COND): source,
        Row(Stream.SOURCE, UNCOND): uncond,
        Row(Stream.TARGET, COND): target,
        Row(Stream.TARGET, UNCOND): uncond if negative is None else negative,
    }


def _exactly(draws: Tensor, count: int) -> Tensor:
    if len(draws) != count:
        raise ValueError(f"the method asks for {count} draws, the case has {len(draws)}")
    return draws
