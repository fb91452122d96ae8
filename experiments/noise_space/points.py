"""Many independent points of the plane as one latent: a position holds a chain, its two channels the coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.backbones.mixture import GaussianMixture


class PlanePoints(GaussianMixture):
    """The exact denoiser of points ~ N(mean, I) in the plane; it needs no weights.

    As a picture a point is a colour: red and green say how far it is from the mean, blue is even.

    Args:
        mean: Of both coordinates each.
        side: Rows and columns of a latent; it holds side^2 points.
        beta_schedule, beta_start, beta_end: Training table.
    """

    def __init__(
        self,
        mean: Sequence[float] = (10.0, 10.0),
        *,
        side: int = 64,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__(
            [list(mean)],
            1.0,
            shape=(2, side, side),
            beta_schedule=beta_schedule,  # type: ignore[arg-type]  # its constructor checks the word
            beta_start=beta_start,
            beta_end=beta_end,
            steps_offset=0,
            set_alpha_to_one=True,  # the last step leads to the points themselves, and its map says nothing
        )
        self.image_channels = 3

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the mean everywhere: pictures are not points, so the sources must be generated."""
        like = images[:, :2].to(self.device, self.latent_dtype)
        return self._means.to(like).expand_as(like).clone()

    def decode_latent(self, z: Tensor) -> Tensor:
        """Show points [B, 2, H, W] as colours [B, 3, H, W] in [-1, 1], four standard deviations to either side."""
        off = ((z - self._means.to(z)) / 4).float()
        return torch.cat([off, torch.zeros_like(off[:, :1])], 1)
