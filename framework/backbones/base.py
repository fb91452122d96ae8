"""What the engine asks of a network and its codecs; the backbones are the only code that knows a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framework.backbones.choice import choose
from framework.control import Control
from framework.guidance import GuidedBy
from framework.schedule import (
    Form,
    Schedule,
    ScheduleOptions,
    v_prediction_to_eps,
    x0_to_eps,
    x0_to_velocity,
)
from framework.step import Condition, Row, Rows, Segment, Site, Token

PredictionType = Literal["epsilon", "v_prediction", "velocity", "sample"]


class ControlHandle:
    """Tells the controls installed in a network what the next call is about; set by the engine before each call."""

    def __init__(self, controls: Sequence[Control] = (), states: Sequence[Any] = ()) -> None:
        self.controls = tuple(controls)
        self.states = tuple(states)
        self.rows: Rows | None = None
        self.i = 0
        self.active: tuple[bool, ...] = (False,) * len(self.controls)
        self.announced: set[int] = set()
        """Positions of the controls that were active in some call."""

    def enter(self, rows: Rows, i: int) -> None:
        """Announce a controlled call of interval i."""
        self.rows, self.i = rows, i
        self.active = tuple(control.active(i, state) for control, state in zip(self.controls, self.states, strict=True))
        self.announced.update(number for number, active in enumerate(self.active) if active)

    def companions(self, rows: Sequence[Row], i: int) -> list[Row]:
        """Return the rows that active controls want evaluated beside those of a call; see `Control.companions`."""
        wanted: dict[Row, None] = {}
        for control, state in zip(self.controls, self.states, strict=True):
            if control.active(i, state):
                wanted.update(dict.fromkeys(control.companions(rows, i, state)))
        return [row for row in wanted if row not in rows]

    def leave(self) -> None:
        """Announce that the next calls are not controlled."""
        self.rows = None
        self.active = (False,) * len(self.controls)


class Backbone(nn.Module, ABC):
    """A network with its codecs, from a hub id or a local folder.

    The constructor reads only configuration, so that an experiment can be checked before any weight loads; `load`
    reads the weights. Weights are frozen.

    Attributes:
        prediction_type: What the network's output is.
        form: Form in which the engine works with it, "epsilon" or "velocity".
        image_channels: Channels of the pictures, usually 3.
        image_size: Rows and columns of the pictures it was trained on, or None if it has none (closed forms).
        multiple: Sides of pictures must be multiples of this.
        takes_text: Whether prompts condition it.
        guided_by: How guidance reaches it; see `framework.guidance.GuidedBy`.
        latent_factor: Sides of a picture over the sides of its latent.
        recomputes: Whether gradient passes compute activations again, when controls are no longer there to change them.
        identity: What decides its numbers (model, revision, dtype, hashes of config and weights), for keys and records.
    """

    prediction_type: PredictionType
    form: Form
    image_channels: int
    image_size: tuple[int, int] | None
    multiple: int
    takes_text: bool
    guided_by: GuidedBy = "rows"
    latent_factor: int = 1
    recomputes: bool = False

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What decides this backbone's numbers, json-able."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the network."""

    @property
    def latent_dtype(self) -> torch.dtype:
        """Dtype of latents and of all arithmetic between network calls: float32, or float64 with a float64 network."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def load(self) -> None:
        """Read the weights if they are not there yet; frozen and in evaluation mode.

        Raises:
            SettingsError: Files are missing, broken, pickled, or cannot be reached, in words that tell these apart.
        """

    @abstractmethod
    def schedule(self, num_steps: int, options: ScheduleOptions | None = None) -> Schedule:
        """Build the sampling schedule of the checkpoint, with the conventions of a method."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] in [-1, 1] to latents [B, C, h, w] in `latent_dtype` (posterior mode)."""

    @abstractmethod
    def decode_latent(self, z: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to pictures [B, 3, H, W] in [-1, 1] (not clamped), float32."""

    @abstractmethod
    def encode_prompt(self, texts: Sequence[str]) -> Condition:
        """Encode prompts; each row depends on its own text alone."""

    @property
    def max_tokens(self) -> int:
        """Positions of a prompt, start and end tokens included; 0 where a network takes no tokens."""
        return 0

    def truncated(self, text: str) -> str:
        """Return the part of a prompt that the text encoder does not see; empty when it sees all of it."""
        del text
        return ""

    def cuts(self, text: str) -> Mapping[str, str]:
        """Return which end of a prompt each text encoder does not see, by the encoder's name, where there is one.

        Differs from `truncated` where a network has several text encoders, of which one sees more than the other.
        """
        tail = self.truncated(text)
        return {"the text encoder": tail} if tail else {}

    def segments(self, text: str) -> Sequence[Segment]:
        """Return the network's text positions by the tokenizer that fills them; empty where it takes no tokens."""
        del text
        return ()

    def token_spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Return where in a prompt its tokens begin and end, in characters; token k stands at text position k + 1.

        Start, end and padding tokens are left out, and so is what the text encoder does not see. Empty where a network
        takes no tokens.
        """
        del text
        return ()

    def tokens(self, text: str) -> Sequence[Token]:
        """Return all tokens of a prompt, also those that the text encoder does not see; token k stands at k + 1.

        Start, end and padding tokens are left out. Empty where a network takes no tokens.
        """
        del text
        return ()

    @abstractmethod
    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Run the network.

        Args:
            z: [rows, C, h, w] latents in `dtype`.
            t: [rows] times as levels hold them.
            condition: One row per row of z.

        Returns:
            Raw output in `prediction_type`, shape of z.
        """

    def to_form(self, output: Tensor, z: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Convert the network's output to `form`; alpha and sigma are those of the time that the network was told."""
        if self.prediction_type in ("epsilon", "velocity"):
            return output
        if self.prediction_type == "v_prediction":
            return v_prediction_to_eps(z, output, alpha=alpha, sigma=sigma)
        if self.form == "epsilon":
            return x0_to_eps(z, output, alpha=alpha, sigma=sigma)
        return x0_to_velocity(z, output, sigma=sigma)

    def sites(self) -> tuple[Site, ...]:
        """Return the attention sites in call order; empty where there are none. Needs no weights."""
        return ()

    def layers(self) -> tuple[str, ...]:
        """Return the dotted names of the modules whose output controls may change. Needs no weights."""
        return ()

    @contextmanager
    def controlled(self, controls: Sequence[Control], states: Sequence[Any]) -> Iterator[ControlHandle]:
        """Install controls for the duration of the context and leave the network as it was found.

        With no controls nothing is installed. A backbone without sites runs only controls that do nothing but blend.

        Raises:
            SettingsError: A control chose no site and no layer.
        """
        choose(controls, self.sites(), ())
        yield ControlHandle(controls, states)
