"""Attention sites of diffusers' UNets, in the order in which the forward pass calls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from framework.step import Place, Site, SiteKind


def unet_sites(unet: nn.Module) -> tuple[Site, ...]:
    """List the attention sites of a UNet2DConditionModel or UNet2DModel, with weights or on the meta device.

    The order is that of calls: down, mid, up; within a transformer block self-attention before cross-attention. The
    network's own dictionary of processors has another order.
    """
    sites: list[Site] = []
    orders: Counter[str] = Counter()
    for place, block, scale, prefix, module in _blocks(unet):
        for name, attention in _attentions(module):
            kind: SiteKind = "cross" if attention.is_cross_attention else "self"
            sites.append(Site(f"{prefix}.{name}", kind, place, len(sites), orders[kind], block, scale))
            orders[kind] += 1
    return tuple(sites)


def _blocks(unet: Any) -> Iterator[tuple[Place, int, int, str, nn.Module]]:
    """Yield place, index, scale of the attention maps, name and module of every stage in call order."""
    scale = 1
    for index, block in enumerate(unet.down_blocks):
        yield "down", index, scale, f"down_blocks.{index}", block
        scale *= 2 if getattr(block, "downsamplers", None) is not None else 1
    if unet.mid_block is not None:
        yield "mid", 0, scale, "mid_block", unet.mid_block
    for index, block in enumerate(unet.up_blocks):
        yield "up", index, scale, f"up_blocks.{index}", block
        scale //= 2 if getattr(block, "upsamplers", None) is not None else 1


def _attentions(block: nn.Module) -> Iterator[tuple[str, Any]]:
    from diffusers.models.attention_processor import Attention

    for name, module in block.named_modules():
        # Attention with keys added from elsewhere has processors that ours could not stand in for.
        if isinstance(module, Attention) and module.added_kv_proj_dim is None:
            yield name, module
