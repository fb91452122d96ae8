"""Whether the parts of an experiment fit together, decided before any weight loads."""

from __future__ import annotations

from collections.abc import Sequence

from framework.backbones.base import Backbone
from framework.callback import EditCallback
from framework.control import Control
from framework.guidance import Guidance
from framework.inversion import Inversion
from framework.step import Need


def unmet_needs(
    method: str,
    backbone: Backbone,
    inversion: Inversion,
    guidance: Guidance,
    controls: Sequence[Control],
    callbacks: Sequence[EditCallback],
) -> list[str]:
    """Return what cannot work in a combination, each problem with the names of both sides."""
    problems: list[str] = []
    network, source = type(backbone).__name__, type(inversion).__name__
    if backbone.form not in inversion.forms:
        problems.append(
            f"{source} of {method} is written for {' or '.join(inversion.forms)} predictions, but {network} works in "
            f"{backbone.form}; choose a method for that kind of model."
        )
    have = {*inversion.provides(), Need.GRAD}
    if inversion.has_source:
        have.add(Need.SOURCE)
    if backbone.sites():
        have.add(Need.ATTENTION)
    elif controls:
        names = ", ".join(type(control).__name__ for control in controls)
        problems.append(f"{network} has no attention sites, so it cannot run {names}.")
    parts: list[Inversion | Guidance | Control | EditCallback] = [inversion, guidance, *controls, *callbacks]
    for part in parts:
        for need in sorted(part.needs - have, key=lambda need: need.name):
            giver = network if need is Need.ATTENTION else f"{source} of {method}"
            problems.append(
                f"{type(part).__name__} needs {need.value}, which {giver} does not provide; use another one, or leave "
                f"{type(part).__name__} out."
            )
    return problems
