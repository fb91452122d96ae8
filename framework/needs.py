"""Whether the parts of an experiment fit together, decided before any weight loads."""

from __future__ import annotations

from collections.abc import Sequence

from framework.backbones.base import Backbone
from framework.backbones.choice import asks_for_places
from framework.callback import EditCallback
from framework.control import Control
from framework.errors import SettingsError
from framework.guidance import Guidance
from framework.inversion import Inversion
from framework.step import Need, Site


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
    if backbone.guided_by == "embedding":
        have.add(Need.GUIDANCE_EMBEDDING)
    if backbone.sites():
        have.add(Need.ATTENTION)
    elif asking := [control for control in controls if asks_for_places(control)]:
        names = ", ".join(type(control).__name__ for control in asking)
        problems.append(f"{network} has no attention sites, so it cannot run {names}.")
    readers = [callback for callback in callbacks if callback.controls()]
    if readers and not backbone.sites():
        names = ", ".join(type(callback).__name__ for callback in readers)
        problems.append(f"{network} has no attention sites, so there is nothing for {names} to read.")
    problems += _apart(network, backbone.sites(), [*controls, *(c for r in readers for c in r.controls())])
    problems += inversion.suits(guidance)
    parts: list[Inversion | Guidance | Control | EditCallback] = [inversion, guidance, *controls, *callbacks]
    for part in parts:
        for need in sorted(part.needs - have, key=lambda need: need.name):
            giver = network if need in (Need.ATTENTION, Need.GUIDANCE_EMBEDDING) else f"{source} of {method}"
            problems.append(
                f"{type(part).__name__} needs {need.value}, which {giver} does not provide; use another one, or leave "
                f"{type(part).__name__} out."
            )
    return problems


def _apart(network: str, sites: Sequence[Site], controls: Sequence[Control]) -> list[str]:
    """Return which controls look for attention to picture or text alone in a network that attends to both jointly.

    The picture's own attention in some blocks (dual attention) is not what they are defined for either.
    """
    if not any(site.kind == "joint" for site in sites):
        return []
    problems = []
    for control in controls:
        if type(control).sites is Control.sites:
            continue
        try:
            chosen = control.sites(sites)
        except SettingsError:
            continue  # Told with its own reason, where controls choose their places.
        if not any(site.kind == "joint" for site in chosen):
            problems.append(
                f"{type(control).__name__} acts on attention to the picture and to the text in layers of their own, "
                f"and {network} attends to both jointly, for which {type(control).__name__} is not defined; use a "
                f"control for joint attention, or leave {type(control).__name__} out."
            )
    return problems


def without_source(method: str, inversion: Inversion, parts: Sequence[Guidance | Control]) -> list[str]:
    """Return which parts want a source row from an inversion that records none, with the reason."""
    if inversion.has_source:
        return []
    return [
        f"{type(part).__name__} needs {Need.SOURCE.value}, and {type(inversion).__name__} records no source to walk "
        f"back; use a method that inverts the image, or leave {type(part).__name__} out of {method}."
        for part in parts
        if Need.SOURCE in part.needs
    ]
