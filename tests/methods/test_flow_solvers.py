"""Inversions of flows where their answers are known: orders of convergence, round trips, features that are shared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.backbones import SD3, Flux, GaussianMixture, StableDiffusion
from framework.errors import SettingsError
from framework.guidance import ClassifierFree, EmbeddedGuidance
from framework.inversion import Inversion
from framework.module import EditModule
from framework.record import Record
from framework.step import COND, Condition, Latents, Row, Rows, Segment, Stream
from methods.adaln_invariance import AdaLNInvariance, ValueInjection, token_map
from methods.ddim import DDIM
from methods.edit_friendly import EditFriendlyDDPM
from methods.euler_flow import EulerFlow, EulerInversion
from methods.feature_sharing import FeatureSharing
from methods.flowedit import FlowEdit
from methods.local_blend import LocalBlend
from methods.masactrl import MutualSelfAttention
from methods.plug_and_play import FeatureInjection
from methods.prompt_to_prompt import PromptToPrompt
from methods.rf_inversion import ControlledInversion, RFInversion, stochastic_step
from methods.rf_solver import FireFlow, MidpointInversion, ReusedMidpointInversion, RFSolver
from methods.two_stage import FixedPointInversion, TwoStage
from methods.uniedit_flow import UniInversion
from methods.unified_attention import UnifiedAttention
from tests.parity.replays.flow_analytic import exact_noise, trips
from tests.small import MODELS, batch_of

POINTS = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    """Two overlapping components in every number, so that velocities are not linear."""
    texts = {"a": [3, 1], "b": [1, 3]}
    return GaussianMixture([-0.8, 1.2], [0.16, 0.09], texts=texts, kind="flow", shape=(2, 1, 16))


@pytest.fixture(scope="module")
def flux() -> Flux:
    backbone = Flux(str(MODELS / "tiny-flux"), dtype="float64", max_sequence_length=16)
    backbone.load()
    return backbone


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean().sqrt())


@pytest.fixture(scope="module")
def plane() -> tuple[GaussianMixture, Tensor, Tensor]:
    """A mixture in the plane, points near its data, and the flow's own noise of these points."""
    flow = GaussianMixture([[1.0, 0.3], [-0.9, -0.6]], [0.2, 0.3], weights=[0.5, 0.5], kind="flow", shape=(2, 1, 1))
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor([[1.0, 0.3], [-0.9, -0.6]]).repeat(8, 1) + 0.4 * torch.randn(16, 2, generator=generator)
    return flow, points.double(), exact_noise(flow, points.double(), 400)


RULES: dict[str, tuple[Inversion, float, float]] = {
    "Euler, noisy end": (EulerInversion(), 1, 1),
    "Euler, clean end": (EulerInversion(time="clean_end"), 1, 1),
    "K=1": (FixedPointInversion(iterations=1, average="none"), 2, 1),
    "K=2": (FixedPointInversion(iterations=2, average="none"), 3, 1),
    "K=1, mean": (FixedPointInversion(iterations=1), 1, 1),
    "K=2, mean": (FixedPointInversion(iterations=2), 1, 1),
    "K=2, mean without first": (FixedPointInversion(iterations=2, average="skip_first"), 2, 1),
    "Uni-Inv": (UniInversion(alpha=1.0), 2, 1),
    "RF-Solver": (MidpointInversion(), 3, 2),
    "FireFlow": (ReusedMidpointInversion(), 3, 2),
}
"""Inversion, and the orders in the step of its round trip and of its distance to the flow's own noise."""


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_errors_fall_at_the_order_of_the_rule(rule: str, plane: tuple[GaussianMixture, Tensor, Tensor]) -> None:
    inversion, round_trip, noise = RULES[rule]
    flow, points, exact = plane

    (far, there, *_), (near, here, *_) = (trips(flow, steps, 1.0, points).go(inversion) for steps in (50, 100))

    assert math.log2(distance(there, points) / distance(here, points)) == pytest.approx(round_trip, abs=0.25)
    assert math.log2(distance(far, exact) / distance(near, exact)) == pytest.approx(noise, abs=0.25)


@pytest.mark.parametrize("convention", ["noisy_end", "clean_end"])
def test_a_convention_tells_the_network_one_end_of_the_interval(mixture: GaussianMixture, convention: Any) -> None:
    told: list[float] = []
    module = EulerFlow(mixture, steps=4, time=convention, guidance=ClassifierFree(1.0), reconstruct=False)
    forward = mixture.forward
    mixture.forward = lambda z, t, c: (told.append(float(t[0]) / 1000), forward(z, t, c))[1]  # type: ignore[assignment, method-assign, func-returns-value]
    try:
        module.invert(module.batch(POINTS, source="a"))
    finally:
        del mixture.forward

    levels = [0.25, 0.5, 0.75, 1.0] if convention == "noisy_end" else [0.0, 0.25, 0.5, 0.75]
    assert told == pytest.approx(levels)


def test_no_iteration_is_euler_at_the_noisy_end(mixture: GaussianMixture) -> None:
    batch = EulerFlow(mixture).batch(POINTS, source="a", target="b")

    fixed, euler = (
        EulerFlow(mixture, steps=5, inversion=inversion).invert(batch).latents
        for inversion in (FixedPointInversion(iterations=0), EulerInversion())
    )

    assert fixed is not None and euler is not None and torch.equal(fixed, euler)


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, range(3)),
        ({"average": "skip_first"}, range(1, 3)),
        ({"average": "none"}, range(2, 3)),
        ({"window": (0, 5)}, range(3)),
        ({"window": (1, 2)}, range(1, 2)),
        ({"window": (2, 2)}, range(2, 3)),
        ({"window": (5, 9)}, range(2, 3)),
        ({"iterations": 0, "average": "skip_first"}, range(1)),
    ],
)
def test_what_is_averaged(settings: dict[str, Any], window: range) -> None:
    assert FixedPointInversion(**settings).averaged() == window


class Slopes:
    """A prediction that returns 1, 2, 3, ... times ones and keeps what it was asked at."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, z: Latents, i: int, **told: Any) -> Latents:
        self.asked.append(z[Stream.SOURCE])
        return Latents(source=torch.full_like(z[Stream.SOURCE], float(len(self.asked))))


def test_the_average_is_of_velocities_and_never_feeds_the_iteration(mixture: GaussianMixture) -> None:
    slopes, z = Slopes(), torch.zeros(1, 1)
    ctx: Any = type("Context", (), {"schedule": mixture.schedule(4)})

    velocity, _ = FixedPointInversion(iterations=2).invert(z, 3, slopes, None, ctx)  # type: ignore[arg-type]

    # Each guess starts at z and takes the last velocity alone over the interval of 1/4.
    assert [float(asked) for asked in slopes.asked] == pytest.approx([0, 0.25, 0.5])
    assert float(velocity) == pytest.approx(2)


@pytest.mark.parametrize("settings", [{}, {"iterations": 0}, {"average": "none"}, {"skip": 1}])
def test_with_compensation_the_source_comes_back_under_any_guidance(
    flow_network: SD3, settings: dict[str, Any]
) -> None:
    module = TwoStage(flow_network, steps=3, guidance=ClassifierFree(4.0, 4.0, 1.0), **settings)

    result = module.edit(batch_of([0]))

    torch.testing.assert_close(result.latents[Stream.SOURCE], result.record.z0, rtol=0, atol=1e-6)
    without = TwoStage(flow_network, steps=3, compensate="none", guidance=module.guidance, **settings).edit(
        batch_of([0])
    )
    assert distance(without.latents[Stream.SOURCE], result.record.z0) > 1e-2


def test_compensation_of_both_rows_adds_the_sources_residual_to_the_edit(flow_network: SD3) -> None:
    def one_step(compensate: Any) -> Latents:
        settings: dict[str, Any] = {"steps": 1, "controls": [], "guidance": ClassifierFree(2.0, 2.0, 1.0)}
        return TwoStage(flow_network, compensate=compensate, **settings).edit(batch_of([0])).latents

    none, source, both = map(one_step, ("none", "source", "both"))

    residual = source[Stream.SOURCE] - none[Stream.SOURCE]
    torch.testing.assert_close(source[Stream.TARGET], none[Stream.TARGET], rtol=0, atol=1e-9)
    torch.testing.assert_close(both[Stream.TARGET] - none[Stream.TARGET], residual, rtol=0, atol=1e-9)
    assert float(residual.abs().max()) > 1e-3


# Token maps: start 1, end 2; words from 10 on.


def segment(*words: int, start: int = 0, length: int = 8) -> Segment:
    return Segment(start, length, (1, *words, 2))


@pytest.mark.parametrize(
    ("source", "target", "mapper", "shared"),
    [
        ([10, 11], [10, 11], [0, 1, 2, 3, 4, 5, 6, 7], [1] * 8),
        ([10, 11], [10, 12], [0, 1, -1, 3, 4, 5, 6, 7], [1, 1, 0, 1, 1, 1, 1, 1]),
        ([10], [11, 10], [0, -1, 1, 2, 4, 5, 6, 7], [1, 0, 1, 1, 1, 1, 1, 1]),
        ([10, 11, 12], [10, 12], [0, 1, 3, 4, 4, 5, 6, 7], [1] * 8),
    ],
)
def test_tokens_are_aligned_and_padding_keeps_its_position(
    source: list[int], target: list[int], mapper: list[int], shared: list[int]
) -> None:
    assert token_map([segment(*source)], [segment(*target)], "own_position") == (mapper, shared)


def test_padding_of_a_shorter_target_can_be_kept_from_the_removed_words() -> None:
    long, short = segment(10, 11, 12), segment(10, 12)

    own, _ = token_map([long], [short], "own_position")
    padded, _ = token_map([long], [short], "source_padding")

    assert own[4] == 4  # where the source has its end token
    assert padded == [0, 1, 3, 4, 5, 5, 6, 7]


def test_every_tokenizer_has_its_own_part_of_the_map() -> None:
    both = [segment(10, length=4), segment(10, 11, start=4, length=5)]
    other = [segment(12, length=4), segment(11, start=4, length=5)]

    mapper, shared = token_map(both, other, "own_position")

    assert mapper == [0, -1, 2, 3, 4, 6, 7, 7, 8]
    assert shared == [1, 0, 1, 1, 1, 1, 1, 1, 1]


ROWS = Rows((Row(Stream.SOURCE, COND), Row(Stream.TARGET, COND)), (1, 1))


def begun(control: Any, backbone: Any, source: str, target: str, steps: int = 10) -> Any:
    """The state of a control for one pair of prompts."""
    from framework.context import Context, Texts

    ctx = Context(
        backbone.schedule(steps),
        {ROWS.blocks[0]: Condition(torch.zeros(1, backbone.max_tokens, 0))},
        Texts((source,), (target,), ("",)),
        (Stream.SOURCE, Stream.TARGET),
        lambda purpose, count: torch.zeros(count),
        segments=backbone.segments,
    )
    return control.begin(ctx, backbone.sites(), (8, 8))


def test_shared_words_get_the_sources_features_and_new_ones_keep_their_own(flow_network: SD3) -> None:
    control = AdaLNInvariance()
    state = begun(control, flow_network, "a photo of a cat", "a photo of a dog")
    x = torch.stack([torch.zeros(flow_network.max_tokens, 3), torch.ones(flow_network.max_tokens, 3)])

    changed = control.output("transformer_blocks.0.norm1_context", ROWS, x, 0, state)

    own = changed[1].mean(1).nonzero().flatten().tolist()
    assert own == [k for k, shared in enumerate(state.shared[0].tolist()) if not shared]
    cat = len(flow_network.segments("a photo of a dog")[0].ids) - 2
    assert cat in own and changed[0].abs().max() == 0


def test_adaptive_norms_are_taken_in_all_blocks_but_the_last(flow_network: SD3) -> None:
    assert AdaLNInvariance().layers(flow_network.layers()) == [
        f"transformer_blocks.{k}.norm1_context" for k in range(3)
    ]


def test_on_flux_the_text_in_front_is_exchanged_in_single_stream_blocks_too(flux: Flux) -> None:
    control = AdaLNInvariance()
    state = begun(control, flux, "a cat", "a cat")
    x = torch.stack([torch.zeros(flux.max_tokens + 4, 3), torch.ones(flux.max_tokens + 4, 3)])

    changed = control.output("single_transformer_blocks.0.norm", ROWS, x, 0, state)

    assert changed[1, : flux.max_tokens].abs().max() == 0
    assert changed[1, flux.max_tokens :].min() == 1
    layers = control.layers(flux.layers())
    assert [name for name in layers if name.startswith("single")] == [
        f"single_transformer_blocks.{k}.norm" for k in range(4)
    ]


@pytest.mark.parametrize(
    ("window", "steps"), [(0.5, [0, 1, 2, 3, 4]), ((0.25, 0.55), [2, 3, 4]), (0.0, []), ((0.3, 0.3), [])]
)
def test_adaln_acts_inside_its_window_of_the_schedule(flow_network: SD3, window: Any, steps: list[int]) -> None:
    control = AdaLNInvariance(window)
    state = begun(control, flow_network, "a", "b")

    assert [i for i in range(10) if control.active(i, state)] == steps


def test_values_are_injected_from_the_first_executed_step_on(flow_network: SD3) -> None:
    control = ValueInjection(0.3)
    state = begun(control, flow_network, "a", "b")

    assert [i for i in range(4, 10) if control.active(i, state)] == [4, 5, 6]
    assert control.sites(flow_network.sites()) == list(flow_network.sites()[:-1])


def test_value_injection_changes_values_alone_and_the_target_alone(flow_network: SD3) -> None:
    x = torch.rand(2, 2, 5, 4)

    q, k, v = ValueInjection(1.0).qkv(flow_network.sites()[0], ROWS, x, x, x, 0, None)

    assert q is x and k is x
    assert torch.equal(v, torch.stack([x[0], x[0]]))


# Sharing between inversion and edit


def shared(flux: Flux, method: type[EditModule], **settings: Any) -> tuple[EditModule, Any]:
    module = method(flux, guidance=EmbeddedGuidance(2.0), **{"steps": 3, **settings})  # type: ignore[call-arg]
    return module, module.edit(batch_of([0]))


@pytest.mark.parametrize(
    ("method", "inject", "calls"),
    [(RFSolver, 2, 4), (EulerFlow, 2, 2), (FireFlow, 2, 2), (FireFlow, 3, 4), (RFSolver, 0, 0), (RFSolver, 9, 6)],
)
def test_features_are_kept_of_the_noisiest_intervals_alone_and_their_size_is_known(
    flux: Flux, method: type[EditModule], inject: int, calls: int
) -> None:
    module, result = shared(flux, method, sharing=FeatureSharing(inject, first_block=1, last_block=2))

    features = result.record.features
    assert len(features) == 2 * calls
    assert {int(name.split(".")[2]) for name in features} == set(range(min(inject, 3))[: 3 if calls else 0])
    kept = sum(value.numel() * value.element_size() for value in features.values())
    assert kept == module.inversion.feature_bytes(flux.sites(), (8, 8), 3, 8)


def test_without_a_word_values_are_shared_on_flux_in_the_later_half_of_the_single_stream_blocks(flux: Flux) -> None:
    for method, inject in ((RFSolver, 4), (FireFlow, 1)):
        module = method(flux)
        (sharing,) = module.controls
        assert isinstance(sharing, FeatureSharing) and sharing.inject_steps == inject
        assert [site.block for site in sharing.sites(flux.sites())] == [2, 3]  # type: ignore[attr-defined]
    assert EulerFlow(flux).controls == ()


def test_fireflows_first_sampling_call_finds_nothing_to_replace(flux: Flux) -> None:
    """In the inversion the first call belongs to the cleanest interval, in the sampling to the noisiest."""
    seen: list[tuple[int, bool]] = []

    class Watched(FeatureSharing):
        def qkv(self, site: Any, rows: Any, q: Any, k: Any, v: Any, i: int, state: Any) -> Any:
            new = super().qkv(site, rows, q, k, v, i, state)
            seen.append((rows.stage, new[2] is not v))
            return new

    shared(flux, FireFlow, sharing=Watched(1, first_block=0, last_block=0))

    assert seen == [(0, False), (1, True)]


@pytest.mark.parametrize("strategy", [["replace_v"], ["add_v"], ["replace_k"], ["add_k", "replace_q"], ["add_q"]])
def test_every_strategy_changes_the_edit_and_nothing_changes_the_source(flux: Flux, strategy: Any) -> None:
    _, plain = shared(flux, RFSolver, sharing=FeatureSharing(0))
    _, result = shared(flux, RFSolver, sharing=FeatureSharing(2, strategy=strategy, factors=(0.9, 1.1, 0.8)))

    assert distance(result.latents[Stream.TARGET], plain.latents[Stream.TARGET]) > 1e-7
    torch.testing.assert_close(result.latents[Stream.SOURCE], plain.latents[Stream.SOURCE], rtol=0, atol=1e-12)
    letters = {name.split(".")[1] for name in result.record.features}
    assert letters == {word[-1] for word in strategy}


def test_features_are_replaced_and_added_with_their_factors(flux: Flux) -> None:
    site, x, stored = flux.sites()[-1], torch.rand(2, 1, 3, 2), torch.rand(1, 1, 3, 2)
    state = {f"feature_sharing.{letter}.0.0.{site.name}": stored for letter in "qkv"}

    def of(*words: Any) -> tuple[Tensor, ...]:
        control = FeatureSharing(1, strategy=words, factors=(2.0, 3.0, 4.0))
        return tuple(y[1:] for y in control.qkv(site, ROWS, x, x, x, 0, state))

    own = x[1:]
    torch.testing.assert_close(of("replace_q", "add_k"), (2 * stored, own + 3 * stored, own))
    torch.testing.assert_close(of("add_v", "replace_v"), (own, own, 8 * stored))


def test_a_record_with_features_edits_again_and_one_without_is_refused(flux: Flux, tmp_path: Path) -> None:
    module, straight = shared(flux, RFSolver)
    batch = batch_of([0])
    module.invert(batch).save(tmp_path / "with")

    again = module.edit(batch, record=Record.load(tmp_path / "with"))

    assert torch.equal(again.latents[Stream.TARGET], straight.latents[Stream.TARGET])
    with pytest.raises(SettingsError, match="made by an inversion without sharing"):
        module.edit(batch, record=replace(straight.record, features={}))


def test_shared_features_follow_their_images_through_batches_and_splits(flux: Flux) -> None:
    module = RFSolver(flux, steps=2)
    split = RFSolver(flux, steps=2, max_rows=2)

    together = module.edit(batch_of([0, 1, 2])).latents[Stream.TARGET]
    parts = split.edit(batch_of([0, 1, 2])).latents[Stream.TARGET]
    alone = torch.cat([module.edit(batch_of([k])).latents[Stream.TARGET] for k in (0, 1, 2)])

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(parts, alone, rtol=0, atol=1e-9)


def test_features_can_be_kept_in_another_dtype(flux: Flux) -> None:
    _, result = shared(flux, RFSolver, sharing=FeatureSharing(1, dtype="bfloat16"))

    assert {value.dtype for value in result.record.features.values()} == {torch.bfloat16}
    _, exact = shared(flux, RFSolver, sharing=FeatureSharing(1))
    near = distance(result.latents[Stream.TARGET], exact.latents[Stream.TARGET])
    assert 0 < near < 1e-2


def test_the_memory_of_value_sharing_at_full_size_is_the_published_one(flux: Flux) -> None:
    """28 MB per tensor of FLUX.1-dev at 1024 pixels in 16 bit."""
    site = replace(flux.sites()[-1], text=512, width=3072)

    assert FeatureSharing(first_block=0, last_block=0).memory([site], (128, 128), 1, 2) == (512 + 4096) * 3072 * 2


# RF-Inversion


def test_the_full_controller_of_the_inversion_leads_straight_to_the_drawn_noise(mixture: GaussianMixture) -> None:
    module = RFInversion(mixture, steps=6, gamma=1.0, time_grid="consistent", guidance=ClassifierFree(1.0))
    batch = module.batch(POINTS, source="a", target="b")
    drawn: list[Tensor] = []
    z0, ctx = module.prepare(batch, _silent(module))
    drawn.append(ctx.noise("controller", 1)[0])

    record = module.invert(batch)

    assert record.latents is not None
    for latent, sigma in zip(record.latents, record.sigma.tolist(), strict=True):
        torch.testing.assert_close(latent, torch.lerp(z0, drawn[0], sigma), rtol=0, atol=1e-12)


def _silent(module: EditModule) -> Any:
    from framework.hooks import Hooks

    return Hooks(module, (), None)


@pytest.mark.parametrize("grid", ["reference", "consistent"])
def test_the_full_controller_of_the_sampling_returns_the_image(mixture: GaussianMixture, grid: Any) -> None:
    module = RFInversion(mixture, steps=5, eta=1.0, stop_share=1.0, time_grid=grid, guidance=ClassifierFree(3.0))

    result = module.edit(module.batch(POINTS, source="a", target="b"))

    torch.testing.assert_close(result.latents[Stream.TARGET], result.record.z0, rtol=0, atol=1e-12)


def test_without_controllers_rf_inversion_is_euler_at_the_clean_end(mixture: GaussianMixture) -> None:
    guidance = ClassifierFree(1.0)
    free = RFInversion(mixture, steps=5, gamma=0.0, eta=0.0, time_grid="consistent", guidance=guidance)
    euler = EulerFlow(mixture, steps=5, time="clean_end", guidance=guidance)
    batch = free.batch(POINTS, source="a", target="b")

    torch.testing.assert_close(
        free.edit(batch).latents[Stream.TARGET], euler.edit(batch).latents[Stream.TARGET], rtol=0, atol=1e-12
    )


def test_the_window_of_eta_is_counted_before_strength_and_its_decay_after() -> None:
    plain = ControlledInversion(eta=0.8, start_share=0.2, stop_share=0.5)
    short = replace(plain, strength=0.6, decay=2.0)

    assert [plain.share(i, 10) for i in range(10)] == [0, 0, 0.8, 0.8, 0.8, 0, 0, 0, 0, 0]
    # Six steps run, from interval 4; the window is still [2, 5).
    expected = [0, 0, 0.8 * (4 / 6) ** 2, 0.8 * (3 / 6) ** 2, 0.8 * (2 / 6) ** 2, 0]
    assert [short.share(i, 10) for i in range(4, 10)] == pytest.approx(expected)


def test_the_stochastic_step_keeps_the_spread_of_its_own_gaussian() -> None:
    """For standard normal data v = (sigma - alpha) / (alpha^2 + sigma^2) x, and the equation keeps the marginals."""
    from framework.schedule import Schedule

    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    levels = Schedule.from_sigmas(torch.linspace(0.9, 0.3, 201)).levels
    z = z * math.hypot(levels[0].alpha, levels[0].sigma)
    for level, level_next in pairwise(levels):
        spread = level.alpha**2 + level.sigma**2
        velocity = (level.sigma - level.alpha) / spread * z
        z = stochastic_step(z, velocity, torch.randn(len(z), generator=generator).double(), level, level_next)

    assert float(z.std()) == pytest.approx(math.hypot(levels[-1].alpha, levels[-1].sigma), rel=0.02)


@pytest.mark.parametrize(("steps", "inversion_steps"), [(4, 7), (6, 3)])
def test_inversion_and_edit_may_have_different_numbers_of_steps(
    mixture: GaussianMixture, steps: int, inversion_steps: int
) -> None:
    module = RFInversion(mixture, steps=steps, inversion_steps=inversion_steps, reconstruct=False)
    batch = module.batch(POINTS, source="a", target="b")

    record = module.invert(batch)
    result = module.edit(batch, record=record)

    assert len(record.t) == inversion_steps + 1
    assert module.evaluations.calls == steps and result.inversion_evaluations.calls == 0
    assert module.edit(batch).inversion_evaluations.calls == inversion_steps


# What is refused


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda b: EulerFlow(b, time="middle"), "time='middle'.*noisy_end, clean_end"),
        (lambda b: EulerFlow(b, steps=4, skip=4), "skip=4"),
        (lambda b: TwoStage(b, iterations=-1), "iterations=-1 is not allowed"),
        (lambda b: TwoStage(b, average="some"), "average='some'.*all, skip_first, none"),
        (lambda b: FixedPointInversion(window=(3, 1)), r"window=\[3, 1\]"),
        (lambda b: TwoStage(b, compensate="target"), "compensate='target'"),
        (lambda b: TwoStage(b, adaln_steps=1.2), "steps=.*1.2.*0 <= from <= to <= 1"),
        (lambda b: TwoStage(b, adaln_steps=[0.5, 0.2]), "0 <= from <= to <= 1"),
        (lambda b: TwoStage(b, value_steps=-0.1), "steps=-0.1"),
        (lambda b: AdaLNInvariance(pad="zero"), "pad='zero'"),
        (lambda b: FeatureSharing(strategy=["swap_v"]), "swap_v"),
        (lambda b: FeatureSharing(-1), "inject_steps=-1"),
        (lambda b: FeatureSharing(first_block=3, last_block=1), "first_block=3 lies behind last_block=1"),
        (lambda b: FeatureSharing(factors=(1.0, 1.0)), r"give \[q, k, v\]"),
        (lambda b: RFInversion(b, gamma=1.5), "gamma=1.5 is not allowed"),
        (lambda b: RFInversion(b, eta=-0.1), "eta=-0.1 is not allowed"),
        (lambda b: RFInversion(b, start_share=0.5, stop_share=0.2), "start_share=0.5 lies behind"),
        (lambda b: RFInversion(b, strength=0.0), r"strength=0.0 is not allowed.*\(0, 1\]"),
        (lambda b: RFInversion(b, inversion_steps=0), "inversion_steps=0"),
        (lambda b: RFInversion(b, time_grid="other"), "time_grid='other'"),
    ],
)
def test_wrong_settings_are_refused(mixture: GaussianMixture, build: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        build(mixture)


@pytest.mark.parametrize("method", [EulerFlow, TwoStage, RFSolver, FireFlow, RFInversion, FlowEdit])
def test_a_flow_method_on_a_diffusion_model_is_refused_before_weights_load(method: Any) -> None:
    backbone = StableDiffusion(str(MODELS / "tiny-sd"))

    problems = method(backbone).check()

    assert any("StableDiffusion" in p and method.__name__ in p and "velocity" in p for p in problems)
    assert backbone.unet is None


@pytest.mark.parametrize("method", [DDIM, EditFriendlyDDPM])
@pytest.mark.parametrize(("network", "folder"), [(SD3, "tiny-sd3"), (Flux, "tiny-flux")])
def test_a_diffusion_method_on_a_flow_model_is_refused_before_weights_load(
    method: Any, network: Any, folder: str
) -> None:
    backbone = network(str(MODELS / folder))

    problems = method(backbone).check()

    assert any(network.__name__ in p and method.__name__ in p and "epsilon" in p for p in problems)
    assert backbone.transformer is None


@pytest.mark.parametrize(
    "control",
    [
        PromptToPrompt(),
        LocalBlend([["cat"], ["dog"]]),
        MutualSelfAttention(),
        FeatureInjection(),
        UnifiedAttention(),
    ],
    ids=lambda control: type(control).__name__,
)
@pytest.mark.parametrize(("network", "folder"), [(SD3, "tiny-sd3"), (Flux, "tiny-flux")])
def test_controls_of_separate_attention_are_refused_on_joint_attention(network: Any, folder: str, control: Any) -> None:
    backbone = network(str(MODELS / folder))

    problems = EulerFlow(backbone, controls=[control]).check()

    name = type(control).__name__
    assert any(name in p and network.__name__ in p and "jointly" in p for p in problems)
    assert backbone.transformer is None


def test_sharing_on_a_network_without_single_stream_blocks_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"single-stream blocks.*ValueInjection"):
        FeatureSharing().sites(SD3(str(MODELS / "tiny-sd3")).sites())


def test_blocks_that_the_network_does_not_have_are_refused() -> None:
    with pytest.raises(SettingsError, match="blocks 2 to 9 are not among the network's 4"):
        FeatureSharing(first_block=2, last_block=9).sites(Flux(str(MODELS / "tiny-flux")).sites())
