"""AdamW for vectors and embeddings, and orthogonalised momentum for the matrices in between, in one optimiser.

Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024); the factor that gives its steps
AdamW's size is from Liu et al., Muon is scalable for LLM training (arXiv 2502.16982), section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, chosen by its authors for speed; singular values end within about 0.7 to 1.2."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values of matrices [..., m, n] near one, by a quintic Newton-Schulz iteration in bfloat16."""
    wide = matrices.bfloat16()
    tall = wide.shape[-2] > wide.shape[-1]
    if tall:
        wide = wide.mT
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(steps):
        square = wide @ wide.mT
        wide = a * wide + torch.add(b * square, square @ square, alpha=c) @ wide
    return (wide.mT if tall else wide).to(matrices.dtype)


class MixedOptimiser(torch.optim.Optimizer):
    """Steps groups with `"matrix": True` by orthogonalised momentum and the others by AdamW.

    Kernels of convolutions count as matrices of [outputs, inputs x height x width].
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, weight_decay: float, momentum: float = 0.95) -> None:
        defaults = {
            "lr": 1e-3,
            "matrix": False,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "betas": (0.9, 0.99),
        }
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; the closure, where given, computes loss and gradients first."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters and group["matrix"]:
                self._matrix_step(group, parameters)
            elif parameters:
                self._adam_step(group, parameters)
        return result

    def _matrix_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        moments = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, moments, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # Matrices of one shape are iterated together: most are small, and calls would cost more than arithmetic.
        alike: dict[tuple[int, int], list[int]] = {}
        for index, update in enumerate(ahead):
            alike.setdefault((len(update), update.numel() // len(update)), []).append(index)
        for shape, indices in alike.items():
            updates = orthogonalise(torch.stack([ahead[index].reshape(shape) for index in indices]))
            for index, update in zip(indices, updates.unbind(), strict=True):
                parameters[index].add_(
                    update.reshape(parameters[index].shape), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5
                )

    def _adam_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        first, second = group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        for state, parameter in zip(states, parameters, strict=True):
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
        gradients = [parameter.grad for parameter in parameters]
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        count = states[0]["step"]
        scale = torch._foreach_sqrt(squares)
        torch._foreach_div_(scale, (1 - second**count) ** 0.5)
        torch._foreach_add_(scale, 1e-8)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, scale, value=-group["lr"] / (1 - first**count))
