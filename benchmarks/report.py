"""How long the report of many results takes: `python -m benchmarks.report`, one json line.

Makes run folders of random pictures with the records that a run leaves, writes the report once with all thumbnails to
be made, and once more as `invedit report` does while a run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from framework.report.page import write_report
from framework.run.files import bytes_digest, json_document, json_line


def make_runs(root: Path, *, samples: int, methods: int, side: int) -> None:
    """Write run folders below `root`: smooth random pictures, so that files are as large as photographs'."""
    generator = np.random.default_rng(0)
    sources = [_picture(generator, side) for _ in range(min(samples, 24))]
    for method in range(methods):
        directory = root / f"method-{method}"
        (directory / "records").mkdir(parents=True)
        manifest, journal = [], []
        for number in range(samples):
            name = f"{number:012d}"
            files = {
                "source.png": sources[number % len(sources)],
                "reconstruction.png": sources[(number + 1) % len(sources)],
                # Every edit is a file of its own: bytes after the end of a png are not read.
                "edit.png": sources[(number + method) % len(sources)] + f"{method}/{number}".encode(),
                "meta.json": json_document(_meta(name, number, generator)),
            }
            folder = directory / "samples" / name
            folder.mkdir(parents=True)
            for file, content in files.items():
                (folder / file).write_bytes(content)
            entries = {file: {"size": len(data), "sha256": bytes_digest(data)} for file, data in files.items()}
            manifest.append({"id": name, "folder": name, "content": f"content-{number}", "key": f"key-{name}"})
            entry = {"kind": "sample", "id": name, "key": f"key-{name}", "status": "done", "folder": name}
            journal.append(entry | {"files": entries, "reason": None, "details": {"time": number, "seconds": 2.0}})
        (directory / "config.yaml").write_text("seed: 0\n")
        (directory / "manifest.lock.jsonl").write_bytes(b"".join(map(json_line, manifest)))
        (directory / "records" / "rank-0.jsonl").write_bytes(b"".join(map(json_line, journal)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=700)
    parser.add_argument("--methods", type=int, default=5)
    parser.add_argument("--side", type=int, default=512, help="rows and columns of a picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        root = Path(folder)
        make_runs(root, samples=options.samples, methods=options.methods, side=options.side)
        seconds = []
        for _ in range(2):
            started, used = time.perf_counter(), time.process_time()
            page = write_report([root])
            seconds.append((time.perf_counter() - started, time.process_time() - used))
        thumbnails = [path.stat().st_size for path in (root / "report_files").iterdir()]
        result = {
            "benchmark": "report",
            "results": options.samples * options.methods,
            "side": options.side,
            "seconds": round(seconds[0][0], 2),
            "processor_seconds": round(seconds[0][1], 2),
            "seconds_again": round(seconds[1][0], 2),
            "page_mib": round(page.stat().st_size / 2**20, 2),
            "thumbnails": len(thumbnails),
            "thumbnails_mib": round(sum(thumbnails) / 2**20, 1),
            "cpus": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
        }
    print(json.dumps(result))


def _picture(generator: np.random.Generator, side: int) -> bytes:
    from io import BytesIO

    coarse = generator.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (picture + generator.integers(-6, 7, picture.shape)).clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(noisy).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _meta(name: str, number: int, generator: np.random.Generator) -> dict[str, object]:
    psnr, distance = generator.normal(25, 4), abs(generator.normal(0.2, 0.1))
    return {
        "method": "Benchmark",
        "seed": 0,
        "id": name,
        "prompts": {
            "source": f"a photograph of a brown dog number {number} that sits in a green meadow under a cloudy sky",
            "target": f"a photograph of a white cat number {number} that sits in a green meadow under a cloudy sky",
            "negative": "",
        },
        "instruction": "change the dog to a cat",
        "edit_type": str(number % 10),
        "frame": {"original": [512, 512], "box": [0, 0, 512, 512], "network": [512, 512]},
        "notes": [],
        "evaluations": {"inversion": {"samples": 50}, "total": {"samples": 150}},
        "measurements": {"Metrics": {"rows": {"edit": {"Structure": {"psnr": psnr, "distance": distance}}}}},
    }


if __name__ == "__main__":
    main()
