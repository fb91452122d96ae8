"""Puts the trained parts together as an ordinary Stable Diffusion pipeline folder, and finds and reads such folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

SHIPPED = Path(__file__).parent / "weights" / "diffusion"
"""The bundled pipeline."""


def export_pipeline(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer_files: Path,
    record: Mapping[str, Any],
) -> None:
    """Write a pipeline in half precision; the folder appears whole or not at all.

    Args:
        folder: Where to; an older pipeline there is replaced, except for its README.md.
        vae, unet, text_encoder: Networks; written in float16, left as they are.
        tokenizer_files: Folder with the tokenizer's files.
        record: What `training.json` says of this training.
    """
    from diffusers import DDIMScheduler

    from experiments.shapes.denoising import SCHEDULER

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, network in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
        _half(network).save_pretrained(partial / name, safe_serialization=True)
    shutil.copytree(tokenizer_files, partial / "tokenizer")
    DDIMScheduler(**SCHEDULER).save_pretrained(partial / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (partial / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    for config in partial.rglob("config.json"):
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n")
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", partial / "README.md")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _half(network: Any) -> Any:
    """A copy in float16 with contiguous weights; the original keeps its precision."""
    import copy

    copied = copy.deepcopy(network).to(torch.float16)
    for parameter in copied.parameters():
        parameter.data = parameter.data.contiguous()
    return copied


def load_pipeline(folder: str | Path = SHIPPED, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Load a pipeline folder with nothing but diffusers, without its progress bar.

    Raises:
        FileNotFoundError: No pipeline lies there.
    """
    from diffusers import StableDiffusionPipeline

    if not (Path(folder) / "model_index.json").exists():
        raise FileNotFoundError(f"{folder} holds no pipeline (no model_index.json); train one or give another folder")
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encode_captions(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """Text states of captions, [B, 32, width], as the pipeline forms them."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states: Tensor = encoder(tokens)[0]
    return states


@torch.no_grad()
def generate(
    pipeline: StableDiffusionPipeline,
    captions: list[str],
    *,
    seed: int,
    steps: int = 50,
    guidance: float = 3.0,
    batch: int = 32,
) -> Tensor:
    """Generate one image per caption.

    Args:
        pipeline: Any Stable Diffusion pipeline.
        captions: Prompts.
        seed: The start noise of prompt k depends on (seed, k) alone.
        steps: DDIM steps.
        guidance: Guidance scale, 1 for none.
        batch: Images per call of the pipeline.

    Returns:
        Images [N, 3, H, W] in [0, 1].
    """
    images = []
    for start in range(0, len(captions), batch):
        chunk = captions[start : start + batch]
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + start + k) for k in range(len(chunk))]
        result = pipeline(
            chunk, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
        )
        images.append(result.images.float())
    return torch.cat(images)
