from __future__ import annotations

import csv
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.shapes.export import export_benchmark
from framework.cli import main
from framework.data import PieBench
from framework.data.decode import Limits
from framework.data.masks import read_mask
from framework.evaluation.evaluate import Evaluation
from framework.evaluation.metric import Figure, Metric
from framework.evaluation.pairs import FolderResults
from framework.evaluation.pictures import LPIPS, PixelMetrics
from tests.small import MODELS

EXPERIMENT = """
backbone: {{_target_: framework.backbones.StableDiffusion, model: shapes}}
method: {{_target_: methods.cycle_diffusion.CycleDiffusion, steps: 2, strength: 1.0, eta: 1.0}}
data: {{_target_: framework.data.PieBench, root: {root}, border: false, batch_size: 4}}
callbacks:
  - {{_target_: callbacks.Metrics, metrics: [{{_target_: experiments.shapes.metric.EditSuccess, generation_steps: 0}}]}}
  - {{_target_: callbacks.Throughput}}
"""


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on an exported folder, made by commands."""
    home = tmp_path_factory.mktemp("round trip")
    assert main(["shapes", "export", "--output", str(home / "set"), "--count", "8"]) == 0
    (home / "experiment.yaml").write_text(EXPERIMENT.format(root=home / "set"))
    assert main(["run", str(home / "experiment.yaml"), "--output", str(home / "run")]) == 0
    return home


def test_the_round_trip_from_the_export_to_the_table_takes_commands_alone(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)

    assert main(["evaluate", str(run), "--metrics", "shapes", "reconstruction", "pixels"]) == 0
    words = ["--by", "extra.shapes_edit.kind", "--published", "--output", str(tmp_path / "own")]
    assert main(["table", str(run), *words]) == 0

    shown = capsys.readouterr().out
    assert "8 images measured, 0 missing" in shown and "psnr_unedit_part [dB] ↑" in shown
    assert "published: DDIM + P2P (SD 1.4) | 17.87 | 219.88 | 71.14 | Direct Inversion, table 1 |" in shown
    lines = list(csv.DictReader((tmp_path / "own.csv").open()))
    counted = {
        (line["group"], line["figure"]): int(line["n"]) for line in lines if line["method"] == "run" and line["n"]
    }
    assert counted["", "mse_unedit_part"] == 8 and counted["shape", "mse_unedit_part"] == 1


def test_pictures_on_disk_measure_as_they_did_while_editing(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)

    assert main(["evaluate", str(run), "--metrics", "shapes", "reconstruction"]) == 0

    for row in rows(run):
        meta = json.loads((run / "samples" / str(row["id"]) / "meta.json").read_text())
        before = meta["measurements"]["Metrics"]["rows"]["edit"][row["metric"]][row["figure"]]
        # Files hold 256 levels, which ends at 59 dB what was reconstructed better.
        assert min(row["value"], 50.0) == pytest.approx(min(before, 50.0), abs=0.2)
    assert {row["metric"] for row in rows(run)} == {"EditSuccess", "ReconstructionPSNR"}


def test_a_second_evaluation_adds_its_metrics_and_replaces_its_own(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)

    for metrics in (["reconstruction"], ["pixels"], ["pixels", "lpips"]):
        assert main(["evaluate", str(run), "--metrics", *metrics]) == 0

    found = rows(run)
    assert len(found) == 8 * (2 + 3)
    about = json.loads((run / "evaluation.json").read_text())
    assert set(about["figures"]) == {"PixelMetrics", "ReconstructionPSNR"}
    assert "model" in about["unavailable"]["LPIPS"]


def test_rows_of_a_sample_that_was_computed_again_no_longer_count(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    assert main(["evaluate", str(run), "--metrics", "pixels"]) == 0
    text = (run / "evaluation.jsonl").read_text()
    first = rows(run)[0]
    (run / "evaluation.jsonl").write_text(text.replace(str(first["key"]), "another"))
    capsys.readouterr()

    assert main(["table", str(run), "--figures", "mse*", "--output", str(tmp_path / "own")]) == 0

    assert "(n 7)" in capsys.readouterr().out


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of results made by somebody else: half black."""
    export_benchmark(tmp_path / "set", count=4)
    for path in sorted((tmp_path / "set" / "annotation_images").rglob("*.png")):
        pixels = np.array(Image.open(path))
        pixels[:, :32] = 0
        target = tmp_path / "made" / path.relative_to(tmp_path / "set")
        target.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(target)
    return tmp_path


def data(home: Path) -> str:
    return f"{{_target_: framework.data.PieBench, root: {home / 'set'}, border: false}}"


def test_results_made_elsewhere_are_measured_and_tabled(elsewhere, capsys):
    made = elsewhere / "made"

    assert main(["evaluate", str(made), "--data", data(elsewhere), "--metrics", "pixels"]) == 0
    assert main(["table", str(made), "--output", str(elsewhere / "table")]) == 0

    assert "| made |" in capsys.readouterr().out
    assert len(rows(made)) == 4 * 3


def test_missing_results_and_wrong_sizes_are_named_counted_and_not_averaged(elsewhere, capsys):
    made = elsewhere / "made"
    pictures = sorted(made.rglob("*.png"))
    pictures[0].unlink()
    Image.new("RGB", (65, 64)).save(pictures[1])

    assert main(["evaluate", str(made), "--data", data(elsewhere), "--metrics", "pixels"]) == 1

    shown = capsys.readouterr().out
    assert "2 images measured, 2 missing" in shown
    assert "000000000000  there is no result" in shown and "65 x 64 pixels, its source 64 x 64" in shown
    assert main(["table", str(made), "--output", str(elsewhere / "table")]) == 0
    assert "| made | all | 2 | 0 |" in capsys.readouterr().out


def test_a_strip_counts_by_its_last_panel_on_request(elsewhere):
    made = elsewhere / "made"
    expected = None
    for strip in (False, True):
        if strip:
            for path in made.rglob("*.png"):
                panels = np.concatenate([np.zeros((64, 192, 3), np.uint8), np.array(Image.open(path))], 1)
                Image.fromarray(panels).save(path)
        code = main(["evaluate", str(made), "--data", data(elsewhere), "--metrics", "pixels", "--last-panel"])
        assert code == 0
        values = [(row["id"], row["figure"], row["value"]) for row in rows(made)]
        expected = expected or values
        assert values == expected


def test_equal_pictures_are_infinite_apart_and_masks_without_a_part_have_no_value(elsewhere):
    made = elsewhere / "made"
    mapping = json.loads((elsewhere / "set" / "mapping_file.json").read_text())
    for entry, mask in zip(mapping.values(), ([], [0, 4096], [], []), strict=True):
        entry["mask"] = mask
    (elsewhere / "set" / "mapping_file.json").write_text(json.dumps(mapping))
    first = next(iter(mapping.values()))["image_path"]
    shutil.copy(elsewhere / "set" / "annotation_images" / first, made / "annotation_images" / first)

    assert main(["evaluate", str(made), "--data", data(elsewhere), "--metrics", "pixels"]) == 0

    status = {(row["id"], row["figure"]): row["status"] for row in rows(made)}
    assert status["000000000000", "psnr_unedit_part"] == "infinite"
    assert status["000000000000", "mse_unedit_part"] == "valid"
    assert status["000000000001", "mse_unedit_part"] == "missing"
    assert status["000000000002", "psnr_unedit_part"] == "valid"


def test_a_metric_that_gives_no_number_is_counted_as_such(elsewhere):
    class Odd(Metric):
        figures = (Figure("odd", "higher"),)

        def measure(self, item):
            return {"odd": float("nan")}

    source = PieBench(str(elsewhere / "set"), border=False)
    found = list(Evaluation(FolderResults(elsewhere / "made", data=source), [Odd()]).rows())

    assert [(row["value"], row["status"]) for row in found] == [(None, "nan")] * 4


def test_values_do_not_depend_on_the_batch(elsewhere):
    source = PieBench(str(elsewhere / "set"), border=False)

    def measured(size: int) -> dict[str, object]:
        found = Evaluation(FolderResults(elsewhere / "made", data=source), [PixelMetrics()], batch_size=size).rows()
        return {f"{row['id']} {row['figure']}": row["value"] for row in found}

    assert measured(1) == measured(3)


def test_a_metric_that_needs_the_model_is_unavailable_where_there_is_none(elsewhere, capsys):
    made = elsewhere / "made"

    assert main(["evaluate", str(made), "--data", data(elsewhere), "--metrics", "shapes", "pixels"]) == 0

    assert "EditSuccess is unavailable: it needs the model" in capsys.readouterr().out
    assert {row["metric"] for row in rows(made)} == {"PixelMetrics"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metrics", "pixel"], "did you mean 'pixels'?"),
        (["--metrics", "pixels", "pixels"], "twice"),
        (["--metrics", "{_target_: framework.evaluation.LPIPS, net: resnet}"], "net"),
        (["--batch-size", "0"], "at least 1"),
        (["--device", "nowhere"], "cannot be used"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(elsewhere, capsys, arguments, said):
    assert main(["evaluate", str(elsewhere / "made"), "--data", data(elsewhere), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_run_needs_a_data_set(elsewhere, capsys):
    assert main(["evaluate", str(elsewhere / "made")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_unavailable_metrics_are_known_before_any_picture_is_read(elsewhere):
    evaluation = Evaluation(FolderResults(elsewhere / "made"), [LPIPS(), PixelMetrics()])

    assert list(evaluation.unavailable) == ["LPIPS"] and [m.name for m in evaluation.metrics] == ["PixelMetrics"]


def test_a_source_saved_with_loss_gives_way_to_the_data_sets_own_picture(finished, tmp_path):
    run = tmp_path / "run"
    settings = ["output.save.format=jpeg", "output.save.quality=75", "data.limit=2"]
    assert main(["run", str(finished / "experiment.yaml"), "--output", str(run), *settings]) == 0

    assert main(["evaluate", str(run), "--metrics", "pixels"]) == 0

    samples = {sample.id: sample for sample in PieBench(finished / "set", border=False).samples()}
    found = [row for row in rows(run) if row["figure"] == "mse_unedit_part"]
    for row in found:
        pictures = (samples[row["id"]].image, run / "samples" / str(row["id"]) / "edit.jpg")
        source, edit = (np.array(Image.open(path).convert("RGB"), dtype=float) / 255 for path in pictures)
        mask = read_mask(samples[row["id"]].mask, (64, 64), Limits())[0]
        assert row["value"] == pytest.approx((((edit - source) * (mask == 0)[..., None]) ** 2).mean(), rel=1e-6)
    assert len(found) == 2


def test_an_evaluation_says_what_it_was_made_with(elsewhere):
    made = elsewhere / "made"
    metrics = ["pixels", f"{{_target_: framework.evaluation.StructureDistance, model: {MODELS / 'tiny-dino'}}}"]

    assert main(["evaluate", str(made), "--data", data(elsewhere), "--metrics", *metrics]) == 0

    about = json.loads((made / "evaluation.json").read_text())
    assert about["metrics"]["PixelMetrics"]["settings"]["border"] == "crop"
    assert len(about["metrics"]["StructureDistance"]["weights"]) == 64
    assert about["versions"]["torch"] and about["versions"]["device"] in ("cpu", "cuda")


def test_rows_are_also_written_as_the_benchmarks_script_writes_them(elsewhere):
    made = elsewhere / "made"
    source = next((elsewhere / "set" / "annotation_images").rglob("*.png"))
    shutil.copy(source, made / source.relative_to(elsewhere / "set"))

    assert main(["evaluate", str(made), "--data", data(elsewhere), "--metrics", "pixels"]) == 0

    lines = list(csv.DictReader((made / "evaluation.csv").open()))
    assert list(lines[0]) == ["file_id", "made|mse_unedit_part", "made|psnr_unedit_part", "made|ssim_unedit_part"]
    assert [line["made|psnr_unedit_part"] for line in lines].count("inf") == 1


def test_pictures_are_held_one_batch_at_a_time(elsewhere):
    source = PieBench(elsewhere / "set", border=False)
    alive: set[int] = set()
    most = 0

    class Counted(FolderResults):
        def load(self, pair):
            nonlocal most
            pictures = super().load(pair)
            number = len(alive) + id(pictures)
            alive.add(number)
            weakref.finalize(pictures, alive.discard, number)
            most = max(most, len(alive))
            return pictures

    evaluation = Evaluation(Counted(elsewhere / "made", data=source), [PixelMetrics()], batch_size=1)

    assert len(list(evaluation.rows())) == 12
    assert most <= 2


def test_the_mask_of_a_picture_that_was_cut_is_cut_as_well(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (64, 96, 3), np.uint8)).save(pictures / "wide.png")
    (pictures / "wide.txt").write_text("a large solid red circle on a plain blue background\na small solid blue star")
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(pictures / "wide_mask.png")
    text = EXPERIMENT.format(root=pictures).replace("framework.data.PieBench", "framework.data.Folder")
    (tmp_path / "cut.yaml").write_text(text.replace("border: false, ", ""))
    run = tmp_path / "run"
    assert main(["run", str(tmp_path / "cut.yaml"), "--output", str(run)]) == 0

    assert main(["evaluate", str(run), "--metrics", "pixels"]) == 0

    source, edit = (
        np.array(Image.open(run / "samples" / "wide" / f"{n}.png"), float) / 255 for n in ("source", "edit")
    )
    assert source.shape == (64, 64, 3)
    expected = (((source - edit)[:, :24]) ** 2).sum() / source.size  # columns 16 to 40 of the original
    assert next(row["value"] for row in rows(run) if row["figure"].startswith("mse")) == pytest.approx(expected)
