import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer

from framework.data import EditDataModule, EditSample, Folder, ShardSampler, content_hash, plan_batches
from framework.errors import SampleError, SettingsError
from tests.data.pictures import noise, save

PROJECT = Path(__file__).resolve().parents[2]


class Listener(LightningModule):
    """Notes what a trainer hands it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def predict_step(self, batch):
        self.seen.append(batch)


def folder(path, count, sizes=((16, 16),), **options):
    for number in range(count):
        save(path / f"{number:02}.png", noise(*sizes[number % len(sizes)], seed=number))
    return Folder(path, **{"target": "x", "size": 16, **options})


def ids(batches):
    return [[sample.id for sample in batch.samples] for batch in batches]


def predict(data):
    module = Listener()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        inference_mode=False,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.predict(module, datamodule=data, return_predictions=False)
    return module.seen


@pytest.mark.parametrize("count", [0, 1, 3, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_ranks_share_out_all_batches_and_repeat_none(count, world_size):
    shares = [list(ShardSampler(count, rank, world_size)) for rank in range(world_size)]

    assert sorted(index for share in shares for index in share) == list(range(count))
    assert shares[0] == list(range(0, count, world_size))
    assert [len(ShardSampler(count, rank, world_size)) for rank in range(world_size)] == [len(s) for s in shares]


def test_batches_are_groups_of_equal_size_in_the_order_of_the_data():
    samples = [EditSample(name, Path(name), "", "x") for name in "abcdefg"]
    sizes = dict(zip("abcdefg", [8, 16, 8, 8, 16, 24, 8], strict=True))

    plan = plan_batches(samples, 2, lambda sample: (sizes[sample.id], 8))

    assert [[s.id for s in group] for group in plan] == [["a", "c"], ["b", "e"], ["d", "g"], ["f"]]


def test_samples_whose_size_cannot_be_read_form_their_own_groups():
    samples = [EditSample(name, Path(name), "", "x") for name in "abcd"]

    def size(sample):
        if sample.id in "bd":
            raise SampleError("broken")
        return 8, 8

    assert [[s.id for s in group] for group in plan_batches(samples, 4, size)] == [["a", "c"], ["b", "d"]]


def test_a_trainer_is_handed_whole_batches_in_order(tmp_path):
    seen = predict(EditDataModule(folder(tmp_path, 5, batch_size=2)))

    assert ids(seen) == [["00", "01"], ["02", "03"], ["04"]]
    assert [tuple(batch.images.shape) for batch in seen] == [(2, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)]


def test_loading_in_other_processes_gives_the_same_batches(tmp_path):
    alone = list(EditDataModule(folder(tmp_path, 3, batch_size=2)).batches())

    seen = predict(EditDataModule(folder(tmp_path, 3, batch_size=2, num_workers=1)))

    assert ids(seen) == ids(alone)
    assert all(torch.equal(one.images, other.images) for one, other in zip(seen, alone, strict=True))


def test_native_sizes_are_grouped(tmp_path):
    source = folder(tmp_path, 4, sizes=((16, 16), (17, 30)), batch_size=4, resize="native", size=None)

    seen = predict(EditDataModule(source))

    assert ids(seen) == [["00", "02"], ["01", "03"]]
    assert [tuple(batch.images.shape[2:]) for batch in seen] == [(16, 16), (16, 32)]


def test_an_unfinished_sample_brings_back_its_batch_in_the_old_composition(tmp_path):
    source = folder(tmp_path, 6, batch_size=2)
    whole = list(EditDataModule(source).batches())

    rest = predict(EditDataModule(source, finished=lambda: ["00", "01", "02", "05"]))

    assert ids(rest) == [["02", "03"], ["04", "05"]]
    assert all(torch.equal(one.images, other.images) for one, other in zip(rest, whole[1:], strict=True))


def test_a_finished_data_set_leaves_nothing_to_do(tmp_path):
    data = EditDataModule(folder(tmp_path, 2), finished=lambda: {"00", "01"})

    assert predict(data) == [] and data.todo == []


def test_a_broken_picture_is_handed_on_as_failed_and_the_rest_goes_on(tmp_path):
    source = folder(tmp_path, 4, batch_size=2)
    for name in ("01", "02", "03"):
        (tmp_path / f"{name}.png").write_text("broken")

    seen = predict(EditDataModule(source))

    assert ids(seen) == [["00"], []]
    assert [[sample.id for sample, _ in batch.failed] for batch in seen] == [["01"], ["02", "03"]]
    assert tuple(seen[1].images.shape) == (0, 3, 16, 16)


def test_a_sample_that_changed_since_the_run_began_fails(tmp_path):
    source = folder(tmp_path, 2, batch_size=2)
    hashes = {sample.id: content_hash(sample) for sample in source.samples()}
    save(tmp_path / "01.png", noise(16, 16, seed=99))

    (batch,) = EditDataModule(source, hashes=hashes).batches()

    assert ids([batch]) == [["00"]] and "changed since the run began" in batch.failed[0][1]


def test_problems_of_the_data_set_are_raised_as_they_are(tmp_path):
    with pytest.raises(SettingsError, match="no picture"):
        predict(EditDataModule(Folder(tmp_path, size=16)))


def test_a_size_that_does_not_suit_the_network_is_refused_at_once(tmp_path):
    with pytest.raises(SettingsError, match="multiples of 32"):
        EditDataModule(Folder(tmp_path, size=16), multiple=32)


def test_images_and_masks_move_to_the_device_and_nothing_else_changes(tmp_path):
    save(tmp_path / "00_mask.png", noise(16, 16, 1))
    data = EditDataModule(folder(tmp_path, 1))
    (batch,) = data.batches()

    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)

    assert moved.images.device.type == moved.masks.device.type == "meta"
    assert (moved.samples, moved.frames, moved.notes) == (batch.samples, batch.frames, batch.notes)


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    before = torch.get_rng_state()

    list(EditDataModule(folder(tmp_path, 2)).batches())

    assert torch.equal(torch.get_rng_state(), before)


TWO_PROCESSES = """
import json, sys
from pathlib import Path
from lightning import LightningModule, Trainer
from framework.data import EditDataModule, Folder
from framework.errors import SettingsError

class Listener(LightningModule):
    def predict_step(self, batch):
        self.seen.append([sample.id for sample in batch.samples])

class Told:
    asked = 0
    def __call__(self):
        Told.asked += 1
        return ["00"] if listener.trainer.is_global_zero else ["a rank that lists by itself would see this"]

out = Path(sys.argv[1])
for root in sys.argv[2:]:
    listener = Listener()
    listener.seen = []
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", inference_mode=False, use_distributed_sampler=False,
                      logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)
    data = EditDataModule(Folder(root, target="x", size=16, batch_size=2), finished=Told())
    told = {"seen": listener.seen}
    try:
        trainer.predict(listener, datamodule=data, return_predictions=False)
    except SettingsError as problem:
        told["problem"] = str(problem)
    name = f"{Path(root).name}-{trainer.global_rank}.json"
    (out / name).write_text(json.dumps({**told, "asked": Told.asked}))
"""


def test_two_processes_share_five_batches_three_and_one_and_learn_of_problems_together(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    counts = {"many": 10, "some": 5, "one": 2, "none": 0}
    (tmp_path / "none").mkdir()
    for name, count in counts.items():
        folder(tmp_path / name, count)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *(str(tmp_path / name) for name in counts)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 0, done.stderr
    told = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert told["many-0"]["seen"] == [["00", "01"], ["04", "05"], ["08", "09"]]
    assert told["many-1"]["seen"] == [["02", "03"], ["06", "07"]]
    assert told["some-0"]["seen"] == [["00", "01"], ["04"]] and told["some-1"]["seen"] == [["02", "03"]]
    assert told["one-0"]["seen"] == [["00", "01"]] and told["one-1"]["seen"] == []
    assert told["one-0"]["asked"] == 3 and told["one-1"]["asked"] == 0  # a process of its own would see other files
    assert "no picture" in told["none-0"]["problem"] and "no picture" in told["none-1"]["problem"]
