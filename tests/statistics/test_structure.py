from __future__ import annotations

import math

import pytest
import torch

from framework.statistics.spectrum import circular_autocovariance, flatness, power_spectrum, radial, radial_sizes
from framework.statistics.structure import (
    CleanLatents,
    StructureFold,
    StructureSettings,
    image_structure,
    lag_comoments,
    local_variance,
    measure_structure,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def folded(maps: torch.Tensor, z0: torch.Tensor | None = None, **settings) -> StructureFold:
    """Fold images [N, T, C, H, W]."""
    total = StructureFold()
    for image in maps:
        own = image[:1].expand(len(image), *image.shape[1:]) if z0 is None else z0
        found = measure_structure(image, CleanLatents.of(own), StructureSettings(**settings))
        total.add(image_structure({name: value[:, None] for name, value in found.items()}, []))
    return total


def test_a_spectrum_holds_the_variance_of_its_map():
    maps = noise(3, 4, 12, 20).double()

    power = power_spectrum(maps)

    assert torch.allclose(power.mean((-2, -1)), maps.var((-2, -1), unbiased=False))


def test_a_wave_stands_at_its_own_radius():
    x = torch.arange(16, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * 3 * x / 16).expand(16, 16)

    spectrum = radial(power_spectrum(wave))

    assert spectrum.argmax() == 3
    assert float((spectrum * radial_sizes(16, 16)).sum()) == pytest.approx(float(power_spectrum(wave).sum()))
    assert float(flatness(spectrum + 1e-12)) < 1e-3


def test_autocorrelation_of_a_wave_is_the_wave():
    x = torch.arange(16, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * x / 16).expand(16, 16)

    covariance = circular_autocovariance(power_spectrum(wave), 4)

    assert torch.allclose(covariance[0] / covariance[0, 0], torch.cos(2 * math.pi * x[:5] / 16))
    assert torch.allclose(covariance[1], covariance[1, :1].expand(5))  # constant along columns


def test_neighbours_of_a_moving_average_correlate_by_a_half():
    white = noise(6, 2, 3, 33, 32)
    maps = (white[..., 1:, :] + white[..., :-1, :]) / 2**0.5

    total = folded(maps)

    vertical, horizontal = total.autocorrelation()[:, 1, 0], total.autocorrelation()[:, 0, 0]
    assert vertical.tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert horizontal.tolist() == pytest.approx([0.0, 0.0], abs=0.03)


@pytest.mark.parametrize(("axis", "place"), [(-1, 0), (-2, 3)])
def test_pairs_at_a_distance_are_numpys(axis, place):
    maps = noise(2, 3, 7, 9).double() * 3 + 40

    found = lag_comoments(maps, 3)

    for lag in range(1, 4):
        length = maps.shape[axis] - lag
        sides = [maps.narrow(axis, start, length).flatten(1) for start in (0, lag)]
        for image, (a, b) in enumerate(zip(*sides, strict=True)):
            state = found.select(image).select(place + lag - 1)
            expected = torch.cov(torch.stack([a, b]), correction=0) * len(a)
            assert float(state.n) == len(a)
            torch.testing.assert_close(state.mean, torch.stack([a.mean(), b.mean()]), rtol=1e-13, atol=0)
            torch.testing.assert_close(state.products, expected, rtol=1e-11, atol=1e-9)


def test_a_constant_side_of_a_distance_has_no_correlation():
    maps = torch.full((2, 1, 6, 6), 0.1, dtype=torch.float64)
    maps[0, ..., -1] = noise(6).double()  # constant but for its last column

    pearson = lag_comoments(maps, 2).pearson[..., 0, 1]

    assert pearson[0, :2].isnan().all() and pearson[0, 2:].isfinite().all()
    assert pearson[1].isnan().all()


def test_channels_that_share_half_of_their_variance_correlate_by_a_half():
    shared, own = noise(8, 2, 1, 16, 16, seed=1), noise(8, 2, 2, 16, 16, seed=2)

    total = folded((shared + own) / 2**0.5)

    assert total.states["channels"].pearson[:, 0, 1].tolist() == pytest.approx([0.5, 0.5], abs=0.06)
    row = total.rows(torch.tensor([2.0, 1.0]), {})[0]
    assert row["channels_mean_abs"] == pytest.approx(0.5, abs=0.06)


def test_the_imprint_is_the_correlation_with_the_image():
    z0, own = noise(1, 2, 16, 16, seed=3), noise(1, 2, 16, 16, seed=4)
    maps = ((z0 + own) / 2**0.5)[None]

    total = folded(maps, z0)

    expected = torch.corrcoef(torch.stack([maps.flatten(), z0.flatten()]).double())[0, 1]
    assert float(total.singles["imprint"].mean[0]) == pytest.approx(float(expected), abs=1e-12)


def test_noise_that_is_weaker_in_smooth_places_shows_in_its_local_variance():
    z0 = torch.zeros(1, 1, 32, 32)
    z0[..., 16:] = noise(1, 1, 32, 16, seed=5)
    maps = noise(1, 1, 32, 32, seed=6) * torch.where(torch.arange(32) < 16, 0.3, 1.0)

    total = folded(maps[None], z0)

    assert float(total.singles["imprint_contrast"].mean[0]) > 0.5
    assert abs(float(total.singles["imprint"].mean[0])) < 0.2


def test_the_local_variance_is_that_of_every_window():
    x = noise(1, 1, 5, 6).double()

    windows = x.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)

    assert torch.allclose(local_variance(x), windows.var(-1, unbiased=False))


def test_a_constant_and_a_broken_map_are_left_out_and_spoil_no_other():
    maps = noise(2, 3, 2, 16, 16)
    maps[0, 1] = 0.1  # its mean rounds
    maps[1, 2, 0, 0, 0] = math.nan

    total = folded(maps, noise(1, 2, 16, 16).expand(3, 2, 16, 16))

    assert total.states["spectrum"].n.tolist() == [4, 2, 2]
    assert total.singles["imprint"].n.tolist() == [2, 1, 1]
    for row in total.rows(torch.arange(3.0), {}):
        assert math.isfinite(row["flatness"]) and math.isfinite(row["kl_mean_over_images"])


def test_a_step_without_any_map_has_a_reason():
    maps = noise(1, 2, 2, 8, 8)
    maps[0, 1] = 3.0

    rows = folded(maps).rows(torch.arange(2.0), {})

    assert rows[1] == {
        "step": 1,
        "t": 1.0,
        "maps": 0,
        "reason": "no step here, or no map that is finite and not constant",
    }


@pytest.mark.parametrize(("shape", "side"), [((4, 16, 16), 2), ((16, 16, 16), 0), ((4, 1, 1), 0)])
def test_patches_are_measured_unasked_where_they_are_small(shape, side):
    assert StructureSettings().side(torch.Size(shape)) == side


def test_maps_of_one_pixel_have_no_lags_and_no_windows():
    total = folded(noise(3, 2, 4, 1, 1))

    assert total.autocorrelation().shape == (2, 2, 0)
    assert total.singles["imprint_variance"].n.tolist() == [0, 0]
