"""Prompts that are longer than the text encoder reads."""

from __future__ import annotations

from collections.abc import Sequence

from framework.backbones.base import Backbone
from framework.data.sample import EditSample


def dropped_edits(samples: Sequence[EditSample], backbone: Backbone) -> list[str]:
    """Return the samples whose edit the text encoder would never see, in words.

    A long prompt is cut, which is noted with the sample; but where the cut takes a word that tells the target from the
    source, the edit would do nothing, so that is a problem of the data set.
    """
    problems = []
    for sample in samples:
        tail = backbone.truncated(sample.target)
        lost = [word for word in tail.split() if word not in sample.source.split()]
        if lost:
            problems.append(
                f"sample {sample.id!r}: the text encoder does not see {tail!r} at the end of the target prompt, and "
                f"with it the edited {'word' if len(lost) == 1 else 'words'} {', '.join(map(repr, lost))}; shorten it."
            )
    return problems


def truncation_notes(sample: EditSample, backbone: Backbone) -> tuple[str, ...]:
    """Say which ends of a sample's prompts the text encoder does not see, or that a network takes no prompts at all."""
    if not backbone.takes_text:
        return (f"{type(backbone).__name__} takes no text: the prompts have no effect",)
    prompts = {"source": sample.source, "target": sample.target, "negative": sample.negative}
    return tuple(
        f"{name} prompt: {encoder} does not see {tail!r}"
        for name, prompt in prompts.items()
        if prompt
        for encoder, tail in backbone.cuts(prompt).items()
    )
