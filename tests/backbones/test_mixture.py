from __future__ import annotations

import math

import pytest
import torch

from framework.backbones import GaussianMixture
from framework.control import Control
from framework.errors import SettingsError
from framework.schedule import ScheduleOptions, ddim_step, euler_step, prediction_to_x0

KINDS = ("diffusion", "flow")
TWO = {"means": [[-1.0, 0.5], [2.0, -1.5]], "variances": [[0.3, 0.2], 0.7], "weights": [0.25, 0.75]}


def predict(backbone, z, level, texts=None):
    t = torch.full((len(z),), level.t, dtype=torch.float64)
    return backbone(z, t, backbone.encode_prompt(texts or [""] * len(z)))


def posterior_mean_by_quadrature(mean, variance, weights, z, level):
    """E[z0 | z] of a mixture in one dimension, by summing over a fine grid."""
    x = torch.linspace(-15, 15, 200_001, dtype=torch.float64)
    prior = sum(
        w * torch.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(v) for m, v, w in zip(mean, variance, weights, strict=True)
    )
    mass = prior * torch.exp(-((z - level.alpha * x) ** 2) / (2 * level.sigma**2))
    return float((mass * x).sum() / mass.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("i", [1, 10, 19])
def test_the_clean_estimate_is_the_posterior_mean_found_by_numerical_integration(kind, i):
    mean, variance, weights = [-1.0, 2.0], [0.3, 0.7], [0.25, 0.75]
    backbone = GaussianMixture([[m] for m in mean], variance, weights=weights, kind=kind)
    level = backbone.schedule(20).levels[i]

    for value in (-1.5, 0.2, 2.5):
        z = torch.full((1, 1, 1, 1), value, dtype=torch.float64)
        x0 = prediction_to_x0(z, predict(backbone, z, level), level, backbone.form)
        assert x0.item() == pytest.approx(posterior_mean_by_quadrature(mean, variance, weights, value, level), abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_score_that_autograd_finds_in_the_log_density(kind):
    backbone = GaussianMixture(**TWO, kind=kind)
    level = backbone.schedule(20).levels[7]
    z = torch.randn(5, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in (level.alpha, level.sigma))

    (score,) = torch.autograd.grad(backbone.log_density(z, alpha, sigma).sum(), z)
    prediction = predict(backbone, z, level)

    eps = -sigma * score
    expected = eps if kind == "diffusion" else eps - (z - sigma * eps) / alpha
    assert (prediction - expected).abs().max() < 1e-12


def test_the_log_density_integrates_to_one():
    backbone = GaussianMixture([[-1.0], [2.0]], [0.3, 0.7])
    x = torch.linspace(-15, 15, 100_001, dtype=torch.float64).view(-1, 1, 1, 1)
    alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in (0.8, 0.6))

    mass = backbone.log_density(x, alpha, sigma).exp().sum() * (x[1] - x[0])

    assert mass.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_gaussian_has_a_linear_denoiser(kind):
    mean, variance = torch.tensor([0.5, -2.0, 1.0]), torch.tensor([0.1, 1.0, 4.0])
    backbone = GaussianMixture([mean.tolist()], [variance.tolist()], kind=kind)
    level = backbone.schedule(10).levels[4]
    z = torch.randn(4, 3, 1, 1, dtype=torch.float64)

    x0 = prediction_to_x0(z, predict(backbone, z, level), level, backbone.form)

    m, v = (value.double().view(3, 1, 1) for value in (mean, variance))
    gain = level.alpha * v / (level.alpha**2 * v + level.sigma**2)
    assert (x0 - (m + gain * (z - level.alpha * m))).abs().max() < 1e-12


def test_a_flow_starts_where_there_is_no_signal():
    backbone = GaussianMixture(**TWO, kind="flow")
    level = backbone.schedule(4).levels[0]
    z = torch.randn(3, 2, 1, 1, dtype=torch.float64)

    velocity = predict(backbone, z, level)

    mean = 0.25 * torch.tensor([-1.0, 0.5]) + 0.75 * torch.tensor([2.0, -1.5])
    assert level.alpha == 0
    assert (velocity - (z - mean.double().view(2, 1, 1))).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_solving_the_ode_carries_noise_to_the_clean_gaussian_at_first_order(kind):
    mean, deviation = 0.7, 0.4
    backbone = GaussianMixture([[mean]], deviation**2, kind=kind)
    z_start = torch.tensor([-1.3, 0.0, 2.1], dtype=torch.float64).view(3, 1, 1, 1)

    def error(steps):
        schedule = backbone.schedule(steps)
        z = z_start
        for level, level_next in zip(schedule.levels[:-1], schedule.levels[1:], strict=True):
            step = ddim_step if kind == "diffusion" else euler_step
            z = step(z, predict(backbone, z, level), level, level_next)
        # The exact flow keeps the standardised value of a Gaussian.
        spread = [
            math.sqrt(level.alpha**2 * deviation**2 + level.sigma**2) for level in (schedule.levels[0], level_next)
        ]
        exact = level_next.alpha * mean + (z_start - schedule.levels[0].alpha * mean) / spread[0] * spread[1]
        return (z - exact).abs().max().item()

    coarse, fine = error(100), error(200)

    assert coarse < 0.03
    assert 1.7 < coarse / fine < 2.3


def test_prompts_choose_components_and_other_prompts_mean_all_of_them():
    texts = {"left": [1, 0], "mostly right": [1, 9]}
    backbone = GaussianMixture([[-3.0], [3.0]], 0.5, weights=[1, 3], texts=texts)
    left, right = GaussianMixture([[-3.0]], 0.5), GaussianMixture([[-3.0], [3.0]], 0.5, weights=[0.1, 0.9])
    default = GaussianMixture([[-3.0], [3.0]], 0.5, weights=[0.25, 0.75])
    level = backbone.schedule(10).levels[5]
    z = torch.full((4, 1, 1, 1), 0.1, dtype=torch.float64)

    together = predict(backbone, z, level, ["left", "mostly right", "", "anything"])

    for row, alone in enumerate((left, right, default, default)):
        assert torch.allclose(together[row : row + 1], predict(alone, z[:1], level), rtol=0, atol=1e-14)
    assert backbone.takes_text and not default.takes_text


def test_rows_may_have_different_times():
    backbone = GaussianMixture(**TWO)
    z = torch.randn(2, 2, 1, 1, dtype=torch.float64)
    levels = [backbone.schedule(10).levels[i] for i in (2, 8)]

    both = backbone(z, torch.tensor([level.t for level in levels]), backbone.encode_prompt(["", ""]))

    for row, level in enumerate(levels):
        assert torch.equal(both[row : row + 1], predict(backbone, z[row : row + 1], level))


def test_gradients_reach_the_latents():
    backbone = GaussianMixture(**TWO)
    z = torch.randn(2, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    t = torch.full((2,), 400.0)
    condition = backbone.encode_prompt(["", ""])

    assert torch.autograd.gradcheck(lambda x: backbone(x, t, condition), (z,))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_pixels_make_a_denoiser_that_commutes_with_shifts_and_flips_at_any_size(kind):
    backbone = GaussianMixture([-0.4, 0.6], [0.2, 0.3], kind=kind)
    level = backbone.schedule(10).levels[5]
    z = torch.randn(2, 3, 6, 10, dtype=torch.float64)

    for move in (lambda x: x.roll((2, 3), (2, 3)), lambda x: x.flip(3), lambda x: x.flip(2)):
        assert torch.allclose(move(predict(backbone, z, level)), predict(backbone, move(z), level), rtol=0, atol=1e-12)
    assert backbone.image_size is None


def test_pictures_may_have_a_mean_per_pixel_or_per_channel():
    shape = [3, 4, 5]
    picture = torch.rand(shape, dtype=torch.float64)
    backbone = GaussianMixture([picture.tolist(), [0.1, 0.2, 0.3]], 0.01, shape=shape, weights=[1, 0])
    level = backbone.schedule(50).levels[-2]
    z = level.alpha * picture[None]

    x0 = prediction_to_x0(z, predict(backbone, z, level), level, "epsilon")

    assert torch.allclose(x0[0], picture, rtol=0, atol=1e-12)
    assert (backbone.image_size, backbone.image_channels) == ((4, 5), 3)


def test_pictures_are_their_own_latents():
    backbone = GaussianMixture([0.0])
    images = torch.rand(2, 3, 4, 4)

    assert torch.equal(backbone.decode_latent(backbone.encode_image(images)), images)
    assert backbone.encode_image(images).dtype == torch.float64


def test_levels_of_a_flow_are_even_and_may_be_shifted():
    backbone = GaussianMixture([[0.0]], kind="flow", shift=3.0)

    assert backbone.schedule(4, ScheduleOptions(shift=1.0)).sigma.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert backbone.schedule(4).sigma.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert backbone.schedule(4).t.tolist() == pytest.approx([1000, 900, 750, 500, 0])


def test_a_diffusion_model_visits_the_levels_of_its_table():
    schedule = GaussianMixture([[0.0]]).schedule(10)

    assert schedule.t.tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, -1]
    assert schedule.form == "epsilon"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_that_of_the_arithmetic(dtype):
    backbone = GaussianMixture(**TWO, dtype=dtype)
    z = torch.randn(2, 2, 1, 1, dtype=backbone.dtype)

    output = predict(backbone, z, backbone.schedule(10).levels[3])

    assert output.dtype == backbone.latent_dtype == getattr(torch, dtype)


def test_identity_tells_distributions_and_schedules_apart():
    base = GaussianMixture(**TWO).identity

    assert GaussianMixture(**TWO).identity == base
    for change in ({"weights": [0.5, 0.5]}, {"kind": "flow"}, {"beta_end": 0.02}, {"texts": {"a": [1, 0]}}):
        assert GaussianMixture(**{**TWO, **change}).identity != base


def test_controls_without_sites_may_blend_and_nothing_else():
    class Blend(Control):
        def blend(self, z, z_next, i, state):
            return z_next

    class Attend(Blend):
        def sites(self, sites):
            return sites

    backbone = GaussianMixture([0.0])

    with backbone.controlled([Blend()], [None]) as handle:
        assert len(handle.controls) == 1
    with pytest.raises(SettingsError, match="Attend chose no attention site"), backbone.controlled([Attend()], [None]):
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"means": []}, "means is empty"),
        ({"means": [[0.0, 1.0], [0.0]]}, "means[0] has shape [2]"),
        ({"means": [[[0.0], [1.0, 2.0]]]}, "means[0]"),
        ({"means": [[0.0, float("nan")]]}, "means[0] holds values"),
        ({"means": [0.0], "variances": 0.0}, "variances[0] holds values"),
        ({"means": [0.0, 1.0], "variances": [1.0]}, "variances has 1 entries for 2 components"),
        ({"means": [0.0, 1.0], "weights": [1.0]}, "weights=[1.0] is not allowed"),
        ({"means": [0.0, 1.0], "weights": [0.0, 0.0]}, "not all 0"),
        ({"means": [0.0, 1.0], "texts": {"left": [-1, 2]}}, "texts['left']=[-1, 2]"),
        ({"means": [0.0], "kind": "floe"}, "did you mean 'flow'"),
        ({"means": [0.0], "shape": [3, 0, 2]}, "shape=[3, 0, 2]"),
        ({"means": [[0.0, 1.0]], "shape": [3, 2, 2]}, "means[0] has shape [2]; give a number, 12 numbers"),
        ({"means": [0.0], "shift": 0.0}, "shift=0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(SettingsError) as error:
        GaussianMixture(**settings)

    assert words in str(error.value)
