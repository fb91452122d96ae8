"""Which sites and layers of a network each control acts on, and what happens if it is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from framework.control import Control
from framework.errors import Checks, did_you_mean
from framework.step import Site


@dataclass(frozen=True)
class Choice:
    """What controls chose.

    Attributes:
        sites: Site -> positions of the controls that chose it, in their order.
        layers: Dotted name -> positions of the controls that chose it, in their order.
    """

    sites: dict[Site, tuple[int, ...]]
    layers: dict[str, tuple[int, ...]]


def choose(controls: Sequence[Control], sites: Sequence[Site], layers: Sequence[str]) -> Choice:
    """Ask every control for its sites and layers.

    A control that asks for neither must at least blend latents; one that asks and gets nothing is a mistake.

    Raises:
        SettingsError: A control chose nothing, or something that the network does not have.
    """
    by_site: dict[Site, list[int]] = {}
    by_layer: dict[str, list[int]] = {}
    known, names = set(sites), set(layers)
    checks = Checks("controls")
    for number, control in enumerate(controls):
        owner = type(control).__name__
        own_sites, own_layers = control.sites(sites), control.layers(layers)
        for site in own_sites:
            if checks.require(
                site in known, f"{owner} chose {site}, which the network does not have; choose among those it is given."
            ):
                by_site.setdefault(site, []).append(number)
        for layer in own_layers:
            hint = did_you_mean(layer, layers) or "; choose among the names it is given"
            if checks.require(layer in names, f"{owner} chose layer {layer!r}, which the network does not have{hint}."):
                by_layer.setdefault(layer, []).append(number)
        if own_sites or own_layers:
            continue
        blends = type(control).blend is not Control.blend
        checks.require(
            blends and not asks_for_places(control),
            f"{owner} chose no attention site and no layer, so it would do nothing; there are {_offer(sites, layers)}.",
        )
    checks.done()
    return Choice(
        {key: tuple(value) for key, value in by_site.items()}, {key: tuple(value) for key, value in by_layer.items()}
    )


def asks_for_places(control: Control) -> bool:
    """Whether a control acts inside the network, not on latents alone."""
    inside = ("sites", "layers", "attention", "qkv", "probabilities", "output")
    return any(getattr(type(control), hook) is not getattr(Control, hook) for hook in inside)


def _offer(sites: Sequence[Site], layers: Sequence[str]) -> str:
    if not sites:
        return f"no attention sites here and {len(layers)} layers"
    kinds = []
    for kind in dict.fromkeys(site.kind for site in sites):
        of_kind = [site for site in sites if site.kind == kind]
        scales = ", ".join(
            f"{place} at 1/{scale}" for place, scale in dict.fromkeys((s.place, s.scale) for s in of_kind)
        )
        kinds.append(f"{len(of_kind)} {kind} sites ({scales} of the latent's side)")
    return f"{' and '.join(kinds)}, and {len(layers)} layers"
