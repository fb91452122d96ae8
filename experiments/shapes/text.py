"""The words of the world as a CLIP tokenizer and a small CLIP text encoder.

Every word of a caption is one token, so that exchanging words keeps a prompt's length; any other word is spelt in
several tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.shapes.scene import RELATIONS, WORDS

if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LENGTH = 32
"""Positions of a prompt, start and end included."""

START, END = "<|startoftext|>", "<|endoftext|>"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"


def caption_words() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    words = ["a", "an", "on", "background", *" ".join(RELATIONS).split()]
    for group in WORDS.values():
        words += [word for word in group if word not in words]
    return words


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files: byte-pair merges learned on the caption words until each of them is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        show_progress=False,
        initial_alphabet=list(_ALPHABET),
        # Equally frequent pairs are merged by their pieces' numbers, and final letters would be numbered in the order
        # in which a hash table happens to hold the words.
        special_tokens=[letter + "</w>" for letter in _ALPHABET],
    )
    tokenizer.train_from_iterator([" ".join(caption_words())], trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*_ALPHABET, *(letter + "</w>" for letter in _ALPHABET), *("".join(merge) for merge in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    special = {name: settings[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2, heads: int = 4) -> CLIPTextModel:
    """Build a text encoder with random weights for a tokenizer."""
    from transformers import CLIPTextModel

    return CLIPTextModel(_config(tokenizer, width, layers, heads))


def build_projected_encoder(
    tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2, heads: int = 4, like: CLIPTextModel | None = None
) -> CLIPTextModelWithProjection:
    """Build a text encoder with a projection of the caption's end, of the same width.

    Args:
        tokenizer: Its tokenizer.
        width, layers, heads: Sizes, where `like` does not give them.
        like: A text encoder whose weights to take; the projection then starts as the identity.
    """
    from transformers import CLIPTextModelWithProjection

    if like is None:
        return CLIPTextModelWithProjection(_config(tokenizer, width, layers, heads))
    said = like.config
    encoder = CLIPTextModelWithProjection(
        _config(tokenizer, said.hidden_size, said.num_hidden_layers, said.num_attention_heads)
    )
    encoder.text_model.load_state_dict(like.state_dict())
    with torch.no_grad():
        encoder.text_projection.weight.copy_(torch.eye(said.hidden_size))
    return encoder


def _config(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int) -> CLIPTextConfig:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
    )
