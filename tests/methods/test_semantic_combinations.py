"""Semantic guidance with attention control, on the tiny Stable Diffusion; what both families refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.step import Stream
from methods.cycle_diffusion import PosteriorInversion
from methods.edit_friendly import EditFriendlyInversion
from methods.implicit_masks import ImplicitMaskGuidance, MaskedConcept
from methods.ledits import LEDITS, LeditsConcept
from methods.prompt_to_prompt import PromptToPrompt
from methods.sega import SemanticGuidance
from tests.small import batch_of

Make = Callable[..., EditModule]
SNOW = LeditsConcept("snow", warmup=0, threshold=0.5)
CONTROL = PromptToPrompt(cross=1.0, self_attention=1.0)
PROMPT = ClassifierFree(target=3.0, source=1.0)


def ledits(make: Make, **settings: Any) -> Any:
    guidance = settings.pop("guidance", SemanticGuidance([SNOW], target=3.0, source=1.0))
    return make(LEDITS, steps=4, skip=1, guidance=guidance, **settings).edit(batch_of([0]))


def test_prompt_to_prompt_acts_beside_concepts_and_instead_of_them(make: Make) -> None:
    results = {
        "concepts": ledits(make),
        "both": ledits(make, controls=[CONTROL]),
        "control": ledits(make, controls=[CONTROL], guidance=PROMPT),
        "neither": ledits(make, guidance=PROMPT),
    }

    finals = [result.latents[Stream.TARGET] for result in results.values()]
    scale = float(finals[0].abs().max())
    assert all(bool(z.isfinite().all()) for z in finals)
    assert all(float((a - b).abs().max()) > 1e-3 * scale for k, a in enumerate(finals) for b in finals[:k])
    sources = [result.latents[Stream.SOURCE] for result in results.values()]
    assert all(torch.allclose(z, sources[0], rtol=0, atol=1e-7 * scale) for z in sources)
    assert results["both"].evaluations.calls == results["concepts"].evaluations.calls


def test_masked_concepts_act_on_any_inversion_with_any_control(make: Make) -> None:
    masked = ImplicitMaskGuidance([MaskedConcept("snow", threshold=0.5)], mask="intersection", map_scale=2)

    plain, controlled = (ledits(make, guidance=masked, controls=controls) for controls in ([], [CONTROL]))

    assert not plain.failures and not controlled.failures
    # No row of a concept has a partner in the source, so that there is nothing for the control to replace.
    assert torch.equal(plain.latents[Stream.TARGET], controlled.latents[Stream.TARGET])


@pytest.mark.parametrize("eta", [0.0, (1.0, 0.0, 1.0), [0.0, 0.0]])
@pytest.mark.parametrize("kind", [EditFriendlyInversion, PosteriorInversion])
def test_eta_zero_is_refused_where_maps_are_needed(kind: Any, eta: Any) -> None:
    with pytest.raises(SettingsError, match="leaves no noise map"):
        kind(eta=eta)


def test_eta_zero_is_refused_in_ledits(make: Make) -> None:
    with pytest.raises(SettingsError, match="leaves no noise map"):
        make(LEDITS, eta=0.0)
