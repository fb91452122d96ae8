"""Replaying on flow transformers: text embeddings are computed with the model from a case's prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.backbones import SD3, Flux
from framework.context import Texts
from framework.module import EditModule
from framework.network import Network
from framework.record import Record
from framework.schedule import Schedule, ScheduleOptions
from framework.step import COND, UNCOND, Condition, Row, Stream
from tests.parity.case import Case
from tests.parity.latent import LatentRun


@lru_cache(maxsize=2)
def flow_backbone(models: Path, name: str, positions: int | None = None) -> SD3 | Flux:
    """Load a tiny flow transformer in float64, once; `positions` is the `max_sequence_length` of its T5."""
    kind: Any = SD3 if name == "tiny-sd3" else Flux
    backbone: SD3 | Flux = kind(
        str(models / name), dtype="float64", **({} if positions is None else {"max_sequence_length": positions})
    )
    backbone.load()
    return backbone


def backbone_of(case: Case, models: Path) -> SD3 | Flux:
    """Return the case's network."""
    return flow_backbone(models, case.models[0], case.settings.get("max_sequence_length"))


@dataclass
class Calls:
    """Keeps what a network was called with: rows and times of every call."""

    rows: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)

    def listen(self, network: Network) -> None:
        """Keep every call of this network."""
        evaluate = network.evaluate

        def kept(z: Tensor, t: Tensor, condition: Condition, **more: Any) -> Tensor:
            self.rows.append(z)
            self.times.append(t)
            return evaluate(z, t, condition, **more)

        network.evaluate = kept  # type: ignore[method-assign]

    def take(self) -> tuple[Tensor, Tensor]:
        """Return and forget the first row and sigma of every call so far, [calls, C, H, W] and [calls]."""
        taken = torch.stack([rows[0] for rows in self.rows]), self.told / 1000
        self.rows.clear()
        self.times.clear()
        return taken

    @property
    def told(self) -> Tensor:
        """Time of every call, [calls]."""
        return torch.stack([times[0] for times in self.times])


class FlowRun(LatentRun):
    """One method on given latents of a flow, with the conditions of a case's prompts; `calls` keeps its network calls.

    Args:
        module: The method.
        case: Whose prompts and latents it gets; a dynamic shift is that of the latents.
        draws: Purpose of a draw -> [count, B, C, H, W].
    """

    def __init__(self, module: EditModule, case: Case, draws: Mapping[str, Tensor]) -> None:
        super().__init__(module, {}, draws)
        self.z0 = case.input("in.z0")
        schedule = case_levels(case, module)
        source, negative = str(case.prompts.get("source", "")), str(case.prompts.get("negative") or "")
        target = str(case.prompts.get("target", source))
        texts = {
            Row(Stream.SOURCE, COND): source,
            Row(Stream.SOURCE, UNCOND): negative,
            Row(Stream.TARGET, COND): target,
            Row(Stream.TARGET, UNCOND): negative,
            Row(Stream.LAYOUT, COND): source,
        }
        inverted = str(case.prompts.get("inversion", source))
        conditions = {text: module.backbone.encode_prompt([text]) for text in {*texts.values(), inverted}}
        self.inverting = conditions[inverted]
        self.ctx = replace(
            self.ctx,
            schedule=schedule,
            conditions={row: conditions[text] for row, text in texts.items()},
            texts=Texts((source,), (target,), (negative,)),
            segments=module.backbone.segments,
        )
        self.network = Network(module.backbone, schedule)
        self.calls = Calls()
        self.calls.listen(self.network)
        module.edit_schedule = schedule

    @torch.no_grad()
    def invert(self, z0: Tensor) -> Record:
        """Invert under the case's prompt of the inversion."""
        conditions = {**self.ctx.conditions, Row(Stream.SOURCE, COND): self.inverting}
        return self.module.record_latents(z0, replace(self.ctx, conditions=conditions), self.network)


def case_levels(case: Case, module: EditModule) -> Schedule:
    """Build the levels that a case's settings describe: the model's with the case's shift, or those that it lists."""
    settings, size = case.settings, case.input("in.z0").shape[-2:]
    steps = module.steps
    options = None if settings.get("shift") is None else ScheduleOptions(shift=float(settings["shift"]))
    schedule: Schedule = module.backbone.schedule(steps, options).for_size(size)
    listed = settings.get("sigmas")
    if listed is None and settings.get("timesteps") is not None:
        listed = [*(t / 1000 for t in settings["timesteps"]), 0.0]
    if settings.get("sigmas_before_shift") is not None:
        even = [1 - k / steps for k in range(steps)]
        before = torch.tensor(settings["sigmas_before_shift"], dtype=torch.float64)
        # The shift of the size, read off the model's own grid: sigma = m / (m + 1 / before - 1).
        index = steps // 2
        factor = float(schedule.sigma[index] / (1 - schedule.sigma[index])) * (1 / even[index] - 1)
        listed = [*(factor / (factor + 1 / before - 1)).tolist(), 0.0]
    # Lists are rounded; where they say the same as the model's own grid, that is closer to what was run.
    if listed is None or _close(listed, schedule.sigma):
        return schedule
    return Schedule.from_sigmas(listed)


def _close(listed: Sequence[float], sigma: Tensor) -> bool:
    return len(listed) == len(sigma) and float((torch.tensor(listed, dtype=torch.float64) - sigma).abs().max()) < 1e-5
