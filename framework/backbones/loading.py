"""What backbones of diffusers' models share: dtypes, reading a component's weights, a scheduler's config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from framework.backbones.base import PredictionType
from framework.backbones.files import ModelFiles
from framework.errors import Checks, SettingsError

DtypeName = Literal["float32", "float16", "bfloat16", "float64"]
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def scheduler_config(files: ModelFiles, *names: str) -> tuple[dict[str, Any], PredictionType]:
    """Read a scheduler's config and its prediction type, which must be one of a diffusion model."""
    config = files.config(*names) or {}
    prediction_type = config.get("prediction_type", "epsilon")
    checks = Checks(f"model {files.model!r}")
    flow = str(config.get("_class_name", "")).startswith("FlowMatch")
    checks.require(not flow, "its scheduler is one of rectified flow, and this backbone runs diffusion models.")
    allowed = [kind for kind in get_args(PredictionType) if kind != "velocity"]
    checks.one_of("the scheduler's prediction_type", prediction_type, allowed)
    checks.done()
    return config, prediction_type


def config_hash(configs: Sequence[Mapping[str, Any]]) -> str:
    """Hash configs without the keys that say where and by which version they were written."""
    kept = [{key: config[key] for key in sorted(config) if key not in _UNIMPORTANT} for config in configs]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


_UNIMPORTANT = {"_diffusers_version", "transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"}


def load_component(cls: Any, folder: Path, dtype: torch.dtype, files: ModelFiles) -> nn.Module:
    """Load one component of diffusers or transformers from safetensors, frozen and in evaluation mode.

    Raises:
        SettingsError: The weights do not fit the config.
    """
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if files.variant:
        options["variant"] = files.variant
    if cls.__module__.startswith("diffusers"):
        # Says itself what to do without accelerate, which else would be a warning.
        options |= {"torch_dtype": dtype, "low_cpu_mem_usage": find_spec("accelerate") is not None}
    else:
        options["dtype"] = dtype
    try:
        # Construction draws initial weights, which must not move anybody's random numbers.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), _no_progress_bar():
            module, info = cls.from_pretrained(folder, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        line = str(error).strip().splitlines()
        raise files.problem(
            f"{folder.name} cannot be loaded ({type(error).__name__}: {line[0] if line else ''}); its files do not "
            "belong "
            "together or are damaged, get them again."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise files.problem(
            f"the weights of {folder.name} lack {len(missing)} tensors that its config asks for, the first "
            f"{missing[0]}; "
            "config and weights do not belong together, get them again."
        )
    component: nn.Module = module
    if cls.__module__.startswith("diffusers"):
        # Without accelerate the library keeps the file's dtype where a network's first entry is a float32 buffer.
        nn.Module.to(component, dtype)
    return component.requires_grad_(False).eval()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for every component."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def meta_module(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    """Build a diffusers model without weights, to look at its structure.

    Raises:
        SettingsError: The config describes no such model.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            module: nn.Module = cls.from_config(dict(config))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SettingsError([f"the config of {cls.__name__} does not describe one: {error}"]) from error
    return module
