"""Independent points of the plane as one latent, drawn from a mixture whose flow and diffusion are known exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from framework.backbones.mixture import GaussianMixture
from framework.callback import EditCallback, Measurement
from framework.data.sample import EditBatch
from framework.network import Network
from framework.result import EditResult
from framework.step import Condition

MEANS, VARIANCES, WEIGHTS = ((1.2, 0.5), (-0.8, -0.9)), (0.09, 0.16), (0.6, 0.4)
"""A component to either side of the origin, of unlike width and weight."""


class MixturePoints(GaussianMixture):
    """The exact network of points of a mixture of two Gaussians in the plane; it needs no weights.

    A latent holds side^2 points, each on its own: the network looks at one position at a time. A picture stands for a
    draw of points, seeded by its pixels; points are shown as colours.

    Args:
        kind: "flow" or "diffusion".
        side: Rows and columns of a latent.
        shift: Shift of a flow's levels; 3 is Stable Diffusion 3's.
    """

    def __init__(self, kind: Literal["flow", "diffusion"] = "flow", *, side: int = 8, shift: float = 1.0) -> None:
        means: Sequence[Any] = [list(mean) for mean in MEANS]
        super().__init__(means, list(VARIANCES), weights=list(WEIGHTS), kind=kind, shape=(2, 1, 1), shift=shift)
        self.latent_shape = (2, side, side)
        self.image_size = (side, side)
        self.image_channels = 3
        self.side = side

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the mixture, and how many points a latent holds."""
        return {**super().identity, "backbone": "MixturePoints", "side": self.side}

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predict for every point by itself; see `Backbone.forward`."""
        rows, _, height, width = z.shape
        points = z.permute(0, 2, 3, 1).reshape(-1, 2, 1, 1)
        each = condition.map(lambda x: x.repeat_interleave(height * width, 0))
        predicted = super().forward(points, t.repeat_interleave(height * width), each)
        return predicted.view(rows, height, width, 2).permute(0, 3, 1, 2)

    def encode_image(self, images: Tensor) -> Tensor:
        """Draw the points that each picture stands for, [B, 2, side, side]."""
        return torch.stack([self._draw(image) for image in images]).to(self.device, self.latent_dtype)

    def _draw(self, image: Tensor) -> Tensor:
        digest = hashlib.sha256(image.cpu().float().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        shape = (self.side, self.side)
        of = (torch.rand(shape, generator=generator, dtype=torch.float64) > WEIGHTS[0]).long()
        spread = torch.tensor(VARIANCES, dtype=torch.float64).sqrt()[of]
        noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        return torch.tensor(MEANS, dtype=torch.float64)[of].permute(2, 0, 1) + spread * noise

    def decode_latent(self, z: Tensor) -> Tensor:
        """Show points [B, 2, H, W] as colours [B, 3, H, W] in [-1, 1], four units to either side."""
        off = (z / 4).float()
        return torch.cat([off, torch.zeros_like(off[:, :1])], 1)


class NoiseError(EditCallback):
    """Measures how far the inverted noise is from the flow's own, by the classical Runge-Kutta rule: root mean square.

    Args:
        steps: Of the rule, four evaluations each; enough that its own error does not matter.
    """

    def __init__(self, steps: int = 200) -> None:
        self.steps = steps

    def on_edit_end(self, trainer: Any, module: Any, batch: EditBatch, result: EditResult) -> Sequence[Measurement]:
        del trainer
        record = result.record
        assert record.latents is not None
        condition = module.backbone.encode_prompt([sample.source for sample in batch.samples])
        exact = exact_noise(Network(module.backbone, module.edit_schedule), record.z0, condition, self.steps)
        error = (record.latents[0] - exact).double().square().flatten(1).mean(1).sqrt().tolist()
        return [Measurement(values={"rows": {"edit": {self.name: {"rmse": value}}}}) for value in error]


def exact_noise(network: Network, z: Tensor, condition: Condition, steps: int) -> Tensor:
    """Integrate a flow from clean latents [B, ...] to noise by the classical Runge-Kutta rule in even steps."""
    first = network.schedule.levels[0]

    def velocity(z: Tensor, sigma: float) -> Tensor:
        t = torch.full((len(z),), sigma * first.t / first.sigma, dtype=torch.float64, device=z.device)
        return network.evaluate(z, t, condition)

    h = 1 / steps
    for k in range(steps):
        s = k * h
        a = velocity(z, s)
        b = velocity(z + h / 2 * a, s + h / 2)
        c = velocity(z + h / 2 * b, s + h / 2)
        z = z + h / 6 * (a + 2 * b + 2 * c + velocity(z + h * c, s + h))
    return z
