"""Every inversion with every attention control: what each pair must keep, and what it must change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.control import Control
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.step import Stream
from methods.blended_latents import BlendedLatents
from methods.cycle_diffusion import CycleDiffusion
from methods.ddim import DDIM
from methods.diffedit import DiffEditGuidance
from methods.direct_inversion import DirectDDIM
from methods.edit_friendly import EditFriendlyDDPM
from methods.infedit import InfEdit
from methods.local_blend import LocalBlend
from methods.masactrl import MutualSelfAttention
from methods.negative_prompt import NegativePrompt
from methods.noise_map_guidance import NMG, NoiseMapGuidance
from methods.null_text import NullText
from methods.pix2pix_zero import CrossAttentionGuidance
from methods.plug_and_play import FeatureInjection
from methods.prompt_to_prompt import PromptToPrompt
from methods.proximal import ProxEdit, ProximalGuidance
from methods.unified_attention import UnifiedAttention
from tests.small import batch_of

Make = Callable[..., EditModule]
GUIDANCE = ClassifierFree(target=3.0, source=3.0, inversion=1.0)
SETTINGS: dict[type[EditModule], dict[str, Any]] = {
    DDIM: {"guidance": GUIDANCE},
    NullText: {"guidance": GUIDANCE, "inner_steps": 1},
    NegativePrompt: {"guidance": GUIDANCE},
    ProxEdit: {"guidance": ProximalGuidance(target=3.0, source=3.0, inversion_guidance=True)},
    DirectDDIM: {"guidance": GUIDANCE},
    NMG: {"guidance": NoiseMapGuidance(target=3.0, source=3.0, gradient_scale=100.0)},
    EditFriendlyDDPM: {"guidance": GUIDANCE, "skip": 0},
    CycleDiffusion: {"guidance": GUIDANCE, "strength": 1.0, "eta": 1.0},
    InfEdit: {"guidance": GUIDANCE, "controls": (), "strength": 1.0},
}
ACTING: dict[str, Control] = {
    "PromptToPrompt": PromptToPrompt(cross=1.0, self_attention=1.0),
    "LocalBlend": LocalBlend([["cat"], ["dog"]], threshold=0.9, start=0.0, scale=1),
    "MutualSelfAttention": MutualSelfAttention(start_step=0),
    "FeatureInjection": FeatureInjection(),
    "UnifiedAttention": UnifiedAttention(cross=1.0, self_attention=1.0, local_words=["dog"], scale=1),
}
EMPTY: list[Control] = [
    PromptToPrompt(cross=0.0, self_attention=0.0),
    LocalBlend([["cat"], ["dog"]], start=1.0),
    MutualSelfAttention(start_step=2),
    FeatureInjection(features=0.0, attention_share=0.0),
]
PLAIN: dict[type[EditModule], Tensor] = {}


@pytest.fixture(params=SETTINGS, ids=lambda method: method.__name__)
def inversion(request: pytest.FixtureRequest) -> type[EditModule]:
    return request.param  # type: ignore[no-any-return]


def edited(make: Make, method: type[EditModule], **settings: Any) -> Any:
    return make(method, **{"steps": 2, **SETTINGS[method], **settings}).edit(batch_of([0])).latents


def plain(make: Make, method: type[EditModule]) -> Tensor:
    if method not in PLAIN:
        PLAIN[method] = edited(make, method)[Stream.TARGET]
    return PLAIN[method]


GUIDANCES: dict[str, Callable[[ClassifierFree], ClassifierFree | CrossAttentionGuidance]] = {
    "pix2pix-zero": lambda base: CrossAttentionGuidance(base, amount=1e-3),
    "DiffEdit": lambda base: DiffEditGuidance(target=3.0, source=base.source, inversion=1.0, mask_maps=1),
}


@pytest.mark.parametrize("name", GUIDANCES)
def test_every_guidance_of_an_editor_acts_on_every_inversion(
    name: str, inversion: type[EditModule], make: Make
) -> None:
    guidance = GUIDANCES[name](SETTINGS[inversion]["guidance"])

    final = edited(make, inversion, guidance=guidance)[Stream.TARGET]

    assert bool(final.isfinite().all())
    assert float((final - plain(make, inversion)).abs().max()) > 1e-6


@pytest.mark.parametrize("background", ["noised", "source", "trajectory"])
def test_a_users_mask_holds_what_is_outside_for_every_inversion(
    background: Any, inversion: type[EditModule], make: Make
) -> None:
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., :32] = 1
    module = make(inversion, **{"steps": 2, **SETTINGS[inversion], "controls": [BlendedLatents(background)]})

    result = module.edit(replace(batch_of([0]), masks=masks))

    final, columns = result.latents, result.record.z0.shape[-1] // 2
    expected = final[Stream.SOURCE] if background == "source" else result.record.z0
    torch.testing.assert_close(final[Stream.TARGET][..., columns:], expected[..., columns:], rtol=0, atol=1e-9)
    assert float((final[Stream.TARGET] - expected)[..., :columns].abs().max()) > 1e-4


@pytest.mark.parametrize("name", ACTING)
def test_every_control_acts_on_every_inversion(name: str, inversion: type[EditModule], make: Make) -> None:
    final = edited(make, inversion, controls=[ACTING[name]])[Stream.TARGET]

    assert bool(final.isfinite().all())
    assert float((final - plain(make, inversion)).abs().max()) > 1e-4


def test_controls_whose_windows_are_empty_leave_every_bit(inversion: type[EditModule], make: Make) -> None:
    assert torch.equal(edited(make, inversion, controls=EMPTY)[Stream.TARGET], plain(make, inversion))


def test_with_equal_prompts_prompt_to_prompt_returns_the_source_row(inversion: type[EditModule], make: Make) -> None:
    # Without what a method does to one of the rows alone: offset of the source, pull to the trajectory, noise maps.
    both_rows: dict[type[EditModule], dict[str, Any]] = {
        DirectDDIM: {"target": "source", "recorded": True},
        ProxEdit: {"guidance": ProximalGuidance(target=3.0, source=3.0)},
        NMG: {"guidance": GUIDANCE},
    }
    settings = {"steps": 2, **SETTINGS[inversion], **both_rows.get(inversion, {})}
    module = make(inversion, **{**settings, "controls": [PromptToPrompt()]})
    batch = batch_of([0])
    same = replace(batch, samples=tuple(replace(sample, target=sample.source) for sample in batch.samples))

    final = module.edit(same).latents

    scale = float(final[Stream.SOURCE].abs().max())
    torch.testing.assert_close(final[Stream.TARGET], final[Stream.SOURCE], rtol=0, atol=1e-7 * scale)
