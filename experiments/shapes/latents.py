"""The code that the bundled models work in: 4 x 4 patches of pixels, projected onto their principal components.

The projection is linear and fixed; `build_vae` writes it into the layers of a diffusers AutoencoderKL whose decoder is
trained alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PATCH = 4
CHANNELS = 16
_GROUPS = 4
_LEVEL = 1024.0
"""Constant that fixes the statistics of the encoder's last norm; a power of two, so that its sums are exact."""


class Projection(NamedTuple):
    """A linear code of patches: `latent = matrix @ (patch - mean)`.

    `matrix` is [channels, 48] and `mean` [48], for patches in [-1, 1] flattened as (colour, row, column);
    `scaling_factor` brings the latents of the world to unit variance.
    """

    matrix: Tensor
    mean: Tensor
    scaling_factor: float

    def encode(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: [B, 3, H, W] in [-1, 1].

        Returns:
            Latents before scaling, [B, channels, H / 4, W / 4].
        """
        return torch.einsum("cp,bphw->bchw", self.matrix, patches(images) - self.mean[:, None, None])


def patches(images: Tensor) -> Tensor:
    """Cut images [B, 3, H, W] into patches [B, 48, H / 4, W / 4], each flattened as (colour, row, column)."""
    return torch.nn.functional.pixel_unshuffle(images, PATCH)


def fit_projection(images: Tensor, whitening: float, channels: int = CHANNELS) -> Projection:
    """Find the principal components of the patches of a world.

    Args:
        images: [N, 3, H, W] in [-1, 1], some thousands.
        whitening: How far the components are brought to equal variance: 0 leaves principal components as they are, so
            that outlines are small beside mean colours; 1 makes all variances equal. A component's standard deviation s
            becomes s ** (1 - whitening).
        channels: Number of components to keep.

    Returns:
        The projection; the sign of each component is fixed by its largest entry, so that equal images give equal
        projections.
    """
    values = patches(images.double()).movedim(1, -1).reshape(-1, 3 * PATCH**2)
    mean = values.mean(0)
    variances, vectors = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    variances, vectors = variances.flip(0)[:channels].clamp(min=1e-12), vectors.flip(1).T[:channels]
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    matrix = vectors * signs * variances.pow(-whitening / 2)[:, None]
    scale = variances.pow(1 - whitening).mean().rsqrt().item()
    return Projection(matrix.float(), mean.float(), scale)


def build_vae(projection: Projection, widths: tuple[int, int, int] = (16, 32, 64)) -> AutoencoderKL:
    """Write a projection into the encoder of an AutoencoderKL.

    The two strided convolutions gather the patch, residual branches are zero, and the last norm and SiLU are undone
    exactly: every latent enters as a pair (z, -z), of which silu(z) - silu(-z) = z, beside constant channels +-1024
    that fix the norm's mean and, to one part in a million, its variance. The decoder keeps its random weights.

    Args:
        projection: The code, with 16 channels.
        widths: Channels at full, half and quarter resolution, of the decoder too.

    Returns:
        The autoencoder, in float32; its posterior has no variance to speak of.
    """
    from diffusers import AutoencoderKL

    channels = len(projection.matrix)
    vae = AutoencoderKL(
        block_out_channels=list(widths),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=_GROUPS,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=projection.scaling_factor,
    )
    encoder = vae.encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        for colour in range(3):
            encoder.conv_in.weight[colour, colour, 1, 1] = 1.0
        first, second = (encoder.down_blocks[k].downsamplers[0].conv for k in range(2))
        matrix = projection.matrix.view(channels, 3, PATCH, PATCH)
        for colour in range(3):
            for row in range(2):
                for column in range(2):
                    slot = 4 * colour + 2 * row + column
                    first.weight[slot, colour, row, column] = 1.0
                    second.weight[:channels, slot, :2, :2] = matrix[:, colour, row::2, column::2]
        second.bias[:channels] = -projection.matrix @ projection.mean
        # Widening keeps the channels that carry something and leaves the others zero.
        carried = encoder.down_blocks[1].resnets[0].conv_shortcut.weight
        carried[range(12), range(12), 0, 0] = 1.0
        widen, out = encoder.down_blocks[2].resnets[0].conv_shortcut, encoder.conv_out
        size, share = widths[2] // _GROUPS, channels // _GROUPS
        for latent in range(channels):
            plus = latent // share * size + latent % share
            widen.weight[plus, latent], widen.weight[plus + share, latent] = 1.0, -1.0
            out.weight[latent, plus, 1, 1], out.weight[latent, plus + share, 1, 1] = 1.0, -1.0
        constant = [channel for channel in range(widths[2]) if channel % size >= 2 * share]
        widen.bias[constant] = _LEVEL * torch.tensor([1.0, -1.0]).repeat(len(constant) // 2)
        encoder.conv_norm_out.weight.fill_(_LEVEL * (len(constant) / widths[2]) ** 0.5)
        out.bias[channels:] = -30.0
    return vae
