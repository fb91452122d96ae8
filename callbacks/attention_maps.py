"""Where the words of a prompt look: cross-attention maps per word, step by step and averaged."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from callbacks._committed import measured, write_summary
from callbacks._pictures import heat_over, labelled, log_thumbnails, strip
from framework.callback import EditCallback, FinishedRun, Measurement
from framework.context import Context
from framework.control import Attend, Control
from framework.data.sample import EditBatch
from framework.errors import Checks
from framework.step import COND, Rows, Site, Stream, Token

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from framework.module import EditModule
    from framework.result import EditResult

STREAMS = (Stream.SOURCE, Stream.TARGET)
_WORD = r"\w[\w'-]*"
_COLUMNS = 8
"""Columns of indicators come in multiples of this, which fused kernels want."""


@dataclass
class Maps:
    """Maps of one edit.

    Attributes:
        words: Per stream and image, the words that are followed.
        indicators: Per stream, [B, L, K] of 0 and 1, positions of each word; K a multiple of 8.
        latent: Rows and columns of the latents.
        sums: (interval, stream) -> [B, K, rows, columns], sum over layers and calls of the maps, mean over heads.
        counts: (interval, stream) -> how many were added per image, by first image of a call.
    """

    words: dict[Stream, list[list[str]]]
    indicators: dict[Stream, Tensor]
    latent: tuple[int, int]
    sums: dict[tuple[int, Stream], Tensor] = field(default_factory=dict)
    counts: dict[tuple[int, Stream], dict[int, int]] = field(default_factory=dict)

    def add(self, i: int, stream: Stream, first: int, maps: Tensor) -> None:
        """Add the maps [images, K, rows, columns] of the images from `first` on."""
        images = self.indicators[stream].shape[0]
        key = (i, stream)
        if key not in self.sums:
            self.sums[key] = maps.new_zeros(images, *maps.shape[1:])
            self.counts[key] = {}
        self.sums[key][first : first + maps.shape[0]] += maps
        self.counts[key][first] = self.counts[key].get(first, 0) + 1

    def steps(self, stream: Stream) -> Tensor | None:
        """Return the mean maps of every step, [steps, B, K, rows, columns] float32 on the CPU; None without a row."""
        keys = sorted((key for key in self.sums if key[1] is stream), key=lambda key: key[0])
        if not keys:
            return None
        # Every part of a split call reads the same layers.
        return torch.stack([self.sums[key] / next(iter(self.counts[key].values())) for key in keys]).float().cpu()


class MapReader(Control):
    """Reads maps as all other controls leave them, by attending to indicators of words; changes nothing.

    At joint attention the map is the picture's queries against the text's keys, a part of one softmax over both, as the
    network forms it: controls there may exchange values, which indicators are not.

    Args:
        words: Words to follow; None for all of a prompt.
        most_words: Most words per prompt.
        scale: Layers whose maps are this many times smaller than the latents, per side; None for the finest.
    """

    def __init__(self, words: Sequence[str] | None, most_words: int, scale: int | None) -> None:
        self.words = words
        self.most_words = most_words
        self.scale = scale
        self.maps: Maps | None = None

    @property
    def outermost(self) -> bool:
        """Whether it stands around other controls: always."""
        return True

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> Maps:
        """Find the words of every image among its tokens."""
        length = max((c.text.shape[1] for c in ctx.conditions.values() if c.text is not None), default=0)
        words: dict[Stream, list[list[str]]] = {}
        indicators: dict[Stream, Tensor] = {}
        for stream, prompts in zip(STREAMS, (ctx.texts.source, ctx.texts.target), strict=True):
            found = [self._positions(prompt, ctx.tokens(prompt), length) for prompt in prompts]
            width = -(-max((len(one) for one in found), default=0) // _COLUMNS) * _COLUMNS
            marks = torch.zeros(len(prompts), length, width)
            for b, one in enumerate(found):
                for column, positions in enumerate(one.values()):
                    marks[b, positions, column] = 1
            words[stream], indicators[stream] = [list(one) for one in found], marks
        self.maps = Maps(words, indicators, latent)
        return self.maps

    def _positions(self, prompt: str, tokens: Sequence[Token], length: int) -> dict[str, list[int]]:
        """Text positions that the encoder sees of every followed word, in the order of the prompt."""
        found: dict[str, list[int]] = {}
        for match in re.finditer(_WORD, prompt):
            word = match[0].lower()
            if self.words is not None and word not in [wanted.lower() for wanted in self.words]:
                continue
            ours = [n for n, token in enumerate(tokens, 1) if token.start < match.end() and match.start() < token.end]
            ours = [position for position in ours if position < length - 1]
            if ours and (word in found or len(found) < self.most_words):
                found[word] = found.get(word, []) + ours
        return found

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Read attention to the text, of one scale."""
        cross = [site for site in sites if site.kind in ("cross", "joint")]
        scale = min((site.scale for site in cross), default=1) if self.scale is None else self.scale
        return [site for site in cross if site.scale == scale]

    def attention(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, i: int, state: Any
    ) -> Tensor:
        """Attend as without it, and a second time to indicators of words."""
        now: Maps = state
        self._read(site, rows, q, k, attend, i, now)
        return attend(q, k, v)

    def _read(self, site: Site, rows: Rows, q: Tensor, k: Tensor, attend: Attend, i: int, now: Maps) -> None:
        blocks = {stream: rows.of(stream, COND) for stream in STREAMS}
        width = max(now.indicators[stream].shape[-1] for stream in STREAMS)
        if not width or not any(blocks.values()):
            return
        columns = k.new_zeros(k.shape[0], k.shape[2], width)
        text = columns[:, site.text_part] if site.kind == "joint" else columns
        for stream, block in blocks.items():
            if block is not None:
                now.indicators[stream] = now.indicators[stream].to(k)
                count = block.stop - block.start
                marks = now.indicators[stream][rows.first_image : rows.first_image + count]
                text[block, :, : marks.shape[-1]] = marks
        wide = columns[:, None].expand(-1, k.shape[1], -1, -1)
        if site.kind == "joint":
            read = scaled_dot_product_attention(q[:, :, site.image_part], k, wide)
        else:
            read = attend(q, k, wide)
        read = read.to(torch.promote_types(read.dtype, torch.float32)).mean(1).transpose(1, 2)
        for stream, block in blocks.items():
            if block is not None:
                now.add(i, stream, rows.first_image, read[block].unflatten(-1, site.size(now.latent)))


class AttentionMaps(EditCallback):
    """Follows the attention to words while denoising, with any method and any control, and changes no bit.

    Kept in `statistics.safetensors`: `source` and `target` [words, rows, columns], means over heads, layers and steps
    of the maps of the words that `values` lists, and `source_steps`, `target_steps` [steps, words, rows, columns] in
    float16. `attention.png` shows the averages over the pictures; `attention-<word>.png` a word's steps, noisy to
    clean. Where a sample has a mask, `inside_over_outside` is the mean of every word's averaged map inside the mask
    over that outside it; the run's summary has the median for changed words, those that the other prompt lacks.

    Args:
        words: Words to follow, in any case; None for all words of the prompts.
        most_words: Most words per prompt.
        scale: Layers whose maps are this many times smaller than the latents, per side; None for the finest.
        per_step: Keep every step's maps, and show `preview_steps` of them.
        preview_steps: Steps shown per word, evenly spread.
        tile: Shorter side of the shown pictures in pixels.
        budget: Samples that are shown in TensorBoard, the first ones in the order of ids.
        thumbnail: Most rows of a picture in TensorBoard, in pixels.
    """

    def __init__(
        self,
        *,
        words: Sequence[str] | None = None,
        most_words: int = 12,
        scale: int | None = None,
        per_step: bool = True,
        preview_steps: int = 6,
        tile: int = 96,
        budget: int = 16,
        thumbnail: int = 256,
    ) -> None:
        checks = Checks("AttentionMaps")
        checks.require(
            words is None or (not isinstance(words, str) and len(words) > 0),
            f"words={words!r} is no list of words; give one, or none for all.",
        )
        checks.between("most_words", most_words, 1, 64)
        if scale is not None:
            checks.one_of("scale", scale, (1, 2, 4, 8, 16, 32))
        checks.between("preview_steps", preview_steps, 1, 100)
        checks.between("tile", tile, 16, 1024)
        checks.between("budget", budget, 0, 1000)
        checks.between("thumbnail", thumbnail, 16, 1024)
        checks.done()
        self.per_step = per_step
        self.preview_steps = preview_steps
        self.tile = tile
        self.budget = budget
        self.thumbnail = thumbnail
        self._reader = MapReader(words, most_words, scale)

    def controls(self) -> Sequence[Control]:
        return (self._reader,)

    def on_edit_start(self, trainer: Trainer | None, module: EditModule, batch: EditBatch) -> None:
        self._reader.maps = None

    def on_edit_failed(self, trainer: Trainer | None, module: EditModule, batch: EditBatch, reason: str) -> None:
        self._reader.maps = None

    def on_edit_end(
        self, trainer: Trainer | None, module: EditModule, batch: EditBatch, result: EditResult
    ) -> Sequence[Measurement]:
        maps, self._reader.maps = self._reader.maps, None
        assert maps is not None
        steps = {stream: maps.steps(stream) for stream in STREAMS}
        return [
            Measurement() if index in result.failures else self._measure(result, index, maps, steps)
            for index in range(len(result.samples))
        ]

    def _measure(self, result: EditResult, index: int, maps: Maps, steps: dict[Stream, Tensor | None]) -> Measurement:
        row, sample = index * result.draws, result.samples[index]
        shown = {Stream.SOURCE: result.source[index].cpu(), Stream.TARGET: result.edits[index][0].cpu()}
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"words": {}, "inside_over_outside": {}, "changed": {}}
        others = {Stream.SOURCE: words_of(sample.target), Stream.TARGET: words_of(sample.source)}
        tiles: dict[Stream, list[Tensor]] = {}
        per_word: dict[str, list[Tensor]] = {}
        for stream, every in steps.items():
            words = maps.words[stream][row]
            if every is None or not words:
                continue
            own = every[:, row, : len(words)]
            mean, name = own.mean(0), stream.value
            tensors[name], values["words"][name] = mean.contiguous(), words
            if self.per_step:
                tensors[f"{name}_steps"] = own.half()
            if result.masks is not None:
                mask = result.masks[index, 0].cpu()
                values["inside_over_outside"][name] = {
                    word: inside_over_outside(one, mask) for word, one in zip(words, mean, strict=True)
                }
                values["changed"][name] = [word for word in words if word not in others[stream]]
            tiles[stream] = [
                labelled(heat_over(shown[stream], one, self.tile), said) for one, said in zip(mean, words, strict=True)
            ]
            chosen = torch.linspace(0, len(own) - 1, min(self.preview_steps, len(own))).round().long()
            for column, said in enumerate(words if self.per_step else ()):
                for step in chosen.tolist():
                    tile = heat_over(shown[stream], own[step, column], self.tile)
                    per_word.setdefault(said, []).append(labelled(tile, f"{name} {step + 1}"))
        pictures = {f"attention-{word}": strip(row_of_tiles) for word, row_of_tiles in per_word.items()}
        if tiles:
            pictures["attention"] = _stacked([strip(row_of_tiles) for row_of_tiles in tiles.values()])
        return Measurement(tensors, values, pictures)

    def on_run_end(self, run: FinishedRun) -> None:
        ratios: dict[str, list[float]] = {}
        for _, values in measured(run, self.name):
            for name, found in values.get("inside_over_outside", {}).items():
                changed = [found[word] for word in values["changed"][name]]
                ratios.setdefault(name, []).extend(ratio for ratio in changed if ratio is not None)
        summary = {
            name: {"words": len(found), "median": statistics.median(found), "above_1": sum(r > 1 for r in found)}
            for name, found in ratios.items()
            if found
        }
        write_summary(run, self.name, {"inside_over_outside": summary}, {})
        if run.writer is not None:
            for name, found in summary.items():
                run.writer.add_scalar(f"3_attention/inside_over_outside_{name}", found["median"], 0)
        log_thumbnails(run, self.name, "attention", "4_edits/attention", budget=self.budget, height=self.thumbnail)


def inside_over_outside(weights: Tensor, mask: Tensor) -> float | None:
    """Mean of a map [rows, columns] inside a mask [H, W] over that outside; None where a side is empty.

    Cells of the map that the mask covers in part count on both sides by their share.
    """
    share = F.interpolate(mask[None, None].float(), size=weights.shape[-2:], mode="area")[0, 0].double()
    inside, outside = share.sum(), (1 - share).sum()
    if not inside or not outside:
        return None
    within, without = (weights.double() * share).sum() / inside, (weights.double() * (1 - share)).sum() / outside
    return float(within / without) if without > 0 else None


def words_of(prompt: str) -> list[str]:
    """List the words of a prompt without punctuation, in small letters."""
    return [match[0].lower() for match in re.finditer(_WORD, prompt)]


def _stacked(strips: Sequence[Tensor]) -> Tensor:
    """Put strips [H, W, 3] below each other on white."""
    width = max(one.shape[1] for one in strips)
    return torch.cat([F.pad(one, (0, 0, 0, width - one.shape[1], 0, 4), value=255) for one in strips])[:-4]
