"""EditModule: the loop, its hooks, and the four slots a method fills."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from framework.backbones.base import Backbone
from framework.callback import EditCallback
from framework.context import Context, seeded_draw
from framework.contexts import context_of, latent_masks
from framework.control import Control, descriptions, in_order
from framework.data.sample import EditBatch, EditSample
from framework.errors import Checks, SettingsError
from framework.finite import FiniteWatch
from framework.guidance import Guidance
from framework.hooks import CallbackError, Hooks
from framework.inversion import Inversion
from framework.needs import unmet_needs, without_source
from framework.network import Evaluations, Network
from framework.notes import notes_of
from framework.predict import SourcePrediction, StepPrediction
from framework.prompts import PromptCache
from framework.record import Record
from framework.reference import Reference
from framework.result import EditResult, FailedBatch
from framework.schedule import ScheduleOptions
from framework.step import Latents, Need, Step, Stream


class CommonSettings(TypedDict, total=False):
    """Settings that every method takes beside its own.

    Attributes:
        controls: Attention controls, applied in this order; those that read what others make of attention come first.
        reconstruct: Walk the source back beside the edit, so that a failed inversion is seen; costs the source's rows.
        draws: Inversions per image with noise of their own; each gives an edit.
        max_rows: Most rows of one network call; None for no limit.
        seed: Seed of the run.
    """

    controls: Sequence[Control]
    reconstruct: bool
    draws: int
    max_rows: int | None
    seed: int


class EditModule(LightningModule):
    """Inverts images and denoises them towards other prompts: the frame that every method fills in.

    A method is a subclass that presets `inversion`, `guidance`, `controls` and `schedule`, and overrides a hook where
    its paper does something between steps. A combination of methods is other parts in the same slots.

    Args:
        backbone: The network with its codecs; its weights load when they are needed.
        steps: T, steps of the sampling schedule before anything is skipped.
        inversion: How a source is recorded, and how a step uses the record.
        guidance: How predictions under several prompts become one.
        schedule: Conventions of the sampling schedule.
        controls, reconstruct, draws, max_rows, seed: See `CommonSettings`.

    Raises:
        SettingsError: The settings cannot work; all problems together.
    """

    references: ClassVar[tuple[Reference, ...]] = ()
    """What to cite for a run of this method."""

    evaluations: Evaluations
    """Network evaluations of all edits so far, also while one is going on."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int,
        inversion: Inversion,
        guidance: Guidance,
        controls: Sequence[Control] = (),
        schedule: ScheduleOptions | None = None,
        reconstruct: bool = True,
        draws: int = 1,
        max_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        checks = Checks(type(self).__name__)
        checks.between("draws", draws, 1, 10_000)
        if max_rows is not None:
            checks.between("max_rows", max_rows, 1, float("inf"))
        checks.between("steps", steps, 1, 1000)
        sourceless = without_source(type(self).__name__, inversion, [guidance, *controls])
        unguided = [problem for control in controls for problem in control.check(guidance)]
        for problem in [*inversion.check(steps), *guidance.check(inversion.executed(steps)), *sourceless, *unguided]:
            checks.require(False, problem)
        checks.done()
        self.backbone = backbone
        self.inversion = inversion
        self.guidance = guidance
        self.controls = in_order(controls)
        self.steps = steps
        self.reconstruct = reconstruct and inversion.has_source
        self.draws = draws
        self.max_rows = max_rows
        self.seed = seed
        self.edit_schedule = backbone.schedule(steps, schedule)
        self._hooks: Hooks | None = None
        self._prompts = PromptCache(backbone)
        self.evaluations = Evaluations()

    # Hook points of a method

    def on_invert_step(self, step: Step) -> Latents | None:
        """Look at a step of the inversion; returned latents replace its result."""

    def on_denoise_step(self, step: Step) -> Latents | None:
        """Look at a step of denoising; returned latents replace its result."""

    # Editing

    @property
    def parts(self) -> list[Inversion | Guidance | Control]:
        """The parts in their slots."""
        return [self.inversion, self.guidance, *self.controls]

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Streams of the denoising loop: the target, and those that any part asks for."""
        wanted = {Stream.TARGET, *self.inversion.streams}
        for control in self.controls:
            wanted.update(control.streams)
        if self.reconstruct or any(Need.SOURCE in part.needs for part in self.parts):
            wanted.add(Stream.SOURCE)
        return tuple(stream for stream in Stream if stream in wanted)

    def check(self, callbacks: Sequence[EditCallback] = ()) -> list[str]:
        """Return what cannot work in this combination, each problem with the names of both sides."""
        method = type(self).__name__
        controls = (*self.controls, *self.guidance.controls())
        return unmet_needs(method, self.backbone, self.inversion, self.guidance, controls, callbacks)

    def batch(
        self, image: Any, *, source: str = "", target: str = "", negative: str = "", name: str = "image"
    ) -> EditBatch:
        """Make a batch of one image, for use without a data module.

        Args:
            image: Path, PIL image, or tensor [3, H, W] in [-1, 1]; the size the model wants is taken from the centre.
            source, target, negative: Prompts.
            name: Names the image; with the seed it decides the noise.
        """
        from framework.data.single import single_batch

        sample = EditSample(name, Path(name), source, target, negative)
        return single_batch(image, sample, size=self.backbone.image_size, multiple=self.backbone.multiple)

    @torch.no_grad()
    def invert(self, batch: EditBatch) -> Record:
        """Invert a batch: the record can be saved, and edited as often as one likes."""
        self._refuse_inference_mode()
        self.backbone.load()
        z0, ctx = self.prepare(batch, Hooks(self, (), None))
        return self.record_latents(z0, ctx, Network(self.backbone, ctx.schedule, self.max_rows))

    @torch.no_grad()
    def edit(
        self, batch: EditBatch, record: Record | None = None, callbacks: Sequence[EditCallback] = ()
    ) -> EditResult:
        """Invert a batch (unless a record is given) and denoise it towards its target prompts.

        Args:
            batch: B samples with their pictures.
            record: An inversion of these pictures by this module's inversion, from `invert` or `Record.load`.
            callbacks: Observers.

        Raises:
            SettingsError: The record was made by another inversion or on other levels.
        """
        return self._edit(batch, record, Hooks(self, callbacks, None))

    def _edit(self, batch: EditBatch, record: Record | None, hooks: Hooks) -> EditResult:
        self._refuse_inference_mode()
        started = time.perf_counter()
        self.backbone.load()
        hooks.edit_start(batch)
        watch = FiniteWatch()
        if record is None:
            z0, ctx = self.prepare(batch, hooks)
            network = Network(self.backbone, ctx.schedule, self.max_rows, self.evaluations)
            watch.look("the encoded image", z0)
            record = self.record_latents(z0, ctx, network)
            watch.series("the inversion's latent", record.latents)
            watch.series("the noise map", record.noise_maps)
        else:
            record = self._fitting(record, batch)
            ctx = self._context(batch, record.z0, hooks)
            network = Network(self.backbone, ctx.schedule, self.max_rows, self.evaluations)
        inverted = network.evaluations.copy()
        watch.watch_growth(record.z0)
        final = self.denoise_latents(record, ctx, network, hooks, watch)
        result = self._result(batch, record, final, network.evaluations, inverted, watch)
        result.controls = [descriptions(self.controls, ctx, b * self.draws) for b in range(len(batch.samples))]
        result.timings["seconds"] = time.perf_counter() - started
        hooks.edit_end(batch, result)
        return result

    def prepare(self, batch: EditBatch, hooks: Hooks) -> tuple[Tensor, Context]:
        """Encode pictures and prompts of a batch: everything that comes before the first evaluation of the network."""
        z0 = self._encode(batch)
        return z0, self._context(batch, z0, hooks)

    def record_latents(self, z0: Tensor, ctx: Context, network: Network) -> Record:
        """Invert clean latents."""
        return self.inversion.record(z0, SourcePrediction(self.guidance, network, ctx), ctx)

    def denoise_latents(
        self, record: Record, ctx: Context, network: Network, hooks: Hooks, watch: FiniteWatch
    ) -> Latents:
        """Denoise from a record to final latents."""
        schedule, inversion = ctx.schedule, self.inversion
        first = inversion.first(record, schedule)
        z = inversion.start(record, ctx)
        solver, guide = inversion.begin(record, ctx), self.guidance.begin(ctx)
        controls = in_order((*self.controls, *hooks.controls(), *self.guidance.controls()))
        sites = self.backbone.sites() if controls else ()
        size = (record.z0.shape[-2], record.z0.shape[-1])
        begun = replace(ctx, record=record)
        states = [control.begin(begun, sites, size) for control in controls]
        with self.backbone.controlled(controls, states) as handle:
            for i in range(first, schedule.num_steps):
                conditions = inversion.condition(record, i, ctx.conditions)
                predict = StepPrediction(
                    self.guidance, network, record, ctx, i=i, conditions=conditions, handle=handle, state=guide
                )
                z = predict.prepare(z)
                z_next, solver = inversion.step(record, i, z, predict, solver, ctx)
                z_next = predict.correct(z, z_next)
                for control, state in zip(controls, states, strict=True):
                    z_next = control.blend(z, z_next, i, state)
                if hooks.wants_denoise_steps and predict.last is not None:
                    step = Step(
                        i - first,
                        schedule.num_steps - first,
                        i,
                        schedule.levels[i],
                        schedule.levels[i + 1],
                        z,
                        z_next,
                        predict.last,
                        inversion.noise(record, i),
                        schedule,
                        record,
                        self.guidance.found(predict.state),
                    )
                    z_next = hooks.denoise_step(step) or z_next
                for stream, value in z_next.items():
                    watch.look_at_latent(f"the {stream.value} latent", value, step=i)
                z, guide = z_next, predict.state
        return z

    def _encode(self, batch: EditBatch) -> Tensor:
        images = batch.images.to(self.backbone.device)
        return self.backbone.encode_image(images).repeat_interleave(self.draws, 0)

    def _context(self, batch: EditBatch, z0: Tensor, hooks: Hooks) -> Context:
        repeated = [sample for sample in batch.samples for _ in range(self.draws)]
        ids = [s.id if d == 0 else f"{s.id}\0{d}" for s in batch.samples for d in range(self.draws)]
        masks = None
        if batch.masks is not None and z0.ndim == 4:
            masks = latent_masks(batch.masks.to(z0.device, z0.dtype), z0.shape[-2:]).repeat_interleave(self.draws, 0)
        return context_of(
            repeated,
            lambda prompts: self._prompts.condition(prompts, z0.device),
            backbone=self.backbone,
            guidance=self.guidance,
            schedule=self.edit_schedule.for_size(z0.shape[-2:]),
            streams=self.streams,
            draw=seeded_draw(self.seed, ids, z0.shape[1:], z0.device, z0.dtype),
            masks=masks,
            on_invert_step=hooks.invert_step if hooks.wants_invert_steps else None,
        )

    def _fitting(self, record: Record, batch: EditBatch) -> Record:
        images = len(batch.samples) * self.draws
        checks = Checks("record")
        for problem in self.inversion.unfit(record):
            checks.require(False, problem)
        checks.require(
            record.z0.shape[0] == images,
            f"it holds {record.z0.shape[0]} images for {images}; stack or select records to match the batch.",
        )
        wanted = self.inversion.recorded_steps(self.steps)
        checks.require(
            len(record.t) - 1 == wanted,
            f"it has {len(record.t) - 1} steps and this edit looks for {wanted}; use the inversion's number of steps.",
        )
        checks.done()
        return record.to(self.backbone.device, self.backbone.latent_dtype)

    def _result(
        self,
        batch: EditBatch,
        record: Record,
        final: Latents,
        evaluations: Evaluations,
        inverted: Evaluations,
        watch: FiniteWatch,
    ) -> EditResult:
        def decode(z: Tensor) -> Tensor:
            picture = self.backbone.decode_latent(z)
            watch.look("the decoded image", picture, draws=self.draws if z.shape[0] != record.z0.shape[0] else 1)
            return (picture / 2 + 0.5).clamp(0, 1)

        count, made = len(batch.samples), self.inversion.makes_source
        edited = decode(final[Stream.TARGET])
        edited = edited.view(count, self.draws, *edited.shape[1:])
        reconstructed = decode(final.source[:: self.draws]) if final.source is not None else None
        failures = watch.failures(count, self.draws)
        return EditResult(
            samples=batch.samples,
            source=decode(record.z0[:: self.draws]) if made else (batch.images.float() / 2 + 0.5).clamp(0, 1),
            edits=[[] if b in failures else list(edited[b]) for b in range(count)],
            reconstructions=[
                None if reconstructed is None or b in failures else reconstructed[b] for b in range(count)
            ],
            record=record,
            latents=final,
            masks=batch.masks,
            failures=failures,
            notes=notes_of(batch.samples, edited, self.backbone),
            inversion_evaluations=inverted,
            evaluations=evaluations,
        )

    def _refuse_inference_mode(self) -> None:
        parts = [part for part in self.parts if Need.GRAD in part.needs]
        if parts and torch.is_inference_mode_enabled():
            names = ", ".join(type(part).__name__ for part in parts)
            raise SettingsError(
                [
                    f"{names} takes gradients, which inference mode forbids; give the Trainer inference_mode=False, or "
                    "edit outside torch.inference_mode()."
                ]
            )

    def own_hook(self, name: str) -> Callable[[Step], Latents | None] | None:
        """Return this method's own hook, or None where its class does not override it."""
        return getattr(self, name) if getattr(type(self), name) is not getattr(EditModule, name) else None

    # Lightning

    def configure_model(self) -> None:
        """Read the weights, before Lightning moves the module to its device."""
        self.backbone.load()

    def on_predict_start(self) -> None:
        """Collect the hooks once, and refuse a Trainer in which gradients cannot work."""
        self._refuse_inference_mode()
        callbacks: Sequence[Any] = getattr(self.trainer, "callbacks", ())
        self._hooks = Hooks(self, [c for c in callbacks if isinstance(c, EditCallback)], self.trainer)

    def predict_step(self, batch: EditBatch, batch_idx: int) -> EditResult | FailedBatch:
        """Edit one batch of a run; a batch that fails as a whole is reported, not raised.

        Returns:
            The result, or `FailedBatch` when the whole batch failed.
        """
        del batch_idx
        if not batch.samples:
            return FailedBatch("")
        assert self._hooks is not None
        try:
            with torch.no_grad():
                return self._edit(batch, None, self._hooks)
        except (SettingsError, CallbackError, RuntimeError, ValueError, ArithmeticError) as problem:
            reason = f"{type(problem).__name__}: {problem}"
            self._hooks.edit_failed(batch, reason)
            return FailedBatch(reason)
