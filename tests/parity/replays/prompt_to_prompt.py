"""Prompt-to-Prompt: token mappers alone, and edits that start from given noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.context import Texts
from framework.control import Control
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.step import COND, Stream
from methods.control_rows import row_pairs
from methods.local_blend import LocalBlend
from methods.masactrl import Masks, MutualSelfAttention
from methods.prompt_to_prompt import PromptToPrompt
from methods.sega import PureNoise
from methods.token_alignment import refinement_mapper, replacement_mapper, word_positions, word_windows
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, rows, tiny_sd


class FromNoise(PureNoise):
    """Source and target row from one noise: the authors' generation, in which the source is an image of its own."""

    has_source = True


MUTUAL_VARIANTS: dict[str, Masks] = {"plain": "none", "mask": "given", "mask_auto": "auto"}


@dataclass(frozen=True)
class RecordedBlend(LocalBlend):
    """Keeps every mask, in the order in which the authors compute them."""

    masks: list[Tensor] = field(default_factory=list, compare=False)

    def region(self, maps: Tensor, threshold: float, latent: Tensor, *, pool: bool) -> Tensor:
        region = super().region(maps, threshold, latent, pool=pool)
        self.masks.append(region)
        return region


@dataclass(frozen=True)
class ReadMaps(Control):
    """Sums the edited cross-attention maps of 16 x 16 positions of source and target."""

    maps: list[Tensor] = field(default_factory=list, compare=False)

    def sites(self, sites: Any) -> Any:
        return [site for site in sites if site.kind == "cross" and site.scale == 4 and site.place != "mid"]

    def attention(self, site: Any, rows: Any, q: Any, k: Any, v: Any, attend: Any, i: int, state: Any) -> Any:
        every = torch.eye(v.shape[2], dtype=v.dtype).expand(*v.shape[:2], -1, -1)
        wide = attend(q, k, torch.cat([v, every], -1))
        ((target, source),) = row_pairs(rows, (COND,))
        maps = wide[..., v.shape[-1] :].mean(1)
        self.maps.append(torch.cat([maps[source][:1], maps[target]]))
        return wide[..., : v.shape[-1]]


def prompt_controls(settings: Mapping[str, Any]) -> tuple[list[LocalBlend], PromptToPrompt]:
    """Build the controls that `settings.control` describes; the local blend, if there is one, comes first."""
    control = settings["control"]
    kind = control["kind"]
    if kind not in ("replace", "refine", "reweight", "replace+reweight", "refine+reweight"):
        raise NotImplementedError(f"control of kind {kind}")
    weights = control.get("equalizer") or {"words": [], "values": []}
    edit = PromptToPrompt(
        edit=kind.split("+")[0],
        cross=control["cross_replace_steps"],
        self_attention=control["self_replace_steps"],
        equalizer=dict(zip(weights["words"], weights["values"], strict=True)),
        self_max_positions=control.get("self_replace_max_tokens", 1024),
    )
    blend = control.get("local_blend")
    if not blend:
        return [], edit
    threshold, exclude_threshold = blend.get("th", [0.3, 0.3])
    return [
        RecordedBlend(blend["words"], blend["substruct_words"], threshold, exclude_threshold, blend["start_blend"])
    ], edit


def optional_controls(settings: Mapping[str, Any]) -> list[Control]:
    """Build the controls of a case that may have none, of whatever kind."""
    control = settings.get("control")
    if not control:
        return []
    if control["kind"] == "masactrl":
        return [mutual_control(control)]
    blends, edit = prompt_controls(settings)
    return [*blends, edit]


def mutual_control(wanted: Mapping[str, Any], **masks: Tensor) -> MutualSelfAttention:
    """Build MasaCtrl's control; given masks are handed over as tensors."""
    return MutualSelfAttention(
        start_step=wanted.get("start_step", 4),
        start_layer=wanted.get("start_layer", 10),
        step_list=wanted.get("step_idx"),
        layer_list=wanted.get("layer_idx"),
        masks=MUTUAL_VARIANTS[wanted.get("variant", "plain")],
        source_words=wanted.get("ref_token_idx", [1]),
        target_words=wanted.get("cur_token_idx", [1]),
        threshold=wanted.get("thres", 0.1),
        **masks,
    )


def with_prompts(run: LatentRun, source: str, targets: Sequence[str]) -> None:
    """Tell a run its prompts and their tokens."""
    count = len(targets)
    run.ctx = replace(
        run.ctx, texts=Texts((source,) * count, tuple(targets), ("",) * count), tokens=run.module.backbone.tokens
    )


def replay_prompt_to_prompt(case: Case, models: Path) -> dict[str, Any]:
    return _token_maps(case, models) if case.settings["task"] == "token_maps" else _edit(case, models)


def _edit(case: Case, models: Path) -> dict[str, Any]:
    settings, scale = case.settings, float(case.settings["guidance_scale"])
    blends, edit = prompt_controls(settings)
    readers = [ReadMaps()] if "out.cross16_sum_over_steps" in case.expected else []
    targets = case.prompts["target"]
    count, steps = len(targets), int(settings["num_steps"])
    module = EditModule(
        tiny_sd(models),
        steps=steps,
        inversion=FromNoise(0, 0.0),
        guidance=ClassifierFree(target=scale, source=scale),
        controls=[*readers, *blends, edit],
    )
    module.edit_schedule = case_schedule(case)
    emb = case.input("in.emb_prompts")
    uncond, start = case.input("in.emb_uncond").expand(count, -1, -1), case.input("in.x_T").expand(count, -1, -1, -1)
    run = LatentRun(module, rows(emb[:1].expand(count, -1, -1), emb[1:], uncond), {"start": start[None]})
    with_prompts(run, case.prompts["source"], targets)
    run.denoise(run.invert(start))
    trajectory = torch.cat([run.seen.trajectory(Stream.SOURCE)[:, :1], run.seen.trajectory(Stream.TARGET)], 1)
    maps = edit.word_maps(run.ctx)
    results: dict[str, Any] = {
        "out.traj": trajectory,
        "out.traj_first_last": trajectory[[0, -1]],
        "out.cross_replace_alpha": maps.windows.transpose(0, 1)[:, :, None, None],
        "out.mapper": maps.mapper,
        "out.equalizer": maps.equalizer,
    }
    if edit.edit == "refine":
        tokens = module.backbone.tokens
        refined = [refinement_mapper(case.prompts["source"], text, tokens, emb.shape[1]) for text in targets]
        results["out.mapper"] = torch.tensor([position for position, _ in refined])
        results["out.refine_alphas"] = torch.tensor([aligned for _, aligned in refined])[:, None, None]
    for blend in blends:
        words = blend.begin(run.ctx, module.backbone.sites(), (1, 1)).words
        layers = torch.cat([words[:1, 0], words[:, 1]])
        results["out.lb_alpha_layers"] = layers[..., 0]
        results["out.lb_substruct_layers"] = layers[..., -1]
        assert isinstance(blend, RecordedBlend)
        results["out.lb_masks"] = torch.stack([torch.cat([m[:1, 0], m[:, 1]]) for m in blend.masks])
    for reader in readers:
        wanted = case.expected["out.cross16_sum_over_steps"]["shape"]
        maps_read = torch.stack(reader.maps).mean(0)[..., : wanted[-1]]
        results["out.cross16_sum_over_steps"] = maps_read.unflatten(1, (16, 16))
    return results


def _token_maps(case: Case, models: Path) -> dict[str, Any]:
    tokens, length = tiny_sd(models).tokens, int(case.settings["max_len"])
    results: dict[str, Any] = {}
    for pair in case.value("in.pairs"):
        texts = (pair["source"], pair["target"])
        for text, name in zip(texts, ("source_ids", "target_ids"), strict=True):
            assert [token.id for token in tokens(text)] == pair[name][1:-1]
        if pair["kind"] == "replace":
            results[f"out.{pair['id']}_mapper"] = replacement_mapper(*texts, tokens, length)[None].float()
            continue
        position, aligned = refinement_mapper(*texts, tokens, length)
        results[f"out.{pair['id']}_mapper"] = torch.tensor([position])
        results[f"out.{pair['id']}_alphas"] = torch.tensor([aligned])
    for window in case.value("in.windows"):
        alphas = [
            word_windows(text, window["cross_replace_steps"], window["num_steps"], tokens(text), length, strict=False)
            for text in window["prompts"][1:]
        ]
        results[f"out.{window['id']}"] = torch.stack(alphas, 1)[:, :, None, None]
    queries = case.value("in.word_queries")
    results["out.word_indices"] = [word_positions(q["text"], q["word"], tokens(q["text"])) for q in queries]
    return results
