"""pix2pix-zero's regularisers in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from framework.statistics.regularisers import auto_correlation, descend, kl_divergence, pyramid_rows


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("rows", "levels"),
    [(64, [64, 32, 16, 8]), (32, [32, 16, 8]), (8, [8]), (5, [5]), (9, [9, 4]), (96, [96, 48, 24, 12, 6])],
)
def test_the_pyramid_ends_with_the_first_level_of_at_most_eight_rows(rows: int, levels: list[int]) -> None:
    assert pyramid_rows(rows) == levels


def test_of_a_constant_map_every_correlation_is_its_power() -> None:
    x = torch.full((2, 3, 16, 16), 2.0, dtype=torch.float64)

    levels, axes, channels = 2, 2, 3
    torch.testing.assert_close(auto_correlation(x, 1), torch.full((2,), 4.0**2 * levels * axes * channels).double())


def test_shifts_of_single_maps_are_those_of_roll() -> None:
    x = noise(2, 2, 16, 16)
    shifts = torch.tensor([[[1, 2], [5, 3]], [[7, 1], [4, 2]]])

    expected = []
    for image in range(2):
        total = 0.0
        for channel in range(2):
            level = x[image, channel]
            for number in range(2):
                d = int(shifts[image, channel, number])
                for axis in (0, 1):
                    total += float((level * level.roll(d, axis)).mean() ** 2)
                level = torch.nn.functional.avg_pool2d(level[None], 2)[0]
        expected.append(total)
    torch.testing.assert_close(auto_correlation(x, shifts), torch.tensor(expected, dtype=torch.float64))


def test_the_divergence_of_given_moments() -> None:
    x = torch.tensor([[1.0, 3.0], [0.0, 2.0]], dtype=torch.float64)

    expected = [2 + 4 - 1 - math.log(2 + 1e-7), 2 + 1 - 1 - math.log(2 + 1e-7)]
    torch.testing.assert_close(kl_divergence(x), torch.tensor(expected, dtype=torch.float64))


def test_its_gradient_is_that_of_mean_and_variance() -> None:
    x = noise(1, 4, 8, 8).mul(2).add(0.5).requires_grad_()
    n = x.numel()
    variance, mean = torch.var_mean(x.detach())

    (gradient,) = torch.autograd.grad(kl_divergence(x).sum(), x)

    expected = (1 - 1 / (variance + 1e-7)) * 2 * (x.detach() - mean) / (n - 1) + 2 * mean / n
    torch.testing.assert_close(gradient, expected)


def test_descending_makes_noise_whiter_and_every_image_by_itself() -> None:
    x = torch.nn.functional.avg_pool2d(noise(2, 4, 32, 32), 3, 1, 1).mul(3).add(0.5)

    def rounds(value: torch.Tensor) -> torch.Tensor:
        for _ in range(5):
            value = descend(value, [torch.tensor(1), torch.tensor(2)], auto_correlation_rate=20.0, kl_rate=20.0)
        return value

    whiter = rounds(x)

    assert bool((auto_correlation(whiter, 1) < auto_correlation(x, 1)).all())
    assert bool((kl_divergence(whiter) < kl_divergence(x)).all())
    torch.testing.assert_close(whiter[:1], rounds(x[:1]), rtol=0, atol=1e-12)
    assert not whiter.requires_grad


def test_rates_of_zero_change_nothing() -> None:
    x = noise(1, 4, 16, 16)

    assert torch.equal(descend(x, [torch.tensor(1)], auto_correlation_rate=0.0, kl_rate=0.0), x)
