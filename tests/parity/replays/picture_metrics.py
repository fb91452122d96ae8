"""The benchmark's picture metrics, masks and averages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framework.backbones.files import ModelFiles
from framework.data.masks import decode_run_lengths
from framework.data.sample import EditSample, RunLengthMask
from framework.evaluation.metric import Codec, Metric, MetricInput
from framework.evaluation.pictures import LPIPS, PixelMetrics
from framework.evaluation.rows import Collection, MethodRows
from framework.evaluation.similarity import CLIPSimilarity, StructureDistance
from framework.evaluation.table import ALL, make_table
from framework.evaluation.vision import Clip, Dino, self_similarity
from tests.parity.case import Case

ALL_PARTS = ("whole", "unedit", "edit")


def replay_rle(case: Case, models: Path) -> dict[str, Any]:
    del models
    mask = _mask(case)
    inner = mask.copy()
    inner[[0, -1], :] = inner[:, [0, -1]] = False
    return {
        "out.mask_bits": torch.from_numpy(np.packbits(mask)),
        "out.sum": int(mask.sum()),
        "out.sum_without_border": int(inner.sum()),
    }


def replay_pixel(case: Case, models: Path) -> dict[str, Any]:
    item = _item(case)
    lpips = LPIPS(parts=ALL_PARTS, model=str(models / case.models[0]))
    official = PixelMetrics(parts=ALL_PARTS)
    reflected = PixelMetrics(parts=ALL_PARTS, border="reflect")
    region = PixelMetrics(parts=ALL_PARTS, rule="region")
    found = {**_values(official, item), **_values(reflected, item), **_values(region, item), **_values(lpips, item)}
    results: dict[str, Any] = {}
    for ending, kept in (("", ""), ("_unedit_part", "_unedit_region"), ("_edit_part", "_edit_region")):
        for name, own in (("psnr", "psnr"), ("mse", "mse"), ("mse64", "mse"), ("ssim", "ssim")):
            results[f"out.{name}{ending}"] = found[f"{own}{ending}"]
        results[f"out.ssim_full_border{ending}"] = found[f"ssim_reflect{ending}"]
        results[f"out.lpips{ending}"] = found[f"lpips_squeeze{ending}"]
        results[f"out.mse_true_region{ending}"] = found[f"mse{kept}"]
    return results


def replay_features(case: Case, models: Path) -> dict[str, Any]:
    item = _item(case)
    dino_path, clip_path = (str(models / name) for name in case.models)
    results: dict[str, Any] = {}
    for antialias in (False, True):
        official = StructureDistance(parts=ALL_PARTS, model=dino_path, antialias=antialias)
        unit = StructureDistance(parts=ALL_PARTS, model=dino_path, antialias=antialias, input_range=1)
        ending = f"_antialias_{str(antialias).lower()}"
        for metric, name in ((official, ""), (unit, "_unit_range")):
            values = _values(metric, item)
            for figure, part in zip(metric.figures, ("", "_unedit_part", "_edit_part"), strict=True):
                results[f"out.structure_distance{part}{name}{ending}"] = values[figure.name]
    results |= {f"out.{name}": value for name, value in _values(CLIPSimilarity(model=clip_path), item).items()}
    with torch.no_grad():
        dino = Dino(ModelFiles(dino_path))
        similar = self_similarity(dino.keys(dino.pixels(item.source[None] * 255)))[0]
        clip = Clip(ModelFiles(clip_path))
        image = clip.image_features(clip.pixels(item.edit)[None])[0]
        text = clip.text_features([item.sample.target])[0]
    return results | {
        "out.self_sim_corner": similar[:6, :6],
        "out.self_sim_row_mean": similar.mean(1),
        "out.clip_image_features": image,
        "out.clip_text_features": text,
        "out.clip_input_ids": clip.tokens([item.sample.target]).input_ids[0],
        "out.clip_raw_cosine_target_image": float(torch.cosine_similarity(image, text, dim=0)),
    }


def replay_aggregate(case: Case, models: Path) -> dict[str, Any]:
    del models
    rows, scales = case.value("in.rows"), case.settings["scales"]
    method = MethodRows("rows")
    for row in rows:
        method.groups[row["file_id"]] = row["editing_type_id"]
        for name, value in row.items():
            if name not in ("file_id", "editing_type_id"):
                # The benchmark writes "nan" where the mask leaves nothing to measure: there is no value.
                known = None if value == "nan" else float(value)
                method.values.setdefault(("PIE-Bench", name), {})[row["file_id"]] = known
    table = make_table(Collection([method]), resamples=1)

    def folded(group: str) -> dict[str, Any]:
        return {
            name: {"mean": found.mean, "n": found.n, "table": round(found.mean * scales.get(name, 1), 2)}
            for (_, name), found in table.summaries[group]["rows"].items()
        }

    return {"out.overall": folded(ALL), "out.per_type": {group: folded(group) for group in table.groups}}


def _mask(case: Case) -> np.ndarray[Any, Any]:
    rows, columns = case.settings["image_shape"]
    mask = RunLengthMask(tuple(case.settings["rle"]), (rows, columns), case.settings.get("border", True))
    return decode_run_lengths(mask)


def _item(case: Case) -> MetricInput:
    source, edit = (case.tensors[f"in.{name}"].permute(2, 0, 1).float() / 255 for name in ("src", "tgt"))
    mask = _mask(case)
    assert np.array_equal(mask, case.tensors["in.mask"].numpy().astype(bool))
    prompts = case.prompts
    sample = EditSample("case", Path("case"), prompts.get("source", ""), prompts.get("target", ""))
    weight = torch.from_numpy(mask.astype(np.float32))[None]
    return MetricInput(sample, 0, source, edit, None, weight, Codec(None, source[None]))  # type: ignore[arg-type]


def _values(metric: Metric, item: MetricInput) -> dict[str, float]:
    """Figures of one pair; what has no value is the benchmark's "nan"."""
    return {name: math.nan if value is None else value for name, value in metric.measure(item).items()}
