"""Everything that controls would refuse about the samples of a run, found out before any weight loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framework.backbones.choice import asks_for_places, choose
from framework.contexts import context_of, latent_masks
from framework.data.sample import EditSample
from framework.errors import SampleError, SettingsError
from framework.step import Condition

if TYPE_CHECKING:
    from framework.data.images import ImageLoader
    from framework.module import EditModule

_NAMED = 3


def rehearse(module: EditModule, samples: Sequence[EditSample], loader: ImageLoader) -> list[str]:
    """Begin the controls of an edit for every sample as a run would, without weights and pictures.

    Masks are read where a control looks at them, and headers of pictures where they decide the latents' size.

    Args:
        module: The method with its controls.
        samples: The data set.
        loader: How its pictures are brought to the network.

    Returns:
        What the controls refuse, each problem once, with the samples that have it unless all do.
    """
    if not module.controls:
        return []
    backbone = module.backbone
    if not backbone.sites() and any(map(asks_for_places, module.controls)):
        return []  # `unmet_needs` has said so.
    try:
        choose(module.controls, backbone.sites(), backbone.layers())
    except SettingsError as error:
        return list(error.problems)
    found: dict[str, list[str]] = {}
    for sample in samples:
        for problem in _problems(module, sample, loader):
            found.setdefault(problem, []).append(sample.id)
    return [_of(ids, len(samples)) + problem for problem, ids in found.items()]


def _problems(module: EditModule, sample: EditSample, loader: ImageLoader) -> list[str]:
    backbone = module.backbone
    try:
        rows, columns = loader.network_size(sample)
        size = rows // backbone.latent_factor, columns // backbone.latent_factor
        masks = _mask(sample, loader, size) if any(control.wants_masks for control in module.controls) else None
    except SampleError:
        return []  # This sample will fail by itself, with the reason.
    ctx = context_of(
        [sample],
        lambda prompts: _blank(len(prompts), backbone.max_tokens),
        backbone=backbone,
        guidance=module.guidance,
        schedule=module.edit_schedule,
        streams=module.streams,
        draw=_no_noise,
        masks=masks,
    )
    problems: list[str] = []
    for control in module.controls:
        try:
            control.begin(ctx, backbone.sites(), size)
        except SettingsError as error:
            problems += error.problems
    return problems


def _mask(sample: EditSample, loader: ImageLoader, size: tuple[int, int]) -> Tensor | None:
    mask = loader.mask(sample)
    return None if mask is None else latent_masks(mask[None], size)


def _blank(count: int, positions: int) -> Condition:
    return Condition(torch.empty(count, positions, 0)) if positions else Condition()


def _no_noise(purpose: str, count: int) -> Tensor:
    raise AssertionError(f"a control drew noise for {purpose} ({count}) when it began")


def _of(ids: Sequence[str], count: int) -> str:
    if len(ids) == count > 1:
        return ""
    shown = ", ".join(map(repr, ids[:_NAMED])) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
    return f"sample{'s' if len(ids) > 1 else ''} {shown}: "
