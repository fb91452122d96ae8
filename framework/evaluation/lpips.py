"""LPIPS without torchvision: the three networks in plain torch, with weights under torchvision's names.

Zhang et al.: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (CVPR 2018, arXiv 1801.03924).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.backbones.files import ModelFiles
from framework.evaluation.pixels import Rule

Net = Literal["squeeze", "alex", "vgg"]

TAPS: dict[Net, tuple[int, ...]] = {
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
}
"""Modules of torchvision's `features` after which maps are compared."""

_CHANNELS: dict[Net, tuple[int, ...]] = {
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Fire(nn.Module):
    """SqueezeNet's module: a 1 x 1 convolution, then 1 x 1 and 3 x 3 side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to twice the expanded channels."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class LpipsNetwork(nn.Module):
    """Distance of pictures in the feature space of a classifier.

    x is shifted and scaled, every tapped map is divided by its norm over channels, and the squared difference is
    weighted by a 1 x 1 head and averaged over positions; levels add up.

    Args:
        net: "squeeze" is PIE-Bench's, "alex" most other papers'.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "squeeze") -> None:
        super().__init__()
        self.net = net
        self.features = {"squeeze": _squeezenet, "alex": _alexnet, "vgg": _vgg}[net]()
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(1, c, 1, 1)) for c in _CHANNELS[net]])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the normalised maps of pictures [B, 3, H, W] in [-1, 1]."""
        x = (x - self.shift) / self.scale
        found = []
        for number, module in enumerate(self.features):
            x = module(x)
            if number in TAPS[self.net]:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON))
        return found

    def forward(self, result: Tensor, source: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare pictures [B, 3, H, W] in [-1, 1].

        Args:
            result, source: The pictures.
            weight: [B, 1, H, W], averages every level over where it is 1 (in shares of a cell); None for everything.

        Returns:
            [B] distances of at least 0.
        """
        both = self.maps(torch.cat([result, source]))
        total = torch.zeros(len(result), device=result.device)
        for found, head in zip(both, self.heads, strict=True):
            first, second = found.chunk(2)
            difference = ((first - second).square() * head).sum(1, keepdim=True)
            if weight is None:
                total = total + difference.mean((1, 2, 3))
            else:
                share = F.adaptive_avg_pool2d(weight, difference.shape[-2:])
                total = total + (difference * share).sum((1, 2, 3)) / share.sum((1, 2, 3))
        return total


def lpips_parts(
    result: Tensor, source: Tensor, weight: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Prepare pictures [B, 3, H, W] in [0, 1] for the network: x 2 - 1, after the mask has made what it hides black.

    Returns:
        Result and source in [-1, 1], and the weight that the network averages with.
    """
    if weight is not None and rule == "official":
        result, source, weight = result * weight, source * weight, None
    return result * 2 - 1, source * 2 - 1, weight


def load_lpips(files: ModelFiles, net: Net) -> LpipsNetwork:
    """Load a network from `model.safetensors`: `features.*` as torchvision names them, and the heads.

    Heads are `lin<k>.model.1.weight`; where the file has none they are those of the published metric, which come with
    torchmetrics.

    Raises:
        SettingsError: There is no such file, or tensors are missing or of another shape.
    """
    from safetensors.torch import load_file

    path = files.weight_files(files.download({"": "model"}), "", "model")[0]
    found = {name: value.float() for name, value in load_file(path).items()}
    network = LpipsNetwork(net)
    heads = [f"lin{number}.model.1.weight" for number in range(len(network.heads))]
    if heads[0] not in found:
        found |= _published_heads(net)
    renamed = {f"heads.{number}": found[name] for number, name in enumerate(heads) if name in found}
    renamed |= {name: value for name, value in found.items() if name.startswith("features.")}
    try:
        network.load_state_dict(renamed)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise files.problem(f"{path.name} does not hold the {net} network of LPIPS ({reason[:300]}).") from None
    return network.eval().requires_grad_(False)


def _published_heads(net: Net) -> dict[str, Tensor]:
    package = find_spec("torchmetrics")
    for root in (package.submodule_search_locations or ()) if package else ():
        path = Path(root, "functional", "image", "lpips_models", f"{net}.pth")
        if path.is_file():
            heads = torch.load(path, map_location="cpu", weights_only=True)
            return {name: value.float() for name, value in heads.items()}
    return {}


def _squeezenet() -> nn.Sequential:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(),
        Fire(64, 16, 64), Fire(128, 16, 64), pool(),
        Fire(128, 32, 128), Fire(256, 32, 128), pool(),
        Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    )  # fmt: skip


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)
