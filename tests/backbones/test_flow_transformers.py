"""SD3 and FLUX: the pipelines' own numbers, schedules, prompts, sites and controls."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline

from framework.backbones import SD3, Flux, StableDiffusion
from framework.backbones.flux import pack, unpack
from framework.control import Control
from framework.data.sample import EditSample
from framework.errors import SettingsError
from framework.guidance import ClassifierFree, EmbeddedGuidance, usual_guidance
from framework.network import Network
from framework.prompt_limits import dropped_edits, truncation_notes
from framework.schedule import ScheduleOptions
from framework.step import COND, UNCOND, Latents, Row, Rows, Stream
from tests.small import MODELS

FAMILIES = {"sd3": (SD3, "tiny-sd3"), "flux": (Flux, "tiny-flux")}
TEXTS = ("a cat on a mat", "a dog")
ROWS = Rows((Row(Stream.TARGET, UNCOND), Row(Stream.TARGET, COND)), (1, 1))


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request):
    """Float64, text encoders too."""
    family, folder = FAMILIES[request.param]
    made = family(str(MODELS / folder), dtype="float64", text_dtype="float64")
    made.load()
    return made


@pytest.fixture(scope="module")
def pipeline(backbone):
    """The library's own pipeline with the same weights."""
    if isinstance(backbone, SD3):
        pipe = StableDiffusion3Pipeline.from_pretrained(
            MODELS / "tiny-sd3", text_encoder_3=None, tokenizer_3=None, local_files_only=True
        )
    else:
        pipe = FluxPipeline.from_pretrained(MODELS / "tiny-flux", local_files_only=True)
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        torch.nn.Module.to(getattr(pipe, name), torch.float64)
    return pipe


@pytest.fixture
def z():
    return torch.randn(2, 16, 16, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def call(backbone, z, controls=(), sigma=0.4, scale=3.5):
    condition = backbone.encode_prompt(TEXTS)
    if backbone.guided_by == "embedding":
        condition = condition.told(scale)
    t = torch.full((len(z),), 1000 * sigma, dtype=torch.float64)
    with torch.no_grad(), backbone.controlled(controls, [None] * len(controls)) as handle:
        handle.enter(ROWS, 0)
        return backbone(z, t, condition)


@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_does(backbone, pipeline):
    condition = backbone.encode_prompt(TEXTS)

    if isinstance(backbone, SD3):
        text, _, pooled, _ = pipeline.encode_prompt(list(TEXTS), None, None, do_classifier_free_guidance=False)
    else:
        text, pooled, _ = pipeline.encode_prompt(list(TEXTS), None)
    torch.testing.assert_close(condition.text, text, rtol=0, atol=1e-12)
    torch.testing.assert_close(condition.pooled, pooled, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_network_predicts_what_the_pipelines_does(backbone, pipeline, z):
    condition = backbone.encode_prompt(TEXTS)
    if isinstance(backbone, SD3):
        wanted = pipeline.transformer(z, condition.text, condition.pooled, torch.full((2,), 400.0), return_dict=False)[
            0
        ]
    else:
        wanted = pipeline.transformer(
            hidden_states=pipeline._pack_latents(z, 2, 16, 16, 12),
            timestep=torch.full((2,), 0.4, dtype=torch.float64),
            guidance=torch.full((2,), 3.5),
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.text,
            txt_ids=torch.zeros(512, 3, dtype=torch.float64),
            img_ids=pipeline._prepare_latent_image_ids(2, 8, 6, "cpu", torch.float64),
            return_dict=False,
        )[0]
        wanted = pipeline._unpack_latents(wanted, 128, 96, 8)

    torch.testing.assert_close(call(backbone, z), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 6, 28])
def test_the_schedule_is_the_pipelines(backbone, pipeline, steps):
    schedule = backbone.schedule(steps).for_size((64, 96))

    if isinstance(backbone, SD3):
        pipeline.scheduler.set_timesteps(steps)
    else:
        mu = 0.5 + (32 * 48 - 256) * (1.15 - 0.5) / (4096 - 256)
        pipeline.scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)], mu=mu)
    torch.testing.assert_close(schedule.sigma, pipeline.scheduler.sigmas.double(), rtol=0, atol=0)
    torch.testing.assert_close(schedule.t, 1000 * schedule.sigma)
    torch.testing.assert_close(schedule.alpha, 1 - schedule.sigma)


def test_the_last_level_of_sd3_does_almost_nothing_at_any_number_of_steps():
    backbone = SD3(str(MODELS / "tiny-sd3"))

    assert all(abs(backbone.schedule(n).sigma[-2] - 0.0089286) < 1e-6 for n in (10, 30, 50))


def test_the_shift_of_flux_follows_the_size_and_is_the_published_grid():
    schedule = Flux(str(MODELS / "tiny-flux")).schedule(28)

    published = [1, 0.9884, 0.9762, 0.1955, 0.1047, 0]
    sigma = schedule.for_size((128, 128)).sigma
    torch.testing.assert_close(sigma[[0, 1, 2, -3, -2, -1]], torch.tensor(published).double(), rtol=0, atol=5e-5)
    assert (schedule.for_size((128, 128)).sigma[1:-1] > schedule.for_size((32, 32)).sigma[1:-1]).all()


@pytest.mark.parametrize(
    ("family", "options", "formula"),
    [
        ("sd3", {"shift": 1.0, "spacing": "trailing"}, lambda b: b),
        ("flux", {"shift": 3.0}, lambda b: 3 * b / (1 + 2 * b)),
        (
            "sd3",
            {"dynamic_shift": True, "spacing": "trailing"},
            lambda b: b / (b + (1 - b) / math.exp(0.5)),
        ),
    ],
)
def test_options_replace_the_checkpoints_shift_and_spacing(family, options, formula):
    kind, folder = FAMILIES[family]

    schedule = kind(str(MODELS / folder)).schedule(10, ScheduleOptions(**options)).for_size((32, 32))

    wanted = [formula(1 - k / 10) for k in range(10)] + [0.0]
    torch.testing.assert_close(schedule.sigma, torch.tensor(wanted).double(), rtol=0, atol=1e-6)


def test_options_that_a_flow_does_not_have_are_refused():
    backbone = SD3(str(MODELS / "tiny-sd3"))

    with pytest.raises(SettingsError, match="linspace, trailing"):
        backbone.schedule(10, ScheduleOptions(spacing="leading"))
    with pytest.raises(SettingsError, match="contradict"):
        ScheduleOptions(shift=2.0, dynamic_shift=True)
    with pytest.raises(SettingsError, match="steps=0"):
        backbone.schedule(0)


def test_packing_is_the_pipelines_and_unpacking_its_inverse(z):
    tokens = pack(z)

    assert torch.equal(tokens, FluxPipeline._pack_latents(z, 2, 16, 16, 12))
    assert torch.equal(unpack(tokens, 16, 12), z)


def test_pictures_pass_through_the_autoencoder_with_its_shift_and_scale(backbone, pipeline):
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double() * 2 - 1

    latents = backbone.encode_image(images)

    config = pipeline.vae.config
    with torch.no_grad():
        mode = pipeline.vae.encode(images).latent_dist.mode()
        back = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    torch.testing.assert_close(latents, (mode - config.shift_factor) * config.scaling_factor, rtol=0, atol=1e-10)
    torch.testing.assert_close(backbone.decode_latent(latents), back.float(), rtol=0, atol=1e-5)


class Through(Control):
    """Changes nothing, everywhere; keeps what it saw."""

    def __init__(self):
        self.seen = {}

    def sites(self, sites):
        return sites

    def qkv(self, site, rows, q, k, v, i, state):
        self.seen[site] = (q, k, v)
        return q, k, v


def test_controls_that_change_nothing_leave_every_bit(backbone, z):
    through = Through()

    assert torch.equal(call(backbone, z, [through]), call(backbone, z))
    assert list(through.seen) == list(backbone.sites())
    for site, (q, k, v) in through.seen.items():
        assert q.shape == k.shape == v.shape == (2, 2, site.text + 8 * 6, 16)
        assert q[:, :, site.image_part].shape[2] == 8 * 6
        assert q[:, :, site.text_part].shape[2] == site.text


def test_text_and_picture_are_told_apart_by_their_positions(backbone, z):
    """Text positions differ between two prompts of one picture at the first site, the picture's do not."""

    class First(Through):
        def sites(self, sites):
            return sites[:1]

    first = First()
    same = z[:1].expand(2, -1, -1, -1)

    call(backbone, same, [first])

    ((site, (_, _, v)),) = first.seen.items()
    text, picture = v[:, :, site.text_part], v[:, :, site.image_part]
    assert (text[0] - text[1]).abs().max() > 1e-3
    # What both carry alike are their own adaptive norms, which depend on the pooled text.
    assert picture.shape[2] == 48 and text.shape[2] == site.text
    assert float(picture[:, :, 0].sub(picture[:, :, 1]).abs().max()) > 1e-3


def test_values_exchanged_at_every_site_change_the_prediction_and_probabilities_sum_to_one(backbone, z):
    class Exchange(Through):
        def qkv(self, site, rows, q, k, v, i, state):
            return q, k, v.flip(0)

    class Read(Through):
        def wants_probabilities(self, site, i, state):
            return True

        def probabilities(self, site, rows, p, i, state):
            assert (p.sum(-1) - 1).abs().max() < 1e-12
            return p

    plain = call(backbone, z)

    assert (call(backbone, z, [Exchange()]) - plain).abs().max() > 1e-3
    torch.testing.assert_close(call(backbone, z, [Read()]), plain, rtol=0, atol=1e-10)


def test_the_modulated_text_features_are_a_named_layer(backbone, z):
    class Zero(Control):
        def layers(self, names):
            return [name for name in names if name.endswith(".norm1_context")]

        def output(self, layer, rows, x, i, state):
            shapes[layer] = tuple(x.shape)
            return torch.zeros_like(x)

    shapes = {}

    changed = call(backbone, z, [Zero()])

    assert len(shapes) == (4 if isinstance(backbone, SD3) else 2)
    assert set(shapes.values()) == {(2, backbone.max_tokens, 32)}
    assert (changed - call(backbone, z)).abs().max() > 1e-3
    assert not any(module._forward_hooks for module in backbone.transformer.modules())


def test_sites_and_layers_are_known_without_weights():
    for family, folder in FAMILIES.values():
        backbone = family(str(MODELS / folder))

        sites, layers = backbone.sites(), backbone.layers()

        assert backbone.transformer is None
        assert {site.name for site in sites} <= set(layers)
        assert [site.index for site in sites] == list(range(len(sites)))


def test_dual_attention_layers_are_sites_of_the_picture_alone(tmp_path, z):
    folder = tmp_path / "dual"
    shutil.copytree(MODELS / "tiny-sd3", folder, copy_function=shutil.copyfile)
    path = folder / "transformer/config.json"
    config = {**json.loads(path.read_text()), "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    backbone = SD3(str(folder), dtype="float64")
    backbone.load()
    through = Through()

    changed = call(backbone, z, [through])

    assert [site.kind for site in backbone.sites()] == ["joint", "self", "joint", "self", "joint", "joint"]
    assert torch.equal(changed, call(backbone, z))
    assert through.seen[backbone.sites()[1]][0].shape[2] == 48


def test_flux_without_guidance_embedding_is_evaluated_under_the_prompt_alone(tmp_path):
    folder = tmp_path / "schnell"
    shutil.copytree(MODELS / "tiny-flux", folder, copy_function=shutil.copyfile)
    from safetensors.torch import load_file, save_file

    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "guidance" not in name}
    save_file(kept, weights, {"format": "pt"})
    for name, values in {"transformer/config.json": {"guidance_embeds": False}}.items():
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    backbone = Flux(str(folder))

    guidance = usual_guidance(backbone.guided_by, target=3.5)
    network = Network(backbone, backbone.schedule(4))
    z = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = {Row(Stream.SOURCE, COND): backbone.encode_prompt(["a cat"])}
    velocity = guidance.invert(Latents(source=z), network.at(0, conditions), None)

    assert guidance == ClassifierFree(1.0, 1.0, 1.0) and network.evaluations.samples == 1
    assert backbone.max_tokens == 256 and velocity.source.isfinite().all()


@torch.no_grad()
def test_the_scale_that_flux_is_told_changes_its_prediction_and_costs_one_row():
    backbone = Flux(str(MODELS / "tiny-flux"), dtype="float64")
    network = Network(backbone, backbone.schedule(4))
    z = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conditions = {
        Row(Stream.SOURCE, COND): backbone.encode_prompt(["a cat"]),
        Row(Stream.SOURCE, UNCOND): backbone.encode_prompt([""]),
    }

    def invert(**settings):
        return EmbeddedGuidance(**settings).invert(Latents(source=z), network.at(0, conditions), None).source

    told = [invert(inversion=scale) for scale in (0.0, 1.0, 4.0)]
    empty = invert(inversion=1.0, invert_with="empty")

    assert network.evaluations.samples == 4
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(told, [*told[1:], empty], strict=True))
    silent = backbone(z, torch.full((1,), 1000.0).double(), conditions[Row(Stream.SOURCE, COND)])
    torch.testing.assert_close(silent, told[1], rtol=0, atol=1e-12)


def test_prompts_longer_than_an_encoder_reads_are_noted_and_lost_edits_refused():
    flux, sd3 = Flux(str(MODELS / "tiny-flux")), SD3(str(MODELS / "tiny-sd3"))
    long = "a " * 100 + "castle"
    sample = EditSample("x", Path("x.png"), "a " * 100, long)

    assert set(flux.cuts(long)) == {"the CLIP text encoder"}
    assert flux.truncated(long) == "" and dropped_edits([sample], flux) == []
    assert "the CLIP text encoder does not see" in truncation_notes(sample, flux)[1]
    assert sd3.truncated(long).endswith("castle")
    assert "castle" in dropped_edits([sample], sd3)[0]
    assert flux.truncated("cat " * 600).split() == ["cat"] * (600 - 511)


def test_segments_say_whose_positions_they_are():
    sd3, flux = SD3(str(MODELS / "tiny-sd3")), Flux(str(MODELS / "tiny-flux"), max_sequence_length=64)

    clip, t5 = sd3.segments("a cat")
    (only,) = flux.segments("a cat")

    assert (clip.start, clip.length, t5.start, t5.length) == (0, 77, 77, 256)
    assert clip.ids == t5.ids and len(clip.ids) == len(sd3.tokens("a cat")) + 2
    assert (only.start, only.length, len(only.ids)) == (0, 64, 3)
    assert sd3.max_tokens == 333 and flux.max_tokens == 64


@pytest.mark.parametrize(
    ("family", "folder", "words"),
    [
        (SD3, "tiny-flux", "framework.backbones.Flux"),
        (Flux, "tiny-sd3", "framework.backbones.SD3"),
        (SD3, "tiny-sd", "SD3Transformer2DModel"),
        (StableDiffusion, "tiny-sd3", "UNet2DConditionModel"),
    ],
)
def test_a_pipeline_of_another_family_is_refused_before_weights_load(family, folder, words):
    with pytest.raises(SettingsError, match=words):
        family(str(MODELS / folder))
