"""Null-text inversion: optimise the unconditional embedding of every step so that guidance follows the inversion.

Mokady, Hertz, Aberman, Pritch, Cohen-Or: Null-text Inversion for Editing Real Images using Guided Diffusion Models
(CVPR 2023, arXiv 2211.09794), Algorithm 1.

    z* = DDIM inversion at guidance 1                                    the pivots
    for every step i, noisy to clean, from the u of the step before:
        u = argmin || z*_{i+1} - step(z_i, u + w (c - u)) ||^2           a few updates of Adam
        z_{i+1} = step(z_i, with that u)

(u and c stand for the predictions under them.) The schedules of learning rate and tolerance are the code's, functions
of the step's index whatever the number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance
from framework.inversion import InversionAround, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import ScheduleOptions, ddim_step
from framework.step import COND, UNCOND, Conditions, Latents, Need, Row, Stream
from methods.ddim import Convention, DDIMInversion

_DDIM = DDIMInversion()
_COND, _UNCOND = Row(Stream.SOURCE, COND), Row(Stream.SOURCE, UNCOND)


class _Descent(NamedTuple):
    """Embeddings [B, L, D] after one step's optimisation, and its losses [B, inner steps]."""

    text: Tensor
    losses: Tensor


@dataclass(frozen=True)
class NullTextInversion(InversionAround):
    """DDIM inversion, then one optimised unconditional embedding per step, each image with its own.

    The record keeps the embeddings [T, B, L, D] as `null_text.embeddings` and the losses before each update
    [T, B, inner steps] as `null_text.losses`, NaN where an image had stopped. Images are optimised together and stop
    one by one; those that have stopped are not evaluated. Pooled features, where a network has them, stay the empty
    text's.

    Evaluations per image beside the inversion's T: T conditional ones, which are kept (the code makes them twice), at
    most T inner_steps with gradients, and T with the result. Memory: the activations of the whole network for one row
    per image, about 10 GB for a 512 x 512 picture on Stable Diffusion in float32 and half of it in half precision.

    Attributes:
        base: How the source is inverted; must follow the schedule's levels.
        guidance_scale: w of the source row while denoising, above 1; the embeddings fit this scale.
        inner_steps: Most updates per step, at least 1.
        learning_rate: Of Adam, at the first step.
        decay: Share by which the learning rate falls per step: rate (1 - decay i).
        tolerance: An image stops after an update whose loss was below tolerance + growth i.
        growth: See `tolerance`.
        betas, epsilon: Of Adam, whose state begins anew at every step.
        single_branch: Use the embeddings for the source row alone (an ablation of direct inversion's paper).
    """

    base: DDIMInversion = _DDIM
    guidance_scale: float = 7.5
    inner_steps: int = 10
    learning_rate: float = 1e-2
    decay: float = 1e-2
    tolerance: float = 1e-5
    growth: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    single_branch: bool = False

    needs: ClassVar = frozenset({Need.GRAD, Need.SOURCE})

    def __post_init__(self) -> None:
        checks = Checks("NullTextInversion")
        checks.require(
            self.guidance_scale > 1,
            f"guidance_scale={self.guidance_scale} (guidance.source) does not go with null-text inversion: at or below "
            "1 there is nothing to repair; give a scale above 1 (paper default 7.5), or use DDIM.",
        )
        checks.between("inner_steps", self.inner_steps, 1, float("inf"), "paper default 10; for none use DDIM")
        checks.require(
            self.learning_rate > 0, f"learning_rate={self.learning_rate} is not allowed; give a number above 0 (0.01)."
        )
        checks.between("decay", self.decay, 0, 1, "the code's 0.01")
        checks.between("tolerance", self.tolerance, 0, float("inf"), "the code's 1e-5")
        checks.between("growth", self.growth, 0, float("inf"), "the code's 2e-5")
        for beta in self.betas:
            checks.require(
                0 <= beta < 1, f"betas={self.betas} is not allowed; give two numbers in [0, 1) (0.9, 0.999)."
            )
        checks.require(self.epsilon > 0, f"epsilon={self.epsilon} is not allowed; give a number above 0 (1e-8).")
        checks.done()
        super().__post_init__()

    @property
    def kind(self) -> str:
        """Its records hold embeddings, which others lack."""
        return type(self).__name__

    def check(self, schedule_steps: int) -> list[str]:
        """Refuse trajectories off the schedule's levels, and a learning rate that falls to zero."""
        problems = self.base.check(schedule_steps)
        convention = self.base.convention
        if convention not in ("next_step", "diffusers"):
            problems.append(
                f"null-text inversion aims at the schedule's levels, and convention={convention} leaves them; use "
                "convention=next_step."
            )
        if self.decay * (schedule_steps - 1) >= 1:
            problems.append(
                f"decay={self.decay} brings the learning rate to zero within steps={schedule_steps}; give less than "
                f"{1 / max(1, schedule_steps - 1):.3g}."
            )
        return problems

    def suits(self, guidance: Guidance) -> list[str]:
        """Refuse a guidance of the source other than the one that embeddings are optimised for."""
        scale = source_scale(guidance)
        if scale is None or scale == self.guidance_scale:
            return self.base.suits(guidance)
        return [
            f"{type(guidance).__name__} guides the source by {scale} and {type(self).__name__} optimises for "
            f"guidance_scale={self.guidance_scale}; give both the same number."
        ]

    def unfit(self, record: Record) -> list[str]:
        """Refuse embeddings that were optimised for another scale."""
        made_for = record.settings.get("guidance_scale", self.guidance_scale)
        if made_for == self.guidance_scale:
            return super().unfit(record)
        return [
            f"its embeddings were optimised for guidance_scale={made_for} of the source, and this edit guides it by "
            f"{self.guidance_scale}; use that scale, or invert again."
        ]

    def record(self, z0: Tensor, predict: RecordPredict, ctx: Context) -> Record:
        """Invert, then find the embeddings."""
        record = self.base.record(z0, predict, ctx)
        pivots, levels, empty = record.latents, ctx.schedule.levels, ctx.conditions[_UNCOND].text
        assert pivots is not None and empty is not None
        first, last = self.base.first(record, ctx.schedule), ctx.schedule.num_steps
        text = empty.to(z0.dtype)
        embeddings = [text] * first
        losses = [z0.new_full((len(z0), self.inner_steps), float("nan"))] * first
        z = pivots[first]
        for i in range(first, last):
            eps_cond = predict.rows(Latents(source=z), i, [_COND])[_COND]
            text, found = self._descend(i, z, pivots[i + 1], eps_cond, text, predict, ctx)
            embeddings.append(text)
            losses.append(found)
            # Walk on with the result; the latent is not put back on its pivot.
            z = ddim_step(z, self._guided(i, z, eps_cond, text, predict, ctx.conditions), levels[i], levels[i + 1])
        own = {
            **record.own,
            "null_text.embeddings": torch.stack(embeddings),
            "null_text.losses": torch.stack(losses),
        }
        settings = {**record.settings, "guidance_scale": self.guidance_scale, "inner_steps": self.inner_steps}
        return replace(record, kind=self.kind, own=own, settings=settings)

    def _descend(
        self, i: int, z: Tensor, pivot: Tensor, eps_cond: Tensor, text: Tensor, predict: RecordPredict, ctx: Context
    ) -> _Descent:
        """Optimise the embeddings of one step for all images that have not stopped."""
        level, level_next = ctx.schedule.levels[i], ctx.schedule.levels[i + 1]
        rate, tolerance = self.learning_rate * (1 - self.decay * i), self.tolerance + self.growth * i
        elements = z[0].numel()
        losses = z.new_full((len(z), self.inner_steps), float("nan"))
        mean, square = torch.zeros_like(text), torch.zeros_like(text)
        active = torch.arange(len(z), device=z.device)
        for j in range(self.inner_steps):
            conditions = _select(ctx.conditions, active)
            trial = text[active].requires_grad_()
            with torch.enable_grad():
                eps = self._guided(i, z[active], eps_cond[active], trial, predict, conditions)
                missed = ddim_step(z[active], eps, level, level_next) - pivot[active]
                squares = missed.square().flatten(1).sum(1)
                # A sum over pixels and images: no image's gradient shrinks with its batch, none underflows in half
                # precision; the mean over pixels is taken of the result.
                (gradient,) = torch.autograd.grad(squares.sum(), trial)
            loss, gradient = squares.detach() / elements, gradient / elements
            losses[active, j] = loss
            # Adam, j + 1 updates from its start.
            mean[active] = self.betas[0] * mean[active] + (1 - self.betas[0]) * gradient
            square[active] = self.betas[1] * square[active] + (1 - self.betas[1]) * gradient.square()
            unbiased = mean[active] / (1 - self.betas[0] ** (j + 1))
            spread = (square[active] / (1 - self.betas[1] ** (j + 1))).sqrt()
            text = text.index_copy(0, active, trial.detach() - rate * unbiased / (spread + self.epsilon))
            # The update that met the tolerance has been made.
            active = active[loss >= tolerance]
            if not len(active):
                break
        return _Descent(text, losses)

    def _guided(
        self, i: int, z: Tensor, eps_cond: Tensor, text: Tensor, predict: RecordPredict, conditions: Conditions
    ) -> Tensor:
        """Guide with a trial embedding and the conditional prediction that is known."""
        trial = {_UNCOND: replace(conditions[_UNCOND], text=text)}
        eps = predict.rows(Latents(source=z), i, [_UNCOND], conditions=trial)[_UNCOND]
        return eps + self.guidance_scale * (eps_cond - eps)

    def condition(self, record: Record, i: int, conditions: Conditions) -> Conditions:
        """Put this step's embeddings where the unconditional (or negative) text was."""
        text = record.own["null_text.embeddings"][i]
        replaced = {
            row: replace(condition, text=text)
            for row, condition in conditions.items()
            if row.branch == UNCOND and not (self.single_branch and row.stream is Stream.TARGET)
        }
        return {**conditions, **replaced}


def _select(conditions: Conditions, images: Tensor) -> Conditions:
    """Take some images of the unconditional source rows."""
    return {_UNCOND: conditions[_UNCOND].map(lambda x: x[images])}


class NullText(EditModule):
    """Null-text inversion with the paper's settings: 50 steps, 10 inner steps, guidance 7.5."""

    references = (
        Reference(
            "Null-text Inversion for Editing Real Images using Guided Diffusion Models",
            "Mokady, Hertz, Aberman, Pritch, Cohen-Or",
            "CVPR 2023",
            "https://arxiv.org/abs/2211.09794",
            "https://github.com/google/prompt-to-prompt (9c472e4)",
            "Apache-2.0",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        inner_steps: int = 10,
        learning_rate: float = 1e-2,
        tolerance: float = 1e-5,
        single_branch: bool = False,
        convention: Convention = "next_step",
        skip: int = 0,
        guidance: Guidance = ClassifierFree(target=7.5, source=7.5, inversion=1.0),
        inversion: NullTextInversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(steps_offset=0, final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model whose text features can be replaced.
            steps: T.
            inner_steps, learning_rate, tolerance, single_branch: See `NullTextInversion`.
            convention, skip: Of the DDIM inversion; see `DDIMInversion`.
            guidance: Scales; the embeddings are optimised for the source's, which must be above 1.
            inversion: Replaces the inversion; the settings above then have no effect.
            schedule: Conventions of the schedule; timesteps begin at 0 and the clean end is a[0], as in the code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or NullTextInversion(
            DDIMInversion(convention, skip),
            7.5 if (scale := source_scale(guidance)) is None else scale,
            inner_steps,
            learning_rate,
            tolerance=tolerance,
            single_branch=single_branch,
        )
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)


def source_scale(guidance: Guidance) -> float | None:
    """Return the scale at which a guidance walks the source back, where it has one."""
    scale = getattr(getattr(guidance, "base", guidance), "source", None)
    return float(scale) if isinstance(scale, (int, float)) else None
