"""The keys of a training experiment of the shapes world, with their defaults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from framework.errors import SettingsError, did_you_mean


@dataclass
class ModelSettings:
    """Kind and sizes of the networks."""

    kind: str = "diffusion"
    """`diffusion`: a UNet in Stable Diffusion's layout, v prediction; `flow`: a transformer in Stable Diffusion 3's
    layout, a rectified flow.
    """
    whitening: float = 0.5
    """How far the latents' components are brought to equal variance, 0..1."""
    unet_widths: list[int] = field(default_factory=lambda: [32, 64, 128])
    """Channels at 16 x 16, 8 x 8 and 4 x 4 cells."""
    unet_heads: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Attention heads at the same levels."""
    unet_layers: int = 1
    """Residual layers per block."""
    transformer_width: int = 128
    transformer_layers: int = 6
    transformer_heads: int = 4
    transformer_patch: int = 2
    """Side in cells of the latent of a transformer's token."""
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    second_text_width: int = 64
    """Width of a flow model's second text encoder, of as many layers and heads."""
    vae_widths: list[int] = field(default_factory=lambda: [16, 32, 64])
    """Channels of the autoencoder at 64 x 64, 32 x 32 and 16 x 16."""


@dataclass
class DataSettings:
    """The scenes to train on."""

    scenes: int = 150_000
    seed: int = 1
    cache: str | None = None
    """Folder of rendered and encoded scenes; by default beside the run."""


@dataclass
class NoiseSettings:
    """How noise levels, timestep / 1000 or a flow's sigma, are drawn: a share `uniform` evenly, the others normally."""

    uniform: float = 0.45
    centre: float = 0.68
    width: float = 0.17


@dataclass
class TeacherSettings:
    """A diffusion model whose predictions a flow model learns from beside the scenes."""

    source: str = "none"
    """`none`, `shipped`, or the folder of a diffusion pipeline with the same autoencoder and words."""
    share: float = 0.6
    """Its share in the target, 0..1, where noise is strong; the rest is the scene's own velocity."""
    levels: list[float] = field(default_factory=lambda: [0.6, 0.75])
    """Noise levels from which on it speaks, and from which on with its whole share."""


@dataclass
class TrainingSettings:
    """The recipe; every stage is scheduled by samples seen, never by the clock."""

    total_samples: int = 600_000
    start_from: str = "scratch"
    """`scratch`, `shipped`, or a pipeline folder whose weights to start from with a fresh optimiser."""
    parts_from: str = "scratch"
    """Where a start from scratch takes autoencoder and first text encoder from: `scratch` trains them too, `shipped`
    takes those of the bundled diffusion model.
    """
    batch_size: int = 16
    """Samples per step and process."""
    optimiser: str = "muon"
    """`muon`: orthogonalised momentum for the denoiser's inner matrices; `adamw`: AdamW for everything."""
    matrix_rate: float = 2e-3
    """Learning rate of orthogonalised momentum, in units of AdamW's."""
    learning_rate: float = 1.5e-3
    text_rate: float = 0.2
    """Learning rate of the text encoders relative to the denoiser's; 0 keeps them as they are, without gradients."""
    warm_up: int = 5_000
    """Samples over which the rate rises."""
    decay: float = 0.4
    """Last share of the samples, over which the rate falls to zero along a cosine."""
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema: float = 0.999
    """Decay of the averaged weights per step, after a warm-up."""
    region_weight: float = 3.5
    """Weight of the loss in and around the objects against 1 elsewhere; normalised per sample."""
    easy_until: float = 0.1
    """Share of the samples up to which one larger solid or outlined object on a plain background dominates."""
    easy_share: float = 0.7
    two_from: float = 0.2
    """Share of the samples from which scenes with two objects come in."""
    two_share: float = 0.25
    empty_captions: float = 0.1
    omitted_words: float = 0.05
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    text_steps: int = 500
    """Steps of 128 captions that the text encoder is trained on alone."""
    vae_steps: int = 4_000
    """Steps of 8 images that the autoencoder's decoder is trained on alone."""
    compile: bool = False
    """Compile the denoiser; minutes of waiting for a quarter more speed on processors with bfloat16 arithmetic."""
    checkpoint_samples: int = 25_000
    log_samples: int = 2_000


@dataclass
class OutputSettings:
    """Where a run writes."""

    dir: str = "runs/shapes"
    export: str | None = None
    """Folder for the finished pipeline; by default its kind inside the run."""


@dataclass
class Settings:
    """A training experiment."""

    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of lightning.Trainer: accelerator, devices, strategy, num_nodes, precision."""
    output: OutputSettings = field(default_factory=OutputSettings)


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a training yaml and apply `key=value` overrides.

    Raises:
        SettingsError: Keys or values are not the experiment's, or numbers are out of their range; all of them together.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        given = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        unknown = list(_unknown_keys(OmegaConf.to_container(given), asdict(Settings()), ""))
        if unknown:
            raise SettingsError([f"{path}: {problem}" for problem in unknown])
        settings: Settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), given))  # type: ignore[assignment]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise SettingsError([f"{path}: {str(error).splitlines()[0]}"]) from error
    problems = _problems(settings)
    if problems:
        raise SettingsError([f"{path}: {problem}" for problem in problems])
    return settings


def _unknown_keys(given: Any, known: Any, prefix: str) -> Iterator[str]:
    if not isinstance(given, dict) or not isinstance(known, dict) or prefix == "trainer.":
        return
    for key, value in given.items():
        if key in known:
            yield from _unknown_keys(value, known[key], f"{prefix}{key}.")
        else:
            near = did_you_mean(str(key), known) or f"; there are {', '.join(known)}"
            yield f"unknown key {prefix}{key}{near}"


def _problems(settings: Settings) -> list[str]:
    found = []
    training = settings.training
    for name in ("decay", "easy_until", "easy_share", "two_from", "two_share", "empty_captions", "omitted_words"):
        value = getattr(training, name)
        if not 0 <= value <= 1:
            found.append(f"training.{name}={value} is not a share; give a number in [0, 1]")
    for name in ("total_samples", "batch_size", "learning_rate", "checkpoint_samples", "log_samples"):
        value = getattr(training, name)
        if value <= 0:
            found.append(f"training.{name}={value} must be above zero")
    if training.parts_from not in ("scratch", "shipped"):
        found.append(f"training.parts_from={training.parts_from!r} is not known; choose scratch or shipped")
    if settings.model.kind not in ("diffusion", "flow"):
        found.append(f"model.kind={settings.model.kind!r} is not known; choose diffusion or flow")
    if settings.model.transformer_width % settings.model.transformer_heads:
        found.append(
            f"model.transformer_width={settings.model.transformer_width} does not divide by its "
            f"{settings.model.transformer_heads} heads; choose a multiple"
        )
    if training.optimiser not in ("muon", "adamw"):
        found.append(f"training.optimiser={training.optimiser!r} is not known; choose muon or adamw")
    found += _teacher_problems(training.teacher, settings.model.kind)
    if not 0 <= settings.model.whitening <= 1:
        found.append(f"model.whitening={settings.model.whitening} is not a share; give a number in [0, 1]")
    if settings.data.scenes < 2000:
        found.append(f"data.scenes={settings.data.scenes} is too few to find components; give at least 2000")
    own = {"max_steps", "max_epochs", "logger", "callbacks", "default_root_dir", "enable_checkpointing"} & set(
        settings.trainer
    )
    if own:
        found.append(
            f"trainer.{sorted(own)[0]} is set by the training itself; use training.total_samples or output.dir"
        )
    return found


def _teacher_problems(teacher: TeacherSettings, kind: str) -> list[str]:
    found = []
    if teacher.source != "none" and kind != "flow":
        found.append(
            f"training.teacher.source={teacher.source!r} teaches flow models alone; choose none or model.kind=flow"
        )
    if not 0 <= teacher.share <= 1:
        found.append(f"training.teacher.share={teacher.share} is not a share; give a number in [0, 1]")
    levels = teacher.levels
    if len(levels) != 2 or not 0 <= levels[0] < levels[1] <= 1:
        found.append(f"training.teacher.levels={levels} must be two rising noise levels in [0, 1]")
    return found
