"""RF-Solver and FireFlow: second-order solvers for inverting and sampling a flow, and their sharing of features.

RF-Solver: Wang, Pu, Qi, et al.: Taming Rectified Flow for Inversion and Editing (ICML 2025, arXiv 2411.04746); both
directions, from level a over d = b - a,

    v = v(x, a),   v_m = v(x + d/2 v, a + d/2),   x <- x + d v + d^2/2 (v_m - v) / (d/2)  =  x + d v_m

the explicit midpoint rule; the repository's "rf_solver" and "rf_midpoint" agree but for rounding. The middle level is
the mean of the (shifted) levels.

FireFlow: Deng, et al.: FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing (ICML 2025, arXiv
2412.07517): the same with v replaced by v_m of the interval before, which saves one call per interval. The memory is
not carried from the inversion to the sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context
from framework.guidance import Guidance, State, usual_guidance
from framework.inversion import Inversion, Predict, RecordPredict
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import Level, Schedule, ScheduleOptions, euler_step
from framework.step import Latents
from methods.euler_flow import SharingInversion, with_sharing
from methods.feature_sharing import FeatureSharing


@dataclass(frozen=True)
class MidpointInversion(SharingInversion):
    """RF-Solver's step in both directions: two evaluations per interval."""

    reuses: ClassVar[bool] = False
    """Whether the velocity at the interval's beginning is the last interval's middle one (FireFlow)."""

    def calls(self, intervals: int, steps: int) -> int:
        """Count two calls of an interval; with reuse one, and one more in the cleanest."""
        if not self.reuses:
            return 2 * intervals
        return intervals + (1 if 0 < intervals == steps - self.skip else 0)

    def middle(
        self, z: Latents, i: int, levels: tuple[Level, Level], predict: Predict, state: State, schedule: Schedule
    ) -> tuple[Latents, State]:
        """Evaluate at the middle of an interval.

        Args:
            z: Latents at the first level.
            i: Interval of the schedule.
            levels: From where to where, in either direction.
            predict: Guided velocity.
            state: Velocity at the middle of the interval before, or None.
            schedule: The noise levels.

        Returns:
            The velocity at the middle, and the next state.
        """
        level, level_next = levels
        halfway = schedule.at_sigma((level.sigma + level_next.sigma) / 2)
        velocity = state if self.reuses and state is not None else predict(z, i, level=level)
        there = z.map(lambda z, v: euler_step(z, v, level, halfway), velocity)
        middle = predict(there, i, level=halfway, stage=1)
        return middle, middle if self.reuses else None

    def invert(self, z: Tensor, i: int, predict: RecordPredict, state: State, ctx: Context) -> tuple[Tensor, State]:
        """Take the velocity at the middle of the interval."""
        levels = ctx.schedule.levels
        ends = (levels[i + 1], levels[i])
        middle, state = self.middle(Latents(source=z), i, ends, predict, state, ctx.schedule)
        assert middle.source is not None
        return middle.source, state

    def step(
        self, record: Record, i: int, z: Latents, predict: Predict, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Denoise by the same rule."""
        del record
        ends = (ctx.schedule.levels[i], ctx.schedule.levels[i + 1])
        middle, state = self.middle(z, i, ends, predict, state, ctx.schedule)
        return z.map(lambda z, v: euler_step(z, v, *ends), middle), state


@dataclass(frozen=True)
class ReusedMidpointInversion(MidpointInversion):
    """FireFlow's step in both directions: one evaluation per interval, and one more at the beginning."""

    reuses: ClassVar[bool] = True


class RFSolver(EditModule):
    """RF-Solver-Edit: the midpoint rule both ways, with value sharing on FLUX.

    15 steps as in the authors' examples of objects (30 in their readme). Evaluations per image: 2 T for the inversion
    and 2 T for each row of the edit.
    """

    references = (
        Reference(
            "Taming Rectified Flow for Inversion and Editing",
            "Wang, Pu, Qi, et al.",
            "ICML 2025",
            "https://arxiv.org/abs/2411.04746",
            "https://github.com/wangjiangshan0725/RF-Solver-Edit (3388e29)",
            "see the repository",
        ),
    )
    solver: ClassVar[type[MidpointInversion]] = MidpointInversion
    inject: ClassVar[int] = 4
    """Intervals with sharing by default, on networks with single-stream blocks."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 15,
        skip: int = 0,
        sharing: FeatureSharing | None = None,
        guidance: Guidance | None = None,
        inversion: Inversion | None = None,
        schedule: ScheduleOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A flow model.
            steps: T.
            skip: Noisiest steps left out.
            sharing: Features that the edit takes from the inversion; None is the authors' value sharing on FLUX and
                none on networks without single-stream blocks. Put inject_steps=0 for none.
            guidance: Scales; None is 2 for the edit and 1 for source and inversion.
            inversion: Replaces the solver; `skip` and `sharing` then have no effect.
            schedule: Conventions of the schedule.
            **common: See `CommonSettings`; the sharing stands before other controls.
        """
        if sharing is None and any(site.place == "single" for site in backbone.sites()):
            sharing = FeatureSharing(inject_steps=self.inject)
        if inversion is None:
            inversion = self.solver(skip=skip, sharing=sharing)
            common["controls"] = with_sharing(sharing, common.get("controls", ()))
        guidance = guidance or usual_guidance(backbone.guided_by, target=2.0)
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)


class FireFlow(RFSolver):
    """FireFlow: the midpoint rule with the last middle velocity reused, and value sharing in the noisiest interval.

    8 steps and one interval of sharing over all single-stream blocks, as in the authors' examples. Evaluations per
    image: T + 1 for the inversion and T + 1 for each row of the edit.
    """

    references = (
        Reference(
            "FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing",
            "Deng, et al.",
            "ICML 2025",
            "https://arxiv.org/abs/2412.07517",
            "https://github.com/HolmesShuan/FireFlow (98588a6)",
            "see the repository",
        ),
    )
    solver = ReusedMidpointInversion
    inject = 1

    def __init__(self, backbone: Backbone, *, steps: int = 8, **settings: Any) -> None:
        """Fill the slots as `RFSolver` does."""
        super().__init__(backbone, steps=steps, **settings)
