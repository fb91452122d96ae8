"""Run folders made by hand: records, pictures and statistics as a run leaves them, with whatever names are wanted."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from framework.run.files import bytes_digest, json_document, json_line
from framework.run.names import folder_name
from framework.statistics.histogram import NOISE_EDGES, Histogram
from framework.statistics.moments import Moments

HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"
"""An id, prompt or reason that would take over a page that believes it."""

STEPS = 6


def picture(seed: int, side: int = 48) -> bytes:
    """A png of a plain colour with a square of another one."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(30, 226, (2, 3))
    levels = np.broadcast_to(colours[0], (side, side, 3)).astype(np.uint8)
    levels[side // 4 : side // 2, side // 4 : side // 2] = colours[1]
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def noise_tensors(seed: int) -> dict[str, torch.Tensor]:
    """What NoiseStatistics commits for one sample: [1, T, 256] normal values of variance 4."""
    values = 2 * torch.randn(STEPS, 256, generator=torch.Generator().manual_seed(seed))
    return {
        "NoiseStatistics.moments": Moments.of(values).to_tensor(),
        "NoiseStatistics.histogram": Histogram.of(values, NOISE_EDGES).counts,
        "NoiseStatistics.t": torch.linspace(900, 0, STEPS, dtype=torch.float64),
    }


class World:
    """Writes one run folder, sample by sample.

    Args:
        directory: The run folder.
        ids: Ids of all samples.
        method: What `meta.json` says.
        noise: Whether samples carry noise statistics.
    """

    def __init__(self, directory: Path, ids: Sequence[str], *, method: str = "Toy", noise: bool = False) -> None:
        self.directory, self.ids, self.method, self.noise = directory, list(ids), method, noise
        (directory / "records").mkdir(parents=True)
        (directory / "config.yaml").write_text("seed: 0\nmethod: {_target_: toy.Method}\n")
        locked = [self._locked(name) for name in ids]
        (directory / "manifest.lock.jsonl").write_bytes(b"".join(map(json_line, locked)))
        figures = {"Distance": {"far": {"better": "lower", "unit": "px", "scale": 1.0}}}
        measures = {"Metrics": {"figures": {"Toy": {"toy_psnr": {"better": "higher", "unit": "dB"}}, **figures}}}
        self.note({"kind": "start", "time": 1.0, "host": "here", "environment": {"torch": "2"}, "measures": measures})

    @property
    def journal(self) -> Path:
        return self.directory / "records" / "rank-0.jsonl"

    def folder(self, name: str) -> Path:
        return self.directory / "samples" / folder_name(name)

    def note(self, line: Mapping[str, Any]) -> None:
        with self.journal.open("ab") as file:
            file.write(json_line(line))

    def finish(
        self,
        name: str,
        *,
        psnr: float | None = 20.0,
        far: float | None = 1.0,
        prompts: tuple[str, str] = ("a red square", "a blue square"),
        pictures: Mapping[str, bytes] | None = None,
        notes: Sequence[str] = (),
        kind: str | None = "1",
        warm_up: bool = False,
        seconds: float = 2.0,
    ) -> None:
        """Commit a sample."""
        seed = self.ids.index(name)
        files = {"source.png": picture(seed), "reconstruction.png": picture(seed), "edit.png": picture(seed + 100)}
        files |= dict(pictures or {})
        measurements: dict[str, Any] = {
            "Metrics": {"rows": {"edit": {"Toy": {"toy_psnr": psnr}, "Distance": {"far": far}}}}
        }
        if self.noise:
            files["statistics.safetensors"] = save(noise_tensors(seed))
            measurements["NoiseStatistics"] = {"of": "noise maps", "excluded": {}, "draws": 1, "not_finite": []}
        files["meta.json"] = json_document(
            {
                "id": name,
                "method": self.method,
                "seed": 7,
                "prompts": {"source": prompts[0], "target": prompts[1], "negative": ""},
                "instruction": None,
                "edit_type": kind,
                "frame": {"original": [48, 48], "box": [0, 0, 48, 48], "network": [48, 48]},
                "notes": list(notes),
                "evaluations": {"inversion": {"samples": 50}, "total": {"samples": 150}},
                "measurements": measurements,
            }
        )
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        entries = {file: {"size": len(data), "sha256": bytes_digest(data)} for file, data in files.items()}
        details = {
            "time": time.time(),
            "seconds": seconds,
            "peak_memory": 2**30,
            "timings": {"warm_up": float(warm_up)},
        }
        self._entry(name, "done", entries, None, details)

    def fail(self, name: str, reason: str) -> None:
        """Note that a sample failed."""
        self._entry(name, "failed", {}, reason, {"time": time.time()})

    def figure(self, name: str) -> None:
        """Leave a drawn figure, as a callback does when a run ends."""
        (self.directory / "statistics").mkdir(exist_ok=True)
        (self.directory / "statistics" / name).write_bytes(picture(5))

    def table(self, name: str, table: Mapping[str, Any]) -> None:
        """Leave a summary, as a callback does when a run ends."""
        (self.directory / "statistics").mkdir(exist_ok=True)
        (self.directory / "statistics" / f"{name}.json").write_text(json.dumps(table))

    def _locked(self, name: str) -> dict[str, str]:
        return {"id": name, "folder": folder_name(name), "content": f"content of {name}", "key": f"key of {name}"}

    def _entry(self, name: str, status: str, files: Any, reason: str | None, details: Any) -> None:
        line = {"kind": "sample", "id": name, "key": f"key of {name}", "status": status}
        self.note(line | {"folder": folder_name(name), "files": files, "reason": reason, "details": details})


def sweep(root: Path, methods: Sequence[str] = ("first", "second"), count: int = 4) -> dict[str, World]:
    """Write the finished runs of a small sweep: sample s0 is the best by `toy_psnr`, the last the worst."""
    ids = [f"s{index}" for index in range(count)]
    worlds = {}
    for number, method in enumerate(methods):
        world = worlds[method] = World(root / method, ids, method=method.title(), noise=True)
        for index, name in enumerate(ids):
            kind = "1" if index % 2 == 0 else "2"
            world.finish(name, psnr=30.0 - 3 * index - number, far=float(index), kind=kind)
    return worlds


def document_of(page: Path) -> Any:
    """Read the document back out of a page."""
    text = page.read_text("utf-8")
    start = text.index('id="document">') + len('id="document">')
    return json.loads(text[start : text.index("</script>", start)])
