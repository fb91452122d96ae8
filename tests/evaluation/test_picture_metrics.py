from __future__ import annotations

import math

import pytest
import torch

from framework.errors import SettingsError
from framework.evaluation.lpips import TAPS, LpipsNetwork
from framework.evaluation.pictures import LPIPS, PixelMetrics
from framework.evaluation.pixels import part_weight, psnr_of, squared_error, ssim
from framework.evaluation.similarity import CLIPSimilarity, DINOSimilarity, StructureDistance
from tests.evaluation.conftest import noise
from tests.small import MODELS

WITH_WEIGHTS = [
    LPIPS(model=str(MODELS / "tiny-lpips-squeeze"), parts=("whole", "unedit", "edit")),
    StructureDistance(model=str(MODELS / "tiny-dino")),
    StructureDistance(model=str(MODELS / "tiny-dino"), input_range=1),
    CLIPSimilarity(model=str(MODELS / "tiny-clip"), more=True),
    DINOSimilarity(model=str(MODELS / "tiny-dino")),
]
METRICS = [
    *WITH_WEIGHTS,
    PixelMetrics(parts=("whole", "unedit", "edit")),
    PixelMetrics(rule="region", border="reflect"),
]


def half_mask(size: int = 32) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[..., : size // 2] = 1
    return mask


def test_the_official_rule_spreads_an_error_over_pixels_that_it_hides():
    source, edit, mask = torch.zeros(3, 32, 32), torch.full((3, 32, 32), 0.1), half_mask()
    weight = part_weight(mask, "unedit")

    official, region = (squared_error(edit, source, weight, rule) for rule in ("official", "region"))

    assert region == pytest.approx(0.01, rel=1e-6)
    assert official == pytest.approx(0.5 * region)
    assert psnr_of(official) - psnr_of(region) == pytest.approx(-10 * math.log10(0.5))


def test_equal_pictures_have_no_error_and_full_similarity(item):
    picture = noise(0)

    values = PixelMetrics(parts=("whole",)).measure(item(picture, picture))

    assert values["psnr"] == math.inf and values["mse"] == 0 and values["ssim"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("border", ["crop", "reflect"])
def test_ssim_of_constant_pictures_is_its_luminance_term(border):
    first, second = torch.full((3, 20, 24), 0.2), torch.full((3, 20, 24), 0.6)

    value = ssim(first, second, border=border)

    assert value == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), rel=1e-4)


def test_the_border_rules_agree_inside_and_differ_at_the_border():
    source = noise(1, (40, 40))
    inside, outside = source.clone(), source.clone()
    inside[:, 18:22, 18:22] = 0
    outside[:, 0] = 0

    assert ssim(outside, source, border="crop") > ssim(outside, source, border="reflect")
    lost = [(1 - ssim(inside, source, border=b)) * n for b, n in (("crop", 30**2), ("reflect", 40**2))]
    assert lost[0] == pytest.approx(lost[1], rel=1e-3)


def test_a_picture_smaller_than_the_window_has_no_ssim(item):
    values = PixelMetrics(parts=("whole",)).measure(item(noise(0, (8, 8)), noise(1, (8, 8))))

    assert values["ssim"] is None and values["mse"] is not None


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.figures[0].name)
def test_values_have_the_names_of_the_figures_and_do_not_depend_on_the_batch(metric, item):
    size = (64, 64)
    mask = half_mask(64)
    items = [item(noise(k, size), noise(k + 10, size), mask if k != 1 else None) for k in range(3)]

    together, alone = metric.measure_batch(items), [metric.measure(one) for one in items]

    assert [set(values) for values in together] == [{figure.name for figure in metric.figures}] * 3
    for first, second in zip(together, alone, strict=True):
        assert {k for k, v in first.items() if v is None} == {k for k, v in second.items() if v is None}
        for name, value in first.items():
            assert value is None or value == pytest.approx(second[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.figures[0].name)
def test_a_figure_names_its_scale_and_direction(metric):
    for figure in metric.figures:
        assert figure.better in ("higher", "lower") and figure.scale > 0


@pytest.mark.parametrize(("fill", "empty"), [(0.0, "edit"), (1.0, "unedit")])
def test_a_mask_that_leaves_a_part_empty_gives_it_no_value(fill, empty, item):
    mask = torch.full((1, 32, 32), fill)
    pair = item(noise(0), noise(1), mask)

    for metric in (PixelMetrics(parts=("unedit", "edit")), WITH_WEIGHTS[0]):
        for name, value in metric.measure(pair).items():
            assert (value is None) == (f"_{empty}_" in name), name


def test_what_the_mask_hides_does_not_count(item):
    source, mask = noise(0), half_mask()
    edit = torch.where(mask.bool(), noise(1), source)

    values = PixelMetrics(parts=("unedit",)).measure(item(edit, source, mask))

    assert values["mse_unedit_part"] == 0 and values["psnr_unedit_part"] == math.inf


def test_the_benchmarks_structure_distance_hardly_sees_brightness_and_splices_does(item):
    dark = item(noise(0, (64, 64)) * 0.4, noise(0, (64, 64)))

    official = WITH_WEIGHTS[1].measure(dark)["structure_distance"]
    splice = WITH_WEIGHTS[2].measure(dark)["structure_distance_unit_range"]

    assert official < splice


def test_similarity_is_never_negative_and_a_source_without_a_prompt_has_none(item):
    values = WITH_WEIGHTS[3].measure(item(noise(0), noise(1), None, texts=("", "a dog")))

    assert values["clip_similarity_source_image"] is None
    assert values["clip_similarity_target_image"] >= 0
    assert values["clip_similarity_target_image_edit_part"] is None


def test_an_unchanged_picture_has_no_direction(item):
    picture = noise(0)

    values = WITH_WEIGHTS[3].measure(item(picture, picture))

    assert values["clip_directional"] is None and values["clip_image"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("net", ["squeeze", "alex", "vgg"])
def test_each_net_compares_at_its_taps(net):
    network = LpipsNetwork(net).requires_grad_(False)
    maps = network.maps(torch.zeros(1, 3, 64, 64))

    assert [m.shape[1] for m in maps] == [head.shape[1] for head in network.heads]
    assert len(maps) == len(TAPS[net])


@pytest.mark.parametrize(
    "metric",
    [
        LPIPS(),
        LPIPS(model="./nowhere"),
        LPIPS(model=str(MODELS / "tiny-dino")),
        StructureDistance(model="./nowhere"),
        CLIPSimilarity(model="./nowhere"),
        DINOSimilarity(model="./nowhere"),
    ],
)
def test_missing_weights_make_a_metric_unavailable_with_a_reason(metric):
    assert metric.unavailable


@pytest.mark.parametrize("metric", WITH_WEIGHTS, ids=lambda m: m.figures[0].name)
def test_a_metric_with_its_weights_is_available(metric):
    assert metric.unavailable is None


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (PixelMetrics, {"parts": ("inside",)}),
        (PixelMetrics, {"parts": ()}),
        (PixelMetrics, {"border": "valid"}),
        (PixelMetrics, {"rule": "mean"}),
        (LPIPS, {"net": "resnet"}),
        (StructureDistance, {"input_range": 2}),
    ],
)
def test_settings_outside_of_what_is_allowed_are_refused(kind, settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        kind(**settings)


@pytest.mark.parametrize("net", ["squeeze", "alex"])
def test_published_heads_fill_a_file_that_has_only_the_features(net, tmp_path):
    from safetensors.torch import save_file

    features = LpipsNetwork(net).features.state_dict(prefix="features.")
    save_file(features, tmp_path / "model.safetensors")

    metric = LPIPS(net=net, model=str(tmp_path))

    assert metric.unavailable is None
