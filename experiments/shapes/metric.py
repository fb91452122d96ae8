"""The shapes world's own figures as a metric of a run, with the three fixed rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from experiments.shapes.checker import measure_edit
from experiments.shapes.edits import Edit
from experiments.shapes.render import render
from framework.evaluation.metric import Figure, Metric, MetricInput, Values


@dataclass(frozen=True)
class EditSuccess(Metric):
    """Success, fidelity and distance to the truth of edits whose truth is known; see `checker.measure_edit`.

    Samples that do not come from the shapes world have no values. The fixed rows are the source copied (best fidelity,
    no success), the ground truth through the autoencoder (the ceiling), and plain generation from the target caption
    (success without fidelity).

    Attributes:
        generation_steps: DDIM steps of the plain generation; 0 leaves that row out.
        generation_guidance: Its guidance scale.
    """

    generation_steps: int = 50
    generation_guidance: float = 3.0

    figures: ClassVar = (
        Figure("success", "higher"),
        Figure("success_attribute", "higher"),
        Figure("outside_psnr", "higher", "dB"),
        Figure("joint_success", "higher"),
        Figure("truth_psnr", "higher", "dB"),
    )

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit against its ground truth."""
        edit = _edit(item)
        if edit is None:
            return {figure.name: None for figure in self.figures}
        return measure_edit(item.edit.cpu(), edit, source_round_trip=item.round_trip.cpu(), truth=truth(edit))

    def rows(self, items: Sequence[MetricInput]) -> Mapping[str, Sequence[Tensor | None]]:
        """Return the source copied, the truth through the autoencoder, and plain generations."""
        edits = [_edit(item) for item in items]
        known = [index for index, edit in enumerate(edits) if edit is not None]
        if not known:
            return {}
        codec = items[0].codec
        ceilings = codec.round_trip(torch.stack([truth(edit) for edit in edits if edit is not None]))
        rows: dict[str, list[Tensor | None]] = {
            "source copied": [
                item.source if edit is not None else None for item, edit in zip(items, edits, strict=True)
            ],
            "truth through the autoencoder": _spread(ceilings, known, len(items)),
        }
        if self.generation_steps:
            pictures = codec.generate(
                [items[index].sample.target for index in known],
                [items[index].sample.id for index in known],
                steps=self.generation_steps,
                guidance=self.generation_guidance,
            )
            rows["plain generation"] = _spread(pictures, known, len(items))
        return rows


def truth(edit: Edit) -> Tensor:
    """Render the true target of an edit, [3, 64, 64] in [0, 1]."""
    pixels = np.array(render(edit.target), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _edit(item: MetricInput) -> Edit | None:
    known = item.sample.extra.get("shapes_edit")
    return Edit.from_dict(known) if isinstance(known, Mapping) else None


def _spread(pictures: Tensor, places: Sequence[int], count: int) -> list[Tensor | None]:
    spread: list[Tensor | None] = [None] * count
    for place, picture in zip(places, pictures, strict=True):
        spread[place] = picture
    return spread
