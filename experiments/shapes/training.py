"""`invedit train`: from a yaml to a pipeline folder, resuming whatever a run folder already holds."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from experiments.shapes.data import Captioner, cached, pixels
from experiments.shapes.denoising import Denoising, DiffusionDenoising, build_unet
from experiments.shapes.flow import FlowDenoising, build_transformer
from experiments.shapes.latents import Projection, build_vae, fit_projection
from experiments.shapes.pipeline import SHIPPED, SHIPPED_FLOW, Parts, export_pipeline
from experiments.shapes.sample import sample_scene
from experiments.shapes.settings import Settings
from experiments.shapes.teacher import load_teacher
from experiments.shapes.text import build_projected_encoder, build_text_encoder, write_tokenizer
from experiments.shapes.text_training import pretrain_text
from experiments.shapes.vae_training import psnr, round_trip, train_decoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

PROJECTION_SCENES = 3000
PROJECTION_SEED = 7
DECODER_SEED = 11
HELD_OUT_SEED = 99
"""Scenes of this seed are never trained on."""


class Checkpoints(lightning.Callback):
    """Writes `last.ckpt` every so many samples and after the last; a kill at any moment leaves the older one whole.

    The last one, too, is written within the endless epoch, so that a run that has ended can go on with more samples.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        self.folder, self.samples = folder, samples

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Write after every `samples` samples and after the last step."""
        del rest
        every = max(1, self.samples // module.step_samples)
        if trainer.global_step % every and trainer.global_step < trainer.fit_loop.max_steps:
            return
        partial = self.folder / ".last.ckpt.partial"
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            os.replace(partial, self.folder / "last.ckpt")


def world_projection(whitening: float) -> Projection:
    """The linear code of the shapes world."""
    return fit_projection(pixels([sample_scene(PROJECTION_SEED, k) for k in range(PROJECTION_SCENES)]), whitening)


def train(settings: Settings) -> Path:
    """Train, or go on training, and export.

    Args:
        settings: The experiment; its `output.dir` holds checkpoints, prepared parts and TensorBoard events.

    Returns:
        Folder of the exported pipeline.
    """
    run = Path(settings.output.dir)
    run.mkdir(parents=True, exist_ok=True)
    lightning.seed_everything(settings.seed, verbose=False)
    parts = prepare(settings)
    projection = projection_of(parts.vae)
    folder = Path(settings.data.cache) if settings.data.cache else run / "cache"
    cache = cached(folder, projection, seed=settings.data.seed, count=settings.data.scenes)
    given = settings, parts.denoiser, parts.text_encoders, cache, Captioner(parts.tokenizer)
    module: Denoising
    if settings.model.kind == "diffusion":
        module = DiffusionDenoising(*given)
    else:
        module = FlowDenoising(*given, teacher=load_teacher(settings.training.teacher, parts.tokenizer, parts.vae))
    module.train()
    if settings.training.compile:
        torch._dynamo.config.optimize_ddp = False  # One graph; the gradients are averaged after it.
        parts.denoiser.compile()
    trainer = lightning.Trainer(
        **{"devices": 1, "enable_progress_bar": False, "enable_model_summary": False, **settings.trainer},
        max_steps=-1,
        max_epochs=1,
        logger=TensorBoardLogger(str(run), name="events", version=""),
        callbacks=[Checkpoints(run, settings.training.checkpoint_samples)],
        enable_checkpointing=False,
        gradient_clip_val=settings.training.gradient_clip,
    )
    last = run / "last.ckpt"
    steps = remaining_steps(settings, trainer.world_size, last)
    trainer.fit_loop.epoch_loop.max_steps = steps
    rank_zero_info(
        f"{'resuming' if last.exists() else 'training'}: {settings.training.total_samples} samples, {steps} steps"
    )
    trainer.fit(module, ckpt_path=str(last) if last.exists() else None)
    out = Path(settings.output.export) if settings.output.export else run / settings.model.kind
    if trainer.is_global_zero:
        export_checkpoint(settings, out)
    return out


def remaining_steps(settings: Settings, ranks: int, checkpoint: Path) -> int:
    """Step at which a run has seen all its samples; the batch may have changed since its checkpoint."""
    seen, steps = 0, 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        seen, steps = int(kept["samples"]), int(kept["global_step"])
    left = max(settings.training.total_samples - seen, 0)
    return int(steps + -(-left // (settings.training.batch_size * ranks)))


def prepare(settings: Settings) -> Parts:
    """Build the networks that training starts from; what takes minutes is done once and kept in the run folder.

    Raises:
        FileNotFoundError: `training.start_from` names a folder without a pipeline.
    """
    home = Path(settings.output.dir) / "parts"
    flow, start = settings.model.kind == "flow", settings.training.start_from
    if start != "scratch":
        from experiments.shapes.pipeline import load_pipeline

        origin = (SHIPPED_FLOW if flow else SHIPPED) if start == "shipped" else Path(start)
        given: Any = load_pipeline(origin)
        tokenizer = _tokenizer(home / "tokenizer", origin)
        if flow:
            return Parts(tokenizer, [given.text_encoder, given.text_encoder_2], given.vae, given.transformer)
        return Parts(tokenizer, [given.text_encoder], given.vae, given.unet)
    tokenizer = _tokenizer(home / "tokenizer", SHIPPED if settings.training.parts_from == "shipped" else None)
    folders = [home / "text_encoder", home / "text_encoder_2"][: 1 + flow]
    for number, folder in enumerate(folders):
        if not folder.exists():
            _save(_text_encoder(settings, tokenizer, number), folder)
    if not (home / "vae").exists():
        _save(_autoencoder(settings), home / "vae")
    lightning.seed_everything(settings.seed, verbose=False)
    kind = CLIPTextModelWithProjection if flow else CLIPTextModel
    build = build_transformer if flow else build_unet
    encoders = [kind.from_pretrained(str(folder)) for folder in folders]
    return Parts(tokenizer, encoders, load_vae(home / "vae"), build(settings.model))


def _tokenizer(folder: Path, origin: Path | None) -> CLIPTokenizer:
    """The tokenizer of the pipeline whose text encoder is trained on, or a new one; once written, it stays."""
    from transformers import CLIPTokenizer

    if not folder.exists():
        partial = folder.with_name(f".{folder.name}-{os.getpid()}")
        if origin is None:
            write_tokenizer(partial)
        else:
            shutil.copytree(origin / "tokenizer", partial)
        _settle(partial, folder)
    return CLIPTokenizer.from_pretrained(str(folder))


def _text_encoder(settings: Settings, tokenizer: CLIPTokenizer, number: int) -> Any:
    """The first or second text encoder: the bundled one, or one that has learned its captions alone."""
    model, build = settings.model, build_projected_encoder if settings.model.kind == "flow" else build_text_encoder
    if settings.training.parts_from == "shipped" and number == 0:
        from experiments.shapes.pipeline import load_pipeline

        like = load_pipeline(SHIPPED).text_encoder
        return build_projected_encoder(tokenizer, like=like) if model.kind == "flow" else like
    lightning.seed_everything(settings.seed + number, verbose=False)
    encoder = build(tokenizer, (model.text_width, model.second_text_width)[number], model.text_layers, model.text_heads)
    steps, codes = settings.training.text_steps, _caption_codes(20_000)
    pretrain_text(encoder, Captioner(tokenizer), codes, steps=steps, seed=number, report=rank_zero_info)
    return encoder


def _autoencoder(settings: Settings) -> AutoencoderKL:
    """The bundled autoencoder, or one whose decoder is trained here; both kinds of pipeline can read it."""
    if settings.training.parts_from == "shipped":
        from experiments.shapes.pipeline import load_pipeline

        vae = load_pipeline(SHIPPED).vae
    else:
        projection = world_projection(settings.model.whitening)
        vae = build_vae(projection, tuple(settings.model.vae_widths))  # type: ignore[arg-type]
        train_decoder(vae, projection, steps=settings.training.vae_steps, seed=DECODER_SEED, report=rank_zero_info)
    if settings.model.kind == "flow":
        vae.register_to_config(shift_factor=0.0)
    return vae


def load_vae(folder: Path) -> AutoencoderKL:
    """Load an autoencoder from its folder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(str(folder))


def _save(network: Any, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}-{os.getpid()}")
    network.save_pretrained(partial)
    _settle(partial, folder)


def _settle(partial: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was first: what it wrote is the same."""
    try:
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)


def _caption_codes(count: int) -> Any:
    import numpy as np

    from experiments.shapes.data import encode_reading
    from experiments.shapes.scene import reading

    return np.array([encode_reading(reading(sample_scene(PROJECTION_SEED, k))) for k in range(count)], np.int8)


def projection_of(vae: AutoencoderKL) -> Projection:
    """Read the linear code back out of an autoencoder's encoder, by encoding a basis."""
    with torch.no_grad():
        basis = torch.cat([torch.zeros(1, 48), torch.eye(48)]).view(49, 3, 4, 4)
        images = basis.repeat(1, 1, 4, 4)
        codes = vae.encode(images.to(next(vae.parameters()).dtype)).latent_dist.mode().float()[:, :, 1, 1]
    matrix = (codes[1:] - codes[0]).T.contiguous()
    mean = -torch.linalg.lstsq(matrix.double(), codes[0].double()).solution.float()
    return Projection(matrix, mean, float(vae.config.scaling_factor))


def export_checkpoint(settings: Settings, out: Path) -> None:
    """Export the averaged weights of a run's newest checkpoint as a pipeline; the run may still be training."""
    run = Path(settings.output.dir)
    checkpoint = torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)
    parts = prepare(settings)
    networks = {"denoiser.": parts.denoiser} | {f"text_encoders.{k}.": one for k, one in enumerate(parts.text_encoders)}
    for prefix, network in networks.items():
        own = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["averages"].items()
            if name.startswith(prefix)
        }
        network.load_state_dict(own, strict=False)
    images = pixels([sample_scene(HELD_OUT_SEED, k) for k in range(128)])
    record = {
        "samples": int(checkpoint["samples"]),
        "finished": int(checkpoint["samples"]) >= settings.training.total_samples,
        "exported": time.strftime("%Y-%m-%d"),
        "settings": {key: asdict(settings)[key] for key in ("seed", "model", "training")}
        | {"scenes": settings.data.scenes},
        "vae_round_trip_psnr": round(psnr((round_trip(parts.vae, images) - images) / 2).mean().item(), 2),
    }
    export_pipeline(out, parts, tokenizer_files=run / "parts" / "tokenizer", record=record)
