"""Every method, with settings that run in a moment."""

from __future__ import annotations

from typing import Any

import methods
from framework.guidance import ClassifierFree
from framework.module import EditModule
from methods.concepts import Concept
from methods.diffedit import DiffEditGuidance
from methods.implicit_masks import ImplicitMaskGuidance, MaskedConcept
from methods.noise_map_guidance import NoiseMapGuidance
from methods.pix2pix_zero import CrossAttentionGuidance
from methods.proximal import ProximalGuidance
from methods.sega import SemanticGuidance

FEW_STEPS: dict[str, dict[str, Any]] = {
    "CycleDiffusion": {"steps": 4, "strength": 0.75, "eta": 1.0},
    "DDIM": {"steps": 4},
    "DiffEdit": {"steps": 4, "strength": 0.75, "guidance": DiffEditGuidance(3.0, mask_maps=2)},
    "DirectDDIM": {"steps": 4},
    "EditFriendlyDDPM": {"steps": 4, "skip": 1},
    "InfEdit": {"steps": 4, "strength": 0.75, "controls": []},
    "EulerFlow": {"steps": 4},
    "FireFlow": {"steps": 4},
    "FlowAlign": {"steps": 4},
    "FlowEdit": {"steps": 4, "n_max": 3},
    "LEDITS": {
        "steps": 4,
        "skip": 1,
        "guidance": SemanticGuidance(
            [Concept("snow", warmup=0), Concept("a cat", reverse=True, warmup=1)], target=5.0, source=0.0
        ),
    },
    "MasaCtrl": {"steps": 4, "start_step": 1},
    "NMG": {"steps": 4, "guidance": NoiseMapGuidance(target=3.0, source=3.0, gradient_scale=100.0)},
    "NegativePrompt": {"steps": 4},
    "NullText": {"steps": 4, "inner_steps": 2, "guidance": ClassifierFree(target=3.0, source=3.0, inversion=1.0)},
    "Pix2PixZero": {
        "steps": 4,
        "convention": "pix2pix_zero_all",
        "repeats": 1,
        "rolls": 2,
        # The random network's maps are so steep that a step of the usual size would amplify rounding above all else.
        "guidance": CrossAttentionGuidance(ClassifierFree(3.0, 3.0, 1.0), amount=1e-4),
    },
    "PlugAndPlay": {"steps": 4},
    "ProxEdit": {"steps": 4, "guidance": ProximalGuidance(target=3.0, inversion_guidance=True)},
    "LEDITSPP": {"steps": 4, "guidance": ImplicitMaskGuidance([MaskedConcept("snow")], mask="intersection")},
    "RFInversion": {"steps": 4, "stochastic": True, "inversion_steps": 5},
    "RFSolver": {"steps": 4},
    "SDEdit": {"steps": 4, "strength": 0.75},
    "TurboEdit": {"steps": 4},
    "TwoStage": {"steps": 4, "value_steps": 0.5},
    "UniEditFlow": {"steps": 4, "alpha": 0.75},
    "SEGA": {"steps": 4, "guidance": SemanticGuidance([Concept("snow", warmup=1, threshold=0.7)])},
}
"""Settings with which each method runs in a moment; a new method has to be entered here."""


def method_classes() -> list[type[EditModule]]:
    """Every EditModule that methods/ offers."""
    found = [getattr(methods, name) for name in methods.__all__]
    return [item for item in found if isinstance(item, type) and issubclass(item, EditModule)]
