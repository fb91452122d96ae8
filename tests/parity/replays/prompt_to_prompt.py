"""Prompt-to-Prompt: token mappers alone, and edits that start from given noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.context import Context, Texts
from framework.control import Control
from framework.guidance import ClassifierFree
from framework.module import EditModule
from framework.step import COND, Stream
from methods.control_rows import row_pairs
from methods.local_blend import LocalBlend
from methods.masactrl import Masks, MutualSelfAttention
from methods.prompt_to_prompt import PromptToPrompt, WordMaps
from methods.sega import PureNoise
from methods.token_alignment import refinement_mapper, replacement_mapper, word_positions, word_windows
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows, tiny_sd


class FromNoise(PureNoise):
    """Source and target row from one noise: the authors' generation, in which the source is an image of its own."""

    has_source = True


MUTUAL_VARIANTS: dict[str, Masks] = {"plain": "none", "mask": "given", "mask_auto": "auto"}
_LAYERS = 16
_ALIGNMENT = {"gap": 0, "match": 1, "mismatch": -1}


@dataclass(frozen=True)
class RecordedBlend(LocalBlend):
    """Keeps every mask, in the order in which the authors compute them; words that a prompt lacks are passed over.

    Attributes:
        lists: Words and excluded words, one list per prompt.
        first: Number of the first target that this edit is about.
    """

    lists: tuple[Sequence[Any], Sequence[Any]] = ((), ())
    first: int = 0
    masks: list[Tensor] = field(default_factory=list, compare=False)

    def _indicators(self, ctx: Context, image: int, length: int) -> Tensor:
        kinds = [lists for lists in self.lists if lists]
        words = torch.zeros(2, length, len(kinds))
        for kind, lists in enumerate(kinds):
            rows = ((ctx.texts.source[image], lists[0]), (ctx.texts.target[image], lists[1 + self.first + image]))
            for row, (prompt, entries) in enumerate(rows):
                for word in [entries] if isinstance(entries, str) else entries:
                    words[row, word_positions(prompt, word, ctx.tokens(prompt)), kind] = 1
        return words

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


@dataclass(frozen=True)
class RecordedEdit(PromptToPrompt):
    """Prompt-to-Prompt as the authors run it on several targets.

    Words that a target lacks are passed over, and factors stand where the first target has their words, for all.

    Attributes:
        weighted: Prompt whose words the factors belong to.
        weights: Factors by word; one mapping for all targets, or one per target.
        first: Number of the first target that this edit is about.
    """

    weighted: str = ""
    weights: Sequence[Mapping[str, float]] = ()
    first: int = 0

    def word_maps(self, ctx: Context, images: Sequence[int] | None = None) -> WordMaps:
        maps = replace(self, cross=1.0, weights=()).plain_maps(ctx, images)
        numbers = range(len(ctx.texts.target)) if images is None else images
        texts = [ctx.texts.target[number] for number in numbers]
        steps, length = ctx.schedule.num_steps, maps.mapper.shape[-1]
        windows = [word_windows(text, self.cross, steps, ctx.tokens(text), length, strict=False) for text in texts]
        rows = [self._row(ctx, number, length) for number in numbers]
        return replace(maps, equalizer=torch.stack(rows), windows=torch.stack(windows))

    def plain_maps(self, ctx: Context, images: Sequence[int] | None) -> WordMaps:
        return super().word_maps(ctx, images)

    def _row(self, ctx: Context, number: int, length: int) -> Tensor:
        row = torch.ones(length, dtype=torch.float64)
        if self.weights:
            factors = self.weights[self.first + number if len(self.weights) > 1 else 0]
            for word, factor in factors.items():
                row[word_positions(self.weighted, word, ctx.tokens(self.weighted))] = factor
        return row


def prompt_controls(case: Case, only: int | None = None) -> tuple[list[RecordedBlend], RecordedEdit]:
    """Build the controls that `settings.control` describes, the local blend first; of one target, or of all."""
    control = case.settings["control"]
    kind = control["kind"]
    if kind not in ("replace", "refine", "reweight", "replace+reweight", "refine+reweight"):
        raise NotImplementedError(f"control of kind {kind}")
    targets, first = case.targets, only or 0
    limit = int(control.get("self_replace_max_tokens", 1024))
    edit = RecordedEdit(
        edit=kind.split("+")[0],
        cross=control["cross_replace_steps"],
        self_attention=control["self_replace_steps"] if limit else 0.0,
        self_max_positions=max(limit, 1),
        weighted=targets[0],
        weights=_weights(case, control.get("equalizer")),
        first=first,
    )
    blend = control.get("local_blend")
    if not blend:
        return [], edit
    threshold, exclude_threshold = blend.get("th") or (0.3, 0.3)
    excluded = blend.get("substruct_words")
    blending = RecordedBlend(
        words=(("-",), ("-",)),
        exclude=(("-",), ("-",)) if excluded else None,
        threshold=threshold,
        exclude_threshold=exclude_threshold,
        start=blend.get("start_blend", 0.2),
        lists=(blend["words"], excluded or ()),
        first=first,
    )
    return [blending], edit


def _weights(case: Case, equalizer: Mapping[str, Any] | None) -> Sequence[Mapping[str, float]]:
    """Read the factors: word by word for all targets, or one for all words in each target (the older form)."""
    if not equalizer:
        return ()
    words, values = equalizer["words"], equalizer["values"]
    rows = case.expected.get("out.equalizer", {}).get("shape", [1])[0]
    if rows > 1 or len(words) != len(values):
        return [dict.fromkeys(words, value) for value in values]
    return [dict(zip(words, values, strict=True))]


def optional_controls(case: Case, only: int = 0) -> list[Control]:
    """Build the controls of a case that may have none, of whatever kind, for one of its targets."""
    control = case.settings.get("control")
    if not control:
        return []
    if control["kind"] == "masactrl":
        return mutual_controls(case)
    blends, edit = prompt_controls(case, only)
    return [*blends, edit]


def blend_masks(edits: Sequence[Sequence[Control]]) -> dict[str, Tensor]:
    """Stack the masks that the local blends of one edit per target kept: calls, source and targets."""
    kept = [blend.masks for controls in edits for blend in controls if isinstance(blend, RecordedBlend)]
    if not kept:
        return {}
    calls = [torch.cat([masks[0][:1, 0], *(mask[:, 1] for mask in masks)]) for masks in zip(*kept, strict=True)]
    return {"out.lb_masks": torch.stack(calls)}


def mutual_controls(case: Case, **masks: Tensor) -> list[Control]:
    """Build MasaCtrl's control, or none where its lists leave nothing; given masks are handed over as tensors."""
    wanted, steps = case.settings["control"], int(case.settings["num_steps"])
    bound = min(int(wanted.get("total_steps") or steps), steps)
    chosen_steps = wanted.get("step_idx")
    if chosen_steps is None:
        chosen_steps = range(int(wanted.get("start_step", 4)), bound)
    chosen_layers = wanted.get("layer_idx")
    if chosen_layers is None:
        chosen_layers = range(int(wanted.get("start_layer", 10)), _LAYERS)
    acting = [step for step in chosen_steps if step < steps]
    layers = [layer for layer in chosen_layers if layer < _LAYERS]
    if not acting or not layers:
        return []
    kind, threshold = MUTUAL_VARIANTS[wanted.get("variant", "plain")], float(wanted.get("thres", 0.1))
    if kind == "auto" and not 0 < threshold <= 1:
        kind = "none"  # all is foreground, or all is background: every query sees everything
    return [
        MutualSelfAttention(
            step_list=acting,
            layer_list=layers,
            masks=kind,
            source_words=wanted.get("ref_token_idx", [1]),
            target_words=wanted.get("cur_token_idx", [1]),
            threshold=threshold if kind == "auto" else 0.1,
            **(masks if kind == "given" else {}),
        )
    ]


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
    blends, edit = prompt_controls(case)
    readers = [ReadMaps()] if "out.cross16_sum_over_steps" in case.expected else []
    targets = case.targets
    count, steps = len(targets), int(settings["num_steps"])
    module = EditModule(
        network_of(case, models),
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
        "out.equalizer": maps.equalizer[: max(1, len(edit.weights))],
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
        results |= blend_masks([[blend]])
    for reader in readers:
        wanted = case.expected["out.cross16_sum_over_steps"]["shape"]
        maps_read = torch.stack(reader.maps).mean(0)[..., : wanted[-1]]
        results["out.cross16_sum_over_steps"] = maps_read.unflatten(1, (16, 16))
    return results


def _token_maps(case: Case, models: Path) -> dict[str, Any]:
    tokens, length = tiny_sd(models).tokens, int(case.settings["max_len"])
    alignment = case.settings.get("alignment", _ALIGNMENT)
    if any(alignment[name] != value for name, value in _ALIGNMENT.items()):
        raise NotImplementedError(f"alignment={alignment}")
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
