"""The networks that look at whole pictures: DINO's keys and CLIP's two encoders, without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from framework.backbones.files import ModelFiles
from framework.backbones.loading import load_component

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_SHORT, _LONG = 224, 480


class _WithoutPooling:
    """DINO has no pooling layer, and transformers must be told."""

    @staticmethod
    def from_pretrained(folder: Any, **options: Any) -> Any:
        from transformers import ViTModel

        return ViTModel.from_pretrained(folder, add_pooling_layer=False, **options)


class Dino(nn.Module):
    """A ViT of DINO; pictures are resized and normalised as Splice's structure distance does.

    Args:
        files: Config and weights of a `ViTModel`.
    """

    def __init__(self, files: ModelFiles) -> None:
        super().__init__()
        files.config("config.json")
        folder = files.download({"": "model"}, ["config.json"])
        self.vit: Any = load_component(_WithoutPooling, folder, torch.float32, files)
        for module in self.vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6  # DINO's own; configs of converted weights say 1e-12
        keys = [m for name, m in self.vit.named_modules() if name.rpartition(".")[2] in ("k_proj", "key")]
        self._key = keys[-1]

    def pixels(self, pictures: Tensor, *, antialias: bool = False) -> Tensor:
        """Resize pictures [B, 3, H, W] so that the shorter side has 224 pixels, and normalise them; any value range."""
        rows, columns = pictures.shape[-2:]
        short, long = min(rows, columns), max(rows, columns)
        new_short, new_long = _SHORT, int(_SHORT * long / short)
        if new_long > _LONG:
            new_short, new_long = int(_LONG * new_short / new_long), _LONG
        size = (new_short, new_long) if rows <= columns else (new_long, new_short)
        if size != (rows, columns):
            pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=antialias)
        return (pictures - _column(_MEAN, pictures)) / _column(_STD, pictures)

    def keys(self, pixels: Tensor) -> Tensor:
        """Return the keys of the last block, all heads side by side, [B, 1 + patches, width]."""
        return self._run(pixels)[0]

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the class token of the last layer, [B, width]."""
        return self._run(pixels)[1][:, 0]

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        caught: list[Tensor] = []
        handle = self._key.register_forward_hook(lambda module, given, output: caught.append(output))
        try:
            square = pixels.shape[-2:] == (_SHORT, _SHORT)
            last: Tensor = self.vit(pixel_values=pixels, interpolate_pos_encoding=not square).last_hidden_state
        finally:
            handle.remove()
        return caught[0], last


def self_similarity(keys: Tensor) -> Tensor:
    """Cosine of every pair of keys [B, t, width], as [B, t, t]; norms' products are at least 1e-8."""
    norms = keys.norm(dim=-1)
    products: Tensor = keys @ keys.transpose(-2, -1)
    similarity: Tensor = products / (norms[:, :, None] * norms[:, None, :]).clamp(min=1e-8)
    return similarity


class Clip(nn.Module):
    """CLIP's encoders; pictures go through Pillow, as the processor without torchvision does.

    Args:
        files: Config, tokenizer and weights of a `CLIPModel`.
    """

    def __init__(self, files: ModelFiles) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        super().__init__()
        files.config("config.json")
        processor = files.config("preprocessor_config.json", optional=True) or {}
        others = ["config.json", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json"]
        folder = files.download({"": "model"}, others)
        self.model = load_component(CLIPModel, folder, torch.float32, files)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        described: Any = self.model.config
        self._positions = int(described.text_config.max_position_embeddings)
        self._side = int(described.vision_config.image_size)
        self._mean = tuple(processor.get("image_mean") or _CLIP_MEAN)
        self._std = tuple(processor.get("image_std") or _CLIP_STD)

    def pixels(self, picture: Tensor) -> Tensor:
        """Prepare a picture [3, H, W] in [0, 1]: 256 levels, bicubic to the short side, centre crop, normalised."""
        levels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        rows, columns = levels.shape[:2]
        short = min(rows, columns)
        size = (int(columns * self._side / short), int(rows * self._side / short))
        resized = np.array(Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC))
        top, left = (resized.shape[0] - self._side) // 2, (resized.shape[1] - self._side) // 2
        cropped = resized[top : top + self._side, left : left + self._side]
        x = torch.from_numpy(np.ascontiguousarray(cropped)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(self._mean).view(3, 1, 1)) / torch.tensor(self._std).view(3, 1, 1)

    def tokens(self, texts: Sequence[str]) -> Any:
        """Tokenise, with padding and cut to the encoder's positions."""
        return self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._positions, return_tensors="pt"
        )

    def image_features(self, pixels: Tensor) -> Tensor:
        """Project prepared pictures [B, 3, side, side] to [B, width], not normalised."""
        encode: Any = self.model.get_image_features
        return _features(encode(pixel_values=pixels))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Project texts to [n, width], not normalised."""
        found = self.tokens(texts).to(next(self.model.parameters()).device)
        encode: Any = self.model.get_text_features
        return _features(encode(input_ids=found.input_ids, attention_mask=found.attention_mask))


def _features(found: Any) -> Tensor:
    """Features are a tensor up to transformers 4 and an output object from 5 on."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)
