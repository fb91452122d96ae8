"""Edit concepts: their settings, where they come from, and their tables on the device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from framework.context import Context
from framework.data.sample import EditSample
from framework.errors import Checks, SettingsError, did_you_mean
from framework.step import Row, Stream, concept

NEVER = 2**31 - 1
"""Cool-down of a concept that acts to the end."""


@dataclass(frozen=True)
class Concept:
    """One edit concept. Defaults are SEGA's.

    Attributes:
        text: What to move towards, in words.
        reverse: Move away from it instead.
        scale: Strength of its direction, at least 0.
        warmup: Executed steps before it acts, at least 0.
        cooldown: Executed step from which it no longer acts, above `warmup`; None is never.
        threshold: Quantile below which its direction is set to zero, in [0, 1); 0.95 keeps 5 % of the positions.
        weight: Weight among several concepts, at least 0.
    """

    text: str = ""
    reverse: bool = False
    scale: float = 5.0
    warmup: int = 10
    cooldown: int | None = None
    threshold: float = 0.9
    weight: float = 1.0

    def __post_init__(self) -> None:
        checks = Checks(type(self).__name__)
        checks.between("scale", self.scale, 0, float("inf"), "set reverse to move away from the concept")
        checks.between("warmup", self.warmup, 0, float("inf"))
        checks.require(
            0 <= self.threshold < 1,
            f"threshold={self.threshold} is not a quantile below 1; give a number in [0, 1) (usual 0.75 to 0.99).",
        )
        checks.between("weight", self.weight, 0, float("inf"))
        if self.cooldown is not None:
            checks.require(
                self.cooldown > self.warmup,
                f"cooldown={self.cooldown} ends the concept before warmup={self.warmup} begins it; give a later step, "
                "or none.",
            )
        checks.done()


def concepts_of(
    extra: Mapping[str, object], concepts: Sequence[Concept], default: Concept, checks: Checks | None = None
) -> tuple[Concept, ...]:
    """Return the concepts of one image: its own from the manifest's field `concepts`, else the given ones.

    Args:
        extra: Fields of the sample.
        concepts: Concepts of images that bring none.
        default: Settings that a sample's concept does not name.
        checks: Where problems are noted; None raises them.

    Raises:
        SettingsError: The field is no list of texts or mappings, or a setting is not allowed.
    """
    own = extra.get("concepts")
    found = tuple(concepts) if own is None else tuple(_described(item, default) for item in _items(own))
    noted = checks or Checks("concepts")
    for number, item in enumerate(found):
        noted.require(bool(item.text.strip()), f"concepts[{number}] has an empty text; write what to edit.")
    noted.require(
        not found or any(item.weight > 0 for item in found),
        f"all {len(found)} concepts have weight 0, so that nothing would be edited; give one of them a weight above 0.",
    )
    if checks is None:
        noted.done()
    return found


def _items(own: object) -> Sequence[object]:
    if not isinstance(own, Sequence) or isinstance(own, str):
        raise SettingsError([f"concepts={own!r} is not a list; write [text, ...] or [{{text: ..., scale: ...}}, ...]."])
    return own


def _described(item: object, default: Concept) -> Concept:
    if isinstance(item, str):
        return replace(default, text=item)
    names = [f.name for f in fields(Concept)]
    if not isinstance(item, Mapping):
        raise SettingsError([f"concept {item!r} is neither a text nor a mapping with {', '.join(names)}."])
    problems = [
        f"concept {dict(item)!r} has the unknown field {key!r}{did_you_mean(str(key), names)}; it may have "
        f"{', '.join(names)}."
        for key in item
        if key not in names
    ]
    for name in names:
        value, kind = item.get(name), type(getattr(Concept(), name))
        numbers = (int, float) if kind is float else (int,)
        allowed = {bool: (bool,), str: (str,)}.get(kind, (*numbers, type(None)) if name == "cooldown" else numbers)
        if name in item and (not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool)):
            problems.append(f"concept {dict(item)!r}: {name}={value!r} is not of the right kind; see Concept.{name}.")
    if problems:
        raise SettingsError(problems)
    values: dict[str, Any] = {str(key): value for key, value in item.items()}
    return replace(default, **values)


def concept_prompts(
    samples: Sequence[EditSample], concepts: Sequence[Concept], default: Concept, *, own: bool = True
) -> dict[Row, Sequence[str]]:
    """Return the prompts of the concepts' rows; an image with fewer concepts has the empty prompt in the others.

    Args:
        samples: One per image.
        concepts, default: See `concepts_of`.
        own: Whether a sample's own concepts count.

    Raises:
        SettingsError: A sample's own concepts cannot work; names the sample.
    """
    found_of = []
    for sample in samples:
        try:
            found_of.append(concepts_of(sample.extra if own else {}, concepts, default))
        except SettingsError as error:
            raise SettingsError([f"sample {sample.id!r}: {problem}" for problem in error.problems]) from None
    count = max((len(found) for found in found_of), default=0)
    return {
        Row(Stream.TARGET, concept(k)): [found[k].text if k < len(found) else "" for found in found_of]
        for k in range(count)
    }


def warmup_problems(concepts: Sequence[Concept], steps: int) -> list[str]:
    """Return which concepts would never act within so many executed steps."""
    return [_never_acts(item.text, item.warmup, steps) for item in concepts if item.warmup >= steps]


def _never_acts(text: str, warmup: int, steps: int) -> str:
    return (
        f"concept {text!r} warms up for {warmup} steps, but only {steps} are executed, so that it would never act; "
        f"give a warmup below {steps}."
    )


def warn_of_empty(masks: Tensor) -> None:
    """Warn of user masks [B, 1, h, w] that cover nothing; waits for the device, so not for use in a step."""
    empty = [b for b, full in enumerate((masks.flatten(1).amax(1) > 0).tolist()) if not full]
    if empty:
        warnings.warn(
            f"the mask of {len(empty)} of {len(masks)} images covers nothing (first: number {empty[0]} of its batch), "
            "so that nothing is edited there.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class ConceptTable:
    """Settings of K concepts for B images, [K, B] each, on the device of the latents.

    Attributes:
        present: False where an image has fewer than K concepts.
        scale: Signed scale, negative for reversed concepts.
        threshold: Quantile.
        warmup, cooldown: Executed steps.
        weight: 0 where not present.
        texts: Per image, the texts of its concepts.
        warmups: Text and warm-up of every concept, on the host.
    """

    present: Tensor
    scale: Tensor
    threshold: Tensor
    warmup: Tensor
    cooldown: Tensor
    weight: Tensor
    texts: tuple[tuple[str, ...], ...] = field(default=())
    warmups: frozenset[tuple[str, int]] = field(default=frozenset())

    @property
    def count(self) -> int:
        """K, most concepts of any image."""
        return self.present.shape[0]

    def warn_of_late(self, executed: int) -> None:
        """Warn of concepts that warm up for at least as many steps as are executed, and so never act."""
        for text, warmup in sorted(self.warmups):
            if warmup >= executed:
                warnings.warn(_never_acts(text, warmup, executed), stacklevel=2)

    def directions(self, estimates: Tensor, uncond: Tensor) -> Tensor:
        """Return the signed and scaled directions, [K, B, C, H, W], of noise estimates of that shape."""
        return self.scale[..., None, None, None] * (estimates - uncond)

    def warm(self, n: int) -> Tensor:
        """Return which concepts are past their warm-up at executed step n."""
        return self.present & (n >= self.warmup)

    def cold(self, n: int) -> Tensor:
        """Return which concepts still warm up at executed step n."""
        return self.present & (n < self.warmup)

    def acting(self, n: int) -> Tensor:
        """Return which concepts act at executed step n."""
        return self.warm(n) & ~self.cooled(n)

    def cooled(self, n: int) -> Tensor:
        """Return which concepts no longer act at executed step n."""
        return n >= self.cooldown


def table_of(ctx: Context, concepts: Sequence[Concept], default: Concept, *, own: bool = True) -> ConceptTable:
    """Bring the settings of all images' concepts to the device."""
    images = len(ctx.texts.target)
    extra = ctx.extra if own and ctx.extra else [{}] * images
    found_of = [concepts_of(fields_of, concepts, default) for fields_of in extra]
    count = max((len(found) for found in found_of), default=0)
    absent = Concept(weight=0.0, scale=0.0, warmup=0)
    grid = [[found[k] if k < len(found) else absent for found in found_of] for k in range(count)]
    device, dtype = _place(ctx)

    def table(values: list[list[Any]], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).view(count, images).to(device)

    return ConceptTable(
        present=table([[k < len(found) for found in found_of] for k in range(count)], torch.bool),
        scale=table([[-c.scale if c.reverse else c.scale for c in row] for row in grid], dtype),
        threshold=table([[c.threshold for c in row] for row in grid], dtype),
        warmup=table([[c.warmup for c in row] for row in grid], torch.int32),
        cooldown=table([[NEVER if c.cooldown is None else c.cooldown for c in row] for row in grid], torch.int32),
        weight=table([[c.weight for c in row] for row in grid], dtype),
        texts=tuple(tuple(c.text for c in found) for found in found_of),
        warmups=frozenset((c.text, c.warmup) for found in found_of for c in found),
    )


def _place(ctx: Context) -> tuple[torch.device, torch.dtype]:
    """Return the device of the edit and a dtype of at least float32, as its text has them."""
    text = next((c.text for c in ctx.conditions.values() if c.text is not None), torch.empty(0))
    return text.device, torch.promote_types(text.dtype, torch.float32)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Bring [K, B] to the axes of [K, B, ...]."""
    return values.view(*values.shape, *([1] * (like.ndim - 2)))


def threshold_at(x: Tensor, q: Tensor) -> Tensor:
    """Quantile of float32 values, as all the authors' codes take it; in the dtype of x.

    It decides in float64 whether the very element at a quantile's rank lies above it. See `quantile`.
    """
    return quantile(x.float(), q).to(x.dtype)


def quantile(x: Tensor, q: Tensor) -> Tensor:
    """Quantile along the last axis with a rank of its own for every row, on the device and in the dtype of x.

    Args:
        x: [..., n], at least float32.
        q: Ranks in [0, 1], broadcastable to [...].

    Returns:
        [...], linear interpolation between the two nearest values.
    """
    ordered = x.sort(dim=-1).values
    rank = (q.to(x.dtype) * (x.shape[-1] - 1)).expand(x.shape[:-1])
    below = rank.long()
    lower = ordered.gather(-1, below[..., None])[..., 0]
    upper = ordered.gather(-1, (below + 1).clamp(max=x.shape[-1] - 1)[..., None])[..., 0]
    return torch.lerp(lower, upper, rank - below)
