"""Sharing of attention features between the inversion of a source and the sampling of a target on FLUX.

Value sharing of RF-Solver-Edit (arXiv 2411.04746, wangjiangshan0725/RF-Solver-Edit 3388e29) and the query, key and
value editing of FireFlow (arXiv 2412.07517, HolmesShuan/FireFlow 98588a6). While the source is inverted, queries, keys
or values of some single-stream blocks are kept in the noisiest intervals, separately for the first and the middle call
of an interval; while the target is sampled, the same interval, call and block takes them.

Queries and keys are kept after their normalisation; the codes keep them before the rotary embedding, which makes no
difference since source and target have the same positions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from framework.backbones.loading import DTYPES, DtypeName
from framework.context import Context
from framework.control import Control
from framework.errors import Checks, SettingsError
from framework.step import COND, Need, Rows, Site, Stream
from methods.control_rows import with_rows

Strategy = Literal["replace_v", "add_v", "replace_k", "add_k", "replace_q", "add_q"]
_FAMILY = "feature_sharing"


@dataclass(frozen=True)
class FeatureSharing(Control):
    """Takes queries, keys or values of the inversion in the noisiest intervals of the sampling.

    Attributes:
        inject_steps: Noisiest intervals with sharing, at least 0; RF-Solver-Edit 2 to 8, FireFlow 1.
        first_block, last_block: First and last single-stream block, from 0, inclusive; None are the codes' 20 and 37
            of 38, by their depth in the network.
        strategy: What is done with which features; "replace_v" alone is value sharing (`reuse_v`). Where both words of
            a letter stand, the features are replaced first and then added to.
        factors: Multiply the stored queries, keys and values, [q, k, v].
        device: Where features are kept between inversion and edit: "cpu", or "same" as the network's.
        dtype: Dtype in which they are kept; None is the network's own.
    """

    inject_steps: int = 4
    first_block: int | None = None
    last_block: int | None = None
    strategy: Sequence[Strategy] = ("replace_v",)
    factors: Sequence[float] = (1.0, 1.0, 1.0)
    device: Literal["cpu", "same"] = "cpu"
    dtype: DtypeName | None = None

    needs: ClassVar = frozenset({Need.FEATURES})

    def __post_init__(self) -> None:
        checks = Checks("FeatureSharing")
        checks.between("inject_steps", self.inject_steps, 0, float("inf"))
        for name in ("first_block", "last_block"):
            if getattr(self, name) is not None:
                checks.between(name, getattr(self, name), 0, float("inf"))
        if self.first_block is not None and self.last_block is not None:
            checks.require(
                self.first_block <= self.last_block,
                f"first_block={self.first_block} lies behind last_block={self.last_block}; exchange them.",
            )
        checks.require(bool(self.strategy), "strategy is empty; give words such as replace_v.")
        for word in self.strategy:
            checks.one_of("strategy", word, get_args(Strategy))
        checks.require(len(self.factors) == 3, f"factors={list(self.factors)} are not three; give [q, k, v].")
        checks.one_of("device", self.device, ("cpu", "same"))
        if self.dtype is not None:
            checks.one_of("dtype", self.dtype, DTYPES)
        checks.done()

    @property
    def letters(self) -> str:
        """Which of q, k and v are kept."""
        return "".join(letter for letter in "qkv" if any(word.endswith(f"_{letter}") for word in self.strategy))

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Choose single-stream blocks by number.

        Raises:
            SettingsError: The network has none, or not the blocks that are asked for.
        """
        single = [site for site in sites if site.place == "single"]
        if not single:
            raise SettingsError(
                [
                    "FeatureSharing takes features of single-stream blocks (FLUX), and this network has none; use "
                    "ValueInjection of two-stage inversion, or leave the sharing out."
                ]
            )
        count = len(single)
        # 20 and 37 of 38: from just past the middle to the end, in a network of any depth.
        first = self.first_block if self.first_block is not None else round(20 / 38 * count)
        last = self.last_block if self.last_block is not None else count - 1
        if not first <= last < count:
            raise SettingsError(
                [f"FeatureSharing: blocks {first} to {last} are not among the network's {count} single-stream blocks."]
            )
        return single[first : last + 1]

    def begin(self, ctx: Context, sites: Sequence[Site], latent: tuple[int, int]) -> Mapping[str, Tensor]:
        """Take the record's features.

        Raises:
            SettingsError: The record has none, since it was made without sharing.
        """
        del sites, latent
        record = ctx.record
        if record is None:
            return {}
        if self.inject_steps and not any(name.startswith(_FAMILY) for name in record.features):
            raise SettingsError(
                [
                    "FeatureSharing finds no features in the record, which was made by an inversion without sharing; "
                    "invert again with this control in the method."
                ]
            )
        return record.features

    def active(self, i: int, state: Any) -> bool:
        """Act in the noisiest intervals."""
        del state
        return i < self.inject_steps

    def qkv(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, i: int, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange or add what was stored in the target's rows; calls for which nothing was stored stay as they are."""
        target = rows.of(Stream.TARGET, COND)
        if target is None:
            return q, k, v
        images = slice(rows.first_image, rows.first_image + target.stop - target.start)
        features = {"q": q, "k": k, "v": v}
        for word in sorted(self.strategy, key=lambda word: word.startswith("add")):
            how, letter = word.split("_")
            stored = state.get(feature_name(letter, i, rows.stage, site))
            if stored is None:
                continue
            own = features[letter]
            taken = self.factors["qkv".index(letter)] * stored[images].to(own)
            features[letter] = with_rows(own, (target, taken if how == "replace" else own[target] + taken))
        return features["q"], features["k"], features["v"]

    def memory(self, sites: Sequence[Site], latent: Sequence[int], calls: int, itemsize: int) -> int:
        """Bytes of stored features per image.

        Args:
            sites: All attention sites of the network.
            latent: Rows and columns of the latent.
            calls: Network calls of the sharing intervals.
            itemsize: Bytes per number of the network's dtype, for `dtype` None.
        """
        size = DTYPES[self.dtype].itemsize if self.dtype is not None else itemsize
        chosen = self.sites(sites) if calls else ()
        positions = sum((site.text + math.prod(site.size(latent))) * site.width for site in chosen)
        return calls * len(self.letters) * size * positions


@dataclass(frozen=True)
class Storing(Control):
    """Keeps what a `FeatureSharing` will want, while the source is inverted; its state is a dictionary.

    Attributes:
        sharing: What will want it.
    """

    sharing: FeatureSharing = field(default_factory=FeatureSharing)

    def sites(self, sites: Sequence[Site]) -> Collection[Site]:
        """Choose the same blocks."""
        return self.sharing.sites(sites)

    def active(self, i: int, state: Any) -> bool:
        """Act in the same intervals."""
        return self.sharing.active(i, state)

    def qkv(
        self, site: Site, rows: Rows, q: Tensor, k: Tensor, v: Tensor, i: int, state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the features of the source; calls split by images are put together again."""
        dtype = None if self.sharing.dtype is None else DTYPES[self.sharing.dtype]
        for letter in self.sharing.letters:
            x = {"q": q, "k": k, "v": v}[letter].to(
                device="cpu" if self.sharing.device == "cpu" else None, dtype=dtype, copy=True
            )
            name = feature_name(letter, i, rows.stage, site)
            state[name] = torch.cat([state[name], x]) if rows.first_image else x
        return q, k, v


def feature_name(letter: str, i: int, stage: int, site: Site) -> str:
    """Name the features of one call of interval i at a site: `feature_sharing.<q, k or v>.<i>.<stage>.<site>`."""
    return f"{_FAMILY}.{letter}.{i}.{stage}.{site.name}"
