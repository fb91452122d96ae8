from __future__ import annotations

import math

import pytest
import torch

from framework.backbones import StableDiffusion
from framework.control import Control
from framework.step import COND, Row, Rows, Stream

TARGET = Row(Stream.TARGET, COND)


class Sizes(Control):
    """Notes which site was called with how many query positions."""

    def __init__(self):
        self.calls = []

    def sites(self, sites):
        return sites

    def qkv(self, site, rows, q, k, v, i, state):
        self.calls.append((site, q.shape[2]))
        return q, k, v


def run(backbone, control, z):
    rows = Rows((TARGET,), (len(z),))
    condition = backbone.encode_prompt([""] * len(z))
    t = torch.full((len(z),), 500.0, dtype=torch.float64)
    with torch.no_grad(), backbone.controlled([control], [None]) as handle:
        handle.enter(rows, 0)
        backbone(z, t, condition)
        handle.leave()


@pytest.mark.parametrize("latent", [(16, 16), (9, 14)])
def test_sites_come_in_the_order_of_calls_with_the_sizes_of_their_maps(tiny_sd, latent):
    sizes = Sizes()

    run(tiny_sd, sizes, torch.randn(1, 4, *latent))

    assert sizes.calls == [(site, math.prod(site.size(latent))) for site in tiny_sd.sites()]


def test_sites_are_numbered_over_all_and_within_their_kind(tiny_sd):
    sites = tiny_sd.sites()

    assert [site.index for site in sites] == list(range(32))
    for kind in ("self", "cross"):
        assert [site.order for site in sites if site.kind == kind] == list(range(16))


def test_sites_say_where_they_are(tiny_sd):
    sites = tiny_sd.sites()

    assert [site.index for site in sites if site.place == "mid"] == [12, 13]
    assert [(site.place, site.block, site.scale) for site in sites[::4]] == [
        *[("down", 0, 1), ("down", 1, 2), ("down", 2, 4), ("mid", 0, 8)],
        *[("up", 1, 4), ("up", 2, 2), ("up", 2, 2), ("up", 3, 1)],
    ]


def test_the_tenth_self_attention_of_the_papers_is_in_the_second_stage_of_the_decoder(tiny_sd):
    tenth = next(site for site in tiny_sd.sites() if site.kind == "self" and site.order == 10)

    assert tenth.name == "up_blocks.2.attentions.0.transformer_blocks.0.attn1"


def test_sites_need_no_weights_and_equal_those_of_the_loaded_network(tiny_sd, tiny_sd_folder):
    fresh = StableDiffusion(str(tiny_sd_folder))

    assert fresh.sites() == tiny_sd.sites()
    assert fresh.unet is None
