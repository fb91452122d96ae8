"""The top-level keys that are settings of the engine itself: `output` and `trainer`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from framework.errors import Checks, did_you_mean
from framework.run.config import UNRESOLVED
from framework.run.nodes import Builder
from framework.run.problems import Problems


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """What is written for each sample.

    Attributes:
        format: Format of the pictures; "png" is exact.
        quality: Of jpeg and webp pictures, 1 to 100.
        inversion: Whether the inversion itself is kept (`inversion.safetensors`), for reuse and analysis.
    """

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 90
    inversion: bool = False

    def __post_init__(self) -> None:
        checks = Checks("save")
        checks.between("quality", self.quality, 1, 100)
        checks.done()


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where results go.

    Attributes:
        dir: Folder in which each experiment gets a folder of its own, from the working directory.
        save: What is written for each sample.
    """

    dir: Path = Path("runs")
    save: SaveSettings = field(default_factory=SaveSettings)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a run that no part owns.

    Attributes:
        seed: From which, with a sample's id, all randomness of that sample comes; 0 to 2^63 - 1.
        output: Where results go.
    """

    seed: int = 0
    output: OutputSettings = field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        checks = Checks("RunSettings")
        fits = 0 <= self.seed < 2**63
        checks.require(fits, f"seed={self.seed} is not allowed; give a whole number from 0 to 2^63 - 1.")
        checks.done()


OWNED_BY_ENGINE: Mapping[str, str] = {
    "inference_mode": "guidance that needs gradients could not have them; the engine switches them off where it can",
    "use_distributed_sampler": "the engine shares out whole batches, so that results do not depend on the processes",
    "logger": "every run folder has one TensorBoard writer, which the engine opens",
    "callbacks": "they stand at the top level: callbacks: [{_target_: ...}]",
    "precision": "it is the network's, backbone.dtype; the arithmetic between network calls stays float32 or better",
    "enable_checkpointing": "nothing is trained; every finished sample is committed",
    "enable_model_summary": "nothing is trained, and the run's config says which model it is",
    "enable_progress_bar": "progress is shown by callbacks.Progress; leave that out for none",
    "barebones": "it switches callbacks off, which measure and save",
    "default_root_dir": "results go to output.dir",
    "fast_dev_run": "it leaves samples out; data.limit does so openly",
    "limit_predict_batches": "it leaves samples out; data.limit does so openly",
    "reload_dataloaders_every_n_epochs": "there is one pass over the data",
}
"""Keys of the Trainer that an experiment may not set, and why."""

_TRAINING = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches", "limit_val_batches"),
    *("limit_test_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
    *("log_every_n_steps", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm"),
    *("enable_autolog_hparams", "model_registry"),
)


def trainer_settings(given: Any, problems: Problems) -> dict[str, Any]:
    """Check `trainer:` against `lightning.Trainer`.

    Args:
        given: Value of the key, None where it is absent.
        problems: Receives what is wrong.

    Returns:
        The keywords that are given and sound.
    """
    from lightning.pytorch import Trainer

    if given is None or given is UNRESOLVED:
        return {}
    if not isinstance(given, dict):
        problems.add(("trainer",), f"got {given!r}; give a mapping of settings of lightning.Trainer.")
        return {}
    constructor = inspect.unwrap(Trainer.__init__)
    hints = typing.get_type_hints(constructor)
    known = [name for name in inspect.signature(constructor).parameters if name != "self"]
    open_to_users = [name for name in known if name not in OWNED_BY_ENGINE and name not in _TRAINING]
    builder = Builder(problems)
    sound: dict[str, Any] = {}
    for key, value in given.items():
        if key in OWNED_BY_ENGINE:
            problems.add(("trainer", key), f"is the engine's: {OWNED_BY_ENGINE[key]}.")
        elif key in _TRAINING:
            problems.add(("trainer", key), "has no effect: an experiment that edits trains nothing; remove it.")
        elif key not in known:
            near = did_you_mean(key, known)
            problems.add(("trainer", key), f"unknown key{near}; give {', '.join(open_to_users)}.")
        elif built := builder.value(hints[key], value, ("trainer", key)):
            sound[key] = built.value
    _check_devices(sound, problems)
    return sound


def _check_devices(trainer: Mapping[str, Any], problems: Problems) -> None:
    """Ask Lightning for the accelerator and the strategy now, rather than after the weights have loaded."""
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    accelerator, strategy = trainer.get("accelerator", "auto"), trainer.get("strategy", "auto")
    names = sorted({*AcceleratorRegistry.available_accelerators(), "auto", "gpu"})
    if isinstance(accelerator, str):
        place = ("trainer", "accelerator")
        if accelerator not in names:
            near = did_you_mean(accelerator, names)
            problems.add(place, f"got {accelerator!r}; give one of {', '.join(names)}{near}.")
        elif accelerator not in ("auto", "cpu") and not _available(accelerator):
            problems.add(place, f"got {accelerator!r}, but this machine has none; give auto or cpu.")
    if isinstance(strategy, str) and strategy not in (choices := ["auto", *StrategyRegistry.available_strategies()]):
        near = did_you_mean(strategy, choices)
        problems.add(
            ("trainer", "strategy"), f"got {strategy!r}, which Lightning does not know{near}; give auto or ddp."
        )
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    fits = devices in ("auto", -1) or (isinstance(devices, int) and devices > 0)
    fits = fits or (isinstance(devices, list) and bool(devices) and all(device >= 0 for device in devices))
    fits = fits or (isinstance(devices, str) and all(part.strip().isdigit() for part in devices.split(",")))
    if not fits:
        problems.add(("trainer", "devices"), f"got {devices!r}; give auto, a number of at least 1, or a list of them.")
    if nodes < 1:
        problems.add(("trainer", "num_nodes"), f"got {nodes}; give at least 1.")


def _available(accelerator: str) -> bool:
    import torch

    if accelerator in ("cuda", "gpu"):
        return torch.cuda.is_available() or (accelerator == "gpu" and torch.backends.mps.is_available())
    if accelerator == "mps":
        return torch.backends.mps.is_available()
    # Others say so themselves when the Trainer is made.
    return True
