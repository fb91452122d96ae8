from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.shapes.edits import EDITS, Edit, edit_mask
from experiments.shapes.export import export_benchmark, run_lengths
from experiments.shapes.render import render
from experiments.shapes.scene import caption
from framework.cli import main
from framework.data import PieBench, RunLengthMask
from framework.data.masks import decode_run_lengths


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_exports_have_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        export_benchmark(tmp_path / name, count=9, seed=4)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 1 + 2 * 9


def test_an_export_is_read_back_with_its_prompts_masks_and_truth(tmp_path: Path) -> None:
    export_benchmark(tmp_path, count=8)

    samples = PieBench(str(tmp_path), border=False, mask_size=[64, 64]).samples()

    assert [sample.edit_type for sample in samples] == list(EDITS.values())
    for sample in samples:
        edit = Edit.from_dict(sample.extra["shapes_edit"])
        assert (sample.source, sample.target) == (caption(edit.source), caption(edit.target))
        assert isinstance(sample.mask, RunLengthMask)
        assert np.array_equal(decode_run_lengths(sample.mask), edit_mask(edit))
        assert Image.open(sample.image).tobytes() == render(edit.source).tobytes()
        truth = Path(str(sample.image).replace("annotation_images", "ground_truth"))
        assert Image.open(truth).tobytes() == render(edit.target).tobytes()


def test_run_lengths_of_a_full_an_empty_and_a_split_mask() -> None:
    full, split = np.ones((2, 3), bool), np.array([[0, 1, 1], [1, 0, 1]], bool)

    assert run_lengths(full) == [0, 6]
    assert run_lengths(~full) == []
    assert run_lengths(split) == [1, 3, 5, 1]


def test_the_command_writes_the_kinds_that_were_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "set"

    assert main(["shapes", "export", "--output", str(folder), "--count", "3", "--edits", "colour,add"]) == 0
    assert sorted(path.name for path in (folder / "annotation_images").iterdir()) == ["2_add", "6_colour"]


def test_the_command_refuses_unknown_kinds_and_full_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_benchmark(tmp_path, count=1)

    assert main(["shapes", "export", "--output", str(tmp_path), "--count", "1"]) == 2
    assert "holds a benchmark already" in capsys.readouterr().err
    assert main(["shapes", "export", "--output", str(tmp_path / "b"), "--count", "1", "--edits", "paint"]) == 2
    assert "no edit 'paint'; choose from" in capsys.readouterr().err
