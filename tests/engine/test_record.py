"""Records are values: saved, loaded, stacked, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framework.errors import SampleError
from framework.record import Record
from framework.schedule import Schedule

SCHEDULE = Schedule.from_alphas_cumprod(torch.linspace(0.99, 0.01, 100), [75, 50, 25, 0])


def _record(seed: int, kind: str = "Some") -> Record:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Record.on(
        SCHEDULE,
        kind,
        draw(1, 4, 8, 8),
        latents=draw(5, 1, 4, 8, 8),
        noise_maps=draw(4, 1, 4, 8, 8),
        own={"some.words": draw(4, 1, 7, 3)},
        unused=(0,),
        zeroed=(3,),
        settings={"eta": 1.0},
    )


def test_a_record_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    record = _record(0)

    record.save(tmp_path / "inversion")
    loaded = Record.load(tmp_path / "inversion.safetensors")

    assert loaded.describe() == record.describe()
    assert all(torch.equal(a, loaded.tensors()[name]) for name, a in record.tensors().items())
    assert set(loaded.tensors()) == set(record.tensors())


def test_stacking_and_taking_apart_undo_each_other() -> None:
    parts = [_record(seed) for seed in range(3)]

    stacked = Record.stack(parts)

    for index, part in enumerate(parts):
        again = stacked.image(index)
        assert all(torch.equal(a, again.tensors()[name]) for name, a in part.tensors().items())


def test_records_of_different_inversions_do_not_stack() -> None:
    with pytest.raises(SampleError, match="Other"):
        Record.stack([_record(0), _record(1, "Other")])


def test_half_a_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    _record(0).save(tmp_path / "inversion")
    path = tmp_path / "inversion.safetensors"
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(SampleError, match="Invert the image again"):
        Record.load(path)


def test_a_record_of_several_images_is_saved_image_by_image() -> None:
    with pytest.raises(ValueError, match=r"record\.image"):
        Record.stack([_record(0), _record(1)]).tensors()
