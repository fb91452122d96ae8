"""Sources that the model generates itself, in their true noise or inverted like any other picture.

Huberman-Spiegelglas, Kulikov, Michaeli: An Edit Friendly DDPM Noise Space (CVPR 2024, arXiv 2304.06140), section 3 and
opening figure. The native noise of a picture is known only where the model made it:

    z_0 ~ N(0, I),   w_i ~ N(0, I)            drawn independently
    z_{i+1} = mean(z_i) + std_i w_i           the sampler's own path, which ends at the source

Editing with these very maps ("native") is what the edit-friendly maps of the same picture are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from framework.context import Context
from framework.errors import Checks
from framework.guidance import State
from framework.inversion import InversionAround, RecordPredict
from framework.record import Record
from framework.step import Conditions, Latents, Row, Stream
from methods.edit_friendly import NoiseMapInversion


@dataclass(frozen=True)
class GeneratedSource(InversionAround):
    """Generates the source from its prompt, at the guidance of the inversion; the batch's picture gives only its size.

    With several draws every draw makes a source of its own.

    Attributes:
        base: The inversion whose sampler makes the source, and which inverts it unless `native`.
        native: Record the noise that the source was made of, instead of inverting it.
        keep_prompt: Denoise the target under the source's prompt, so that only its noise is changed.
    """

    native: bool = False
    keep_prompt: bool = False

    makes_source: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("GeneratedSource")
        checks.require(
            isinstance(self.base, NoiseMapInversion),
            f"base={type(self.base).__name__} has no noise maps to sample with; take EditFriendlyInversion or "
            "PosteriorInversion.",
        )
        checks.done()

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Sample the source, then keep its noise or invert it."""
        assert isinstance(self.base, NoiseMapInversion)
        schedule = ctx.schedule
        maps = ctx.noise("native steps", schedule.num_steps)
        zeroed = (schedule.num_steps - 1,) if getattr(self.base, "zero_last", False) else ()
        maps[list(zeroed)] = 0
        z = torch.cat([ctx.noise("native start", 1), torch.empty_like(maps)])
        for i in range(schedule.num_steps):
            eps = predict(Latents(source=z[i]), i)[Stream.SOURCE]
            mean, std = self.base.posterior(z[i], eps, i, schedule)
            z[i + 1] = mean + std * maps[i]
            if self.native:
                levels = (schedule.levels[i], schedule.levels[i + 1])
                z[i + 1] = ctx.invert_step(i, i, levels, z=z[i], z_next=z[i + 1], prediction=eps, noise=maps[i])
        made = z[-1].clone()
        if not self.native:
            return self.base.record(made, predict, ctx)
        settings = {"skip": self.base.skip, "eta": self.base.eta, "eta_rule": self.base.eta_rule, "native": True}
        unused = tuple(range(self.base.skip))
        return Record.on(
            schedule, self.kind, made, latents=z, noise_maps=maps, unused=unused, zeroed=zeroed, settings=settings
        )

    def condition(self, record: Record, i: int, conditions: Conditions) -> Conditions:
        """Give the target the source's prompt where it is to be kept."""
        conditions = self.base.condition(record, i, conditions)
        if not self.keep_prompt:
            return conditions
        return {row: conditions.get(_of_source(row), condition) for row, condition in conditions.items()}

    def inject(
        self, z: Latents, prediction: Latents, noise: Latents, i: int, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Step with given noise maps as the base does, so that they can be manipulated."""
        assert isinstance(self.base, NoiseMapInversion)
        return self.base.inject(z, prediction, noise, i, state, ctx)


def _of_source(row: Row) -> Row:
    return Row(Stream.SOURCE, row.branch) if row.stream is Stream.TARGET else row
