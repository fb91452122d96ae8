"""pix2pix-zero: move along an edit direction while cross-attention stays where the source has it.

Parmar, Singh, Zhang, Li, Lu, Zhu: Zero-shot Image-to-Image Translation (SIGGRAPH 2023, arXiv 2302.03027), in the form
of the authors' code (pix2pixzero/pix2pix-zero 16e5c1d).

    direction    mean features of sentences about the target - of sentences about the source, added to the caption's
    inversion    DDIM without guidance, every prediction made whiter before it is used
    edit         L = sum over cross-attention layers of |M - M_source|^2
                 x <- x - amount dL/dx,  then an ordinary guided step from there

The authors walk the source first and keep the maps of all its steps. Here the source row walks beside the target, one
step's maps at a time. The two halves of classifier-free guidance have latents of their own when the gradient is taken:
that of the unconditional half is carried on, the other one enters through its prediction alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from framework.backbones.base import Backbone
from framework.context import Context, MovedPrompt, Prompt
from framework.control import Attend, Control
from framework.data.sample import EditSample
from framework.errors import Checks
from framework.guidance import ClassifierFree, Guidance, State, StepNetwork
from framework.inversion import Inversion
from framework.module import CommonSettings, EditModule
from framework.record import Record
from framework.reference import Reference
from framework.schedule import ScheduleOptions
from framework.step import COND, UNCOND, Latents, Need, Predictions, Row, Rows, Site, Stream
from methods.control_rows import images_of
from methods.ddim import Convention
from methods.regularised_inversion import RegularisedInversion

_BRANCHES = (UNCOND, COND)
_TARGET = {branch: Row(Stream.TARGET, branch) for branch in _BRANCHES}


@dataclass
class MapState:
    """Cross-attention of one step.

    Attributes:
        mode: Whether the network's next call is the source's, whose maps are kept, the target's, whose are compared, or
            another one, which is left alone.
        kept: Site and branch -> the source's maps [images, heads, queries, text positions], in parts where its call was
            split.
        distance: Sum of the squared differences so far, over images, with its graph.
    """

    mode: Literal["off", "keep", "compare"] = "off"
    kept: dict[tuple[Site, str], list[Tensor]] = field(default_factory=dict)
    distance: Tensor | None = None

    def reference(self, site: Site, branch: str, images: slice) -> Tensor:
        """Return the source's maps of some images; of its one branch where its prompt is its negative text."""
        other = UNCOND if branch == COND else COND
        parts = self.kept.get((site, branch)) or self.kept[site, other]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[images]


@dataclass(frozen=True)
class MapDistance(Control):
    """Measures how far the target's cross-attention is from the source's; changes nothing."""

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> MapState:
        """Return an empty state."""
        del ctx, sites, latent
        return MapState()

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Look at all cross-attention."""
        return [site for site in sites if site.kind == "cross"]

    def active(self, i: int, state: Any) -> bool:
        """Look while the gradient is taken."""
        del i
        now: MapState = state
        return now.mode != "off"

    def attention(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, i: int, state: Any
    ) -> Tensor:
        """Keep or compare the maps; the product with the values stays the network's own."""
        del i
        now: MapState = state
        stream = Stream.SOURCE if now.mode == "keep" else Stream.TARGET
        for branch in _BRANCHES:
            block = rows.of(stream, branch)
            if block is None:
                continue
            maps = _maps(q[block], k[block])
            if now.mode == "keep":
                now.kept.setdefault((site, branch), []).append(maps)
                continue
            reference = now.reference(site, branch, images_of(rows, block))
            mean = (maps - reference).square().sum() / (len(_BRANCHES) * q.shape[1])
            now.distance = mean if now.distance is None else now.distance + mean
        return attend(q, k, v)


@dataclass(frozen=True)
class AttentionState:
    """What the guidance carries: the other guidance's state, and latents of blocks that left their stream's."""

    inner: State = None
    moved: Mapping[Row, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CrossAttentionGuidance(Guidance):
    """Guidance of cross-attention by gradient, before every step of another guidance, towards an edit direction.

    The gradient is taken beside other controls, not through them: its calls have rows of the source alone, or of the
    target alone. Evaluations per image and step beside the other guidance's: the source's rows once more, and two of
    the target forward and backward. The distance sums over pixels, so that other sizes want other amounts; models that
    predict v want at most 0.01.

    Attributes:
        base: The guidance of the step itself, with the target above 1.
        amount: Step along the gradient; 0.1 for pictures, 0.15 for synthetic ones, 0 for none.
        carry: Which half's latent is carried on: "uncond" (authors), "cond", or "shared" (one latent for both).
        source_sentences, target_sentences: What the direction leads away from and to. A sample's own fields of these
            names come first; without any, they are its source and its target prompt (as in PIE-Bench).
        negative: Negative text of both rows: "caption" (pictures; the source is then evaluated once), or "sample" (the
            sample's own, synthetic pictures).

    A sample's "caption" stands for its source prompt in the rows; a caption from another model goes there.
    """

    base: Guidance = ClassifierFree(target=5.0, source=5.0, inversion=1.0)
    amount: float = 0.1
    carry: Literal["uncond", "cond", "shared"] = "uncond"
    source_sentences: Sequence[str] = ()
    target_sentences: Sequence[str] = ()
    negative: Literal["caption", "sample"] = "caption"

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE, Need.ATTENTION, Need.GRAD})

    def __post_init__(self) -> None:
        checks = Checks("CrossAttentionGuidance")
        checks.between("amount", self.amount, 0, float("inf"), "0.1 for pictures")
        checks.one_of("carry", self.carry, ("uncond", "cond", "shared"))
        checks.one_of("negative", self.negative, ("caption", "sample"))
        pair = (bool(self.source_sentences), bool(self.target_sentences))
        checks.require(len(set(pair)) == 1, "source_sentences and target_sentences go together; give both, or neither.")
        for name in ("source_sentences", "target_sentences"):
            checks.require(not isinstance(getattr(self, name), str), f"{name} is one text; give a list of sentences.")
        scale = getattr(self.base, "target", None)
        checks.require(
            not isinstance(scale, (int, float)) or scale > 1,
            f"base has target={scale}, with which the edit direction's row would not be guided; give more than 1 "
            "(authors 5).",
        )
        checks.done()
        object.__setattr__(self, "needs", type(self).needs | self.base.needs)

    def prompts(self, samples: Sequence[EditSample]) -> Mapping[Row, Sequence[Prompt]]:
        """Return captions for the source, moved captions for the target, and their negative texts."""
        captions = [str(sample.extra.get("caption", sample.source)) for sample in samples]
        negatives = captions if self.negative == "caption" else [sample.negative for sample in samples]
        return {
            **self.base.prompts(samples),
            Row(Stream.SOURCE, COND): captions,
            Row(Stream.SOURCE, UNCOND): negatives,
            Row(Stream.TARGET, COND): [self._moved(*pair) for pair in zip(samples, captions, strict=True)],
            Row(Stream.TARGET, UNCOND): negatives,
        }

    def _moved(self, sample: EditSample, caption: str) -> MovedPrompt:
        away, towards = (
            _sentences(sample, f"{name}_sentences") or tuple(given) or (prompt,)
            for name, given, prompt in (
                ("source", self.source_sentences, sample.source),
                ("target", self.target_sentences, sample.target),
            )
        )
        return MovedPrompt(caption, away, towards)

    def controls(self) -> Sequence[Control]:
        """Return the reader of cross-attention, where there is a gradient to take, and the other guidance's."""
        return (*([MapDistance()] if self.amount else []), *self.base.controls())

    def check(self, schedule_steps: int) -> list[str]:
        """Return the other guidance's problems."""
        return self.base.check(schedule_steps)

    def found(self, state: State) -> Mapping[str, Tensor]:
        """Return what the other guidance found."""
        return self.base.found(state.inner)

    def begin(self, ctx: Context) -> State:
        """Begin the other guidance."""
        return AttentionState(self.base.begin(ctx))

    def invert(self, z: Latents, network: StepNetwork, ctx: Context) -> Latents:
        """Invert as the other guidance does."""
        return self.base.invert(z, network, ctx)

    def prepare(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Let the other guidance move the latents, then step along the gradient of the maps' distance."""
        z, inner = self.base.prepare(z, i, network, record, state.inner, ctx)
        if not self.amount:
            return z, AttentionState(inner)
        maps: MapState = network.state_of(self.controls()[0])
        try:
            stepped = self._step(z, network, maps)
        finally:
            maps.mode, maps.distance = "off", None
            maps.kept.clear()
        carried = COND if self.carry == "cond" else UNCOND
        moved = {_TARGET[branch]: x for branch, x in stepped.items() if x is not stepped[carried]}
        return z.with_stream(Stream.TARGET, stepped[carried]), AttentionState(inner, moved)

    def _step(self, z: Latents, network: StepNetwork, maps: MapState) -> dict[str, Tensor]:
        """Return the target's latent of each branch after the gradient step."""
        maps.mode = "keep"
        network(Latents(source=z[Stream.SOURCE]), [Row(Stream.SOURCE, branch) for branch in _BRANCHES])
        maps.mode = "compare"
        with torch.enable_grad():
            halves = {branch: z[Stream.TARGET].detach().clone().requires_grad_() for branch in _BRANCHES}
            if self.carry == "shared":
                halves = dict.fromkeys(_BRANCHES, halves[UNCOND])
            moved = {_TARGET[branch]: x for branch, x in halves.items()}
            network(Latents(target=halves[UNCOND]), list(moved), moved=moved)
            assert maps.distance is not None
            leaves = list({id(x): x for x in halves.values()}.values())
            gradients = torch.autograd.grad(maps.distance, leaves)
        stepped = {id(x): x.detach() - self.amount * gradient for x, gradient in zip(leaves, gradients, strict=True)}
        return {branch: stepped[id(x)] for branch, x in halves.items()}

    def predict(
        self, z: Latents, i: int, network: StepNetwork, record: Record, state: State, ctx: Context
    ) -> tuple[Latents, State]:
        """Predict as the other guidance does, each block at its own latent."""
        beside: StepNetwork = _Moved(network, state.moved) if state.moved else network
        prediction, inner = self.base.predict(z, i, beside, record, state.inner, ctx)
        return prediction, AttentionState(inner, state.moved)

    def correct(self, z: Latents, z_next: Latents, i: int, record: Record, state: State, ctx: Context) -> Latents:
        """Correct as the other guidance does."""
        return self.base.correct(z, z_next, i, record, state.inner, ctx)


class _Moved:
    """A step's network some of whose blocks have latents of their own."""

    def __init__(self, network: StepNetwork, moved: Mapping[Row, Tensor]) -> None:
        self._network, self._own = network, moved

    def __call__(self, z: Latents, rows: Sequence[Row], **options: Any) -> Predictions:
        return self._network(z, rows, **{**options, "moved": {**self._own, **(options.get("moved") or {})}})

    def state_of(self, control: Control) -> Any:
        return self._network.state_of(control)


def _maps(q: Tensor, k: Tensor) -> Tensor:
    """Form attention probabilities, at least in float32, [rows, heads, queries, keys]."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores: Tensor = q.to(wide) @ k.to(wide).transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1)


def _sentences(sample: EditSample, name: str) -> tuple[str, ...]:
    given: Any = sample.extra.get(name)
    return () if given is None else (given,) if isinstance(given, str) else tuple(map(str, given))


class Pix2PixZero(EditModule):
    """Regularised inversion and cross-attention guidance: 50 steps, amount 0.1, guidance 5 for both rows.

    PIE-Bench has guidance 7.5 and convention "pix2pix_zero_all". Evaluations per image: T - 2 for the inversion; then
    per step 1 of the source, 2 of the target forward and backward, and 3 for the guided step.
    """

    references = (
        Reference(
            "Zero-shot Image-to-Image Translation",
            "Parmar, Singh, Zhang, Li, Lu, Zhu",
            "SIGGRAPH 2023",
            "https://arxiv.org/abs/2302.03027",
            "https://github.com/pix2pixzero/pix2pix-zero (16e5c1d)",
            "see the repository",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 50,
        convention: Convention = "pix2pix_zero",
        auto_correlation_rate: float = 20.0,
        kl_rate: float = 20.0,
        repeats: int = 5,
        rolls: int = 5,
        guidance: Guidance = CrossAttentionGuidance(),
        inversion: Inversion | None = None,
        schedule: ScheduleOptions = ScheduleOptions(steps_offset=1, final_alpha="first"),
        **common: Unpack[CommonSettings],
    ) -> None:
        """Fill the slots.

        Args:
            backbone: A diffusion model with cross-attention.
            steps: T.
            convention, auto_correlation_rate, kl_rate, repeats, rolls: See `RegularisedInversion`.
            guidance: Cross-attention guidance around another one.
            inversion: Replaces the regularised inversion; its settings above then have no effect.
            schedule: Conventions of the schedule; timesteps begin at 1 and the clean end is a[0], as in the code.
            **common: See `CommonSettings`.
        """
        inversion = inversion or RegularisedInversion(
            convention=convention,
            auto_correlation_rate=auto_correlation_rate,
            kl_rate=kl_rate,
            repeats=repeats,
            rolls=rolls,
        )
        super().__init__(backbone, steps=steps, inversion=inversion, guidance=guidance, schedule=schedule, **common)
