"""SDEdit: noise the image part of the way, denoise it towards the target prompt. The baseline that inverts nothing.

Meng et al.: SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (ICLR 2022, arXiv
2108.01073). As in diffusers' image-to-image pipeline the sampler is DDIM, by default without noise (eta 0); the paper
uses the stochastic one.

    z = alpha z_0 + sigma n at the level after the skipped steps, then ordinary guided sampling
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Unpack

from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Schedule, ScheduleOptions, ddim_step, ddpm_posterior, euler_step
from framework.step import Latents, same_start
from methods.cycle_diffusion import skip_of_strength
from methods.ddim import skip_problems


@dataclass(frozen=True)
class NoInversion(Inversion):
    """Only noises the source; nothing ties the edit to it but the level where it starts.

    Attributes:
        skip: Noisiest steps left out, in [0, steps - 1].
        eta: Stochasticity of the sampler in [0, 1]; above 0 one draw per step, also in the last. Diffusion only.
    """

    skip: int = 0
    eta: float = 0.0

    forms: ClassVar = ("epsilon", "velocity")
    has_source: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks = Checks("SDEdit")
        checks.between("skip", self.skip, 0, float("inf"))
        checks.between("eta", self.eta, 0, 1)
        checks.done()

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a skip that leaves no step."""
        return skip_problems(self.skip, schedule_steps)

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Draw the noise; the network is not asked."""
        del predict
        start = ctx.schedule.add_noise(z0, ctx.noise("start", 1)[0], self.skip)
        own = {"sdedit.start": start[None]}
        if self.eta > 0:
            own["sdedit.noise"] = ctx.noise("steps", ctx.schedule.num_steps - self.skip)
        settings = {"skip": self.skip, "eta": self.eta}
        return Record.on(
            ctx.schedule, type(self).__name__, z0, own=own, unused=tuple(range(self.skip)), settings=settings
        )

    def executed(self, schedule_steps: int) -> int:
        """Leave the skipped steps out."""
        return schedule_steps - self.skip

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin after the skipped steps."""
        del record, schedule
        return self.skip

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin at the noised source."""
        return same_start(record.own["sdedit.start"][0], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Sample as the model always does."""
        level, level_next = ctx.schedule.levels[i], ctx.schedule.levels[i + 1]
        prediction = predict(z, i)
        if ctx.schedule.form == "velocity":
            return z.map(lambda z, v: euler_step(z, v, level, level_next), prediction), state
        if self.eta == 0:
            return z.map(lambda z, eps: ddim_step(z, eps, level, level_next), prediction), state
        noise = record.own["sdedit.noise"][i - self.skip]

        def sample(z: Tensor, eps: Tensor) -> Tensor:
            mean, std = ddpm_posterior(z, eps, level, level_next, eta=self.eta, rule="ddim")
            return mean + std * noise

        return z.map(sample, prediction), state


class SDEdit(EditModule):
    """Noise and denoise. Defaults are diffusers': 50 steps, strength 0.8, guidance 7.5, eta 0."""

    references = (
        Reference(
            "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
            "Meng, He, Song, Song, Wu, Zhu, Ermon",
            "ICLR 2022",
            "https://arxiv.org/abs/2108.01073",
            "https://github.com/ermongroup/SDEdit; compared with diffusers' StableDiffusionImg2ImgPipeline",
            "Apache-2.0 (diffusers)",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        strength: float = 0.8,
        eta: float = 0.0,
        guidance: Guidance = ClassifierFree(target=7.5),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion or flow model.
            steps: T.
            strength: Share of the schedule that is run, the last int(T strength) steps, in (0, 1]. Even at 1 the start
                holds a little of the source.
            eta: Stochasticity of the sampler in [0, 1].
            guidance: Scale of the edit (`target`).
            inversion: Replaces the noising; `strength` and `eta` then have no effect.
            schedule: Conventions of the schedule; the clean end is a[0], as in the authors' code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or NoInversion(skip_of_strength(strength, steps), eta)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
