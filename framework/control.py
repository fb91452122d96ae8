"""Controls: what attention, or a named layer, does during a step's network calls."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from framework.context import Context
from framework.step import Latents, Need, Row, Rows, Site, Stream

if TYPE_CHECKING:  # upward, for annotations only
    from framework.guidance import Guidance

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values [rows, heads, positions, width] -> attention output, same shape as the queries."""


class Control(ABC):  # noqa: B024 - every hook has a default; a control overrides those it needs
    """Changes what the network computes at some sites and steps of the denoising loop.

    Controls hold settings only and are shared by batches and runs. What a control must remember during one edit it
    makes in `begin` and is handed back as `state`; a control may mutate its own state.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    streams: ClassVar[tuple[Stream, ...]] = ()
    """Streams that must take part in the denoising loop beside the target."""

    @property
    def outermost(self) -> bool:
        """Whether it reads what other controls make of attention, and so stands around those wherever it is listed."""
        return False

    @property
    def wants_masks(self) -> bool:
        """Whether it looks at the samples' masks, which are then checked before a run."""
        return False

    def check(self, guidance: Guidance) -> list[str]:
        """Return the problems of working under this guidance; default none."""
        del guidance
        return []

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> Any:
        """Prepare one edit: find words, build maps. Returns the state that all other hooks receive.

        Before a run it is called once for every sample, with conditions that hold no features yet (only their number of
        positions counts); whatever it raises then is reported before any weight loads.

        Args:
            ctx: The edit; prompts, conditions, masks, schedule.
            sites: All attention sites of the network, in call order.
            latent: Rows and columns of the latents.

        Raises:
            SettingsError: These prompts, masks or sizes cannot work.
        """
        del ctx, sites, latent
        return None

    def describe(self, ctx: Context, image: int) -> Mapping[str, Any]:
        """Say what the control makes of one image of an edit (how its words are aligned), for its `meta.json`."""
        del ctx, image
        return {}

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Choose the attention sites at which `attention` (and `probabilities`) are called; default none."""
        del sites
        return ()

    def layers(self, names: Sequence[str]) -> Collection[str]:
        """Choose modules, by dotted name, whose output is passed through `output`; default none."""
        del names
        return ()

    def active(self, i: int, state: Any) -> bool:
        """Whether this control acts in interval i of the schedule (0 is the noisiest)."""
        del i, state
        return True

    def companions(self, rows: Sequence[Row], i: int, state: Any) -> Sequence[Row]:
        """Name rows that must be evaluated beside those of a call for this control to look at; default none.

        Rows of streams that do not take part in the call are left out; their predictions are not used.
        """
        del rows, i, state
        return ()

    def attention(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, attend: Attend, i: int, state: Any
    ) -> Tensor:
        """Compute the attention output of one site.

        `attend` is the next control's attention, or the network's own (fused). Most controls only change what goes in
        and override `qkv`; one that needs a sum of two attentions calls `attend` twice.

        Args:
            site: Where.
            rows: What the rows are.
            q, k, v: [rows, heads, positions, width].
            attend: What to call for the attention itself.
            i: Interval of the schedule.
            state: This control's state of this edit.
        """
        return attend(*self.qkv(site, rows, q, k, v, i, state))

    def qkv(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, i: int, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Change queries, keys and values; new tensors, never in place."""
        del site, rows, i, state
        return q, k, v

    def wants_probabilities(self, site: Site, i: int, state: Any) -> bool:
        """Whether attention probabilities must be formed at this site and step (expensive; default never)."""
        del site, i, state
        return False

    def probabilities(self, site: Site, rows: Rows, p: Tensor, i: int, state: Any) -> Tensor:
        """Read or change probabilities [rows, heads, queries, keys], where `wants_probabilities` said so."""
        del site, rows, i, state
        return p

    def output(self, layer: str, rows: Rows, x: Tensor, i: int, state: Any) -> Tensor:
        """Change the output of a module chosen by `layers`."""
        del layer, rows, i, state
        return x

    def blend(self, z: Latents, z_next: Latents, i: int, state: Any) -> Latents:
        """Change the latents after a step (local blend, masks); called at every step, active or not."""
        del z, i, state
        return z_next


def in_order(controls: Sequence[Control]) -> tuple[Control, ...]:
    """Put the outermost controls first; otherwise controls keep the order in which they are listed."""
    return tuple(sorted(controls, key=lambda control: not control.outermost))


def descriptions(controls: Sequence[Control], ctx: Context, image: int) -> dict[str, Mapping[str, Any]]:
    """Collect what controls have to say about one image, by their names; a second one of a class is numbered."""
    found: dict[str, Mapping[str, Any]] = {}
    for control in controls:
        said = control.describe(ctx, image)
        name = type(control).__name__
        if said:
            found[name if name not in found else f"{name}-{len(found) + 1}"] = said
    return found
