"""`invedit stats` over many saved inversions: memory that does not grow with their number, and seconds per image.

`python -m benchmarks.statistics [--images 1000]` makes a run of inversions of 50 x 4 x 64 x 64 (20 different ones,
under as many names as asked for) and measures it in a process of its own: at most 1 GiB resident.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import finish, report

STEPS, SHAPE, DIFFERENT = 50, (4, 64, 64), 20
_CHILD = """
import resource, sys, torch
from framework.cli import main
torch.set_num_threads(int(sys.argv[2]))
code = main(["stats", "--no-plots", sys.argv[1]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, options.images)
        started = time.perf_counter()
        command = [sys.executable, "-c", _CHILD, str(run), str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
        mib = int(done.stdout.split()[-1]) / 1024
        found = json.loads((run / "statistics" / "stats.json").read_text())["runs"][0]
        whole = max(found["images"], 1) / options.images
    held = [
        report("stats/memory", mib / 1024, 1.0, images=options.images, mib=mib),
        report("stats/images", 1 / whole, 1.0, measured=found["images"]),
        report("stats/seconds_per_image", seconds / options.images, None, seconds=seconds),
    ]
    return finish(held)


def make_run(directory: Path, images: int) -> None:
    """Commit inversions as a run does; the large files of one content are one file on the disk."""
    from safetensors.torch import save

    from framework.record import Record
    from framework.run.files import bytes_digest, json_document
    from framework.run.identity import Identity
    from framework.run.journal import FileEntry, SampleEntry
    from framework.run.store import RunStore, lock_samples

    names = [f"image-{number:05d}" for number in range(images)]
    identity = Identity({}, {"weights": "none"}, {})
    samples = lock_samples([(name, name) for name in names], identity)
    store = RunStore(directory)
    store.prepare(identity, samples, "")
    t = torch.linspace(1000, 0, STEPS + 1, dtype=torch.float64)
    alpha = 1 - t / 1001
    made: list[tuple[Path, Path, FileEntry, FileEntry]] = []
    for number, sample in enumerate(samples):
        folder = store.samples / sample.folder
        folder.mkdir(parents=True)
        if number < DIFFERENT:
            generator = torch.Generator().manual_seed(number)
            maps = torch.randn(STEPS, 1, *SHAPE, generator=generator)
            z0 = torch.randn(1, *SHAPE, generator=generator)
            latents = torch.cat([maps, z0[None]])
            sigma = (1 - alpha**2).sqrt()
            record = Record("Made", "epsilon", z0, t, alpha, sigma, latents=latents, noise_maps=maps)
            contents = save(record.tensors()), json_document(record.describe())
            paths = folder / "inversion.safetensors", folder / "inversion.json"
            for path, content in zip(paths, contents, strict=True):
                path.write_bytes(content)
            made.append((*paths, *(FileEntry(len(content), bytes_digest(content)) for content in contents)))
        tensors, about, *entries = made[number % DIFFERENT]
        if number >= DIFFERENT:
            os.link(tensors, folder / tensors.name)
            os.link(about, folder / about.name)
        meta = json_document({"id": sample.id})
        (folder / "meta.json").write_bytes(meta)
        files = {
            tensors.name: entries[0],
            about.name: entries[1],
            "meta.json": FileEntry(len(meta), bytes_digest(meta)),
        }
        store.journal.append(SampleEntry(sample.id, sample.key, "done", sample.folder, files))


if __name__ == "__main__":
    sys.exit(main())
