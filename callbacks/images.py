"""What an edit looks like: source, reconstruction, edits and differences side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from callbacks._pictures import log_thumbnails, strip
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.data.sample import EditBatch
from framework.errors import Checks

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult


class Images(EditCallback):
    """Writes `strip.png` for every sample: source, reconstruction, edits, and how far each is from the source.

    The reconstruction is left out where the source is not walked back. Differences are absolute, per colour: black
    where nothing changed.

    Args:
        gain: Differences are multiplied by this before they are shown.
        most_draws: Most draws of an image that are shown.
        budget: Samples whose strip is shown in TensorBoard, the first ones in the order of ids.
        thumbnail: Most rows of a picture in TensorBoard, in pixels.
    """

    def __init__(self, *, gain: float = 1.0, most_draws: int = 4, budget: int = 16, thumbnail: int = 128) -> None:
        checks = Checks("Images")
        checks.between("gain", gain, 0, 1000)
        checks.between("most_draws", most_draws, 1, float("inf"))
        checks.between("budget", budget, 0, 1000)
        checks.between("thumbnail", thumbnail, 16, 1024)
        checks.done()
        self.gain = gain
        self.most_draws = most_draws
        self.budget = budget
        self.thumbnail = thumbnail

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        return [self._measure(result, index) for index in range(len(result.samples))]

    def _measure(self, result: EditResult, index: int) -> Measurement:
        if index in result.failures:
            return Measurement()
        source = result.source[index]
        tiles: list[tuple[str, Tensor]] = [("source", source)]
        changed: list[tuple[str, Tensor]] = []
        reconstruction = result.reconstructions[index]
        if reconstruction is not None:
            tiles.append(("reconstruction", reconstruction))
            changed.append(("reconstruction", reconstruction))
        edits = result.edits[index][: self.most_draws]
        names = ["edit"] if len(result.edits[index]) == 1 else [f"edit {k}" for k in range(len(edits))]
        tiles += zip(names, edits, strict=True)
        changed += zip(names, edits, strict=True)
        tiles += [
            (f"difference of {name}", (picture - source.to(picture.device)).abs() * self.gain)
            for name, picture in changed
        ]
        device = edits[0].device
        picture = strip([tile.to(device) for _, tile in tiles])
        return Measurement(values={"strip": [name for name, _ in tiles]}, pictures={"strip": picture})

    def on_run_end(self, run: FinishedRun) -> None:
        log_thumbnails(run, self.name, "strip", "4_edits", budget=self.budget, height=self.thumbnail)
