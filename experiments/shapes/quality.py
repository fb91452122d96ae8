"""How well a pipeline follows captions: `python -m experiments.shapes.quality [FOLDER]`.

Generates from held-out captions with the library's own pipeline, fixed seeds, and reads the images with the checker.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.shapes.checker import accuracies, codes_of, read_codes
from experiments.shapes.data import CODE
from experiments.shapes.pipeline import SHIPPED, generate, load_pipeline
from experiments.shapes.sample import sample_scene
from experiments.shapes.scene import caption, reading

HELD_OUT_SEED = 98
"""Captions of scenes of this seed; training draws its scenes from another."""


def quality(
    folder: Path, *, captions: int = 256, objects: int = 1, guidance: float = 3.0, steps: int | None = None
) -> tuple[dict[str, Any], Tensor]:
    """Measure a pipeline.

    Args:
        folder: The pipeline.
        captions: Number of held-out captions.
        objects: Objects per scene.
        guidance: Guidance scale.
        steps: Of the pipeline's scheduler; None is 50 for a diffusion model and 28 for a flow.

    Returns:
        The figures: shares of images in which an attribute is read as the caption says, for every attribute, for shape
        and colour together, and for all attributes; and the images, [captions, 3, 64, 64] in [0, 1].
    """
    scenes = [sample_scene(HELD_OUT_SEED, index, objects) for index in range(captions)]
    pipeline = load_pipeline(folder)
    if steps is None:
        steps = 28 if "transformer" in pipeline.components else 50
    images = generate(
        pipeline, [caption(scene) for scene in scenes], seed=HELD_OUT_SEED, steps=steps, guidance=guidance
    )
    seen, said = read_codes(images), codes_of([reading(scene) for scene in scenes])
    agrees = seen == said
    columns = [first + slot for first in (0, CODE.second) for slot in (CODE.colour, CODE.shape)]
    both = (agrees | (said < 0))[:, columns].all(1)
    figures = {
        "captions": captions,
        "objects": objects,
        "guidance": guidance,
        "steps": steps,
        **accuracies(seen, said),
        "shape_and_colour": round(both.float().mean().item(), 4),
        "everything": round(agrees.all(1).float().mean().item(), 4),
    }
    return figures, images


def sheet(images: Tensor, columns: int = 16) -> Any:
    """Lay images [N, 3, H, W] in [0, 1] out as one Pillow picture."""
    from PIL import Image

    rows = [torch.cat(list(part), dim=2) for part in images[: len(images) // columns * columns].split(columns)]
    picture = torch.cat(rows, dim=1).mul(255).round().byte()
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def main() -> None:
    """Print figures as json, and write them into `training.json` on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--objects", type=int, default=1, choices=(1, 2))
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="default: 50 for a diffusion model, 28 for a flow")
    parser.add_argument("--sheet", type=Path, help="picture of the generated images")
    parser.add_argument("--record", action="store_true", help="write the figures into the pipeline's training.json")
    arguments = parser.parse_args()
    figures, images = quality(
        arguments.folder,
        captions=arguments.captions,
        objects=arguments.objects,
        guidance=arguments.guidance,
        steps=arguments.steps,
    )
    print(json.dumps(figures))
    if arguments.sheet:
        sheet(images).save(arguments.sheet)
    if arguments.record:
        file = arguments.folder / "training.json"
        record = json.loads(file.read_text())
        record.setdefault("quality", {})[f"{arguments.objects}_object"] = figures
        file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
