"""Trains the checker: `python -m experiments.shapes.checker_training`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from experiments.shapes.checker import WEIGHTS, Checker, accuracies, load_checker, read_codes
from experiments.shapes.data import encode_reading, pixels
from experiments.shapes.optimiser import MixedOptimiser
from experiments.shapes.pipeline import SHIPPED
from experiments.shapes.sample import sample_scene
from experiments.shapes.scene import reading
from experiments.shapes.training import load_vae
from experiments.shapes.vae_training import round_trip

SEED = 21
HELD_OUT_SEED = 99


def perturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, 3, 64, 64] in [0, 1] as a generator might draw them: with blur, noise, other contrast and tint."""
    count = len(images)

    def amount(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=generator)

    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1, 1, 1, 1), "replicate"), 3, 1)
    images = torch.lerp(
        images, blurred, amount(0, 0.8, 1, 1, 1) * (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    )
    noise = torch.randn(images.shape, generator=generator) * amount(0, 0.04, 1, 1, 1)
    return (images * amount(0.94, 1.06, 1, 1, 1) + amount(-0.03, 0.03, 3, 1, 1) + noise).clamp(0, 1)


def train_checker(vae_folder: Path, out: Path, *, steps: int, batch: int = 48, report: Any = print) -> dict[str, Any]:
    """Train the checker on renders and on their round trips, and write it with its figures.

    Args:
        vae_folder: Autoencoder for the round trips.
        out: Folder for the weights and `checker.json`.
        steps: Steps of the optimiser.
        batch: Images per step.
        report: Receives a line now and then.

    Returns:
        What `checker.json` holds.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    vae, model = load_vae(vae_folder), Checker().to(memory_format=torch.channels_last)
    matrices = [value for name, value in model.named_parameters() if value.ndim >= 2 and not name.startswith("heads")]
    inner = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in inner]
    groups = [{"params": matrices, "lr": 3e-3, "matrix": True}, {"params": others, "lr": 2e-3}]
    optimiser = MixedOptimiser(groups, weight_decay=0.02)
    start = time.process_time()
    pool = round_trips(vae, 2048)
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * (1 - step / steps)
        for group, rate in zip(optimiser.param_groups, (3e-3, 2e-3), strict=True):
            group["lr"] = rate * factor
        scenes = [sample_scene(SEED, step * batch + k) for k in range(batch)]
        codes = torch.tensor([encode_reading(reading(scene)) for scene in scenes])
        chosen = torch.randint(len(pool[0]), (batch // 8,), generator=generator)
        images = torch.cat([pixels(scenes), pool[0][chosen]])
        codes = torch.cat([codes, pool[1][chosen]])
        images = perturb(images / 2 + 0.5, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        parts = [
            torch.nn.functional.cross_entropy(part.float(), codes[:, k], ignore_index=-1)
            for k, part in enumerate(logits)
        ]
        loss = torch.stack(parts).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            report(
                f"checker: step {step}, loss {loss.item():.4f}, {time.process_time() - start:.0f} CPU-seconds",
                flush=True,
            )
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, out / "model.safetensors")
    figures = check(vae, load_checker(out), count=2000)
    figures |= {"samples": steps * batch, "cpu_seconds": round(time.process_time() - start)}
    (out / "checker.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def round_trips(vae: AutoencoderKL, count: int) -> tuple[Tensor, Tensor]:
    """Images of scenes after the autoencoder, [count, 3, 64, 64] in [-1, 1], with their attribute codes."""
    scenes = [sample_scene(SEED + 1, k) for k in range(count)]
    with torch.autocast("cpu", torch.bfloat16):
        images = [round_trip(vae, part) for part in pixels(scenes).split(64)]
    return torch.cat(images).float(), torch.tensor([encode_reading(reading(scene)) for scene in scenes])


def check(vae: AutoencoderKL, model: Checker, *, count: int) -> dict[str, Any]:
    """Accuracy of a checker on held-out renders, `accuracy`, and on their round trips through the autoencoder."""
    scenes = [sample_scene(HELD_OUT_SEED, k) for k in range(count)]
    said = torch.tensor([encode_reading(reading(scene)) for scene in scenes])
    images = pixels(scenes).split(100)
    seen = torch.cat([read_codes(part / 2 + 0.5, model) for part in images])
    passed = torch.cat([read_codes(round_trip(vae, part) / 2 + 0.5, model) for part in images])
    return {
        "held_out": count,
        "accuracy": accuracies(seen, said),
        "accuracy_after_round_trip": accuracies(passed, said),
    }


def main() -> None:
    """Train, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=SHIPPED / "vae", help="autoencoder for round trips")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    print(json.dumps(train_checker(arguments.vae, arguments.output, steps=arguments.steps), indent=2))


if __name__ == "__main__":
    main()
