"""Joint attention of flow transformers as controls see it: q, k, v of text and picture together.

Which positions are the text's is said by `Site.text_part`. Queries and keys are handed over as attention uses them,
after normalisation and rotary embedding; since source and target rows have the same positions, exchanging them before
the rotation (as published code does) is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from framework.backbones.attention import ControlledProcessor


class JointProcessor(ControlledProcessor):
    """Attention of SD3: the picture's positions first, then the text's; or the picture alone (dual attention)."""

    replaces = frozenset({"JointAttnProcessor2_0"})

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Compute the attention layer; arguments are those of diffusers' processors."""
        active = self.active()
        text = encoder_hidden_states
        if not active:
            return self.stock(attn, hidden_states, text, attention_mask, *args, **kwargs)

        def heads(x: Tensor, norm: Any = None) -> Tensor:
            x = x.view(x.shape[0], -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)
            return x if norm is None else norm(x)

        q = heads(attn.to_q(hidden_states), attn.norm_q)
        k = heads(attn.to_k(hidden_states), attn.norm_k)
        v = heads(attn.to_v(hidden_states))
        if text is not None:
            q = torch.cat([q, heads(attn.add_q_proj(text), attn.norm_added_q)], dim=2)
            k = torch.cat([k, heads(attn.add_k_proj(text), attn.norm_added_k)], dim=2)
            v = torch.cat([v, heads(attn.add_v_proj(text))], dim=2)

        attended = self.attend(q, k, v, active).transpose(1, 2).flatten(2).to(q.dtype)

        positions = hidden_states.shape[1]
        picture = attn.to_out[1](attn.to_out[0](attended[:, :positions]))
        if text is None:
            return picture
        rest = attended[:, positions:]
        return picture, rest if attn.context_pre_only else attn.to_add_out(rest)


class FluxProcessor(JointProcessor):
    """Attention of FLUX: the text's positions first, then the picture's, with rotary embedding on both."""

    replaces = frozenset({"FluxAttnProcessor"})

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Compute the attention layer; arguments are those of diffusers' processors."""
        from diffusers.models.embeddings import apply_rotary_emb as rotated

        active = self.active()
        text = encoder_hidden_states
        if not active:
            return self.stock(attn, hidden_states, text, attention_mask, image_rotary_emb)

        def heads(x: Tensor, norm: Any = None) -> Tensor:
            x = x.unflatten(-1, (-1, attn.head_dim))
            return x if norm is None else norm(x)

        q = heads(attn.to_q(hidden_states), attn.norm_q)
        k = heads(attn.to_k(hidden_states), attn.norm_k)
        v = heads(attn.to_v(hidden_states))
        if text is not None:
            q = torch.cat([heads(attn.add_q_proj(text), attn.norm_added_q), q], dim=1)
            k = torch.cat([heads(attn.add_k_proj(text), attn.norm_added_k), k], dim=1)
            v = torch.cat([heads(attn.add_v_proj(text)), v], dim=1)
        if image_rotary_emb is not None:
            turned: list[Any] = [rotated(x, image_rotary_emb, sequence_dim=1) for x in (q, k)]
            q, k = turned
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))

        attended = self.attend(q, k, v, active, attention_mask).transpose(1, 2).flatten(2, 3).to(q.dtype)

        if text is None:
            return attended
        rest, picture = attended.split_with_sizes([text.shape[1], attended.shape[1] - text.shape[1]], dim=1)
        picture = attn.to_out[1](attn.to_out[0](picture.contiguous()))
        return picture, attn.to_add_out(rest.contiguous())
