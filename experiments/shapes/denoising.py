"""The denoiser's training: batches drawn by (seed, step, rank), the weighted loss of v, and the Lightning module."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from experiments.shapes.data import CODE, Cache, Captioner, easy
from experiments.shapes.optimiser import MixedOptimiser
from experiments.shapes.settings import ModelSettings, Settings, TrainingSettings
from experiments.shapes.text_training import caption_tokens

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "timestep_spacing": "leading",
}
"""Configuration of the pipeline's DDIMScheduler, which training follows."""


class Batch(NamedTuple):
    """What one step sees: latents and noise [B, 16, 16, 16], regions [B, 16, 16] in [0, 1], tokens [B, 32], noise
    levels [B] in [0, 1).
    """

    latents: Tensor
    noise: Tensor
    regions: Tensor
    tokens: Tensor
    levels: Tensor


def signal_scales() -> Tensor:
    """Signal scale alpha of every training timestep, [1000]; the noise scale is sqrt(1 - alpha ** 2)."""
    low, high = SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5
    betas = torch.linspace(low, high, SCHEDULER["num_train_timesteps"], dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).sqrt().float()


def build_unet(model: ModelSettings, channels: int = 16) -> UNet2DConditionModel:
    """Build the denoiser with random weights, as Stable Diffusion has it: no attention in the lowest blocks."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=model.unet_layers,
        block_out_channels=tuple(model.unet_widths),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=model.text_width,
        attention_head_dim=tuple(model.unet_heads),
        norm_num_groups=8,
    )
    nn.init.zeros_(unet.conv_out.weight)
    return unet


class Batches(IterableDataset[Batch]):
    """Endless batches; each is determined by (seed, step, rank), so that a resumed run sees what an uninterrupted one
    would have seen.
    """

    def __init__(
        self,
        cache: Cache,
        captioner: Captioner,
        training: TrainingSettings,
        *,
        seed: int,
        rank: int,
        ranks: int,
        start: int = 0,
        samples: int = 0,
    ) -> None:
        self.cache, self.captioner, self.training = cache, captioner, training
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.start, self.samples = start, samples
        codes = np.asarray(cache.codes)
        self.easy = np.flatnonzero(easy(codes))
        self.single = np.flatnonzero(codes[:, CODE.relation] == 0)
        self.double = np.flatnonzero(codes[:, CODE.relation] != 0)

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise RuntimeError("batches are drawn in the training process; use num_workers=0")
        step = self.start
        while True:
            yield self.draw(step)
            step += 1

    def draw(self, step: int) -> Batch:
        """Draw the batch of a step of the optimiser."""
        recipe, size = self.training, self.training.batch_size
        rng = np.random.default_rng([self.seed, step, self.rank])
        progress = (self.samples + (step - self.start) * size * self.ranks) / recipe.total_samples
        rows = np.array([self._row(rng, progress) for _ in range(size)])
        codes = np.asarray(self.cache.codes[rows])
        tokens = caption_tokens(self.captioner, codes, rng, recipe.omitted_words)
        tokens[torch.from_numpy(rng.random(size) < recipe.empty_captions)] = torch.tensor(self.captioner.empty())
        level = rng.normal(recipe.noise.centre, recipe.noise.width, size)
        spread = rng.random(size)
        anywhere = (rng.random(size) < recipe.noise.uniform) | (level < 0) | (level >= 1)
        latents = np.asarray(self.cache.latents[rows], dtype=np.float32)
        return Batch(
            torch.from_numpy(latents),
            torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)),
            torch.from_numpy(np.asarray(self.cache.regions[rows], dtype=np.float32) / 255),
            tokens,
            torch.from_numpy(np.where(anywhere, spread, level).astype(np.float32)),
        )

    def _row(self, rng: np.random.Generator, progress: float) -> int:
        recipe, pool = self.training, self.single
        if progress < recipe.easy_until and rng.random() < recipe.easy_share:
            pool = self.easy
        elif progress >= recipe.two_from and rng.random() < recipe.two_share:
            pool = self.double
        return int(pool[rng.integers(len(pool))])


def object_weights(regions: Tensor, weight: float) -> Tensor:
    """Weights of the loss, of mean 1 per sample, that favour the cells of objects and their neighbours.

    Args:
        regions: Coverage of cells, [B, H, W] in [0, 1].
        weight: At least 1.

    Returns:
        [B, 1, H, W].
    """
    near = nn.functional.max_pool2d(regions[:, None], 3, stride=1, padding=1).gt(0)
    weights = 1 + (weight - 1) * near.float()
    return weights / weights.mean((1, 2, 3), keepdim=True)


def learning_rate(samples: int, training: TrainingSettings) -> float:
    """Factor of the learning rate after a number of samples: a linear rise, a plateau, and a cosine down to zero."""
    rise = min(1.0, (samples + 1) / max(training.warm_up, 1))
    left = 1 - samples / training.total_samples
    fall = 1.0 if left >= training.decay else 0.5 - 0.5 * math.cos(math.pi * max(left, 0.0) / training.decay)
    return rise * fall


class Denoising(lightning.LightningModule):
    """Trains denoiser and text encoders together and keeps an average of their weights in `averages`.

    A family of models overrides `loss` and says in `inner` which matrices take steps of orthogonalised momentum.
    """

    def __init__(
        self,
        settings: Settings,
        denoiser: nn.Module,
        text_encoders: Sequence[nn.Module],
        cache: Cache,
        captioner: Captioner,
    ) -> None:
        super().__init__()
        self.settings, self.cache, self.captioner = settings, cache, captioner
        self.denoiser, self.text_encoders = denoiser, nn.ModuleList(text_encoders)
        self.text_encoders.requires_grad_(settings.training.text_rate > 0)
        self.averages = {name: value.detach().clone() for name, value in self.named_parameters()}
        self._before = (0, 0)
        self._since = (0, time.perf_counter())
        self._losses: list[Tensor] = []

    @property
    def step_samples(self) -> int:
        """Samples per step of the optimiser, over all processes."""
        return self.settings.training.batch_size * self.trainer.world_size

    @property
    def samples(self) -> int:
        """Samples seen so far, also where an earlier part of the run had another batch size."""
        samples, steps = self._before
        return samples + (self.global_step - steps) * self.step_samples

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches from the step that the run has reached."""
        data = Batches(
            self.cache,
            self.captioner,
            self.settings.training,
            seed=self.settings.seed,
            start=self.global_step,
            samples=self.samples,
            rank=self.global_rank,
            ranks=self.trainer.world_size,
        )
        return DataLoader(data, batch_size=None, num_workers=0)

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch, a scalar."""
        raise NotImplementedError

    def inner(self, name: str) -> bool:
        """Whether a matrix of the denoiser takes steps of orthogonalised momentum."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step; logs every `log_samples` samples."""
        del batch_index
        loss = self.loss(batch)
        self._losses.append(loss.detach())
        every = max(1, self.settings.training.log_samples // self.step_samples)
        if self.global_step % every == every - 1:
            self._report()
        return loss

    def _report(self) -> None:
        """Write mean loss, learning rate and speed since the last report."""
        then, when = self._since
        now = time.perf_counter()
        speed = (self.samples - then) / (now - when)
        loss = torch.stack(self._losses).mean().item()
        rate = self.trainer.optimizers[0].param_groups[-2]["lr"]
        if self.trainer.is_global_zero and self.logger is not None:
            self.logger.log_metrics(
                {"loss": loss, "learning_rate": rate, "samples_per_second": speed}, step=self.samples
            )
        lightning.pytorch.utilities.rank_zero_info(
            f"{time.strftime('%H:%M:%S')} samples {self.samples} loss {loss:.4f} rate {rate:.2e} speed {speed:.1f}/s"
        )
        self._since, self._losses = (self.samples, now), []

    def on_train_start(self) -> None:
        """Start the clock, and bring the averages to where the weights are."""
        weights = dict(self.named_parameters())
        self.averages = {name: value.to(weights[name]) for name, value in self.averages.items()}
        self._since = (self.samples, time.perf_counter())

    def optimizer_step(self, epoch: int, batch_index: int, optimizer: Any, closure: Any = None) -> None:
        """Set the rate by samples seen, step, and move the averages."""
        factor = learning_rate(self.samples, self.settings.training)
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        super().optimizer_step(epoch, batch_index, optimizer, closure)
        steps = self.global_step
        keep = min(self.settings.training.ema, (1 + steps) / (10 + steps))
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averages.values()), [parameters[name] for name in self.averages], 1 - keep)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Orthogonalised momentum for the denoiser's inner matrices, AdamW for the rest; the text encoders learn at
        their own rate.
        """
        recipe = self.settings.training
        matrices, others = [], []
        for name, parameter in self.denoiser.named_parameters():
            inner = parameter.ndim >= 2 and self.inner(name)
            (matrices if inner and recipe.optimiser == "muon" else others).append(parameter)
        groups = [
            {"params": matrices, "lr": recipe.matrix_rate, "matrix": True},
            {"params": others, "lr": recipe.learning_rate},
            {"params": list(self.text_encoders.parameters()), "lr": recipe.learning_rate * recipe.text_rate},
        ]
        optimiser = MixedOptimiser([group for group in groups if group["params"]], weight_decay=recipe.weight_decay)
        # Kept here, because restoring a checkpoint overwrites the groups' own.
        self._rates = [group["lr"] for group in optimiser.param_groups]
        return optimiser

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the averages and the count of samples."""
        checkpoint["averages"] = self.averages
        checkpoint["samples"] = self.samples

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the averages and the count of samples back."""
        self._before = (checkpoint["samples"], checkpoint["global_step"])
        self.averages = {name: value.clone() for name, value in checkpoint["averages"].items()}


class DiffusionDenoising(Denoising):
    """Trains the UNet to predict v."""

    outer = ("conv_in", "conv_out", "time_embedding")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("alphas", signal_scales(), persistent=False)
        self.denoiser.to(memory_format=torch.channels_last)

    def inner(self, name: str) -> bool:
        """All but the first and last layers and the embedding of the timestep."""
        return not name.startswith(self.outer)

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean squared error of v = alpha * noise - sigma * latent."""
        timesteps = (batch.levels * 1000).long()
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        noisy = (alpha * batch.latents + sigma * batch.noise).contiguous(memory_format=torch.channels_last)
        states = self.text_encoders[0](batch.tokens)[0]
        predicted = self.denoiser(noisy, timesteps, states, return_dict=False)[0]
        error = predicted.float() - (alpha * batch.noise - sigma * batch.latents)
        return (object_weights(batch.regions, self.settings.training.region_weight) * error.square()).mean()
