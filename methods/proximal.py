"""Proximal guidance: threshold what guidance adds, and pull what the edit leaves alone back to the source.

Han, Wen, Chen, Zhang, et al.: ProxEdit: Improving Tuning-Free Real Image Editing with Proximal Guidance (WACV 2024,
arXiv 2306.05414), Algorithm 1.

    d = eps(z, c) - eps(z, u),   d <- prox(d),   eps~ = eps(z, u) + w d
    K = 1 - [|d| > threshold], dilated                                      what the edit leaves alone
    x0 <- x0 - rate K (x0 - z*_0)                                           reconstruction guidance, inside the step
    z_{i+1} <- z_{i+1} - rate K (z_{i+1} - z*_{i+1})                        inversion guidance, after it

Variant "official" is the code's: its l0 is soft thresholding, which the paper calls l1, and its l1 thresholds twice and
turns small negative differences positive. Variant "paper" is hard thresholding for l0 and soft for l1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Unpack

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
from framework.schedule import ScheduleOptions, eps_to_x0
from framework.step import COND, UNCOND, Latents, Need, Row, Stream, latents
from methods.concepts import quantile
from methods.ddim import Convention, DDIMInversion
from methods.negative_prompt import NegativePromptInversion

Mode = Literal["l0", "l1", "none"]
Variant = Literal["official", "paper"]
Scope = Literal["batch", "target", "row"]


class _Step(NamedTuple):
    """What a prediction leaves for the correction after the step."""

    eps: Latents
    kept: Latents | None


@dataclass(frozen=True)
class ProximalGuidance(ClassifierFree):
    """Classifier-free guidance with a proximal step on what it adds.

    Meant for inversions under which the source's own difference is (nearly) zero: negative-prompt and null-text. A pull
    needs a mode, since it is the threshold that tells what is edited.

    Attributes:
        target, source, inversion: Scales; see `ClassifierFree`.
        mode: "l0", "l1", or "none" for plain guidance.
        variant: "official" or "paper"; see above.
        quantile: Quantile of |d| that is the threshold, in [0, 1]; 0 is no threshold. In scope "batch" it counts the
            source's zeros: with one target, 0.7 is the 0.4 quantile of the target.
        threshold: Fixed threshold in units of the prediction, in place of a quantile; None takes the quantile.
        scope: What a quantile is taken over, for each image: "batch", all rows of the image together (the code);
            "target", the target row; "row", each row by itself.
        reconstruction_guidance: Pull the clean estimate to the source's clean latent.
        inversion_guidance: Pull the latent after the step to the inversion's trajectory.
        rate: Strength of the pulls, in [0, 1]; the code's default is 0.1, its recipe 1.
        until: The pulls act at timesteps below this; if negative, above its magnitude (where the official variant's
            reconstruction guidance brings inversion guidance with it, by a slip of operator precedence).
        dilation: Pixels by which the edited region grows; 0 for none.
    """

    target: float = 7.5
    source: float = 7.5
    inversion: float | None = 1.0
    mode: Mode = "l0"
    variant: Variant = "official"
    quantile: float = 0.7
    threshold: float | None = None
    scope: Scope = "batch"
    reconstruction_guidance: bool = False
    inversion_guidance: bool = False
    rate: float = 0.1
    until: float = 400.0
    dilation: int = 1

    needs: ClassVar = frozenset({Need.SOURCE, Need.TRAJECTORY})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("ProximalGuidance")
        checks.one_of("mode", self.mode, ("l0", "l1", "none"))
        checks.one_of("variant", self.variant, ("official", "paper"))
        checks.between("quantile", self.quantile, 0, 1, "paper default 0.7; a fixed threshold is threshold")
        if self.threshold is not None:
            checks.between("threshold", self.threshold, 0, float("inf"))
        checks.one_of("scope", self.scope, ("batch", "target", "row"))
        checks.between("rate", self.rate, 0, 1, "0.1 in the code, 1 in its recipe")
        checks.between("until", self.until, float("-inf"), float("inf"))
        checks.between("dilation", self.dilation, 0, float("inf"))
        checks.require(
            self.mode != "none" or not (self.reconstruction_guidance or self.inversion_guidance),
            "mode=none finds no edited region for reconstruction_guidance or inversion_guidance; give mode l0 or l1.",
        )
        checks.done()

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Guide every stream by its thresholded difference."""
        del record, state
        streams = z.streams()
        rows = network(z, [Row(stream, branch) for stream in streams for branch in (UNCOND, COND)])
        found = {stream: rows[Row(stream, COND)] - rows[Row(stream, UNCOND)] for stream in streams}
        kept: dict[Stream, Tensor] = {}
        if self.mode != "none":
            thresholds = self.thresholds(found)
            found = {stream: self.prox(d, thresholds[stream]) for stream, d in found.items()}
            if self._acts(ctx.schedule.levels[i].t):
                kept = {stream: 1 - self.edited(d, thresholds[stream]) for stream, d in found.items()}
        scales = self.scales()
        eps = latents({stream: rows[Row(stream, UNCOND)] + scales[stream] * d for stream, d in found.items()})
        return eps, _Step(eps, latents(kept) if kept else None)

    def thresholds(self, found: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
        """Return the threshold of every stream, [B, 1, 1, 1]."""
        if self.threshold is not None:
            return {stream: d.new_full((len(d), 1, 1, 1), self.threshold) for stream, d in found.items()}
        sizes = {stream: d.abs().flatten(1) for stream, d in found.items()}
        if self.scope == "row":
            return {stream: self._quantile(size) for stream, size in sizes.items()}
        pooled = sizes[Stream.TARGET] if self.scope == "target" else torch.cat(list(sizes.values()), 1)
        return dict.fromkeys(found, self._quantile(pooled))

    def _quantile(self, sizes: Tensor) -> Tensor:
        if self.quantile == 0:
            return sizes.new_zeros(len(sizes), 1, 1, 1)
        return quantile(sizes, sizes.new_full((), self.quantile)).view(-1, 1, 1, 1)

    def prox(self, d: Tensor, threshold: Tensor) -> Tensor:
        """Threshold a difference [B, C, h, w]."""
        if self.mode == "l0" and self.variant == "paper":
            return torch.where(d.abs() > threshold, d, torch.zeros_like(d))
        soft = d - d.clamp(-threshold, threshold)
        if self.mode == "l0" or self.variant == "paper":
            return soft
        once = torch.where(soft > 0, soft - threshold, soft)
        return torch.where(once < 0, once + threshold, once)

    def edited(self, d: Tensor, threshold: Tensor) -> Tensor:
        """Mark what is edited by 1, from the thresholded difference and the same threshold again (as the code does)."""
        mask = (d.abs() > threshold).to(d.dtype)
        return F.max_pool2d(mask, 2 * self.dilation + 1, 1, self.dilation) if self.dilation else mask

    def _acts(self, t: float) -> bool:
        wanted = self.reconstruction_guidance or self.inversion_guidance
        return wanted and (t < self.until if self.until > 0 else self.until < 0 and t > -self.until)

    def correct(self, z: Latents, z_next: Latents, i: int, record: Record, state: State, ctx: Context) -> Latents:
        """Pull what the edit leaves alone."""
        if state.kept is None:
            return z_next
        level, level_next = ctx.schedule.levels[i], ctx.schedule.levels[i + 1]
        if self.reconstruction_guidance:

            def rebuild(z_next: Tensor, z: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
                # A step adds alpha_next x0; its direction keeps the prediction as it was.
                x0 = eps_to_x0(z, eps, alpha=level.alpha, sigma=level.sigma)
                return z_next - level_next.alpha * self.rate * (x0 - record.z0) * kept

            z_next = z_next.map(rebuild, z, state.eps, state.kept)
        if self.inversion_guidance or (self.variant == "official" and self.until < 0):
            assert record.latents is not None
            pivot = record.latents[i + 1]
            z_next = z_next.map(lambda z, kept: z - self.rate * (z - pivot) * kept, state.kept)
        return z_next

    def found(self, state: State) -> Mapping[str, Tensor]:
        """Return what the target's row leaves alone, [B, C, h, w], at steps where it is pulled."""
        if state is None or state.kept is None:
            return {}
        return {"kept": state.kept[Stream.TARGET]}


class ProxEdit(EditModule):
    """Proximal guidance on negative-prompt inversion, with the function's settings of the authors' code.

    The recipe of their page adds inversion_guidance with rate 1. On null-text inversion: give that as `inversion`.
    """

    references = (
        Reference(
            "ProxEdit: Improving Tuning-Free Real Image Editing with Proximal Guidance",
            "Han, Wen, Chen, Zhang, et al.",
            "WACV 2024",
            "https://arxiv.org/abs/2306.05414",
            "https://github.com/phymhan/prompt-to-prompt (9955a1f)",
            "Apache-2.0",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        interpolation: float = 0.0,
        convention: Convention = "next_step",
        skip: int = 0,
        guidance: Guidance = ProximalGuidance(),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(steps_offset=0, final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model.
            steps: T.
            interpolation: See `NegativePromptInversion`.
            convention, skip: Of the DDIM inversion; see `DDIMInversion`.
            guidance: Proximal guidance with its settings.
            inversion: Replaces negative-prompt inversion; the three settings above then have no effect.
            schedule: Conventions of the schedule; timesteps begin at 0 and the clean end is a[0], as in the code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or NegativePromptInversion(DDIMInversion(convention, skip), interpolation)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
