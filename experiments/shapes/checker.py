"""Reads what an image of the shapes world shows, and measures an edit against its known truth.

The reader is a small convolutional network trained on renders, on their round trips through the autoencoder, and on
perturbed copies of both. Its own accuracy on held-out renders lies beside its weights in `checker.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.shapes.data import CODE, decode_reading, encode_reading
from experiments.shapes.edits import Edit, dilate, edit_mask
from experiments.shapes.scene import RELATIONS, WORDS, Reading, reading

WEIGHTS = Path(__file__).parent / "weights" / "checker"
"""Folder of `model.safetensors` and `checker.json`."""

ATTRIBUTES = ("size", "fill", "colour", "shape", "texture", "background", "relation")
"""What is read; the relation tells the number of objects too."""

CERTAIN = 0.98
"""Accuracy on true renders below which an attribute is reported but does not count for success."""

JOINT_PSNR = 20.0
"""Outside fidelity in dB that a joint success needs."""

OUTSIDE = 2
"""Pixels by which a mask is grown before fidelity outside it is measured."""

_THING = tuple(len(WORDS[name]) for name in ("size", "fill", "colour", "shape"))
HEADS = (*_THING, *_THING, len(WORDS["texture"]), len(WORDS["background"]), 1 + len(RELATIONS))
"""Classes per column of the attribute codes."""


class Checker(nn.Module):
    """A convolutional network with one classifier per column of the attribute codes."""

    def __init__(self) -> None:
        super().__init__()

        def block(inside: int, outside: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))

        self.features = nn.Sequential(
            block(3, 32, 2), block(32, 64, 2), block(64, 64, 1), block(64, 96, 2), block(96, 96, 1), block(96, 128, 2)
        )
        self.mix = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.1), nn.Linear(128 * 16, 192), nn.BatchNorm1d(192), nn.ReLU()
        )
        self.heads = nn.Linear(192, sum(HEADS))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits per column of the attribute codes, for images [B, 3, 64, 64] in [0, 1]."""
        logits: tuple[Tensor, ...] = self.heads(self.mix(self.features(2 * images - 1))).split(HEADS, dim=1)
        return logits


@cache
def load_checker(folder: Path = WEIGHTS) -> Checker:
    """Load the shipped network, in float32 and evaluation mode.

    Raises:
        FileNotFoundError: The folder holds no weights.
    """
    from safetensors.torch import load_file

    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(
            f"{folder} holds no checker; train one with `python -m experiments.shapes.checker_training`"
        )
    model = Checker()
    model.load_state_dict(
        {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}, strict=False
    )
    return model.eval().requires_grad_(False)


@cache
def certain_attributes(folder: Path = WEIGHTS) -> frozenset[str]:
    """Attributes that the shipped network reads well enough on true renders to certify an edit."""
    figures = json.loads((folder / "checker.json").read_text())["accuracy"]
    return frozenset(name for name in ATTRIBUTES if figures[name] >= CERTAIN)


@torch.no_grad()
def read_codes(images: Tensor, model: Checker | None = None) -> Tensor:
    """Read images as attribute codes.

    Args:
        images: [B, 3, 64, 64] in [0, 1].
        model: The network to read with; None for the shipped one.

    Returns:
        [B, 11] of integers; the columns of a second object are -1 where none is seen.

    Raises:
        ValueError: The images have another shape.
    """
    if images.ndim != 4 or images.shape[1:] != (3, 64, 64):
        raise ValueError(f"images have shape {tuple(images.shape)}; the checker reads [B, 3, 64, 64] in [0, 1]")
    logits = (model or load_checker())(images.detach().float().cpu().clamp(0, 1))
    codes = torch.stack([part.argmax(1) for part in logits], dim=1)
    codes[codes[:, CODE.relation] == 0, CODE.second : CODE.second + 4] = -1
    return codes


def read(images: Tensor) -> list[Reading]:
    """Read images [B, 3, 64, 64] in [0, 1] as what their captions would say."""
    return [decode_reading(codes) for codes in read_codes(images).tolist()]


def agreement(seen: Reading, said: Reading) -> dict[str, bool]:
    """Which attributes of a caption an image shows; an attribute of objects agrees when it does for all of them.

    With another number of objects, or another relation, attributes of objects disagree unless the first object alone
    was asked for.
    """
    objects = seen.things[: len(said.things)]
    agrees = {
        name: len(objects) == len(said.things)
        and all(one[slot] == other[slot] for one, other in zip(objects, said.things, strict=True))
        for slot, name in enumerate(("size", "fill", "colour", "shape"))
    }
    agrees["texture"] = seen.texture == said.texture
    agrees["background"] = seen.background == said.background
    agrees["relation"] = seen.relation == said.relation
    return agrees


def measure_edit(result: Tensor, edit: Edit, *, source_round_trip: Tensor, truth: Tensor) -> dict[str, float]:
    """Measure one edit.

    Args:
        result: The edited image, [3, 64, 64] in [0, 1].
        edit: What was to be done.
        source_round_trip: The source after the autoencoder's encoder and decoder, [3, 64, 64] in [0, 1]; fidelity is
            measured against it, so that the code's ceiling hides no difference.
        truth: The render of the true target, [3, 64, 64] in [0, 1].

    Returns:
        `success` (1 when every certain attribute of the target caption is read, and the number of objects and their
        relation), `success_attribute` (the edited attribute alone), `outside_psnr` (dB outside the mask grown by 2 px;
        the mask may leave nothing: then not a number), `joint_success` (success with outside_psnr above 20 dB),
        `truth_psnr` (dB over the whole image).
    """
    seen, said = read(result[None])[0], reading(edit.target)
    agrees = agreement(seen, said)
    certain = certain_attributes()
    success = all(agrees[name] for name in ATTRIBUTES if name in certain or name == "relation")
    outside = torch.from_numpy(~dilate(edit_mask(edit), OUTSIDE))
    kept = float("nan") if not outside.any() else _psnr((result - source_round_trip)[:, outside])
    return {
        "success": float(success),
        "success_attribute": float(_attribute_agrees(seen, said, edit)),
        "outside_psnr": kept,
        "joint_success": float(success and (kept > JOINT_PSNR or kept != kept)),
        "truth_psnr": _psnr(result - truth),
    }


def _attribute_agrees(seen: Reading, said: Reading, edit: Edit) -> bool:
    if edit.attribute == "count":
        return len(seen.things) == len(said.things)
    if edit.thing < 0:
        return bool(getattr(seen, edit.attribute) == getattr(said, edit.attribute))
    slot = ("size", "fill", "colour", "shape").index(edit.attribute)
    return len(seen.things) > edit.thing and seen.things[edit.thing][slot] == said.things[edit.thing][slot]


def _psnr(error: Tensor) -> float:
    """PSNR in dB of errors of images in [0, 1]; equal images count as 100 dB, which keeps means finite."""
    return float(-10 * error.double().square().mean().clamp(min=1e-10).log10())


def accuracies(seen: Tensor, said: Tensor) -> dict[str, float]:
    """Share of attribute codes [N, 11] that are as said, per attribute, over the objects that `said` has."""
    figures: dict[str, Any] = {}
    for slot, name in enumerate(("size", "fill", "colour", "shape")):
        columns = [slot, CODE.second + slot]
        exists = said[:, columns] >= 0
        figures[name] = (seen[:, columns] == said[:, columns])[exists].float().mean().item()
    for name, column in (("texture", CODE.texture), ("background", CODE.background), ("relation", CODE.relation)):
        figures[name] = (seen[:, column] == said[:, column]).float().mean().item()
    return {name: round(figures[name], 4) for name in ATTRIBUTES}


def codes_of(readings: Sequence[Reading]) -> Tensor:
    """Attribute codes [N, 11] of what captions say."""
    return torch.tensor([encode_reading(said) for said in readings])
