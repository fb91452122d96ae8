"""Blended latents: outside a user's mask the edit is the source, at every level of noise.

Avrahami, Fried, Lischinski: Blended Latent Diffusion (SIGGRAPH 2023, arXiv 2206.02779), Algorithm 1, for any method:

    z <- mask z + (1 - mask) z_background        after every step, both at the level that the step arrives at

In the paper the background is the picture with noise of that level. Where an edit has an inversion, the source row or
the inversion's own latents are nearer to what the network will make of the neighbourhood. (The authors' code noises the
background one level too much; here it ends as the picture itself.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from framework.context import Context
from framework.control import Control
from framework.errors import Checks, SettingsError
from framework.step import Latents, Need, Site, Stream
from methods.control_rows import Executed
from methods.prompt_to_prompt import check_window
from methods.token_alignment import Window, window_bounds

Background = Literal["noised", "source", "trajectory"]

_NEEDS = {"noised": (), "source": (Need.SOURCE,), "trajectory": (Need.TRAJECTORY,)}


@dataclass
class BlendState:
    """One edit: the mask [B, 1, h, w], the executed steps that blend, and what the background is made from."""

    mask: Tensor
    window: tuple[int, int]
    ctx: Context
    executed: Executed = field(default_factory=Executed)


@dataclass(frozen=True)
class BlendedLatents(Control):
    """Keeps the edit inside the sample's mask, which every sample must have.

    Attributes:
        background: "noised" (the picture with fresh noise, works with every method), "source" (the source row), or
            "trajectory" (the latents of the inversion).
        window: Share of all N steps in which latents are blended, counted from the first that is executed: f for
            [0, f], or a pair.
    """

    background: Background = "noised"
    window: Window = (0.0, 1.0)

    def __post_init__(self) -> None:
        checks = Checks("BlendedLatents")
        checks.one_of("background", self.background, tuple(_NEEDS))
        check_window(checks, "window", self.window)
        checks.done()
        object.__setattr__(self, "needs", frozenset(_NEEDS[self.background]))
        object.__setattr__(self, "streams", (Stream.SOURCE,) if self.background == "source" else ())

    @property
    def wants_masks(self) -> bool:
        """Whether it looks at the samples' masks: always."""
        return True

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> BlendState:
        """Take the masks.

        Raises:
            SettingsError: There are none, one is empty, or they have another size than the latents.
        """
        del sites
        if ctx.masks is None:
            raise SettingsError(
                ["BlendedLatents: the samples have no masks; give masks in the data set, or leave the control out."]
            )
        if tuple(ctx.masks.shape[-2:]) != tuple(latent):
            got = "x".join(map(str, ctx.masks.shape[-2:]))
            raise SettingsError(
                [f"BlendedLatents: a mask of {got} does not fit latents of {latent[0]}x{latent[1]}; give their size."]
            )
        if not bool(ctx.masks.flatten(1).amax(1).gt(0).all()):
            raise SettingsError(
                ["BlendedLatents: a mask is empty at the latents' size, so that nothing would be edited; widen it."]
            )
        return BlendState(ctx.masks, window_bounds(self.window, ctx.schedule.num_steps), ctx)

    def blend(self, z: Latents, z_next: Latents, i: int, state: Any) -> Latents:
        """Put the background back outside the mask."""
        del z
        now: BlendState = state
        if not now.window[0] <= now.executed.step(i) < now.window[1]:
            return z_next
        target = z_next[Stream.TARGET]
        background = self._background(z_next, i, now.ctx)
        return z_next.with_stream(Stream.TARGET, background + now.mask.to(target) * (target - background))

    def _background(self, z_next: Latents, i: int, ctx: Context) -> Tensor:
        if self.background == "source":
            return z_next[Stream.SOURCE]
        record = ctx.record
        assert record is not None
        if self.background == "trajectory":
            assert record.latents is not None
            return record.latents[i + 1]
        if i == ctx.schedule.num_steps - 1:
            return record.z0
        return ctx.schedule.add_noise(record.z0, ctx.noise(f"blended latents {i}", 1)[0], i + 1)
