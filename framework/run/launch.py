"""Running experiments: plan, lock, predict, and fold what is finished."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import SampleError, SettingsError
from framework.run.estimates import feature_note
from framework.run.files import StoreError, plain, write_file
from framework.run.finished import StoredRun, write_summary, write_table
from framework.run.identity import Identity, code_identity, settings_that_matter
from framework.run.lock import RunLock
from framework.run.signals import Interrupts, Stopped
from framework.run.store import LockedSample, RunStore, State, lock_samples

if TYPE_CHECKING:
    from framework.data.readers.source import DataSource
    from framework.run.build import Experiment

PATIENCE = timedelta(hours=12)
"""How long a rank waits for the slowest one at the end. One that died is noticed at once, whatever this is."""

AFTERWARDS = "invedit.afterwards"
"""Entry points called with the output folder when all of its runs have ended; each returns what to tell, or None."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One experiment and the folder it is run in.

    Attributes:
        name: Folder below the root, for messages; empty for the root itself.
        experiment: What is run.
        store: Its folder.
        identity: What decides its results, apart from the samples.
        samples: The data set with the keys that results will have.
        hashes: Content hash by id, None for samples that could not be read.
        state: What was finished when the plan was made.
    """

    name: str
    experiment: Experiment
    store: RunStore
    identity: Identity
    samples: tuple[LockedSample, ...]
    hashes: Mapping[str, str | None]
    state: State


def launch(
    experiments: Sequence[tuple[str, Experiment]], root: Path, *, force: bool = False, allow_changed: bool = False
) -> int:
    """Run experiments one after the other, each in its folder below `root`; samples that are finished are skipped.

    Every rank calls this: with Lightning's own launcher the processes that it starts run the whole command again.

    Args:
        experiments: Folder below the root (empty for the root itself) and experiment.
        root: Output folder.
        force: Take folders from runs that seem to be alive.
        allow_changed: Compute again what other settings, another model, other code or other data would change, instead
            of refusing.

    Returns:
        Exit code: 0, 1 if a sample failed or results could not be written, 128 + signal after SIGTERM or Ctrl-C.

    Raises:
        SettingsError: A folder cannot be used, holds results of something else, or is in use.
    """
    leader = is_leader()
    try:
        with Interrupts(has_parent=int(os.environ.get("LOCAL_RANK") or 0) > 0) as interrupts, _quiet():
            variants = _plan(experiments, root, writable=leader, allow_changed=allow_changed)
            codes = [_run(variant, interrupts, force=force) for variant in variants]
            if leader:
                _afterwards(root)
    except Stopped as stop:
        _say_error(f"{stop}. Finished samples are kept; the same command goes on with the others.")
        return stop.code
    except StoreError as problem:
        _say_error(str(problem))
        return 1
    return max([*codes, int(interrupts.children_failed)], default=0)


def _afterwards(root: Path) -> None:
    """Let everything that is installed for it look at the results; a run that is done cannot fail any more."""
    for entry in sorted(importlib.metadata.entry_points(group=AFTERWARDS), key=lambda entry: entry.name):
        try:
            said = entry.load()(root)
        except Exception as problem:
            _log.warning(
                "%s could not be made (%s: %s); the run is whole.", entry.name, type(problem).__name__, problem
            )
            continue
        if said:
            print(f"{entry.name:<11}{said}")
    print(f"{'dashboard':<11}invedit dashboard {root}")


def is_leader() -> bool:
    """Whether this is the process of global rank zero, from the variables of Lightning, torchrun and SLURM.

    Asked before there is a Trainer, because the lock is taken before anything heavy happens.
    """
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def output_problems(folder: Path) -> list[str]:
    """Say what keeps results from being written to a folder, before anything is loaded; it is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except (FileExistsError, NotADirectoryError) as problem:
        return [f"output: {problem.filename} is a file, not a folder; give another output.dir or --output."]
    except (StoreError, OSError) as problem:
        cause = problem.__cause__ if isinstance(problem, StoreError) else problem
        reason = getattr(cause, "strerror", None) or problem
        return [f"output: {folder} cannot be written ({reason}); give another output.dir or --output."]
    return []


def _plan(
    experiments: Sequence[tuple[str, Experiment]], root: Path, *, writable: bool, allow_changed: bool
) -> list[Variant]:
    """Find out for all variants what is finished.

    All of it before the first one runs, so that all ranks, which plan for themselves, find the same.
    """
    problems: list[str] = []
    contents: dict[int, list[tuple[str, str | None]]] = {}
    variants = []
    for name, experiment in experiments:
        store = RunStore(root / name if name else root)
        unusable = output_problems(store.directory) if writable else []
        if unusable:
            problems += unusable
            continue
        identity = identity_of(experiment)
        if id(experiment.source) not in contents:
            contents[id(experiment.source)] = _contents(experiment.source)
        read = contents[id(experiment.source)]
        samples = lock_samples([(sample, content or "unreadable") for sample, content in read], identity)
        changed = [] if allow_changed else store.changes(identity, samples)
        if changed:
            problems.append(
                f"{store.directory} holds finished samples of something else:\n  " + "\n  ".join(changed) + "\n"
                "Choose another output folder, undo the change, or compute what it affects again by --allow-changed."
            )
        variants.append(Variant(name, experiment, store, identity, samples, dict(read), store.state(samples)))
    if problems:
        raise SettingsError(problems)
    return variants


def identity_of(experiment: Experiment) -> Identity:
    """Return everything that decides an experiment's results apart from the samples.

    Raises:
        SettingsError: The model cannot be found.
    """
    from framework.callback import EditCallback

    module = experiment.module
    # The others show or time a run; they leave nothing in a sample's folder.
    measuring = [
        isinstance(callback, EditCallback) and type(callback).on_edit_end is not EditCallback.on_edit_end
        for callback in experiment.callbacks
    ]
    callbacks = [value for value, counts in zip(experiment.resolved["callbacks"], measuring, strict=True) if counts]
    observers = [value for value, counts in zip(experiment.callbacks, measuring, strict=True) if counts]
    parts = [module, module.backbone, module.inversion, module.guidance, *module.controls, *observers]
    settings = settings_that_matter({**experiment.resolved, "callbacks": callbacks})
    return Identity(settings, plain(module.backbone.identity), code_identity(parts))


def _contents(source: DataSource) -> list[tuple[str, str | None]]:
    from framework.data.lock import content_hash

    found: list[tuple[str, str | None]] = []
    for sample in source.samples():
        try:
            found.append((sample.id, content_hash(sample)))
        except SampleError:
            # It fails when it is loaded, with the reason; mended later, it has another key.
            found.append((sample.id, None))
    return found


def _run(variant: Variant, interrupts: Interrupts, *, force: bool) -> int:
    """Run one variant; returns its exit code."""
    if not is_leader():
        if not variant.state.complete:
            _predict(variant, variant.state, interrupts, None)
        return 0
    with RunLock(variant.store.lock, force=force) as lock:
        variant.store.prepare(variant.identity, variant.samples, _yaml(variant.experiment.resolved))
        # Whoever held the lock until now may have finished samples since the plan was made.
        before = variant.store.state(variant.samples)
        if not variant.state.complete:
            if before.done:
                print(f"{variant.store.directory}: {len(before.done)} of {before.total} samples are finished already")
            note = feature_note(variant.experiment.module, variant.experiment.source)
            if note:
                print(f"{variant.store.directory}: {note}", flush=True)
            try:
                _predict(variant, before, interrupts, lock)
            except BaseException:
                interrupts.end_children(failed=True)
                with contextlib.suppress(StoreError, OSError):
                    run = StoredRun(variant.store.directory, None, variant.store.state(variant.samples))
                    write_summary(run, computed=len(run.state.done) - len(before.done))
                raise
        return _finish(variant, before)


def _predict(variant: Variant, before: State, interrupts: Interrupts, lock: RunLock | None) -> None:
    """Let the Trainer run over the data set and commit what comes out."""
    from lightning.pytorch import Trainer

    from framework.data.module import EditDataModule
    from framework.run.board import LiveBoard
    from framework.run.events import EventsLogger
    from framework.run.writer import Encoder, ResultWriter

    experiment, module = variant.experiment, variant.experiment.module
    writer = ResultWriter(
        variant.store,
        {sample.id: sample for sample in variant.samples},
        frozenset(before.done),
        encoder=Encoder(experiment.output.save, {"method": type(module).__name__, "seed": experiment.seed}),
        source=experiment.source,
        interrupts=interrupts,
        lock=lock,
    )
    data = EditDataModule(
        experiment.source,
        size=module.backbone.image_size,
        multiple=module.backbone.multiple,
        channels=module.backbone.image_channels,
        finished=lambda: before.done,
        hashes=variant.hashes,
    )
    trainer = Trainer(
        inference_mode=False,
        use_distributed_sampler=False,
        logger=EventsLogger(variant.store.directory),
        callbacks=[*experiment.callbacks, writer, LiveBoard(variant.store, _yaml(experiment.resolved))],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **{**experiment.trainer, "strategy": _strategy(experiment.trainer)},
    )
    trainer.predict(module, datamodule=data, return_predictions=False)
    interrupts.check()


def _finish(variant: Variant, before: State) -> int:
    """Fold the figures of a run whose ranks are all done, say how it went, and return its exit code."""
    from framework.run.board import write_board
    from framework.run.events import summary_writer

    state = variant.store.state(variant.samples)
    writer = summary_writer(variant.store.events)
    run = StoredRun(variant.store.directory, writer, state)
    code = 0
    for callback in variant.experiment.callbacks:
        fold = getattr(callback, "on_run_end", None)
        if fold is None:
            continue
        try:
            fold(run)
        except StoreError:
            raise
        except Exception:
            _log.exception(
                "%s.on_run_end failed; the samples are whole, its figures are missing.", type(callback).__name__
            )
            code = 1
    write_board(run, variant.experiment.resolved)
    writer.close()
    computed = sum(1 for name in state.done if name not in before.done)
    write_summary(run, computed=computed)
    write_table(run)
    _report(run, computed)
    return code if state.complete else 1


def _report(run: StoredRun, computed: int) -> None:
    state = run.state
    counts = f"{len(state.done)} of {state.total} samples done ({computed} now), {len(state.failed)} failed"
    print(f"{run.directory}: {counts if computed or not state.complete else f'all {state.total} samples were done'}")
    width = max((len(name) for name in state.failed), default=0)
    for name, entry in state.failed.items():
        print(f"  {name:<{min(width, 40)}}  {entry.reason}")


def _strategy(trainer: Mapping[str, Any]) -> Any:
    """Choose data parallelism for more than one process, with the patience that uneven shares need."""
    strategy = trainer.get("strategy", "auto")
    if strategy not in ("auto", "ddp") or (strategy == "auto" and _processes(trainer) == 1):
        return strategy
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(timeout=PATIENCE)


def _processes(trainer: Mapping[str, Any]) -> int:
    """How many processes `devices` and `num_nodes` ask for."""
    import torch

    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes", 1))
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        parts = [part for part in devices.split(",") if part.strip()]
        devices = int(parts[0]) if "," not in devices else parts
    if isinstance(devices, (list, tuple)):
        return nodes * len(devices)
    if devices in ("auto", "-1", -1):
        on_gpu = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return nodes * (torch.cuda.device_count() if on_gpu else 1)
    return nodes * int(devices)


def _yaml(resolved: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(plain(resolved), sort_keys=False, allow_unicode=True)
    return text


def _say_error(text: str) -> None:
    print(f"invedit: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from talking about training, data loaders and devices; its warnings of consequence stay."""
    from framework.run.events import quiet_event_threads

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            with quiet_event_threads():
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
