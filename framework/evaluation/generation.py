"""Plain generation from prompts: the row of a table that has the edit without the source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import seeded_draw
from framework.network import Network
from framework.schedule import ddim_step, euler_step
from framework.step import COND, UNCOND, Condition, Latents, Row, Stream


@torch.no_grad()
def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    ids: Sequence[str],
    *,
    size: tuple[int, int],
    steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
    purpose: str = "plain generation",
) -> Tensor:
    """Sample pictures from prompts by DDIM (diffusion) or Euler (flow) with classifier-free guidance.

    The noise of a picture depends on seed, id and purpose alone.

    Args:
        backbone: The network with its codecs.
        prompts: n texts.
        ids: n names of the pictures.
        size: Rows and columns.
        steps: Steps of the backbone's own schedule.
        guidance: Scale, 1 for none.
        seed: Of the noise.
        purpose: What the pictures are for.

    Returns:
        [n, 3, H, W] float32 in [0, 1].
    """
    backbone.load()
    schedule = backbone.schedule(steps)
    network = Network(backbone, schedule)
    blank = torch.zeros(1, backbone.image_channels, *size, device=backbone.device)
    shape = backbone.encode_image(blank).shape[1:]
    z = seeded_draw(seed, ids, shape, backbone.device, backbone.latent_dtype)(purpose, 1)[0]
    if schedule.form == "velocity":
        z = z * schedule.levels[0].sigma  # a flow begins at sigma 1; one that begins below it, at that much noise
    # One text at a time, so that a row's bits do not depend on the others of its batch.
    encoded = {text: backbone.encode_prompt([text]) for text in dict.fromkeys((*prompts, ""))}
    rows = [Row(Stream.TARGET, COND), *([Row(Stream.TARGET, UNCOND)] if guidance != 1 else [])]
    texts = {COND: list(prompts), UNCOND: [""] * len(prompts)}
    conditions = {
        row: Condition.cat([encoded[text] for text in texts[row.branch]]).map(lambda x: x.to(backbone.device))
        for row in rows
    }
    for i in range(schedule.num_steps):
        found = network.at(i, conditions)(Latents(target=z), rows)
        prediction = found[rows[0]]
        if guidance != 1:
            prediction = found[rows[1]] + guidance * (prediction - found[rows[1]])
        move = ddim_step if schedule.form == "epsilon" else euler_step
        z = move(z, prediction, schedule.levels[i], schedule.levels[i + 1])
    return (backbone.decode_latent(z).float() / 2 + 0.5).clamp(0, 1)
