"""Which tensors of an inversion are measured over its steps, and which steps say nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from framework.errors import SampleError
from framework.record import Record

Of = Literal["auto", "noise_maps", "predictions", "latents", "residuals"]
"""What is measured; "auto" is the first of noise maps, predictions, residuals and latents that there is."""
CHOICES: tuple[Of, ...] = ("auto", "predictions", "latents", "residuals", "noise_maps")

NOISE_MAPS = "noise maps"
RESIDUALS = "residuals"


@dataclass(frozen=True)
class Series:
    """Maps of some images over the steps (or levels), noisy to clean.

    Attributes:
        what: In words, such as "noise maps"; series of different words are never merged.
        maps: [S, B, ...], one entry per step, or per level for latents.
        t: [S] float64, time of each.
        excluded: Steps whose maps say nothing -> the reason.
    """

    what: str
    maps: Tensor
    t: Tensor
    excluded: dict[int, str]


def left_out(record: Record, *, unused: bool = False) -> dict[int, str]:
    """Return the intervals whose noise maps say nothing, each with the reason.

    Args:
        record: The inversion.
        unused: Keep maps that the edit does not use (skipped steps).
    """
    skipped = {} if unused else dict.fromkeys(record.unused, "not used by the edit (skipped)")
    return skipped | dict.fromkeys(record.zeroed, "the method sets this map to zero")


def as_keys(excluded: dict[int, str]) -> dict[str, str]:
    """Return left-out steps as json holds them, in their order."""
    return {str(step): why for step, why in sorted(excluded.items())}


def predicted(form: str, phase: str = "inversion") -> str:
    """Name predictions by what the engine's predictions are on a schedule, "epsilon" or "velocity"."""
    return f"predicted {'noise' if form == 'epsilon' else 'velocity'} of the {phase}"


def series_of(record: Record, of: Of = "auto", *, unused: bool = False) -> Series:
    """Choose what is measured of a record.

    Args:
        record: An inversion of B images.
        of: See `Of`.
        unused: Measure also what the edit does not use (skipped steps).

    Raises:
        SampleError: The record does not hold it.
    """
    held = {
        "noise_maps": record.noise_maps,
        "predictions": record.predictions,
        "residuals": record.residuals,
        "latents": record.latents,
    }
    have = [name for name, value in held.items() if value is not None]
    chosen = have[0] if of == "auto" and have else of
    maps = held.get(chosen)
    if maps is None:
        raise SampleError(
            f"an inversion by {record.kind} holds no {chosen.replace('_', ' ')}; it holds {', '.join(have) or 'none'}."
        )
    words = {
        "noise_maps": NOISE_MAPS,
        "predictions": predicted(record.form),
        "residuals": RESIDUALS,
        "latents": "latents of the inversion",
    }
    excluded = left_out(record, unused=unused)
    if chosen != "noise_maps":  # what is set to zero is the map alone
        excluded = {step: why for step, why in excluded.items() if step in record.unused and not unused}
    return Series(words[chosen], maps, record.t[: len(maps)].double(), excluded)
