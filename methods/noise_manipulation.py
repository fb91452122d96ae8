"""Manipulations in the noise space: shift, flip and colour, on any inversion that records noise maps.

Huberman-Spiegelglas, Kulikov, Michaeli: An Edit Friendly DDPM Noise Space (CVPR 2024, arXiv 2304.06140), section 4.

Shift and flip move the first latent and every noise map alike; what a shift uncovers is fresh standard normal noise.
Colour adds to the maps of the middle of the schedule, with the clean estimate x0 of the current step:

    w_i <- w_i + strength B (M - P(x0))          B mask, M wanted value, P what of x0 is compared with it

None of this is in the authors' released code. The manipulated maps drive the target alone: a source row still walks
back to the picture as it was, and a record can be edited under any manipulation without inverting again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from framework.context import Context
from framework.errors import Checks
from framework.guidance import State
from framework.inversion import InversionAround, Predict
from framework.record import Record
from framework.schedule import prediction_to_x0
from framework.step import Latents, Stream, same_start
from methods.concepts import warn_of_empty

Flip = Literal["none", "horizontal", "vertical", "both"]
Border = Literal["noise", "circular"]
Projection = Literal["pixel", "mean"]


class WithNoiseMaps(Protocol):
    """An inversion that steps with given noise maps."""

    def inject(
        self, z: Latents, prediction: Latents, noise: Latents, i: int, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Step with one noise map per stream."""
        ...


@dataclass(frozen=True)
class Colour:
    """Pull a region towards one value per latent channel; the region is the sample's mask, or everything without one.

    Attributes:
        value: M, one number per channel of the latents (of the picture, in [-1, 1], for a pixel model).
        strength: s, at least 0 (paper 0.05).
        window: Share of the schedule, from the noisy end, between which it acts (paper: steps 70 to 20 of 100).
        projection: P: "pixel" compares every position, "mean" the mean over the region, which keeps its structure.
    """

    value: Sequence[float]
    strength: float = 0.05
    window: tuple[float, float] = (0.3, 0.8)
    projection: Projection = "pixel"

    def __post_init__(self) -> None:
        checks = Checks("colour")
        checks.require(len(self.value) > 0, "value=[] has no channel; give one number per channel of the latents.")
        checks.between("strength", self.strength, 0, float("inf"), "paper 0.05")
        low, high = self.window
        checks.require(
            0 <= low < high <= 1,
            f"window={tuple(self.window)} is no part of the schedule; give two ascending shares in [0, 1].",
        )
        checks.one_of("projection", self.projection, ("pixel", "mean"))
        checks.done()

    def acts(self, i: int, steps: int) -> bool:
        """Whether interval i of a schedule of so many steps lies in the window."""
        return self.window[0] * steps <= i < self.window[1] * steps

    def term(self, x0: Tensor, mask: Tensor | None) -> Tensor:
        """Return what is added to the noise map, [B, C, h, w].

        Args:
            x0: [B, C, h, w] clean estimate.
            mask: [B, 1, h, w] in [0, 1], or None for everything.
        """
        mask = torch.ones_like(x0[:, :1]) if mask is None else mask
        wanted = torch.stack([torch.full_like(x0[:, 0], number) for number in self.value], 1)
        if self.projection == "mean":
            area = mask.sum((2, 3), keepdim=True).clamp(min=1e-12)
            x0 = (mask * x0).sum((2, 3), keepdim=True) / area
        return self.strength * mask * (wanted - x0)


class ManipulationState(NamedTuple):
    """What a manipulated edit carries from step to step.

    Attributes:
        border: [T, B, C, h, w] fresh noise for what a shift uncovers, or None.
        base: State of the inversion underneath.
    """

    border: Tensor | None
    base: State


@dataclass(frozen=True)
class Manipulated(InversionAround):
    """Steps the target with manipulated noise maps.

    Attributes:
        shift: Rows down and columns right, in pixels of the latent.
        flip: Mirror left and right ("horizontal"), upside down ("vertical"), or both; after the shift.
        border: What a shift uncovers: fresh "noise", or what left on the other side ("circular").
        colour: Pull a region towards a colour; None for none.
    """

    shift: tuple[int, int] = (0, 0)
    flip: Flip = "none"
    border: Border = "noise"
    colour: Colour | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = Checks("Manipulated")
        checks.require(
            hasattr(self.base, "inject"),
            f"base={type(self.base).__name__} has no noise maps to manipulate; take EditFriendlyInversion, "
            "PosteriorInversion or MultistepSDEInversion.",
        )
        checks.one_of("flip", self.flip, ("none", "horizontal", "vertical", "both"))
        checks.one_of("border", self.border, ("noise", "circular"))
        checks.done()

    def start(self, record: Record, ctx: Context) -> Latents:
        """Move the target's first latent; the other streams start where the base does."""
        z = self.base.start(record, ctx)
        self._check_size(z[Stream.TARGET])
        if self.colour is not None and ctx.masks is not None:
            warn_of_empty(ctx.masks)
        fresh = ctx.noise("border of the start", 1)[0] if self._uncovers() else None
        return z.with_stream(Stream.TARGET, self.moved(z[Stream.TARGET], fresh))

    def begin(self, record: Record, ctx: Context) -> ManipulationState:
        """Draw the fresh noise of all steps."""
        border = ctx.noise("border of the maps", ctx.schedule.num_steps) if self._uncovers() else None
        if border is not None and record.zeroed:
            border[list(record.zeroed)] = 0  # where the sampler injects nothing, nothing is uncovered
        return ManipulationState(border, self.base.begin(record, ctx))

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, ManipulationState]:
        """Step every stream with its own maps: the target's moved and coloured, the others' as recorded."""
        assert record.noise_maps is not None
        now: ManipulationState = state
        prediction = predict(z, i)
        recorded = record.noise_maps[i]
        noise = self.moved(recorded, None if now.border is None else now.border[i])
        if self.colour is not None and self.colour.acts(i, ctx.schedule.num_steps):
            level, form = ctx.schedule.levels[i], ctx.schedule.form
            x0 = prediction_to_x0(z[Stream.TARGET], prediction[Stream.TARGET], level, form)
            noise = noise + self.colour.term(x0, ctx.masks)
        maps = same_start(recorded, z.streams()).with_stream(Stream.TARGET, noise)
        z_next, base = cast(WithNoiseMaps, self.base).inject(z, prediction, maps, i, now.base, ctx)
        return z_next, ManipulationState(now.border, base)

    def moved(self, x: Tensor, fresh: Tensor | None) -> Tensor:
        """Shift and flip [..., h, w].

        Args:
            x: A latent or a noise map.
            fresh: Noise of the same shape for the uncovered border; None shifts circularly.
        """
        down, right = self.shift
        if (down, right) != (0, 0):
            x = x.roll((down, right), (-2, -1))
            if fresh is not None:
                rows, columns = (torch.arange(side, device=x.device) for side in x.shape[-2:])
                out = _uncovered(rows, down)[:, None] | _uncovered(columns, right)
                x = torch.where(out, fresh, x)
        axes = {"none": (), "horizontal": (-1,), "vertical": (-2,), "both": (-2, -1)}[self.flip]
        return x.flip(axes) if axes else x

    def _uncovers(self) -> bool:
        return self.border == "noise" and tuple(self.shift) != (0, 0)

    def _check_size(self, z: Tensor) -> None:
        checks = Checks("Manipulated")
        for name, amount, side in zip(("rows", "columns"), self.shift, z.shape[-2:], strict=True):
            checks.require(
                abs(amount) < side,
                f"shift={tuple(self.shift)} moves all {side} {name} of the latent out of sight; give less than {side}.",
            )
        if self.colour is not None:
            channels, given = z.shape[1], len(self.colour.value)
            checks.require(
                channels == given, f"colour has {given} values for latents of {channels} channels; give one for each."
            )
        checks.done()


def _uncovered(position: Tensor, amount: int) -> Tensor:
    """Where a shift by so many positions leaves nothing, along one axis."""
    return position < amount if amount >= 0 else position >= len(position) + amount
