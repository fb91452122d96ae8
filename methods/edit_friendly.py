"""Edit-friendly DDPM inversion.

Huberman-Spiegelglas, Kulikov, Michaeli: An Edit Friendly DDPM Noise Space: Inversion and Manipulations (CVPR 2024,
arXiv 2304.06140), Algorithm 1.

    z_i = alpha_i z_0 + sigma_i n_i          n_i independent at every level: not a path of the forward chain
    w_i = (z_{i+1} - mean(z_i)) / std_i      the noise map that takes the sampler from level i to level i + 1

The maps are larger than a sampler's own and neighbours point away from each other (correlation near -1/2); that ties
them to the image. Indices run in execution order, noisy to clean; the authors' arrays run the other way (their zs[0] is
our last map). Where their code departs from the paper's text: `zero_last`, `eta_rule`, and the rewriting of z_{i+1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import EtaRule, Schedule, ScheduleOptions, ddpm_posterior
from framework.step import Latents, Need, same_start
from methods.ddim import skip_problems

Eta = float | Sequence[float]


@dataclass(frozen=True)
class NoiseMapInversion(Inversion):
    """What inversions into DDPM noise maps share: skip, eta, and stepping with the recorded maps.

    Attributes:
        skip: Noisiest steps left out of the edit, in [0, steps - 1]; more keeps more of the source.
        eta: Stochasticity in (0, 1], one number or one per step in execution order. At 0 there are no maps: use DDIM.
        eta_rule: "official" or "ddim", see `ddpm_posterior`; they agree at eta 1.
    """

    skip: int = 36
    eta: Eta = 1.0
    eta_rule: EtaRule = "official"

    def __post_init__(self) -> None:
        checks = Checks(type(self).__name__)
        checks.between("skip", self.skip, 0, float("inf"))
        for value in [self.eta] if isinstance(self.eta, (int, float)) else self.eta:
            fits = checks.between("eta", value, 0, 1, "paper default 1")
            if fits:
                checks.require(
                    value > 0, f"eta={self.eta} leaves no noise map where it is 0; give (0, 1], or use DDIM inversion."
                )
        checks.one_of("eta_rule", self.eta_rule, ("official", "ddim"))
        checks.done()

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a skip that leaves no step, and a list of etas of another length."""
        problems = skip_problems(self.skip, schedule_steps)
        if not isinstance(self.eta, (int, float)) and len(self.eta) != schedule_steps:
            problems.append(
                f"eta has {len(self.eta)} values for steps={schedule_steps}; give one number or one per step."
            )
        return problems

    def provides(self) -> frozenset[Need]:
        """Return noise maps and the latents that they join."""
        return frozenset({Need.NOISE_MAPS, Need.TRAJECTORY})

    def posterior(self, z: Tensor, eps: Tensor, i: int, schedule: Schedule) -> tuple[Tensor, float]:
        """Mean and standard deviation of interval i; see `ddpm_posterior`."""
        eta = self.eta if isinstance(self.eta, (int, float)) else self.eta[i]
        return ddpm_posterior(z, eps, schedule.levels[i], schedule.levels[i + 1], eta=eta, rule=self.eta_rule)

    def extract(self, z: Tensor, eps: Tensor, z_next: Tensor, i: int, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Find the map of interval i, and z_next as the sampler will arrive at it (rounding included).

        A step that does not move (variance 0) has a map of zeros and keeps z_next.
        """
        mean, std = self.posterior(z, eps, i, schedule)
        if std == 0:
            return torch.zeros_like(z), z_next
        noise = (z_next - mean) / std
        return noise, mean + std * noise

    def executed(self, schedule_steps: int) -> int:
        """Leave the skipped steps out."""
        return schedule_steps - self.skip

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin after the skipped steps."""
        del record, schedule
        return self.skip

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin every stream at the same noised latent."""
        assert record.latents is not None
        return same_start(record.latents[self.skip], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Take the sampler's own step with the recorded map in place of fresh noise."""
        assert record.noise_maps is not None
        noise = same_start(record.noise_maps[i], z.streams())
        return self.inject(z, predict(z, i), noise, i, state, ctx)

    def inject(
        self, z: Latents, prediction: Latents, noise: Latents, i: int, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Step with given noise maps, one per stream; see `step`."""

        def sample(z: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
            mean, std = self.posterior(z, eps, i, ctx.schedule)
            return mean + std * noise

        return z.map(sample, prediction, noise), state


@dataclass(frozen=True)
class EditFriendlyInversion(NoiseMapInversion):
    """The edit-friendly noise space.

    Attributes:
        zero_last: Set the map of the last step to zero, as the authors' code does; False reconstructs to rounding.
        sequential: Evaluate level after level, each on the rewritten latent, as the authors do; needed only where bits
            matter in half precision. Otherwise all levels are known beforehand and share a few large calls.
    """

    zero_last: bool = True
    sequential: bool = False

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Noise every level independently and read off the maps that join them."""
        schedule = ctx.schedule
        steps = range(schedule.num_steps)
        draws = ctx.noise("edit-friendly levels", schedule.num_steps)
        z = torch.cat([schedule.add_noise_everywhere(z0, draws), z0[None]])
        known = None if self.sequential else predict.at_levels(z[:-1], steps)
        maps = torch.empty_like(z[:-1])
        for i in steps:
            eps = predict(Latents(source=z[i]), i).source if known is None else known[i]
            assert eps is not None
            maps[i], arrived = self.extract(z[i], eps, z[i + 1], i, schedule)
            levels = (schedule.levels[i], schedule.levels[i + 1])
            z[i + 1] = ctx.invert_step(i, i, levels, z=z[i], z_next=arrived, prediction=eps, noise=maps[i])
        if self.zero_last:
            maps[-1] = 0
        return Record.on(
            schedule,
            type(self).__name__,
            z0,
            latents=z,
            noise_maps=maps,
            unused=tuple(range(self.skip)),
            zeroed=(schedule.num_steps - 1,) if self.zero_last else (),
            settings={"skip": self.skip, "eta": self.eta, "eta_rule": self.eta_rule, "zero_last": self.zero_last},
        )


class EditFriendlyDDPM(EditModule):
    """Edit-friendly inversion, then denoising with the same maps towards the target prompt.

    Defaults are the authors': 100 steps, skip 36, guidance 3.5 with the source prompt and 15 with the target.
    """

    references = (
        Reference(
            "An Edit Friendly DDPM Noise Space: Inversion and Manipulations",
            "Huberman-Spiegelglas, Kulikov, Michaeli",
            "CVPR 2024",
            "https://arxiv.org/abs/2304.06140",
            "https://github.com/inbarhub/DDPM_inversion (58fc881)",
            "MIT",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 100,
        skip: int = 36,
        eta: float | Sequence[float] = 1.0,
        eta_rule: EtaRule = "official",
        zero_last: bool = True,
        sequential: bool = False,
        guidance: Guidance = ClassifierFree(target=15.0, source=3.5),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            skip, eta, eta_rule: See `NoiseMapInversion`.
            zero_last, sequential: See `EditFriendlyInversion`.
            guidance: Scales of inversion and source row (`source`) and of the edit (`target`).
            inversion: Replaces the inversion; the settings of the default one then have no effect.
            schedule: Conventions of the schedule; the clean end is a[0], as in the authors' code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or EditFriendlyInversion(skip, eta, eta_rule, zero_last, sequential)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
