"""Puts the trained parts together as an ordinary pipeline folder, of Stable Diffusion or Stable Diffusion 3, and finds
and reads such folders.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SHIPPED = Path(__file__).parent / "weights" / "diffusion"
"""The bundled diffusion pipeline."""

SHIPPED_FLOW = SHIPPED.with_name("flow")
"""The bundled flow pipeline."""


@dataclass(frozen=True)
class Parts:
    """The networks of a pipeline: one text encoder and a UNet, or two with projections and a transformer."""

    tokenizer: CLIPTokenizer
    text_encoders: Sequence[CLIPTextModel | CLIPTextModelWithProjection]
    vae: AutoencoderKL
    denoiser: UNet2DConditionModel | SD3Transformer2DModel

    @property
    def flow(self) -> bool:
        """Whether this is a pipeline in Stable Diffusion 3's layout."""
        return len(self.text_encoders) > 1


def export_pipeline(folder: Path, parts: Parts, *, tokenizer_files: Path, record: Mapping[str, Any]) -> None:
    """Write a pipeline in half precision; the folder appears whole or not at all.

    Args:
        folder: Where to; an older pipeline there is replaced, except for its README.md.
        parts: Networks; written in float16, left as they are.
        tokenizer_files: Folder with the tokenizer's files.
        record: What `training.json` says of this training.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    networks = {"vae": parts.vae, ("transformer" if parts.flow else "unet"): parts.denoiser}
    index: dict[str, Any] = {name: ["diffusers", type(network).__name__] for name, network in networks.items()}
    for number, encoder in enumerate(parts.text_encoders):
        end = f"_{number + 1}" if number else ""
        networks[f"text_encoder{end}"] = encoder
        index[f"text_encoder{end}"] = ["transformers", type(encoder).__name__]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
        shutil.copytree(tokenizer_files, partial / f"tokenizer{end}")
    for name, network in networks.items():
        _half(network).save_pretrained(partial / name, safe_serialization=True)
    scheduler = _scheduler(parts)
    scheduler.save_pretrained(partial / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    absent = ["feature_extractor", "image_encoder"]
    if parts.flow:
        index |= {"_class_name": "StableDiffusion3Pipeline"}
        absent += ["text_encoder_3", "tokenizer_3"]
    else:
        index |= {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
        absent += ["safety_checker"]
    index |= {name: [None, None] for name in absent}
    index = dict(sorted({**index, "_diffusers_version": "0.30.0"}.items()))
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


def _scheduler(parts: Parts) -> Any:
    """The scheduler whose noise levels the training followed."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    from experiments.shapes import denoising, flow

    if parts.flow:
        return FlowMatchEulerDiscreteScheduler(**flow.SCHEDULER)
    return DDIMScheduler(**denoising.SCHEDULER)


def _half(network: Any) -> Any:
    """A copy in float16 with contiguous weights; the original keeps its precision."""
    import copy

    copied = copy.deepcopy(network).to(torch.float16)
    for parameter in copied.parameters():
        parameter.data = parameter.data.contiguous()
    return copied


def load_pipeline(folder: str | Path = SHIPPED, dtype: torch.dtype = torch.float32) -> Any:
    """Load a pipeline folder with nothing but diffusers, without its progress bar.

    Raises:
        FileNotFoundError: No pipeline lies there.
    """
    from diffusers import DiffusionPipeline

    index = Path(folder) / "model_index.json"
    if not index.exists():
        raise FileNotFoundError(f"{folder} holds no pipeline (no model_index.json); train one or give another folder")
    # The pipeline of Stable Diffusion 3 wants to be told that there is no T5.
    absent = [name for name in ("text_encoder_3", "tokenizer_3") if name in json.loads(index.read_text())]
    pipeline = DiffusionPipeline.from_pretrained(
        str(folder), torch_dtype=dtype, local_files_only=True, **dict.fromkeys(absent)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encode_captions(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """Text states of captions, [B, 32, width], as the pipeline forms them."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states: Tensor = encoder(tokens)[0]
    return states


@torch.no_grad()
def generate(
    pipeline: Any,
    captions: list[str],
    *,
    seed: int,
    steps: int = 50,
    guidance: float = 3.0,
    batch: int = 32,
) -> Tensor:
    """Generate one image per caption.

    Args:
        pipeline: A Stable Diffusion or Stable Diffusion 3 pipeline.
        captions: Prompts.
        seed: The start noise of prompt k depends on (seed, k) alone.
        steps: Steps of its scheduler.
        guidance: Guidance scale, 1 for none.
        batch: Images per call of the pipeline.

    Returns:
        Images [N, 3, H, W] in [0, 1].
    """
    images: list[Tensor] = []
    # In place of the missing T5 stand as many zeros as there are words to another encoder, not 256.
    more = {"max_sequence_length": 32} if "transformer" in pipeline.components else {}
    for start in range(0, len(captions), batch):
        chunk = captions[start : start + batch]
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + start + k) for k in range(len(chunk))]
        result = pipeline(
            chunk, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt", **more
        )
        images.append(result.images.float())
    return torch.cat(images)
