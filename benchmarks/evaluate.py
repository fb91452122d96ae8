"""The metrics of `invedit evaluate` beside the bare networks, and their memory over many images.

`python -m benchmarks.evaluate` makes pairs of 512 px and networks of the sizes that PIE-Bench uses (ViT-B/8, ViT-L/14,
SqueezeNet 1.1) with random weights. Limits: 1.2 times the networks' bare forward passes and the decoding of the files;
50 ms per pair for metrics without a network, decoded; memory that does not grow from 100 images to 700.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.measure import CLOCKS, finish, interleaved, report, seconds
from framework.backbones.files import ModelFiles
from framework.data.readers.source import DataSource
from framework.data.sample import EditSample, RunLengthMask
from framework.evaluation import LPIPS, CLIPSimilarity, PixelMetrics, StructureDistance
from framework.evaluation.evaluate import Evaluation
from framework.evaluation.lpips import LpipsNetwork, load_lpips
from framework.evaluation.metric import Metric
from framework.evaluation.pairs import FolderResults
from framework.evaluation.vision import Clip, Dino

SIDE, BATCH = 512, 8
FEW, MANY, GROWTH = 100, 700, 1.05
_CHILD = """
import json, sys
from benchmarks.evaluate import resident_while_measuring
print(json.dumps(resident_while_measuring(sys.argv[1], int(sys.argv[2]))))
"""


@dataclass(kw_only=True)
class Pairs(DataSource):
    """`count` pairs of which `different` have files of their own; results lie in `results`."""

    count: int
    different: int

    def samples(self) -> list[EditSample]:
        mask = RunLengthMask(tuple(n for row in range(100, 300) for n in (row * SIDE + 120, 220)), (SIDE, SIDE))
        return [
            EditSample(
                f"{number:04d}",
                Path(self.root, "sources", f"{number % self.different:04d}.png"),
                f"a circle, number {number % 7}",
                f"a star, number {number % 7}",
                mask=mask,
            )
            for number in range(self.count)
        ]


def make_pictures(root: Path, count: int, different: int) -> Pairs:
    """Write smooth random pictures; results beyond the different ones are links to these."""
    for folder in ("sources", "results"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        for offset, folder in enumerate(("sources", "results")):
            path = root / folder / f"{number:04d}.png"
            if number < different:
                generator = torch.Generator().manual_seed(2 * number + offset)
                small = torch.rand(1, 3, 32, 32, generator=generator)
                large = F.interpolate(small, (SIDE, SIDE), mode="bicubic").clamp(0, 1)[0] * 255
                Image.fromarray(large.byte().permute(1, 2, 0).numpy()).save(path)
            elif folder == "results":
                os.link(root / folder / f"{number % different:04d}.png", path)
    return Pairs(root, count=count, different=different)


def make_networks(root: Path, *, tiny: bool) -> list[Metric]:
    """Save random networks as a user has them, and build the metrics that load them."""
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

    torch.manual_seed(0)
    width, layers, heads = (32, 2, 2) if tiny else (768, 12, 12)
    vit = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=32 if tiny else 8,
        image_size=224,
    )
    vision, depth, patch = (32, 2, 56) if tiny else (1024, 24, 14)
    text = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    clip = CLIPConfig(
        text_config={**text, "intermediate_size": 4 * width, "projection_dim": width},
        vision_config={
            "hidden_size": vision,
            "num_hidden_layers": depth,
            "num_attention_heads": 2 if tiny else 16,
            "intermediate_size": 4 * vision,
            "patch_size": patch,
            "image_size": 224,
            "projection_dim": width,
        },
        projection_dim=width,
    )
    ViTModel(vit, add_pooling_layer=False).half().save_pretrained(root / "dino")
    CLIPModel(clip).half().save_pretrained(root / "clip")
    shapes = ModelFiles("shapes").folder
    CLIPTokenizer.from_pretrained(Path(shapes or "", "tokenizer")).save_pretrained(root / "clip")
    (root / "squeeze").mkdir()
    save_file(LpipsNetwork("squeeze").features.state_dict(prefix="features."), root / "squeeze" / "model.safetensors")
    return [
        LPIPS(model=str(root / "squeeze")),
        StructureDistance(model=str(root / "dino")),
        CLIPSimilarity(model=str(root / "clip")),
    ]


class Bare:
    """The same networks on inputs of their own sizes, and the same files decoded; nothing else."""

    def __init__(self, pairs: Pairs, networks: Path) -> None:
        self.samples = pairs.samples()
        self.results = Path(pairs.root) / "results"
        self.dino = Dino(ModelFiles(str(networks / "dino"))).eval()
        self.clip = Clip(ModelFiles(str(networks / "clip"))).eval()
        self.squeeze = load_lpips(ModelFiles(str(networks / "squeeze")), "squeeze")
        self.small = torch.rand(3 * BATCH, 3, 224, 224)
        self.large = torch.rand(2 * BATCH, 3, SIDE, SIDE)

    @torch.no_grad()
    def __call__(self) -> None:
        for start in range(0, len(self.samples), BATCH):
            group = self.samples[start : start + BATCH]
            for sample in group:
                for path in (sample.image, self.results / f"{sample.id}.png"):
                    with Image.open(path) as picture:
                        np.asarray(picture.convert("RGB"))
            n = len(group)
            self.squeeze.maps(self.large[: 2 * n])
            self.dino.vit(pixel_values=self.small[: 2 * n])
            self.clip.image_features(self.small[: 3 * n])
            self.clip.text_features(list({text for sample in group for text in (sample.source, sample.target)}))


def measuring(pairs: Pairs, metrics: Sequence[Metric]) -> Evaluation:
    results = FolderResults(Path(pairs.root) / "results", data=pairs)
    return Evaluation(results, metrics, batch_size=BATCH)


def resident_while_measuring(root: str, count: int) -> dict[str, Any]:
    """Measure `count` images with tiny networks; returns the peak resident MiB after `FEW` of them and at the end."""
    torch.set_num_threads(1)
    pairs = make_pictures(Path(root) / "pictures", count, 20)
    metrics = [PixelMetrics(), *make_networks(Path(root) / "networks", tiny=True)]
    few, measured = 0.0, 0
    for row in measuring(pairs, metrics).rows():
        if measured < FEW <= int(row["id"]) + 1:
            few = _peak_mib()
        measured = max(measured, int(row["id"]) + 1)
    return {"few": few, "many": _peak_mib(), "measured": measured}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def without_network(pairs: Pairs, clock: str) -> bool:
    """Time what PIE-Bench measures without a network; the decoding of the files is given apart."""
    evaluation = measuring(pairs, [PixelMetrics()])
    results = evaluation.results
    whole = min(seconds(lambda: list(evaluation.rows()), clock=clock) for _ in range(3)) / pairs.count
    decoding = min(seconds(lambda: [results.load(pair) for pair in results.pairs()], clock=clock) for _ in range(3))
    decoding /= pairs.count
    each = whole - decoding
    more = {"ms_per_pair": each * 1e3, "ms_decoding": decoding * 1e3, "pairs": pairs.count}
    return report("evaluate/pixels", each / 0.05, 1.0, **more)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved repetitions; the median ratio counts")
    parser.add_argument("--images", type=int, default=MANY, help="images of the measurement of memory; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu counts this process alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pairs = make_pictures(root / "pictures", options.pairs, options.pairs)
        held.append(without_network(pairs, options.clock))
        if options.images:
            command = [sys.executable, "-c", _CHILD, str(root / "memory"), str(options.images)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            held.append(report("evaluate/memory", found["many"] / found["few"], GROWTH, **found))
        metrics = make_networks(root / "networks", tiny=False)
        timed = interleaved(
            lambda: list(measuring(pairs, metrics).rows()),
            Bare(pairs, root / "networks"),
            max(2, options.rounds),
            clock=options.clock,
        )
        held.append(report("evaluate/networks", timed.pop("ratio"), 1.2, pairs=options.pairs, **timed))
    return finish(held)


if __name__ == "__main__":
    sys.exit(main())
