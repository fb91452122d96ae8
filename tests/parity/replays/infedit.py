"""InfEdit: virtual inversion alone and with unified attention control, every branch after every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.context import Texts
from framework.guidance import ClassifierFree
from framework.step import COND, UNCOND, Latents, Row, Stream
from methods.infedit import InfEdit, VirtualInversion
from methods.unified_attention import UnifiedAttention, UnifiedState
from tests.parity.case import Case
from tests.parity.latent import LatentRun, case_schedule, network_of, rows

PLAIN = ClassifierFree(1.0, 1.0)


@dataclass(frozen=True)
class ThreeBranches(VirtualInversion):
    """Carries the layout branch also where nothing looks at it, as the authors do."""

    streams = (Stream.SOURCE, Stream.LAYOUT)


@dataclass(frozen=True)
class RecordedControl(UnifiedAttention):
    """Keeps every mask, also those of the last blend, which reaches no result; may stay early to the end."""

    always_early: bool = False
    kept: list[Tensor] = field(default_factory=list, compare=False)

    @property
    def looks_at_layout(self) -> bool:
        return True  # it is among what the cases compare, wherever it leads

    def keeps(self, i: int, steps: int) -> bool:
        return self.always_early or super().keeps(i, steps)

    def blend(self, z: Latents, z_next: Latents, i: int, state: Any) -> Latents:
        now: UnifiedState = state
        if now.executed.step(i) > 0:
            now.add_step()
            like = z_next[Stream.TARGET]
            masks = [torch.zeros(1, 1, *like.shape[-2:], dtype=torch.bool)] * 3
            if now.tracked is not None:
                masks = list(self.masks(now, i, like))
            self.kept.extend(masks)
        return super().blend(z, z_next, i, state)


def replay_infedit(case: Case, models: Path) -> dict[str, Any]:
    settings, wanted = case.settings, case.settings.get("control")
    executed, steps = list(settings["timesteps"]), int(settings["num_steps"])
    skip = steps - len(executed)
    inversion = ThreeBranches(
        skip,
        float(settings.get("eta", 1.0)),
        "source" if settings.get("denoise_model", True) else "noise",
        drift="layout",
    )
    control = _control(wanted) if wanted else None
    module = InfEdit(
        network_of(case, models),
        steps=steps,
        inversion=inversion,
        guidance=_guidance(settings),
        controls=[] if control is None else [control],
    )
    # What is skipped is not named by the case, and not asked of the network.
    module.edit_schedule = case_schedule(case, [*range(executed[0] + skip, executed[0], -1), *executed])
    source, target = case.input("in.emb_source"), case.input("in.emb_target")
    conditions = rows(source, target, case.input("in.emb_positive"), case.input("in.emb_negative"))
    conditions |= {
        Row(Stream.LAYOUT, COND): source,
        Row(Stream.LAYOUT, UNCOND): case.input("in.emb_positive"),
    }
    noise = case.input("in.noise_steps")[:, None]
    run = LatentRun(module, conditions, {"start": case.input("in.noise_init")[None], "steps": noise[:-1]})
    prompts = case.prompts
    run.ctx = replace(
        run.ctx, texts=Texts((prompts["source"],), (prompts["target"],), ("",)), tokens=module.backbone.tokens
    )
    record = run.invert(case.input("in.z0"))
    final = run.denoise(record)
    last = _after_the_last_step(run, noise[-1], inversion.eta, control)
    results: dict[str, Any] = {"out.pred_x0_final": final[Stream.TARGET]}
    for stream in Stream:
        results[f"out.{stream.value}_traj"] = torch.cat([run.seen.trajectory(stream)[:-1, 0], last[stream]])
        results[f"out.{stream.value}_last"] = last[stream]
    if control is not None:
        words = control.words(run.ctx, 0)
        results["out.mapper"] = words.mapper[None]
        results["out.mapper_alphas"] = words.aligned[None]
        results["out.alpha_local"] = words.local[None]
        results["out.alpha_mutual"] = words.mutual[None]
        results["out.blend_masks"] = torch.cat(control.kept).to(torch.uint8) if control.kept else torch.zeros(0)
    return results


def _guidance(settings: Mapping[str, Any]) -> ClassifierFree:
    """Read the scales; up to 1 the authors leave the unconditional rows out, those of the source with them."""
    scale = float(settings.get("guidance_scale", 7.5))
    return ClassifierFree(scale, float(settings.get("source_guidance_scale", 1.0))) if scale > 1 else PLAIN


def _control(wanted: Any) -> RecordedControl:
    if wanted["kind"] != "uac":
        raise NotImplementedError(f"control of kind {wanted['kind']}")
    blend = wanted.get("local_blend") or {}
    early = float(wanted["self_replace_steps"])
    return RecordedControl(
        cross_source=wanted["cross_source"],
        cross=min(float(wanted["cross_replace_steps"]), 1.0),
        self_attention=min(early, 1.0),
        local_words=blend.get("local_words", []),
        mutual_words=blend.get("mutual_words", []),
        local_threshold=blend.get("thresh_e", 0.3),
        mutual_threshold=blend.get("thresh_m", 0.3),
        always_early=early > 1,
    )


def _after_the_last_step(run: LatentRun, noise: Tensor, eta: float, control: RecordedControl | None) -> Latents:
    """Noise the last clean estimates once more, to the level that they come from, and blend: what the authors do there.

    None of it reaches the edit.
    """
    step, z0 = run.seen.denoised[-1], run.seen.denoised[-1].z_next[Stream.SOURCE]
    level, z, eps = step.level, step.z, step.prediction
    if len(run.seen.denoised) == 1:
        return step.z_next
    consistent = (z[Stream.SOURCE] - level.alpha * z0) / level.sigma
    kept, fresh = ((1 - eta) ** 0.5) * level.sigma, eta**0.5 * level.sigma
    drift = eps.map(lambda e: e - eps[Stream.SOURCE] + consistent)
    moved = step.z_next.map(lambda x0, d: level.alpha * x0 + kept * d + fresh * noise, drift)
    source = level.alpha * z0 + kept * drift[Stream.LAYOUT] + fresh * noise
    target, layout = moved[Stream.TARGET], moved[Stream.LAYOUT]
    if control is not None and control.kept:
        local, mutual, _ = control.kept[-3:]
        has_local = bool(control.words(run.ctx, 0).local.any())
        target = torch.where(mutual, source, torch.where(local, target, layout) if has_local else target)
    return Latents(target=target, source=source, layout=layout)
