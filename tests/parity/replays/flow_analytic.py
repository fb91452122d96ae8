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
from framework.record import Record
from framework.schedule import Schedule, ScheduleOptions, ddim_step
from framework.step import COND, Condition, Latents, Row, Stream
from methods.euler_flow import EulerInversion
from methods.rf_solver import MidpointInversion, ReusedMidpointInversion
from methods.two_stage import Average, FixedPointInversion
from methods.uniedit_flow import UniInversion
from tests.parity.case import Case

AVERAGES: dict[str, Average] = {"last": "none", "mean_all": "all", "mean_without_first": "skip_first"}


@dataclass(frozen=True)
class FixedPointDDIM(FixedPointInversion):
    """The same fixed point of a DDIM step, for comparison."""

    forms = ("epsilon",)
    move = staticmethod(ddim_step)


class Trips:
    """Inverts points and samples back, on one schedule."""

    def __init__(self, backbone: GaussianMixture, schedule: Schedule, points: Tensor) -> None:
        self.points = points[:, :, None, None]
        self.schedule = schedule
        self.network = Network(backbone, self.schedule)
        row = Row(Stream.SOURCE, COND)
        self.ctx = Context(
            self.schedule,
            {row: Condition()},
            Texts(("",), ("",), ("",)),
            (Stream.SOURCE,),
            lambda purpose, count: points,
        )

    def go(self, inversion: Inversion) -> tuple[Tensor, Tensor, int, int]:
        """Return noise and what came back [n, 2], and the calls of both directions."""
        predict = SourcePrediction(ClassifierFree(1.0, 1.0, 1.0), self.network, self.ctx)
        before = self.network.evaluations.calls
        record = inversion.record(self.points, predict, self.ctx)
        inverted = self.network.evaluations.calls
        z, state = inversion.start(record, self.ctx), inversion.begin(record, self.ctx)
        for i in range(self.schedule.num_steps):
            z, state = inversion.step(record, i, z, predict, state, self.ctx)
        assert z.source is not None and record.latents is not None
        calls = (inverted - before, self.network.evaluations.calls - inverted)
        return record.latents[0].flatten(1), z.source.flatten(1), *calls

    def compensation(self, inversion: Inversion) -> float:
        """Return the sum over steps of the mean norm of what holds the source row to its trajectory."""
        predict = SourcePrediction(ClassifierFree(1.0, 1.0, 1.0), self.network, self.ctx)
        latents = inversion.record(self.points, predict, self.ctx).latents
        assert latents is not None
        record, total = Record.on(self.schedule, inversion.kind, self.points, latents=latents), 0.0
        for i in range(self.schedule.num_steps):
            stepped = inversion.step(record, i, Latents(source=latents[i]), predict, None, self.ctx)[0][Stream.SOURCE]
            total += float((latents[i + 1] - stepped).flatten(1).norm(dim=1).mean())
        return total


def rules(passes: list[int]) -> dict[str, Inversion]:
    """Name every rule that the cases compare."""
    found: dict[str, Inversion] = {
        "euler_clean_end": EulerInversion(time="clean_end"),
        "rf_solver": MidpointInversion(),
        "fireflow": ReusedMidpointInversion(),
        "uni_inv": UniInversion(alpha=1.0),
    }
    for name in (f"K{k}_{word}" for k in passes for word in AVERAGES):
        found[f"fixed_point_{name}"] = FixedPointInversion(**_passes(name))
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
    settings, flow = case.settings, mixture(case)
    points = torch.tensor(case.value("in.points_x0"), dtype=torch.float64)
    exact = exact_noise(flow, points)
    chosen = {name: rule for name, rule in rules(settings["num_fixpoint_steps"]).items() if name in settings["rules"]}
    table = {
        f"shift_{shift:g}": {str(n): _rows(trips(flow, n, shift, points), chosen, exact) for n in settings["num_steps"]}
        for shift in settings["shift"]
    }
    results: dict[str, Any] = {
        "out.spot_velocity": [
            velocity(flow, torch.tensor([spot["x"]], dtype=torch.float64), spot["sigma"])[0]
            for spot in case.value("in.spot_points")
        ],
        "out.exact_inversion": exact,
        "out.flow": table,
    }
    if "out.ddim" in case.expected:
        results["out.ddim"] = _ddim(case, points)
    if "out.observed_orders" in case.expected:
        results["out.observed_orders"] = _orders(table["shift_1"], chosen, settings["num_steps"])
    if "out.stage2_compensation_norm_sum" in case.expected:
        results["out.stage2_compensation_norm_sum"] = _compensations(case, flow, points)
    return results


def trips(flow: GaussianMixture, steps: int, shift: float, points: Tensor) -> Trips:
    """Return the round trips of points on a shifted grid."""
    return Trips(flow, flow.schedule(steps, ScheduleOptions(shift=shift)), points)


def velocity(flow: GaussianMixture, x: Tensor, sigma: float) -> Tensor:
    """Exact velocity at points [n, 2]."""
    t = torch.full((len(x),), 1000.0 * sigma, dtype=torch.float64)
    return flow(x[:, :, None, None], t, Condition()).flatten(1)  # type: ignore[no-any-return]


def exact_noise(flow: GaussianMixture, points: Tensor, steps: int = 1000) -> Tensor:
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


def _rows(trips: Trips, chosen: dict[str, Inversion], exact: Tensor | None) -> dict[str, Any]:
    rows = {}
    for name, rule in chosen.items():
        noise, back, inversion, sampling = trips.go(rule)
        entry: dict[str, Any] = {"round_trip": _distance(back, trips.points), "evaluations_inversion": inversion}
        if exact is not None:
            entry |= {"noise_error_vs_exact": _distance(noise, exact), "evaluations_sampling": sampling}
        rows[name] = entry
    return rows


def _distance(x: Tensor, y: Tensor) -> dict[str, float]:
    distance = (x - y.flatten(1)).norm(dim=1)
    return {"mean": float(distance.mean()), "max": float(distance.max())}


def _ddim(case: Case, points: Tensor) -> dict[str, Any]:
    backbone = mixture(case, "diffusion")
    # The closed form is float64 throughout; the table of a scheduler is float32.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    backbone.register_buffer("_table", (1 - betas).cumprod(0), persistent=False)
    rows: dict[str, Any] = {}
    for n, wanted in case.expected["out.ddim"]["value"].items():
        named = {name: FixedPointDDIM(**_passes(name.removeprefix("fixed_point_"))) for name in wanted}
        stride = 1000 // int(n)
        steps = [k * stride + 1 for k in reversed(range(int(n)))]
        schedule = Schedule.from_alphas_cumprod(backbone._table, steps, final_alpha="first", stride=stride)
        rows[n] = _rows(Trips(backbone, schedule, points), named, None)
    return rows


def _passes(name: str) -> dict[str, Any]:
    """Read "K2_mean_all": how many iterations and what of them is used."""
    passes, rule = name.split("_", 1)
    return {"iterations": int(passes.removeprefix("K")), "average": AVERAGES[rule]}


def _orders(table: dict[str, Any], chosen: dict[str, Inversion], steps: list[int]) -> dict[str, Any]:
    coarse, fine = sorted(steps)[-2:]

    def order(rule: str, measure: str) -> float:
        errors = [table[str(n)][rule][measure]["mean"] for n in (coarse, fine)]
        return math.log(errors[0] / errors[1]) / math.log(fine / coarse)

    measures = {"round_trip": "round_trip", "noise_error": "noise_error_vs_exact"}
    return {rule: {name: order(rule, measure) for name, measure in measures.items()} for rule in chosen}


def _compensations(case: Case, flow: GaussianMixture, points: Tensor) -> dict[str, float]:
    sums = {}
    for name in case.expected["out.stage2_compensation_norm_sum"]["value"]:
        steps, rule = name.split("_", 1)
        # On the most shifted grid, which is SD3's.
        there = trips(flow, int(steps.removeprefix("N")), max(case.settings["shift"]), points)
        sums[name] = there.compensation(FixedPointInversion(**_passes(rule)))
    return sums
