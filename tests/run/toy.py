"""A small world for tests of runs: a slow network, a data set, a callback, and processes that can be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from framework.backbones.base import Backbone
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.result import EditResult
from framework.schedule import Schedule, ScheduleOptions
from framework.step import Condition

SIDE = 16


class ToyBackbone(Backbone):
    """A fixed convolution in pixel space; a call takes TOY_SECONDS of the environment.

    From the second batch on it waits until the file that TOY_GATE names is there.
    """

    prediction_type = "epsilon"
    form = "epsilon"
    image_channels = 3
    image_size = (SIDE, SIDE)
    multiple = 8
    takes_text = True

    def __init__(self, version: int = 1, poison: str = "") -> None:
        super().__init__()
        self.version, self.poison = version, poison
        self.batches = 0
        weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(version))
        self.weight = torch.nn.Parameter(weight / 10, requires_grad=False)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"toy": self.version}

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def load(self) -> None:
        pass

    def schedule(self, num_steps: int, options: ScheduleOptions | None = None) -> Schedule:
        return Schedule.from_scheduler({"beta_schedule": "linear"}, num_steps, options)

    def encode_image(self, images: Tensor) -> Tensor:
        gate = os.environ.get("TOY_GATE")
        while gate and self.batches > 0 and not Path(gate).exists():
            time.sleep(0.01)
        self.batches += 1
        return images

    def decode_latent(self, z: Tensor) -> Tensor:
        return z

    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        if "explode" in texts:
            raise RuntimeError("out of memory, say")
        values = [float("nan") if self.poison and self.poison in text else len(text) / 50 for text in texts]
        return Condition(text=torch.tensor(values)[:, None, None])

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        assert condition.text is not None
        return torch.nn.functional.conv2d(z, self.weight, padding=1) + condition.text[..., None] * z


class Bystander(EditCallback):
    """Measures nothing."""


class ToyStatistics(EditCallback):
    """Measures every edit and folds the measurements of the whole run into one file."""

    def on_edit_end(self, trainer: Any, module: Any, batch: EditBatch, result: EditResult) -> list[Measurement]:
        return [
            Measurement(
                tensors={"latent": result.record.z0[index].clone()},
                values={"mean": float(picture.mean()), "shape": list(picture.shape), "nothing": float("nan")},
                pictures={"toy": (picture.permute(1, 2, 0) * 255).byte()},
            )
            for index, picture in enumerate(result.source)
        ]

    def on_run_end(self, run: FinishedRun) -> None:
        total = torch.zeros(3, SIDE, SIDE)
        ids = []
        for sample in run.samples():
            ids.append(sample.id)
            total += sample.statistics()["ToyStatistics.latent"]
            run.writer.add_scalar("toy/mean", sample.meta["measurements"]["ToyStatistics"]["mean"], len(ids))
        (run.directory / "fold.json").write_text(json.dumps([ids, total.flatten().tolist()]))


def write_pictures(folder: Path, count: int) -> Path:
    """Make a data set of `count` pictures of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 256, (24 + index % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{index}.png")
        (folder / f"p{index}.txt").write_text(f"source {index}\ntarget {index}")
    return folder


def write_experiment(file: Path, pictures: Path, **changes: Any) -> Path:
    """Write an experiment on the toy; changes are dotted places with __ for the dot."""
    values: dict[str, Any] = {
        "seed": 1,
        "backbone": {"_target_": "tests.run.toy.ToyBackbone"},
        "method": {"_target_": "methods.edit_friendly.EditFriendlyDDPM", "steps": 4, "skip": 1},
        "data": {"_target_": "framework.data.Folder", "root": str(pictures), "batch_size": 2},
        "callbacks": [{"_target_": "tests.run.toy.ToyStatistics"}],
        "trainer": {"accelerator": "cpu", "devices": 1},
        "output": {"save": {"inversion": True}},
    }
    for place, value in changes.items():
        *way, last = place.split("__")
        here = values
        for key in way:
            here = here.setdefault(key, {})
        here[last] = value
    file.write_text(yaml.safe_dump(values))
    return file


_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.run.toy", "framework.run.launch", "framework.run.writer", "framework.run.sweep"])


class Run:
    """One process of a run, forked from a server that has imported everything, so that it starts in no time."""

    def __init__(
        self,
        experiment: Path,
        output: Path,
        *,
        ranks: tuple[int, int, int] = (0, 1, 0),
        seconds: float = 0.0,
        patch: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        self.log = experiment.parent / f"{output.name}.{time.monotonic_ns()}.log"
        environment = {"TOY_SECONDS": str(seconds), **environment}
        arguments = (str(experiment), str(output), environment, ranks, patch, options, str(self.log))
        self.process = _server.Process(target=_main, args=arguments)
        self.process.start()

    def wait(self, timeout: float = 200) -> int:
        """Return the exit code; negative for a signal."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"the run did not end; it said:\n{self.said()}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def run_ranks(experiment: Path, output: Path, world: int, **options: Any) -> list[Run]:
    """Start a run of several processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Run(experiment, output, ranks=(rank, world, port), **options) for rank in range(world)]


def _main(
    experiment: str,
    output: str,
    environment: dict[str, str],
    ranks: tuple[int, int, int],
    patch: str,
    options: dict[str, Any],
    log: str,
) -> None:
    torch.set_num_threads(1)
    os.environ |= environment
    rank, world, port = ranks
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    from framework.errors import SettingsError
    from framework.run.config import load_config
    from framework.run.launch import launch
    from framework.run.sweep import build_all

    with ExitStack() as stack:
        file = stack.enter_context(open(log, "a", buffering=1))
        stack.enter_context(redirect_stdout(file))
        stack.enter_context(redirect_stderr(file))
        if patch:
            import importlib

            module, _, name = patch.rpartition(".")
            getattr(importlib.import_module(module), name)()
        try:
            experiments = build_all(load_config(experiment, [f"trainer.devices={world}"]))
            code = launch(experiments, Path(output), **options)
        except SettingsError as error:
            print(error)
            code = 2
    sys.exit(code)


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder: relative name -> content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def journal_lines(output: Path, status: str = "done") -> int:
    """Number of journal lines with a status so far, over all ranks."""
    return sum(path.read_text().count(f'"status":"{status}"') for path in (output / "records").glob("rank-*.jsonl"))
