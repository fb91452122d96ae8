"""Noise Map Guidance: keep the source on the inversion's trajectory by a gradient step before every guided step.

Cho, Lee, Kim, Oh, Jeong: Noise Map Guidance: Inversion with Spatial Context for Real Image Editing (ICLR 2024,
arXiv 2402.04625). In the paper's words the inversion's latents z* are the noise maps.

    y = step(z, eps_0),   G = d |y - z*| / dz             eps_0 the unconditional prediction, source row only
    z <- step(z, eps_0 + s_N s_g sigma G)                 first update
    z <- step(z, u + s_T (c - u))                         second update, same step, all rows

The code's reference z* lies at the level that the step leaves, not at the one that the first update arrives at; so the
first update pulls the source onto its trajectory where it stands, and the second one moves it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Unpack, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State, StepNetwork
from framework.inversion import Inversion
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Level, ScheduleOptions, ddim_step
from framework.step import UNCOND, Latents, Need, Row, Stream
from methods.ddim import Convention, DDIMInversion

Loss = Literal["l1", "l2", "smooth_l1"]
Reached = Literal["previous", "current", "next"]

_UNCOND = Row(Stream.SOURCE, UNCOND)


class NoiseMapStep(NamedTuple):
    """The first update's parts, [B, ...] each: unconditional prediction, and gradient of the mean distance."""

    eps: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class NoiseMapGuidance(ClassifierFree):
    """Classifier-free guidance after a noise-map update of the source row.

    The update runs outside the controls. Its gradient takes one backward pass through the network for one row per
    image; the graph is dropped at once, so that memory does not depend on the number of steps. Evaluations per image
    and step: one forward and one backward beside the guided rows.

    Attributes:
        target, source, inversion: s_T for both rows, and the scale while inverting; see `ClassifierFree`.
        noise_map_scale: s_N; enters only through its product with `gradient_scale`.
        gradient_scale: s_g; the other distances need other scales than l1.
        loss: Distance whose gradient is taken: "l1", "l2" (squares) or "smooth_l1".
        smooth_l1_beta: Where smooth_l1 turns from squares to absolute values.
        elements: What the summed distance is divided by. None is the number of elements of the latent, the code's mean,
            with which the strength per element falls as latents grow; 16384 keeps the strength that the default scales
            have on a 4 x 64 x 64 latent.
        reference: Level of the noise map that the first update aims at: "current", the one that the step leaves (both
            published pipelines), "next", the one that it arrives at, or "previous", the one before (what the index of
            either pipeline means on the other's inversion).
        jacobian_free: Leave the network's own derivative out, dy/dz = alpha_next / alpha. An approximation of ours, not
            the paper's: no backward pass through the network.

    Source: NMG code (hansam95/NMG, d7b6bf5), pipeline_stable_diffusion_nmg.py. At s_T of 1 or below that code guides
    the first update by the prompt in place of the empty text, by a slip; here it is always the empty text.
    """

    target: float = 10.0
    source: float = 10.0
    inversion: float | None = 1.0
    noise_map_scale: float = 10.0
    gradient_scale: float = 5000.0
    loss: Loss = "l1"
    smooth_l1_beta: float = 1e-4
    elements: int | None = None
    reference: Reached = "current"
    jacobian_free: bool = False

    needs: ClassVar = frozenset({Need.SOURCE, Need.TRAJECTORY, Need.GRAD})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("NoiseMapGuidance")
        checks.between("noise_map_scale", self.noise_map_scale, 0, float("inf"), "paper default 10")
        checks.between("gradient_scale", self.gradient_scale, 0, float("inf"), "paper default 5000")
        checks.one_of("loss", self.loss, ("l1", "l2", "smooth_l1"))
        checks.require(
            self.smooth_l1_beta > 0,
            f"smooth_l1_beta={self.smooth_l1_beta} is not allowed; give a number above 0 (the code's 1e-4).",
        )
        if self.elements is not None:
            checks.between("elements", self.elements, 1, float("inf"), "16384 is a 4 x 64 x 64 latent")
        checks.one_of("reference", self.reference, get_args(Reached))
        checks.done()

    def prepare(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Make the first update: the source row alone, towards its noise map."""
        level, level_next = ctx.schedule.levels[i], ctx.schedule.levels[i + 1]
        source = z[Stream.SOURCE]
        eps, gradient = self.noise_map_step(source, self.aim(record, i, ctx), level, level_next, network)
        shifted = eps + self.noise_map_scale * self.gradient_scale * level.sigma * gradient
        return z.with_stream(Stream.SOURCE, ddim_step(source, shifted, level, level_next)), state

    def aim(self, record: Record, i: int, ctx: Context) -> Tensor:
        """Return the noise map that interval i is guided by, found by its level, [B, ...]."""
        assert record.latents is not None
        current = int((record.t - ctx.schedule.levels[i].t).abs().argmin())
        index = current + {"previous": -1, "current": 0, "next": 1}[self.reference]
        return record.latents[min(max(index, 0), len(record.latents) - 1)]

    def noise_map_step(
        self, source: Tensor, aim: Tensor, level: Level, level_next: Level, network: StepNetwork
    ) -> NoiseMapStep:
        """Predict without a prompt, and differentiate the distance of the next latent to its noise map.

        Args:
            source: Latent of the source, [B, ...].
            aim: Noise map, same shape.
            level, level_next: Of the step.
            network: Bound to the step.
        """
        elements = self.elements or source[0].numel()
        # The distance is summed over images, and over pixels to be divided afterwards: no image's gradient depends on
        # its batch, and none underflows in half precision.
        with torch.enable_grad():
            z = source.detach().clone().requires_grad_(not self.jacobian_free)
            eps = network(Latents(source=z), [_UNCOND], controlled=False)[_UNCOND]
            arrived = ddim_step(z, eps, level, level_next)
            if self.jacobian_free:
                arrived = arrived.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.distance(arrived, aim), arrived)
                gradient = level_next.alpha / level.alpha * gradient
            else:
                (gradient,) = torch.autograd.grad(self.distance(arrived, aim), z)
        return NoiseMapStep(eps.detach(), gradient / elements)

    def distance(self, z: Tensor, aim: Tensor) -> Tensor:
        """Sum the distance over all elements."""
        if self.loss == "l1":
            return (z - aim).abs().sum()
        if self.loss == "l2":
            return (z - aim).square().sum()
        return F.smooth_l1_loss(z, aim, beta=self.smooth_l1_beta, reduction="sum")


class NMG(EditModule):
    """Noise Map Guidance with the paper's settings: 50 steps, all scales 10, gradient scale 5000, l1.

    The default inversion is that of its Prompt-to-Prompt and pix2pix-zero pipelines; its MasaCtrl pipeline has
    convention "next_step". Evaluations per image: T, then T forward and T backward, then 4 T.
    """

    references = (
        Reference(
            "Noise Map Guidance: Inversion with Spatial Context for Real Image Editing",
            "Cho, Lee, Kim, Oh, Jeong",
            "ICLR 2024",
            "https://arxiv.org/abs/2402.04625",
            "https://github.com/hansam95/NMG (d7b6bf5)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        convention: Convention = "input_level",
        skip: int = 0,
        guidance: Guidance = NoiseMapGuidance(),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(steps_offset=0, final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            convention, skip: Of the DDIM inversion; see `DDIMInversion`.
            guidance: Noise map guidance with its scales.
            inversion: Replaces DDIM inversion by another with a trajectory; `convention` and `skip` then have no
                effect.
            schedule: Conventions of the schedule; timesteps begin at 0 and the clean end is a[0], as in the code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or DDIMInversion(convention, skip)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
