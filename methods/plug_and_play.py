"""Plug-and-Play diffusion features: the edit takes the source's decoder features and self-attention pattern.

Tumanyan, Geyer, Bagon, Dekel: Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation (CVPR 2023,
arXiv 2211.12572), Algorithm 1, in the form of the authors' diffusers code (MichalGeyer/pnp-diffusers).

At every step the source's latent of the same level, from the inversion, runs beside the target under the empty prompt:

    features    residual branch of one decoder block (before the shortcut is added)     first tau_f of the steps
    attention   softmax(q_source k_source^T / sqrt(d)) v_own in the later decoder      first tau_A of the steps

in the target's unconditional and conditional rows alike. Not to be confused with "PnP inversion" (direct inversion).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.control import Control
from framework.errors import Checks, SettingsError
from framework.guidance import ClassifierFree, Guidance, State
from framework.inversion import Inversion, InversionAround, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Schedule, ScheduleOptions, ddim_step
from framework.step import Latents, Need, Rows, Site, Stream, same_start
from methods.control_rows import Executed, row_pairs, with_rows
from methods.ddim import DDIMInversion


@dataclass
class InjectionState:
    """Steps with each kind of injection, and where the edit began."""

    features: int
    attention: int
    executed: Executed


@dataclass(frozen=True)
class FeatureInjection(Control):
    """Injects the source's features and its self-attention queries and keys into the target.

    Attributes:
        features: Share of the steps with features, in [0, 1], int(share * N) steps from the first (tau_f, paper 0.8).
        attention_share: The same for queries and keys (tau_A, paper 0.5).
        layer: Module whose output is injected; None takes the authors', the second convolution of the second residual
            block in the second decoder stage.
        first_site: First self-attention layer, in the order of calls, whose queries and keys are injected; None takes
            the authors' 8 of 16, and so the second half of any network.
    """

    features: float = 0.8
    attention_share: float = 0.5
    layer: str | None = None
    first_site: int | None = None

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE})
    streams: ClassVar[tuple[Stream, ...]] = (Stream.SOURCE,)

    def __post_init__(self) -> None:
        checks = Checks("FeatureInjection")
        checks.between("features", self.features, 0, 1, "a share of the steps; paper 0.8")
        checks.between("attention_share", self.attention_share, 0, 1, "a share of the steps; paper 0.5")
        if self.first_site is not None:
            checks.between("first_site", self.first_site, 0, float("inf"))
        checks.done()

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> InjectionState:
        """Count the steps of both windows."""
        del sites, latent
        steps = ctx.schedule.num_steps
        return InjectionState(int(steps * self.features), int(steps * self.attention_share), Executed())

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Act at the self-attention of the later decoder.

        Raises:
            SettingsError: `first_site` is beyond the network's last one.
        """
        own = [site for site in sites if site.kind == "self"]
        first = len(own) // 2 if self.first_site is None else self.first_site
        if own and first >= len(own):
            raise SettingsError(
                [
                    f"FeatureInjection: first_site={first} is beyond the {len(own)} self-attention layers of this "
                    f"network; give one in [0, {len(own) - 1}]."
                ]
            )
        return own[first:]

    def layers(self, names: Sequence[str]) -> Collection[str]:
        """Act on one residual branch of the decoder.

        Raises:
            SettingsError: The network has no such block.
        """
        if self.features == 0:
            return []
        if self.layer is not None:
            return [self.layer]
        stages = {int(found[1]) for name in names if (found := re.fullmatch(r"up_blocks\.(\d+)", name))}
        wanted = f"up_blocks.{min(1, len(stages) - 1)}.resnets.1.conv2"
        if wanted not in names:
            raise SettingsError(
                [f"FeatureInjection: the network has no {wanted}; name a layer of its decoder, or give features=0."]
            )
        return [wanted]

    def active(self, i: int, state: Any) -> bool:
        """Act while a window is open."""
        now: InjectionState = state
        return now.executed.step(i) < max(now.features, now.attention)

    def qkv(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, i: int, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the target the source's queries and keys."""
        del site
        now: InjectionState = state
        if now.executed.step(i) >= now.attention:
            return q, k, v
        q, k = (with_rows(x, *((target, x[source]) for target, source in row_pairs(rows))) for x in (q, k))
        return q, k, v

    def output(self, layer: str, rows: Rows, x: Tensor, i: int, state: Any) -> Tensor:
        """Give the target the source's features."""
        del layer
        now: InjectionState = state
        if now.executed.step(i) >= now.features:
            return x
        return with_rows(x, *((target, x[source]) for target, source in row_pairs(rows)))


@dataclass(frozen=True)
class FineInversion(Inversion):
    """DDIM inversion in more and smaller steps than the edit, whose levels must be among its own.

    Recorded, and shown to hooks, are the latents of the edit's levels; steps beyond the noisiest of them are left out.
    The network is told the level that a step goes to.

    Attributes:
        steps: Steps over all of training time, a multiple of the edit's within rounding (authors 999 for 50).

    Source: pnp-diffusers `preprocess.py`.
    """

    steps: int = 999

    def __post_init__(self) -> None:
        checks = Checks("FineInversion")
        checks.between("steps", self.steps, 1, 1000, "authors 999")
        checks.done()

    def provides(self) -> frozenset[Need]:
        """Return the trajectory."""
        return frozenset({Need.TRAJECTORY})

    def timesteps(self, schedule: Schedule) -> list[int]:
        """List the timesteps, ascending, to the edit's noisiest.

        Raises:
            SettingsError: The schedule has no training table, or the edit has a level that is not among them.
        """
        if schedule.alphas_cumprod is None:
            raise SettingsError(["FineInversion needs a diffusion schedule; a flow has no training timesteps."])
        stride = len(schedule.alphas_cumprod) // self.steps
        wanted = [int(level.t) for level in schedule.levels[:-1]]
        found = list(range(wanted[-1] % stride, wanted[0] + 1, stride))
        missed = sorted(set(wanted) - set(found))
        if missed:
            raise SettingsError(
                [
                    f"FineInversion: steps={self.steps} go by {stride} timesteps and pass by {missed[0]}, a level of "
                    "the edit; give a multiple of the edit's steps, or 999."
                ]
            )
        return found

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Walk from the clean latent to the edit's noisiest level."""
        schedule = ctx.schedule
        interval = {int(level.t): i for i, level in enumerate(schedule.levels[:-1])}
        z, before, trajectory = z0, schedule.levels[-1], [z0]
        for t in self.timesteps(schedule):
            level = schedule.at_timestep(t)
            reached = interval.get(t)
            eps = predict(Latents(source=z), reached or 0, level=level).source
            assert eps is not None
            z, before = ddim_step(z, eps, before, level), level
            if reached is not None:
                levels = (schedule.levels[reached + 1], schedule.levels[reached])
                shown = trajectory[-1]
                z = ctx.invert_step(len(trajectory) - 1, reached, levels, z=shown, z_next=z, prediction=eps)
                trajectory.append(z)
        latents = torch.stack(trajectory[::-1])
        return Record.on(schedule, type(self).__name__, z0, latents=latents, settings={"steps": self.steps})

    def start(self, record: Record, ctx: Context) -> Latents:
        """Begin every stream at the trajectory."""
        assert record.latents is not None
        return same_start(record.latents[0], ctx.streams)

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Denoise by one DDIM step."""
        del record
        levels = ctx.schedule.levels
        return z.map(lambda z, eps: ddim_step(z, eps, levels[i], levels[i + 1]), predict(z, i)), state


@dataclass(frozen=True)
class OnTrajectory(InversionAround):
    """Keeps the source row on the latents of the inversion, level by level, instead of sampling it again.

    Its prediction is needed only for what controls read from it.
    """

    base: Inversion = field(default_factory=DDIMInversion)

    def __post_init__(self) -> None:
        super().__post_init__()
        if Need.TRAJECTORY not in self.base.provides():
            raise SettingsError(
                [f"OnTrajectory needs an inversion that keeps its latents; {type(self.base).__name__} does not."]
            )

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Put the source on its trajectory, and step as the base does."""
        if z.source is not None and record.latents is not None:
            z = z.with_stream(Stream.SOURCE, record.latents[i])
        return self.base.step(record, i, z, predict, state, ctx)


class PlugAndPlay(EditModule):
    """DDIM inversion with the source prompt, then denoising with injected features and attention.

    The authors invert in 999 steps, of which sampling uses every twentieth latent (`inversion_steps=999`); here
    inversion and edit have the same steps unless told, as in the comparison of PIE-Bench. Otherwise their defaults: 50
    steps, guidance 7.5, features in the first 0.8 and attention in the first 0.5 of the steps.
    """

    references = (
        Reference(
            "Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation",
            "Tumanyan, Geyer, Bagon, Dekel",
            "CVPR 2023",
            "https://arxiv.org/abs/2211.12572",
            "https://github.com/MichalGeyer/pnp-diffusers (e9207c0)",
            "none stated",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        features: float = 0.8,
        attention: float = 0.5,
        inversion_steps: int | None = None,
        guidance: Guidance = ClassifierFree(target=7.5, source=0.0, inversion=1.0),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            features, attention: Shares of the steps; see `FeatureInjection`.
            inversion_steps: Steps of the inversion, see `FineInversion`; None for those of the edit.
            guidance: Scale of the edit; the source row has the empty prompt (scale 0), the inversion its own.
            inversion: Replaces DDIM inversion with the source kept on its trajectory, whatever `inversion_steps`.
            schedule: Conventions of the schedule; the clean end is a[0].
            **common: See `CommonSettings`; further controls come after the injection.
        """
        injection = FeatureInjection(features, attention)
        common["controls"] = (injection, *common.get("controls", ()))
        fine = None if inversion is not None or inversion_steps is None else FineInversion(inversion_steps)
        inversion = inversion or OnTrajectory(fine or DDIMInversion())
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
        if fine is not None:
            fine.timesteps(self.edit_schedule)  # refused here rather than while inverting
