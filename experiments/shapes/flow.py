"""The flow transformer's training: Stable Diffusion 3's layout with two text encoders and no T5, as a rectified flow.

Source: Esser et al., Scaling Rectified Flow Transformers (arXiv 2403.03206), sections 2 to 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from experiments.shapes.denoising import Batch, Denoising, object_weights
from experiments.shapes.settings import ModelSettings
from experiments.shapes.teacher import Teacher

SCHEDULER: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 1.0}
"""Configuration of the pipeline's FlowMatchEulerDiscreteScheduler."""

BLANKS = (0, 32, 256)
"""Numbers of blank tokens that training draws from. The pipeline puts `max_sequence_length` vectors of zeros, 256 by
default, where the missing T5 would speak; having met all three, the network works with any number."""


def build_transformer(model: ModelSettings, channels: int = 16) -> SD3Transformer2DModel:
    """Build the transformer; every block starts as the identity, and the prediction as zero."""
    width = model.transformer_width
    text = model.text_width + model.second_text_width
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=model.transformer_patch,
        in_channels=channels,
        out_channels=channels,
        num_layers=model.transformer_layers,
        attention_head_dim=width // model.transformer_heads,
        num_attention_heads=model.transformer_heads,
        joint_attention_dim=text,
        caption_projection_dim=width,
        pooled_projection_dim=text,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )
    zero: list[nn.Linear] = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        zero += [block.norm1.linear, block.norm1_context.linear]
    for linear in zero:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


class BiasedJointAttention:
    """Joint attention as the stock processor computes it, with `attention_mask` added to the scores; the image's tokens
    come first.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend; states of image [B, N, C] and text [B, M, C], a mask that broadcasts to [B, 1, N + M, N + M]."""

        def split(states: Tensor, linear: nn.Linear, norm: nn.Module | None) -> Tensor:
            heads = linear(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return heads if norm is None else norm(heads)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([split(image, attn.to_q, attn.norm_q), split(text, attn.add_q_proj, attn.norm_added_q)], 2)
        key = torch.cat([split(image, attn.to_k, attn.norm_k), split(text, attn.add_k_proj, attn.norm_added_k)], 2)
        value = torch.cat([split(image, attn.to_v, None), split(text, attn.add_v_proj, None)], 2)
        # Spelt out: for so few tokens the backward pass of fused attention costs processors three times as much.
        scores = (query.to(value.dtype) @ key.to(value.dtype).mT) * query.shape[-1] ** -0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        mixed = (scores.float().softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        image, text = mixed[:, : image.shape[1]], mixed[:, image.shape[1] :]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[0](image), text


def text_states(encoders: Iterable[CLIPTextModelWithProjection], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """States and pooled states of captions as the pipeline forms them from its text encoders.

    Args:
        encoders: The text encoders, in the pipeline's order.
        tokens: [B, 32].

    Returns:
        Last but one hidden states [B, 32, C] and projected end states [B, C], C the sum of the encoders' widths.
    """
    said = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    return torch.cat([one.hidden_states[-2] for one in said], -1), torch.cat([one.text_embeds for one in said], -1)


class FlowDenoising(Denoising):
    """Trains transformer and text encoders together on the velocity of straight paths, of scenes and of a teacher."""

    def __init__(self, *arguments: Any, teacher: Teacher | None = None) -> None:
        super().__init__(*arguments)
        self.teacher = teacher
        self.denoiser.set_attn_processor(BiasedJointAttention())
        self.register_buffer("blanks", torch.tensor(BLANKS, dtype=torch.float32), persistent=False)

    outer = ("pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out")

    def inner(self, name: str) -> bool:
        """The matrices of attention and feed-forward."""
        return not name.startswith(self.outer) and "norm" not in name

    def on_train_start(self) -> None:
        """Bring the teacher, which is no part of the module, to its device."""
        super().on_train_start()
        if self.teacher is not None:
            self.teacher.to(self.device)

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean squared error of the velocity, noise - latent, at (1 - sigma) * latent + sigma * noise.

        A teacher's velocity takes its share in the target.

        Equal blank tokens stay equal in every layer, since text has no positions: one token whose scores are raised by
        log(n) is n of them.
        """
        sigma = batch.levels.view(-1, 1, 1, 1)
        noisy = torch.lerp(batch.latents, batch.noise, sigma)
        states, pooled = text_states(self.text_encoders, batch.tokens)  # type: ignore[arg-type]
        states = torch.cat([states, torch.zeros_like(states[:, :1])], 1)
        image = noisy[0, 0].numel() // self.denoiser.config.patch_size**2
        # The draw of the level decides the number of blanks too: its thousandths are as good as another generator.
        number = self.blanks[(batch.levels * 1e5).long() % len(BLANKS)]
        bias = torch.zeros(len(states), 1, 1, image + states.shape[1], device=states.device)
        bias[:, 0, 0, -1] = number.log()
        predicted = self.denoiser(
            noisy,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=batch.levels * 1000,
            joint_attention_kwargs={"attention_mask": bias},
            return_dict=False,
        )[0]
        target = batch.noise - batch.latents
        if self.teacher is not None:
            taught = self.teacher.velocity(noisy, batch.levels, batch.tokens)
            target = torch.lerp(target, taught, self.teacher.share(batch.levels).view(-1, 1, 1, 1))
        error = predicted.float() - target
        return (object_weights(batch.regions, self.settings.training.region_weight) * error.square()).mean()
