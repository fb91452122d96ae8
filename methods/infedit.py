"""InfEdit: edit without inverting, by a sampler in which the source is consistent with itself.

Xu, Huang, Pan, Ma, Chai: Inversion-Free Image Editing with Natural Language (CVPR 2024, arXiv 2312.04965), sections 3.1
and 3.2. With the noise of every step drawn afresh, z_{i+1} = alpha_{i+1} x0 + sigma_{i+1} n_i, a known z_0 is x0 at
every level for the prediction eps_cons = (z_s - alpha z_0) / sigma, whatever z_s: nothing has to be inverted ("virtual
inversion"). The target shares start and draws, and what the network gets wrong at the source is taken from it:

    x0_t    = z_0 + ((z_t - z_s) - sigma (e_t - e_s)) / alpha
    z_t'    = alpha' x0_t + sqrt(sigma'^2 - s^2) ((e_t - e_s) + eps_cons) + s n      s^2 = eta sigma'^2
    z_s'    = alpha' z_0  + sqrt(sigma'^2 - s^2) eps_cons + s n

With eta 1, the paper's, the middle terms are gone. The result is x0_t of the last step. Made for latent consistency
models, whose clean estimates are good at every level; any diffusion model samples this way, with more steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

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
from framework.schedule import Schedule, ScheduleOptions, x0_to_eps
from framework.step import Latents, Need, Stream, latents, same_start
from methods.cycle_diffusion import skip_of_strength
from methods.ddim import skip_problems
from methods.unified_attention import UnifiedAttention

StartFrom = Literal["noise", "source"]


@dataclass(frozen=True)
class VirtualInversion(Inversion):
    """The denoising diffusion consistent model: a source that reproduces itself, and others that follow it.

    Recording asks nothing of the network. All branches share start and draws; a layout branch takes part where a
    control wants one.

    Attributes:
        skip: Noisiest steps left out, in [0, steps - 1].
        eta: Share of every level's noise that is drawn afresh, in [0, 1]; 1 is the paper's.
        start_from: "noise" (both published scripts) or "source", noised to the first level.
        drift: What carries the source's own noise at eta below 1: "own", eps_cons as in the paper, or "layout", which
            adds the layout branch's e_m - e_s as the authors' code does; the source then leaves its path.

    Source: InfEdit `pipeline_ead.py` (eaac91e).
    """

    skip: int = 0
    eta: float = 1.0
    start_from: StartFrom = "noise"
    drift: Literal["own", "layout"] = "own"

    streams: ClassVar = (Stream.SOURCE,)

    def __post_init__(self) -> None:
        checks = Checks("VirtualInversion")
        checks.between("skip", self.skip, 0, float("inf"))
        checks.between("eta", self.eta, 0, 1, "the paper's 1")
        checks.one_of("start_from", self.start_from, ("noise", "source"))
        checks.one_of("drift", self.drift, ("own", "layout"))
        checks.done()

    def provides(self) -> frozenset[Need]:
        """Return the draws, and the path of the source where the network has no say in it."""
        known = self.eta == 1 or self.drift == "own"
        return frozenset({Need.NOISE_MAPS, *([Need.TRAJECTORY] if known else [])})

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse a skip that leaves no step."""
        return skip_problems(self.skip, schedule_steps)

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Draw the noise, and with it the path of the source."""
        del predict
        schedule, first, last = ctx.schedule, self.skip, ctx.schedule.num_steps - 1
        noise = ctx.noise("start", 1)[0]
        start = noise if self.start_from == "noise" else schedule.add_noise(z0, noise, first)
        maps = torch.zeros(last + 1, *z0.shape, dtype=z0.dtype, device=z0.device)
        maps[first:last] = ctx.noise("steps", last - first)
        path = torch.zeros(last + 2, *z0.shape, dtype=z0.dtype, device=z0.device)
        path[first], path[-1] = start, z0
        for i in range(first, last):
            path[i + 1] = self._move(z0, self._consistent(path[i], z0, i, schedule), maps[i], i, schedule)
        return Record.on(
            schedule,
            type(self).__name__,
            z0,
            latents=path if Need.TRAJECTORY in self.provides() else None,
            noise_maps=maps,
            own={"virtual_inversion.start": start[None]},
            unused=tuple(range(first)),
            zeroed=(*range(first), last),
            settings={"skip": self.skip, "eta": self.eta, "start_from": self.start_from, "drift": self.drift},
        )

    def executed(self, schedule_steps: int) -> int:
        """Leave the skipped steps out."""
        return schedule_steps - self.skip

    def first(self, record: Record, schedule: Schedule) -> int:
        """Begin after the skipped steps."""
        del record, schedule
        return self.skip

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin every branch at the same latent."""
        return same_start(record.own["virtual_inversion.start"][0], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Move the source along its path, and the others with the differences between predictions."""
        schedule, z0 = ctx.schedule, record.z0
        eps, level, z_s = predict(z, i), schedule.levels[i], z[Stream.SOURCE]
        change = eps.map(lambda e: e - eps[Stream.SOURCE])
        x0 = z.map(lambda z, e: z0 + ((z - z_s) - level.sigma * e) / level.alpha, change)
        if i == schedule.num_steps - 1:
            return x0.with_stream(Stream.SOURCE, z0), state
        assert record.noise_maps is not None
        consistent, noise = self._consistent(z_s, z0, i, schedule), record.noise_maps[i]
        moved = {s: self._move(x0[s], consistent + change[s], noise, i, schedule) for s in z.streams()}
        drift = consistent
        if self.drift == "layout" and change.layout is not None:
            drift = consistent + change.layout
        moved[Stream.SOURCE] = self._move(z0, drift, noise, i, schedule)
        return latents(moved), state

    def _consistent(self, z: Tensor, z0: Tensor, i: int, schedule: Schedule) -> Tensor:
        """Return the prediction with which z leads to z0."""
        level = schedule.levels[i]
        return x0_to_eps(z, z0, alpha=level.alpha, sigma=level.sigma)

    def _move(self, x0: Tensor, eps: Tensor, noise: Tensor, i: int, schedule: Schedule) -> Tensor:
        """Return the next latent of a clean estimate: signal, old noise, new noise."""
        level = schedule.levels[i + 1]
        fresh = self.eta**0.5 * level.sigma
        kept = max(level.sigma**2 - fresh**2, 0.0) ** 0.5 if self.eta < 1 else 0.0
        moved: Tensor = level.alpha * x0 + fresh * noise
        return moved + kept * eps if kept else moved


class InfEdit(EditModule):
    """Virtual inversion with unified attention control: the benchmark script's 12 steps and guidance 2.3.

    Virtual inversion alone has `controls=[]`; with Prompt-to-Prompt, `controls=[PromptToPrompt(...)]`. The demo takes
    15 steps, guidance 2 and the source's maps (`cross_source`); the authors advise 8 steps for easy edits, 25 for style
    and removal, 50 for hard ones. Evaluations per image: 5 to 6 rows of T calls with unified attention, 3 to 4 without.
    """

    references = (
        Reference(
            "Inversion-Free Image Editing with Natural Language",
            "Xu, Huang, Pan, Ma, Chai",
            "CVPR 2024",
            "https://arxiv.org/abs/2312.04965",
            "https://github.com/sled-group/InfEdit (eaac91e)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 12,
        strength: float = 1.0,
        eta: float = 1.0,
        start_from: StartFrom = "noise",
        guidance: Guidance = ClassifierFree(target=2.3, source=1.0),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(spacing="consistency", final_alpha="one"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model; a latent consistency model for few steps.
            steps: T.
            strength: Share of the schedule that is run, the last int(T strength) steps, in (0, 1].
            eta, start_from: See `VirtualInversion`.
            guidance: Scales; that of the target above 1 with unified attention control.
            inversion: Replaces virtual inversion; the settings above then have no effect.
            schedule: Conventions of the schedule; the levels of a consistency model, whose clean end is noise-free.
            **common: See `CommonSettings`; controls are `UnifiedAttention()` unless given.
        """
        common.setdefault("controls", (UnifiedAttention(),))
        inversion = inversion or VirtualInversion(skip_of_strength(strength, steps), eta, start_from)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
