"""FlowEdit, FlowAlign and UniEdit-Flow where their answers are known: Gaussians, whose velocities are linear.

For clean latents N(m, v) the velocity at x is c (x - alpha m) - m with c = (sigma - alpha v) / (alpha^2 v + sigma^2).
The difference between two such worlds at p = x0 + D + noise and q = x0 + noise does not depend on the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.backbones import SD3, Flux, GaussianMixture
from framework.errors import SettingsError
from framework.guidance import ClassifierFree, EmbeddedGuidance
from framework.module import EditModule
from framework.schedule import Level
from framework.step import COND, Latents, Row, Stream
from methods.flowalign import AlignedDifference, FlowAlign, SourceAsUnconditional
from methods.flowedit import FlowEdit, VelocityDifference
from methods.uniedit_flow import UniEditFlow, UniInversion, VelocityFusion, difference_map
from tests.small import MODELS

VARIANCE = 0.3
SHIFT = 1.5
"""Between the means of the two worlds."""


@pytest.fixture(scope="module")
def worlds() -> GaussianMixture:
    """Two Gaussians, told apart by the prompt."""
    return GaussianMixture(
        [-0.5, -0.5 + SHIFT], VARIANCE, texts={"a": [1, 0], "b": [0, 1]}, kind="flow", shape=(2, 4, 4), shift=2.0
    )


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    """Two overlapping components, so that velocities are not linear."""
    return GaussianMixture([-1.0, 1.0], 0.4, texts={"a": [3, 1], "b": [1, 3]}, kind="flow", shape=(1, 2, 2), shift=1.5)


def picture(network: GaussianMixture | None = None) -> Tensor:
    shape = (2, 4, 4) if network is None else network.latent_shape
    assert shape is not None
    # Pictures are float32: what it holds must be exact there.
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) - 0.5).double()


def edit(module: EditModule, **texts: str) -> Tensor:
    assert isinstance(module.backbone, GaussianMixture)
    batch = module.batch(picture(module.backbone), **{"source": "a", "target": "b", **texts})
    return module.edit(batch).latents[Stream.TARGET]


def slope(level: Level) -> float:
    return (level.sigma - level.alpha * VARIANCE) / (level.alpha**2 * VARIANCE + level.sigma**2)


def test_flowedit_moves_a_gaussian_by_the_difference_of_the_means(worlds: GaussianMixture) -> None:
    module = FlowEdit(worlds, steps=7, n_max=7, guidance=ClassifierFree(1.0, 1.0))

    torch.testing.assert_close(edit(module)[0], picture() + SHIFT, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_max", "n_avg"), [(3, 1), (5, 2)])
def test_flowedit_from_a_middle_level_follows_the_recursion(worlds: GaussianMixture, n_max: int, n_avg: int) -> None:
    module = FlowEdit(worlds, steps=6, n_max=n_max, n_avg=n_avg, guidance=ClassifierFree(1.0, 1.0))
    moved = 0.0
    levels = module.edit_schedule.levels
    for level, level_next in zip(levels[6 - n_max : -1], levels[7 - n_max :], strict=True):
        c = slope(level)
        moved += (level_next.sigma - level.sigma) * (c * moved - (c * level.alpha + 1) * SHIFT)

    torch.testing.assert_close(edit(module)[0], picture() + moved, rtol=0, atol=1e-12)
    assert module.evaluations.calls == n_max * n_avg


def test_the_last_steps_of_flowedit_sample_ordinarily(worlds: GaussianMixture) -> None:
    module = FlowEdit(worlds, steps=6, n_max=5, n_min=2, guidance=ClassifierFree(1.0, 1.0), reconstruct=False)
    batch = module.batch(picture(), source="a", target="b")
    record = module.invert(batch)
    noise = record.own["flowedit.noise"]
    levels = module.edit_schedule.levels
    moved = 0.0
    for i in (1, 2, 3):
        c = slope(levels[i])
        moved += (levels[i + 1].sigma - levels[i].sigma) * (c * moved - (c * levels[i].alpha + 1) * SHIFT)
    x = picture()[None] + moved + levels[4].sigma * (noise[-1] - picture())
    for i in (4, 5):
        c, mean = slope(levels[i]), SHIFT - 0.5
        x = x + (levels[i + 1].sigma - levels[i].sigma) * (c * (x - levels[i].alpha * mean) - mean)

    result = module.edit(batch, record=record)

    torch.testing.assert_close(result.latents[Stream.TARGET], x, rtol=0, atol=1e-12)
    assert len(noise) == 4
    assert result.evaluations.samples == 3 * 2 + 2


def test_averages_are_over_differences_at_the_same_latent(mixture: GaussianMixture) -> None:
    guidance = ClassifierFree(2.0, 1.0)
    module = FlowEdit(mixture, steps=2, n_max=1, n_avg=3, guidance=guidance)
    batch = module.batch(picture(mixture), source="a", target="b")
    record = module.invert(batch)
    single = FlowEdit(mixture, steps=2, n_max=1, guidance=guidance)
    one = single.invert(batch)

    drawn = record.own["flowedit.noise"]
    ends = []
    for n in drawn:
        one.own["flowedit.noise"].copy_(n[None])
        ends.append(single.edit(batch, record=one).latents[Stream.TARGET])

    assert (ends[0] - ends[1]).abs().max() > 1e-3
    mean = torch.stack(ends).mean(0)
    torch.testing.assert_close(module.edit(batch, record=record).latents[Stream.TARGET], mean, rtol=0, atol=1e-12)


def test_an_edit_to_the_same_prompt_and_scale_changes_nothing(mixture: GaussianMixture) -> None:
    for module in (
        FlowEdit(mixture, steps=4, n_max=4, guidance=ClassifierFree(3.0, 3.0)),
        FlowAlign(mixture, steps=4),
    ):
        torch.testing.assert_close(edit(module, target="a")[0], picture(mixture), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_flowalign_pulls_the_clean_estimate_to_the_sources(
    worlds: GaussianMixture, weight: float, scale: float
) -> None:
    module = FlowAlign(worlds, steps=6, source_weight=weight, guidance=SourceAsUnconditional(scale))
    moved = 0.0
    levels = module.edit_schedule.levels
    for level, level_next in pairwise(levels):
        c = slope(level)
        # The prompt moves the velocity by the same amount everywhere, so guidance scales that part alone.
        difference = c * moved - scale * (c * level.alpha + 1) * SHIFT
        moved += (level_next.sigma - level.sigma) * difference + weight * (level.sigma * difference - moved)

    torch.testing.assert_close(edit(module)[0], picture() + moved, rtol=0, atol=1e-11)
    assert (module.evaluations.calls, module.evaluations.samples) == (6, 18)


def test_flowalign_without_its_pull_is_flowedit_under_the_same_guidance(worlds: GaussianMixture) -> None:
    guidance = ClassifierFree(1.0, 1.0)
    align = FlowAlign(worlds, steps=5, source_weight=0.0, skip=1, guidance=guidance)
    flow = FlowEdit(worlds, steps=5, n_max=4, guidance=guidance)

    torch.testing.assert_close(edit(align), edit(flow), rtol=0, atol=1e-12)


def _round_trip(mixture: GaussianMixture, steps: int, **settings: Any) -> float:
    module = UniEditFlow(mixture, steps=steps, inversion=UniInversion(1.0, **settings), guidance=ClassifierFree())
    result = module.edit(module.batch(picture(mixture), source="a", target="a"))
    return float((result.latents[Stream.SOURCE] - picture(mixture)).square().mean().sqrt())


@pytest.mark.parametrize("first_guess", ["clean", "zero"])
def test_the_round_trip_of_uni_inv_is_of_second_order(mixture: GaussianMixture, first_guess: str) -> None:
    coarse, fine = (_round_trip(mixture, steps, first_guess=first_guess) for steps in (50, 100))

    assert 3.5 < coarse / fine < 4.6


def test_uni_inv_walks_as_far_as_alpha_says(mixture: GaussianMixture) -> None:
    for rounding, executed in (("floor", 5), ("round", 6)):
        inversion = UniInversion(0.8, rounding=rounding)  # type: ignore[arg-type]
        module = UniEditFlow(mixture, steps=7, inversion=inversion, reconstruct=False)
        result = module.edit(module.batch(picture(mixture), source="a", target="b"))
        assert result.inversion_evaluations.samples == executed + 1
        assert result.evaluations.samples - result.inversion_evaluations.samples == 2 * executed
        assert result.record.unused == tuple(range(7 - executed))
    assert UniInversion(0.29).executed(100) == 29


def test_the_difference_map_lies_between_zero_and_one_and_marks_where_prompts_differ() -> None:
    difference = torch.zeros(2, 3, 4, 4)
    difference[0, :, 1, 2], difference[0, :, 3, 3] = -4.0, 2.0

    absolute, signed = difference_map(difference, "absolute"), difference_map(difference, "signed")

    assert absolute[0, 0, 1, 2] == 1 and absolute[0, 0, 3, 3] == 0.5 and absolute[0, 0, 0, 0] == 0
    assert signed[0, 0, 1, 2] == 0 and signed[0, 0, 3, 3] == 1
    assert signed[0, 0, 0, 0] == pytest.approx(2 / 3)
    assert absolute[1].abs().max() == signed[1].abs().max() == 0


class _Rows:
    """A network whose velocity under a row is a given tensor."""

    def __init__(self, given: dict[Row, Tensor]) -> None:
        self.given, self.asked = given, []  # type: ignore[var-annotated]

    def __call__(self, z: Latents, rows: list[Row], **more: Any) -> dict[Row, Tensor]:
        self.asked.append((z, list(rows)))
        return {row: self.given[row] for row in rows}


@pytest.mark.parametrize("source", [None, torch.ones(1, 1, 1, 2)])
def test_fusion_asks_both_prompts_at_the_targets_latent_in_one_call(source: Tensor | None) -> None:
    target = torch.tensor([[[[1.0, 5.0]]]])
    layout, cond = Row(Stream.LAYOUT, COND), Row(Stream.TARGET, COND)
    network = _Rows(
        {layout: torch.zeros(1, 1, 1, 2), cond: target, Row(Stream.SOURCE, COND): torch.full((1, 1, 1, 2), 7.0)}
    )
    guidance = VelocityFusion(omega=2.0, invert_with="source")
    z = Latents(target=torch.rand(1, 1, 1, 2), source=source)

    result, state = guidance.predict(z, 0, network, None, None, None)  # type: ignore[arg-type]

    (asked, rows), = network.asked  # fmt: skip
    assert asked[Stream.LAYOUT] is z.target
    assert len(rows) == (2 if source is None else 3)
    # m is 0 and 1: 0 + 2 * 1 * 1, and 5 + 2 * 2 * 5.
    assert result[Stream.TARGET].flatten().tolist() == [2.0, 25.0]
    assert (result.source is None) == (source is None)
    assert guidance.found(state)["difference_map"].flatten().tolist() == [0.0, 1.0]


def test_without_strength_and_with_one_prompt_fusion_is_plain_sampling(mixture: GaussianMixture) -> None:
    settings: dict[str, Any] = {"steps": 6, "alpha": 0.9}
    fused = UniEditFlow(mixture, guidance=VelocityFusion(invert_with="source"), **settings)
    plain = UniEditFlow(mixture, guidance=ClassifierFree(1.0, 1.0), **settings)

    torch.testing.assert_close(edit(fused, target="a"), edit(plain, target="a"), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "scales"), [(SD3, (ClassifierFree, 13.5, 3.5)), (Flux, (EmbeddedGuidance, 5.5, 1.5))]
)
def test_flowedit_takes_the_published_scales_of_its_network(network: Any, scales: tuple[Any, float, float]) -> None:
    backbone = network(str(MODELS / ("tiny-sd3" if network is SD3 else "tiny-flux")))

    guidance: Any = FlowEdit(backbone).guidance

    assert (type(guidance), guidance.target, guidance.source) == scales


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda b: FlowEdit(b, steps=20), "n_max=33 is more than steps=20"),
        (lambda b: FlowEdit(b, n_max=4, n_min=4), r"n_min=4 is not allowed.*\[0, 3\]"),
        (lambda b: FlowEdit(b, n_min=-1), "n_min=-1 is not allowed"),
        (lambda b: FlowEdit(b, n_max=0), "n_max=0 is not allowed"),
        (lambda b: FlowEdit(b, n_avg=0), "n_avg=0 is not allowed"),
        (lambda b: FlowAlign(b, source_weight=-0.1), "source_weight=-0.1 is not allowed"),
        (lambda b: FlowAlign(b, steps=4, skip=4), "skip=4"),
        (lambda b: UniEditFlow(b, alpha=0.0), "alpha=0.0 is not allowed"),
        (lambda b: UniEditFlow(b, steps=8, alpha=0.1), "is no step; give alpha of at least 0.125"),
        (lambda b: UniEditFlow(b, rounding="up"), "rounding='up'"),
        (lambda b: UniEditFlow(b, guidance=VelocityFusion(omega=-1)), "omega=-1"),
        (lambda b: UniEditFlow(b, guidance=VelocityFusion(difference="squared")), "difference='squared'"),
    ],
)
def test_wrong_settings_are_refused(worlds: GaussianMixture, build: Callable[[Any], EditModule], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        build(worlds)


@pytest.mark.parametrize("method", [FlowEdit, FlowAlign, UniEditFlow])
def test_a_diffusion_model_is_refused_with_both_names(method: type[EditModule]) -> None:
    module = method(GaussianMixture([0.0, 1.0], 0.5))  # type: ignore[call-arg]

    (problem,) = module.check()

    assert "GaussianMixture" in problem and method.__name__ in problem and "velocity" in problem


def test_the_parts_are_values() -> None:
    assert VelocityDifference() == VelocityDifference() and AlignedDifference() == AlignedDifference()
