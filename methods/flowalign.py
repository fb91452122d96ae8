"""FlowAlign: FlowEdit with the source prompt as the unconditional one and a pull towards the source.

Kim, Hong, Park, Ye: FlowAlign: Trajectory-Regularized, Inversion-Free Flow-based Image Editing (ICLR 2026, arXiv
2505.23145). With q, p of FlowEdit (the same noise in both) and Z starting as the source,

    v_p = v(p, source) + w (v(p, target) - v(p, source))        v_q = v(q, source)
    Z <- Z + (sigma_next - sigma) (v_p - v_q) + zeta ((q - sigma v_q) - (p - sigma v_p))

The last term draws the edit's clean estimate to the source's; it belongs to a step, whatever its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Unpack

from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import Guidance, State, StepNetwork
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Schedule, ScheduleOptions, euler_step, velocity_to_x0
from framework.step import COND, Latents, Row, Stream, same_start
from methods.ddim import skip_problems
from methods.flowedit import noised_pair

SOURCE, TARGET = Row(Stream.SOURCE, COND), Row(Stream.TARGET, COND)
AT_TARGET = Row(Stream.LAYOUT, COND)
"""The source prompt at the target's latent: the layout stream's prompt is the source's."""


def beside_target(z: Latents) -> Latents:
    """Add the target's latent a second time, for the source prompt."""
    return z.with_stream(Stream.LAYOUT, z[Stream.TARGET])


@dataclass(frozen=True)
class SourceAsUnconditional(Guidance):
    """Guidance away from the source prompt: v(z, source) + w (v(z, target) - v(z, source)), three rows in one call.

    Attributes:
        target: Scale w of the edit, at least 0.
        told: Scale that networks with embedded guidance are told.
    """

    target: float = 13.5
    told: float = 1.0

    def __post_init__(self) -> None:
        checks = Checks("SourceAsUnconditional")
        checks.between("target", self.target, 0, float("inf"), "the authors use 7 to 13.5")
        checks.between("told", self.told, 0, float("inf"))
        checks.done()

    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Predict with the source prompt."""
        del ctx
        return Latents(source=network(z, [SOURCE], scales=self._told())[SOURCE])

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Predict the edit from both prompts, and the source, where it takes part, from its own."""
        del i, record, ctx
        rows = [AT_TARGET, TARGET] if z.source is None else [SOURCE, AT_TARGET, TARGET]
        v = network(beside_target(z), rows, scales=self._told())
        edit = v[AT_TARGET] + self.target * (v[TARGET] - v[AT_TARGET])
        return Latents(target=edit, source=v.get(SOURCE)), state

    def _told(self) -> Mapping[Stream, float]:
        return dict.fromkeys(Stream, self.told)


@dataclass(frozen=True)
class AlignedDifference(Inversion):
    """Records nothing but draws; the edit moves by velocity differences and is pulled towards the source.

    Attributes:
        source_weight: Strength zeta of the pull, in [0, 1]; 0 is FlowEdit's step.
        skip: Noisiest steps left out, in [0, steps - 1].

    Source: FlowAlign `diffusion/editing/sd3_edit.py` (29c6fe1); its `n_start` is not used there.
    """

    source_weight: float = 0.01
    skip: int = 0

    forms: ClassVar = ("velocity",)
    streams: ClassVar = (Stream.SOURCE,)

    def __post_init__(self) -> None:
        checks = Checks("FlowAlign")
        checks.between("source_weight", self.source_weight, 0, 1, "the authors use 0.01")
        checks.between("skip", self.skip, 0, float("inf"))
        checks.done()

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a skip that leaves no step."""
        return skip_problems(self.skip, schedule_steps)

    def executed(self, schedule_steps: int) -> int:
        """Leave the skipped steps out."""
        return schedule_steps - self.skip

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Draw the noise; the network is not asked."""
        del predict
        return Record.on(
            ctx.schedule,
            type(self).__name__,
            z0,
            own={"flowalign.noise": ctx.noise("flowalign", ctx.schedule.num_steps - self.skip)},
            unused=tuple(range(self.skip)),
            settings={"source_weight": self.source_weight, "skip": self.skip},
        )

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin after the skipped steps."""
        del record, schedule
        return self.skip

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin at the source, clean."""
        return same_start(record.z0, ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Move by the difference of the velocities, and towards the source by that of the clean estimates."""
        level, level_next = ctx.schedule.levels[i], ctx.schedule.levels[i + 1]
        noise = record.own["flowalign.noise"][i - self.skip]
        pair = noised_pair(z[Stream.TARGET], record.z0, noise, level.sigma)
        velocity = predict(pair, i)
        clean = pair.map(lambda z, v: velocity_to_x0(z, v, sigma=level.sigma), velocity)
        difference = velocity[Stream.TARGET] - velocity[Stream.SOURCE]
        moved = euler_step(z[Stream.TARGET], difference, level, level_next)
        moved = moved + self.source_weight * (clean[Stream.SOURCE] - clean[Stream.TARGET])
        return z.with_stream(Stream.TARGET, moved), state


class FlowAlign(EditModule):
    """Aligned velocity differences: 33 steps and guidance 13.5, as in the authors' script (7 in their class).

    Evaluations per image: T calls of 3 rows.
    """

    references = (
        Reference(
            "FlowAlign: Trajectory-Regularized, Inversion-Free Flow-based Image Editing",
            "Kim, Hong, Park, Ye",
            "ICLR 2026",
            "https://arxiv.org/abs/2505.23145",
            "https://github.com/FlowAlign/FlowAlign (29c6fe1)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 33,
        source_weight: float = 0.01,
        skip: int = 0,
        guidance: Guidance = SourceAsUnconditional(),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A flow model.
            steps: T.
            source_weight, skip: See `AlignedDifference`.
            guidance: Scale w of the edit (`target`).
            inversion: Replaces the aligned difference; the settings above then have no effect.
            schedule: Conventions of the schedule.
            **common: See `CommonSettings`.
        """
        inversion = inversion or AlignedDifference(source_weight, skip)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
