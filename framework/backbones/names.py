"""What the `model` of a backbone may be: a folder, a bundled or maintained name, or a hub id."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from framework.errors import did_you_mean

GROUP = "invedit.models"
"""Entry-point group in which a distribution names the models that it ships, as `name = package.folder.folder`."""

_BUNDLED = {"shapes": "experiments.shapes.weights.diffusion", "shapes-flow": "experiments.shapes.weights.flow"}
"""Models of this distribution; dotted places that are looked up as data and never imported."""

_MAINTAINED = {
    "sd-1.4": "CompVis/stable-diffusion-v1-4",
    "sd-1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd-3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd-3.5-large": "stabilityai/stable-diffusion-3.5-large",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
}
"""Short names of hub ids that still exist."""

_MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Hub ids that papers name and that were withdrawn, with their maintained copies."""


def bundled_models() -> dict[str, str]:
    """Return the names of models that installed distributions ship, with their dotted places."""
    return {**{entry.name: entry.value for entry in entry_points(group=GROUP)}, **_BUNDLED}


def local_folder(model: str) -> Path | None:
    """Return the folder that a model's name stands for, whether or not it exists; None if the name is a hub id.

    Bundled names come before folders of the same name in the working directory: `./shapes` means the folder.
    """
    place = bundled_models().get(model)
    if place is not None:
        package, *inner = place.split(".")
        spec = find_spec(package)
        roots = list(spec.submodule_search_locations or ()) if spec else []
        return Path(roots[0] if roots else package, *inner)
    path = Path(model).expanduser()
    written_as_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    return path if written_as_path or path.exists() else None


def hub_id(model: str) -> str:
    """Return the hub id that a maintained short name stands for; other names are ids themselves."""
    return _MAINTAINED.get(model, model)


def other_names(model: str) -> str:
    """Say what else could have been meant by a name that led nowhere."""
    if model in _MOVED:
        return f"this id was withdrawn; its maintained copy is {_MOVED[model]}"
    names = sorted({*bundled_models(), *_MAINTAINED})
    return f"known short names are {', '.join(names)}{did_you_mean(model, names)}"
