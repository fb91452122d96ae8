"""Inversions of the closed-form mixture: velocity, exact noise, round trips and orders of every rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.backbones import GaussianMixture
from framework.context import Context, Texts
from framework.guidance import ClassifierFree
from framework.inversion import Inversion
from framework.network import Network
from framework.predict import SourcePrediction
from framework.schedule import ScheduleOptions, ddim_step
from framework.step import COND, Condition, Latents, Row, Stream
from methods.euler_flow import EulerInversion
from methods.rf_solver import MidpointInversion, ReusedMidpointInversion
from methods.two_stage import Average, FixedPointInversion
from methods.uniedit_flow import UniInversion
from tests.parity.case import Case


@dataclass(frozen=True)
class FixedPointDDIM(FixedPointInversion):
    """The same fixed point of a DDIM step, for comparison."""

    forms = ("epsilon",)
    move = staticmethod(ddim_step)


class Trips:
    """Inverts points and samples back, on one schedule."""

    def __init__(self, backbone: GaussianMixture, steps: int, points: Tensor, shift: float | None = None) -> None:
        self.points = points[:, :, None, None]
        self.schedule = backbone.schedule(steps, ScheduleOptions(shift=shift))
        self.network = Network(backbone, self.schedule)
        row = Row(Stream.SOURCE, COND)
        self.ctx = Context(
            self.schedule,
            {row: Condition()},
            Texts(("",), ("",), ("",)),
            (Stream.SOURCE,),
            lambda purpose, count: points,
        )

    def go(self, inversion: Inversion) -> tuple[Tensor, Tensor, int, int, float]:
        """Return noise and what came back [n, 2], calls of both directions, and the sum of mean compensations."""
        predict = SourcePrediction(ClassifierFree(1.0, 1.0, 1.0), self.network, self.ctx)
        before = self.network.evaluations.calls
        record = inversion.record(self.points, predict, self.ctx)
        inverted = self.network.evaluations.calls
        z, state = inversion.start(record, self.ctx), inversion.begin(record, self.ctx)
        for i in range(self.schedule.num_steps):
            z, state = inversion.step(record, i, z, _Back(predict), state, self.ctx)
        calls = (inverted - before, self.network.evaluations.calls - inverted)
        assert z.source is not None and record.latents is not None
        compensation = 0.0
        for i in range(self.schedule.num_steps):
            held = inversion.step(record, i, Latents(source=record.latents[i]), _Back(predict), None, self.ctx)[
                0
            ].source
            compensation += float((record.latents[i + 1] - held).flatten(1).norm(dim=1).mean())
        return record.latents[0].flatten(1), z.source.flatten(1), *calls, compensation


class _Back:
    """The same prediction for the way back."""

    def __init__(self, predict: SourcePrediction) -> None:
        self.predict = predict

    def __call__(self, z: Latents, i: int, **told: Any) -> Latents:
        return self.predict(z, i, **told)


def rules(passes: list[int]) -> dict[str, Inversion]:
    """Name every rule that the cases compare."""
    found: dict[str, Inversion] = {
        "euler_clean_end": EulerInversion(time="clean_end"),
        "rf_solver": MidpointInversion(),
        "fireflow": ReusedMidpointInversion(),
        "uni_inv": UniInversion(alpha=1.0),
    }
    words: dict[str, Average] = {"last": "none", "mean_all": "all", "mean_without_first": "skip_first"}
    for k in passes:
        for name, average in words.items():
            found[f"fixed_point_K{k}_{name}"] = FixedPointInversion(iterations=k, average=average)
    return found


def mixture(case: Case, kind: Any = "flow") -> GaussianMixture:
    """Build the case's mixture as a flow or as a diffusion model."""
    given = case.value("in.mixture")
    return GaussianMixture(
        [list(mean) for mean in given["means"]],
        given["variances"],
        weights=given["weights"],
        kind=kind,
        shape=(2, 1, 1),
    )


@torch.no_grad()
def replay_flow_inversion_analytic(case: Case, models: Path) -> dict[str, Any]:
    settings = case.settings
    flow = mixture(case)
    points = torch.tensor(case.value("in.points_x0"), dtype=torch.float64)
    exact = exact_noise(flow, points)
    passes, steps = list(settings["num_fixpoint_steps"]), list(settings["num_steps"])
    chosen = {name: rule for name, rule in rules(passes).items() if name in settings["rules"]}
    table = {f"shift_{shift:g}": _table(flow, points, exact, shift, steps, chosen) for shift in settings["shift"]}
    return {
        "out.spot_velocity": [
            velocity(flow, torch.tensor([spot["x"]], dtype=torch.float64), spot["sigma"])[0]
            for spot in case.value("in.spot_points")
        ],
        "out.exact_inversion": exact,
        "out.flow": table,
        "out.ddim": _ddim(case, points, passes, steps),
        "out.observed_orders": {
            name: {
                "round_trip": _order(table["shift_1"], name, "round_trip"),
                "noise_error": _order(table["shift_1"], name, "noise_error_vs_exact"),
            }
            for name in chosen
        },
        "out.stage2_compensation_norm_sum": _compensations(case, flow, points),
    }


def velocity(flow: GaussianMixture, x: Tensor, sigma: float) -> Tensor:
    """Exact velocity at points [n, 2]."""
    t = torch.full((len(x),), 1000.0 * sigma, dtype=torch.float64)
    return flow(x[:, :, None, None], t, Condition()).flatten(1)  # type: ignore[no-any-return]


def exact_noise(flow: GaussianMixture, points: Tensor, steps: int = 4000) -> Tensor:
    """Integrate the flow from the points to noise by the classical Runge-Kutta rule."""
    x, h = points, 1 / steps
    for k in range(steps):
        s = k * h
        a = velocity(flow, x, s)
        b = velocity(flow, x + h / 2 * a, s + h / 2)
        c = velocity(flow, x + h / 2 * b, s + h / 2)
        d = velocity(flow, x + h * c, s + h)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def _table(
    flow: GaussianMixture, points: Tensor, exact: Tensor, shift: float, steps: list[int], chosen: dict[str, Inversion]
) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for n in steps:
        trips = Trips(flow, n, points, shift)
        table[str(n)] = {name: _entry(trips, rule, points, exact) for name, rule in chosen.items()}
    return table


def _entry(trips: Trips, rule: Inversion, points: Tensor, exact: Tensor | None) -> dict[str, Any]:
    noise, back, inversion, sampling, _ = trips.go(rule)
    entry: dict[str, Any] = {"round_trip": _distance(back, points), "evaluations_inversion": inversion}
    if exact is not None:
        entry |= {"noise_error_vs_exact": _distance(noise, exact), "evaluations_sampling": sampling}
    return entry


def _distance(x: Tensor, y: Tensor) -> dict[str, float]:
    distance = (x - y).norm(dim=1)
    return {"mean": float(distance.mean()), "max": float(distance.max())}


def _ddim(case: Case, points: Tensor, passes: list[int], steps: list[int]) -> dict[str, Any]:
    backbone = mixture(case, "diffusion")
    wanted = case.expected["out.ddim"]["value"]
    words: dict[str, Average] = {"last": "none", "mean_all": "all", "mean_without_first": "skip_first"}
    named = {
        f"fixed_point_K{k}_{name}": FixedPointDDIM(iterations=k, average=average)
        for k in passes
        for name, average in words.items()
        if f"fixed_point_K{k}_{name}" in wanted[str(steps[0])]
    }
    return {
        str(n): {name: _entry(Trips(backbone, n, points), rule, points, None) for name, rule in named.items()}
        for n in steps
    }


def _order(table: dict[str, Any], rule: str, measure: str) -> float:
    coarse, fine = (table[n][rule][measure]["mean"] for n in ("50", "100"))
    return math.log2(coarse / fine)


def _compensations(case: Case, flow: GaussianMixture, points: Tensor) -> dict[str, float]:
    words: dict[str, Average] = {"last": "none", "mean_all": "all", "mean_without_first": "skip_first"}
    sums = {}
    for name in case.expected["out.stage2_compensation_norm_sum"]["value"]:
        steps, passes, rule = name.split("_", 2)
        inversion = FixedPointInversion(iterations=int(passes[1:]), average=words[rule])
        sums[name] = Trips(flow, int(steps[1:]), points).go(inversion)[-1]
    return sums
