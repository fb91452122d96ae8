"""The data module: fixed batches of a data set, shared out over processes, without what is finished already."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from framework.data.images import ImageLoader
from framework.data.lock import content_hash
from framework.data.readers.source import DataSource
from framework.data.sample import EditBatch, EditSample
from framework.errors import SampleError, SettingsError


def plan_batches(
    samples: Sequence[EditSample], batch_size: int, network_size: Callable[[EditSample], tuple[int, int]]
) -> list[tuple[EditSample, ...]]:
    """Group a data set into the batches that it is always computed in.

    A network's rounding depends on the shape of its batch, so the groups depend on the data set and the batch size
    alone: not on ranks, and not on what is finished. Samples of equal network size are grouped in their order; a group
    is full at `batch_size`; groups follow each other in the order of their first samples. Samples whose size cannot be
    read fail when they are loaded; until then they form groups of their own.

    Args:
        samples: The data set in its order.
        batch_size: Most samples of a group.
        network_size: Rows and columns of the network's picture of a sample; may raise SampleError.
    """
    groups: list[list[EditSample]] = []
    open_groups: dict[tuple[int, int] | None, list[EditSample]] = {}
    for sample in samples:
        try:
            size: tuple[int, int] | None = network_size(sample)
        except SampleError:
            size = None
        if size not in open_groups or len(open_groups[size]) == batch_size:
            open_groups[size] = []
            groups.append(open_groups[size])
        open_groups[size].append(sample)
    return [tuple(group) for group in groups]


class ShardSampler(Sampler[int]):
    """Every `world_size`-th index beginning with the rank: all indices, none twice, whatever the number of ranks.

    Args:
        count: Number of indices.
        rank, world_size: This process and the number of processes.
    """

    def __init__(self, count: int, rank: int, world_size: int) -> None:
        self._indices = range(rank, count, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class _Batches(Dataset[EditBatch]):
    """Loads planned batches by their index."""

    def __init__(
        self, plan: Sequence[tuple[EditSample, ...]], loader: ImageLoader, hashes: Mapping[str, str | None]
    ) -> None:
        self._plan = plan
        self._loader = loader
        self._hashes = hashes

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> EditBatch:
        kept, failed = [], []
        for sample in self._plan[index]:
            problem = self._changed(sample)
            if problem is None:
                kept.append(sample)
            else:
                failed.append((sample, problem))
        return self._loader.batch(kept, failed)

    def _changed(self, sample: EditSample) -> str | None:
        expected = self._hashes.get(sample.id)
        if expected is None:
            return None
        try:
            found = content_hash(sample)
        except SampleError as problem:
            return str(problem)
        if found == expected:
            return None
        return f"the sample changed since the run began (content {found[:12]}, was {expected[:12]}); start another run"


class EditDataModule(LightningDataModule):
    """Batches of samples for `Trainer.predict`, loaded as `EditBatch`.

    Without a trainer it works as a single process: `for batch in EditDataModule(source, size=(64, 64)).batches(): ...`

    Args:
        source: The data set with its options.
        size: The model's own rows and columns; the options of the source come first.
        multiple: Both sides of the network's picture are multiples of this.
        channels: 3 for colour, 1 for grey.
        finished: Gives the ids of the samples that need not be computed again. Asked once, on rank zero.
        hashes: Content hash by id when the run began; a sample whose content differs by now fails.

    Raises:
        SettingsError: A size that the network cannot take.
    """

    def __init__(
        self,
        source: DataSource,
        *,
        size: tuple[int, int] | None = None,
        multiple: int = 8,
        channels: int = 3,
        finished: Callable[[], Collection[str]] | None = None,
        hashes: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.source = source
        self.loader = source.loader(size, multiple=multiple, channels=channels)
        self._finished = finished
        self._hashes = dict(hashes or {})
        self._samples: list[EditSample] | None = None
        self._todo: list[tuple[EditSample, ...]] | None = None

    @property
    def samples(self) -> list[EditSample]:
        """The whole data set in its order, read once.

        Raises:
            SettingsError: All problems of the data set together.
        """
        if self._samples is None:
            self._samples = self.source.samples()
        return self._samples

    @property
    def todo(self) -> list[tuple[EditSample, ...]]:
        """Batches with at least one sample that is not finished, in their fixed composition, over all ranks."""
        if self._todo is None:
            self.setup("predict")
        assert self._todo is not None
        return self._todo

    def setup(self, stage: str) -> None:
        """Decide on rank zero what is to be done and tell the other ranks.

        Raises:
            SettingsError: The data set cannot be read, or ranks see different data sets.
        """
        if stage != "predict":
            return
        trainer = self.trainer
        plan: list[list[str]] = []
        problem: Exception | None = None
        if trainer is None or trainer.is_global_zero:
            try:
                plan = self._plan()
            except Exception as error:  # raised below: the other ranks wait for an answer
                problem = error
        said = None if problem is None else f"data: {problem}"
        if trainer is not None:
            plan, said = trainer.strategy.broadcast((plan, said))
        if problem is not None:
            raise problem
        if said is not None:
            raise SettingsError([said])
        by_id = {sample.id: sample for sample in self.samples}
        missing = [name for group in plan for name in group if name not in by_id]
        if missing:
            raise SettingsError([f"data: this process does not see the samples {', '.join(missing[:8])} of rank zero."])
        self._todo = [tuple(by_id[name] for name in group) for group in plan]

    def predict_dataloader(self) -> DataLoader[EditBatch]:
        """Loader of this rank's whole batches."""
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        workers = self.source.num_workers
        return DataLoader(
            _Batches(self.todo, self.loader, self._hashes),
            batch_size=None,
            sampler=ShardSampler(len(self.todo), rank, world_size),
            num_workers=workers,
            generator=torch.Generator(),  # or the loader would draw from the global one
        )

    def batches(self) -> Iterator[EditBatch]:
        """Load the batches of this rank, without a trainer of one process."""
        return iter(self.predict_dataloader())

    def transfer_batch_to_device(self, batch: EditBatch, device: torch.device, dataloader_idx: int) -> EditBatch:
        """Move images and masks."""
        del dataloader_idx
        masks = None if batch.masks is None else batch.masks.to(device, non_blocking=True)
        return dataclasses.replace(batch, images=batch.images.to(device, non_blocking=True), masks=masks)

    def _plan(self) -> list[list[str]]:
        finished = set(self._finished()) if self._finished is not None else set()
        groups = plan_batches(self.samples, self.source.batch_size, self.loader.network_size)
        names = [[sample.id for sample in group] for group in groups]
        return [group for group in names if not finished.issuperset(group)]
