"""Attention of diffusers' networks as controls see it: q, k, v through the active controls, then fused attention.

Where no control acts, the network's own processor runs, so that the result is the stock one bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from framework.backbones.base import ControlHandle
from framework.backbones.choice import Choice, choose
from framework.control import Attend, Control
from framework.errors import SettingsError
from framework.step import Site


class ControlledProcessor(ABC):
    """Stands in for the stock processor of one site while controls are installed; one subclass per network family.

    Attributes:
        replaces: Names of diffusers' processors that compute what the subclass computes.

    Args:
        site: Where it is.
        stock: The processor that was there, which runs whenever no control acts.
        handle: What the current network call is about.
        chosen: Positions of the controls that chose this site.
    """

    replaces: ClassVar[frozenset[str]]

    # diffusers looks for these on every processor when it sets attention backends.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, site: Site, stock: Any, handle: ControlHandle, chosen: Sequence[int]) -> None:
        self.site = site
        self.stock = stock
        self.handle = handle
        self.chosen = tuple(chosen)
        self.acted: set[int] = set()

    def active(self) -> list[int]:
        """Return the positions of the controls that act in this call; with none the stock processor has to run."""
        active = [number for number in self.chosen if self.handle.active[number]]
        if self.handle.rows is None:
            return []
        self.acted.update(active)
        return active

    def attend(self, q: Tensor, k: Tensor, v: Tensor, active: Sequence[int], mask: Tensor | None = None) -> Tensor:
        """Compute attention through the active controls, [rows, heads, positions, width].

        Raises:
            SettingsError: A control returned another shape.
        """
        attended = self._chain(active, mask)(q, k, v)
        if attended.shape != q.shape:
            names = ", ".join(type(self.handle.controls[number]).__name__ for number in active)
            raise SettingsError(
                [
                    f"{names} turned attention of shape {tuple(q.shape)} into {tuple(attended.shape)} at "
                    f"{self.site.name}."
                ]
            )
        return attended

    def _chain(self, active: Sequence[int], mask: Tensor | None) -> Attend:
        """Nest the active controls, the first outermost, around the network's own attention."""
        handle, site = self.handle, self.site
        readers = [n for n in active if handle.controls[n].wants_probabilities(site, handle.i, handle.states[n])]
        attend: Attend
        if readers:
            attend = partial(self._explicit, readers=readers, mask=mask)
        else:
            attend = partial(scaled_dot_product_attention, attn_mask=mask)
        for number in reversed(active):
            attend = self._around(number, attend)
        return attend

    def _around(self, number: int, inner: Attend) -> Attend:
        handle = self.handle
        rows = handle.rows
        assert rows is not None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            control, state = handle.controls[number], handle.states[number]
            return control.attention(self.site, rows, q, k, v, inner, handle.i, state)

        return attend

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, *, readers: Sequence[int], mask: Tensor | None) -> Tensor:
        """Form probabilities, at least in float32, and pass them through the controls that asked for them."""
        handle = self.handle
        assert handle.rows is not None
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = q.to(wide) @ k.to(wide).transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores + mask
        p = scores.softmax(-1)
        for number in readers:
            p = handle.controls[number].probabilities(self.site, handle.rows, p, handle.i, handle.states[number])
        return p.to(v.dtype) @ v


class SiteProcessor(ControlledProcessor):
    """Attention of UNets: to the picture itself, or to the text; q, k and v from one linear layer each."""

    replaces = frozenset({"AttnProcessor", "AttnProcessor2_0"})

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Compute the attention layer; arguments are those of diffusers' processors."""
        active = self.active()
        if not active:
            output: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return output
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        picture = hidden_states.shape if hidden_states.ndim == 4 else None
        if picture is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        text = encoder_hidden_states
        mask = _mask(attn, attention_mask, hidden_states if text is None else text)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if text is None:
            text = hidden_states
        elif attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)

        q, k, v = (to_heads(x, attn.heads) for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        attended = self.attend(q, k, v, active, mask)

        hidden_states = attended.transpose(1, 2).flatten(2).to(q.dtype)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if picture is not None:
            hidden_states = hidden_states.transpose(-1, -2).reshape(picture)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor  # type: ignore[no-any-return]


def to_heads(x: Tensor, heads: int) -> Tensor:
    """[rows, positions, heads * width] -> [rows, heads, positions, width]."""
    return x.view(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


def _mask(attn: Any, mask: Tensor | None, keys: Tensor) -> Tensor | None:
    """Bring an additive mask to [rows, heads, queries or 1, keys], as the stock processor does."""
    if mask is None:
        return None
    positions = keys.shape[1]
    prepared: Tensor = attn.prepare_attention_mask(mask, positions, keys.shape[0])
    return prepared.view(keys.shape[0], attn.heads, -1, prepared.shape[-1])


@contextmanager
def controlled_network(
    network: nn.Module,
    sites: Sequence[Site],
    controls: Sequence[Control],
    states: Sequence[Any],
    processor: type[ControlledProcessor] = SiteProcessor,
) -> Iterator[ControlHandle]:
    """Install controls in a network and leave it with the very processors and hooks that it had, whatever happens.

    Args:
        network: A UNet or transformer of diffusers with its weights.
        sites: Its attention sites.
        controls: Outermost first.
        states: One per control, from its `begin`.
        processor: What stands in for the stock processors of this family of networks.

    Raises:
        SettingsError: A control chose nothing, or the network is not one in which processors can be exchanged and put
            back; at the end, a control was active and its site or layer never called.
    """
    choice = choose(controls, sites, [name for name, _ in network.named_modules() if name])
    _check_exchangeable(network, choice, controls, processor.replaces)
    handle = ControlHandle(controls, states)
    with ExitStack() as stack:
        processors = []
        for site, chosen in choice.sites.items():
            attention: Any = network.get_submodule(site.name)
            stock = attention.processor
            processors.append(processor(site, stock, handle, chosen))
            stack.callback(attention.set_processor, stock)
            attention.set_processor(processors[-1])
        hooks = []
        for layer, chosen in choice.layers.items():
            hooks.append(LayerHook(layer, handle, chosen))
            stack.callback(network.get_submodule(layer).register_forward_hook(hooks[-1]).remove)
        yield handle
        called = {(p.site.name, n) for p in processors for n in p.acted} | {
            (h.layer, n) for h in hooks for n in h.acted
        }
        _check_called(choice, handle, called)


class LayerHook:
    """Forward hook that passes the output of one module through the controls that chose it."""

    def __init__(self, layer: str, handle: ControlHandle, chosen: Sequence[int]) -> None:
        self.layer = layer
        self.handle = handle
        self.chosen = tuple(chosen)
        self.acted: set[int] = set()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Replace the output, or the first entry of a tuple, while a control is active."""
        del module, args
        handle = self.handle
        active = [number for number in self.chosen if handle.active[number]]
        if handle.rows is None or not active:
            return output
        x = output[0] if isinstance(output, tuple) else output
        if not isinstance(x, Tensor):
            raise SettingsError(
                [f"layer {self.layer} gives {type(x).__name__}, not a tensor; choose a layer inside or around it."]
            )
        for number in active:
            x = handle.controls[number].output(self.layer, handle.rows, x, handle.i, handle.states[number])
        self.acted.update(active)
        return (x, *output[1:]) if isinstance(output, tuple) else x


def _check_exchangeable(network: Any, choice: Choice, controls: Sequence[Control], replaceable: frozenset[str]) -> None:
    """Refuse networks in which our processor would drop what somebody else has put there."""
    problems = []
    for site, chosen in choice.sites.items():
        attention = network.get_submodule(site.name)
        kind = type(attention.processor)
        plain = kind.__module__.startswith("diffusers.") and kind.__name__ in replaceable
        if plain and "forward" not in vars(attention) and not getattr(attention, "fused_projections", False):
            continue
        names = ", ".join(type(controls[number]).__name__ for number in chosen)
        what = f"the processor {kind.__module__}.{kind.__name__}" if not plain else "fused projections"
        what = "a replaced forward" if "forward" in vars(attention) else what
        problems.append(
            f"{names} cannot be installed at {site.name}: it has {what}, which ours would silently drop. Remove what "
            "put it there "
            "(adapters, fused projections, another library's control, an enclosing `controlled`) and try again."
        )
    compiled = hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None
    if compiled and choice.layers:
        problems.append(
            "the network is compiled, and hooks on its layers would be silently ignored; use it uncompiled."
        )
    if problems:
        more = [f"... and {len(problems) - 3} sites more."] if len(problems) > 3 else []
        raise SettingsError([*problems[:3], *more])


def _check_called(choice: Choice, handle: ControlHandle, called: set[tuple[str, int]]) -> None:
    """Raise if a control was active during some call and one of its places was not reached."""
    places: list[tuple[str, tuple[int, ...]]] = [(site.name, chosen) for site, chosen in choice.sites.items()]
    places += choice.layers.items()
    missed = [
        f"{type(handle.controls[number]).__name__} was active, but the network never called {place} through it; the "
        "processor or "
        "hook was replaced or passed by while the edit ran."
        for place, chosen in places
        for number in chosen
        if number in handle.announced and (place, number) not in called
    ]
    if missed:
        raise SettingsError(missed[:3])
