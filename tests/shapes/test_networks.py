from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from experiments.shapes.data import Captioner, encode_reading, pixels
from experiments.shapes.latents import CHANNELS, Projection, build_vae, fit_projection, patches
from experiments.shapes.optimiser import MixedOptimiser, orthogonalise
from experiments.shapes.sample import sample_scene
from experiments.shapes.scene import caption, reading
from experiments.shapes.text import LENGTH, caption_words, write_tokenizer
from experiments.shapes.training import projection_of


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return pixels([sample_scene(3, index) for index in range(64)])


@pytest.fixture(scope="module")
def projection(images: torch.Tensor) -> Projection:
    return fit_projection(images, whitening=0.5)


def test_full_whitening_gives_every_component_unit_variance(images: torch.Tensor) -> None:
    white = fit_projection(images, whitening=1.0)

    latents = white.encode(images).movedim(1, 0).flatten(1)

    torch.testing.assert_close(latents @ latents.T / latents.shape[1], torch.eye(CHANNELS), atol=1e-3, rtol=0)


def test_scaled_latents_have_unit_variance(images: torch.Tensor, projection: Projection) -> None:
    scaled = projection.encode(images) * projection.scaling_factor

    assert scaled.square().mean().item() == pytest.approx(1.0, abs=1e-3)


def test_components_without_whitening_are_orthonormal(images: torch.Tensor) -> None:
    matrix = fit_projection(images, whitening=0.0).matrix

    torch.testing.assert_close(matrix @ matrix.T, torch.eye(CHANNELS), atol=1e-5, rtol=0)


def test_the_autoencoder_encodes_exactly_the_projection(images: torch.Tensor, projection: Projection) -> None:
    vae = build_vae(projection)

    with torch.no_grad():
        posterior = vae.encode(images).latent_dist

    # Values reach 5 and the last norm works beside constants of 1024: eight digits of float32 leave 1e-5.
    torch.testing.assert_close(posterior.mode(), projection.encode(images), atol=3e-5, rtol=0)
    assert posterior.std.max() < 1e-6


def test_the_encoder_of_any_size_is_linear(projection: Projection) -> None:
    vae = build_vae(projection)
    one, other = torch.rand(2, 1, 3, 32, 48)

    with torch.no_grad():
        together, apart = (
            vae.encode(0.5 * one + 0.5 * other).latent_dist.mode(),
            0.5 * vae.encode(one).latent_dist.mode() + 0.5 * vae.encode(other).latent_dist.mode(),
        )

    torch.testing.assert_close(together, apart, atol=3e-5, rtol=0)


def test_the_projection_is_read_back_out_of_the_encoder(images: torch.Tensor, projection: Projection) -> None:
    again = projection_of(build_vae(projection))

    torch.testing.assert_close(again.encode(images), projection.encode(images), atol=3e-5, rtol=0)


def test_patches_are_flattened_colour_first_then_rows() -> None:
    image = torch.arange(3 * 8 * 8, dtype=torch.float32).view(1, 3, 8, 8)

    assert patches(image)[0, :, 1, 0].tolist() == image[0, :, 4:8, 0:4].flatten().tolist()


def written(folder: Path) -> CLIPTokenizer:
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(str(folder))


def test_a_tokenizer_is_the_same_every_time_it_is_made(tmp_path: Path) -> None:
    files = set()
    for number in range(12):
        write_tokenizer(tmp_path / f"{number}")
        files.add(tuple((tmp_path / f"{number}" / name).read_text() for name in ("vocab.json", "merges.txt")))

    assert len(files) == 1


def test_every_caption_word_is_one_token_and_other_words_are_several(tmp_path: Path) -> None:
    tokenizer = written(tmp_path)

    assert all(len(tokenizer(word).input_ids) == 3 for word in caption_words())
    assert all(len(tokenizer(word).input_ids) > 4 for word in ("bench", "cat", "golden"))
    assert 150 <= len(tokenizer) <= 250
    assert tokenizer.model_max_length == LENGTH


def test_captions_written_as_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = written(tmp_path)
    captioner = Captioner(tokenizer)

    for index in range(30):
        scene = sample_scene(5, index)
        expected = tokenizer(caption(scene), padding="max_length").input_ids
        assert captioner(encode_reading(reading(scene))) == expected
    assert captioner.empty() == tokenizer("", padding="max_length").input_ids


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((12, 40), (40, 12)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrix))
        assert values.min() > 0.6 and values.max() < 1.3


def test_vectors_are_stepped_as_adamw_steps_them() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    mixed = MixedOptimiser([{"params": [ours], "lr": 0.01}], weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)

    for step in range(4):
        for parameter, optimiser in ((ours, mixed), (theirs, reference)):
            optimiser.zero_grad()
            (parameter * torch.arange(5.0) - step).square().sum().backward()
            optimiser.step()

    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
