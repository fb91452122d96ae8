from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from framework.backbones.attention import SiteProcessor, controlled_network
from framework.backbones.base import ControlHandle
from framework.control import Control
from framework.errors import SettingsError
from framework.step import COND, UNCOND, Row, Rows, Site, Stream

ROWS = Rows((Row(Stream.TARGET, UNCOND), Row(Stream.TARGET, COND)), (1, 1))


class Through(Control):
    """Changes nothing, everywhere."""

    def sites(self, sites):
        return sites


class Read(Through):
    """Asks for probabilities and keeps them."""

    def __init__(self):
        self.seen = {}

    def wants_probabilities(self, site, i, state):
        return True

    def probabilities(self, site, rows, p, i, state):
        self.seen[site] = p
        return p


class Layer(Control):
    def __init__(self, *names, factor=1.0):
        self.names, self.factor, self.shapes = names, factor, []

    def layers(self, names):
        return self.names

    def output(self, layer, rows, x, i, state):
        self.shapes.append((layer, tuple(x.shape)))
        return x * self.factor


@pytest.fixture
def latents():
    return torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))


def call(backbone, z, controls=(), i=0, *, announce=True, prompts=("", "a cat on a mat")):
    """Run the network once; with controls if there are any."""
    z = z.to(backbone.dtype)
    condition = backbone.encode_prompt(prompts)
    t = torch.full((len(z),), 500.0, dtype=torch.float64)
    with backbone.controlled(controls, [None] * len(controls)) as handle:
        if announce:
            handle.enter(ROWS, i)
        output = backbone(z, t, condition)
        handle.leave()
    return output


def processors(backbone):
    return {name: id(processor) for name, processor in backbone.unet.attn_processors.items()}


def hooks(backbone):
    return [name for name, module in backbone.unet.named_modules() if module._forward_hooks]


@pytest.mark.parametrize("name", ["tiny_sd", "tiny_sd_64"])
@pytest.mark.parametrize("controls", [[Through()], [Through(), Through()]])
@torch.no_grad()
def test_controls_that_change_nothing_leave_every_bit(name, controls, latents, request):
    backbone = request.getfixturevalue(name)

    assert torch.equal(call(backbone, latents, controls), call(backbone, latents))


@torch.no_grad()
def test_calls_that_are_not_announced_run_as_without_controls(tiny_sd, latents):
    class Zero(Through):
        def qkv(self, site, rows, q, k, v, i, state):
            return q, k, torch.zeros_like(v)

    stock = call(tiny_sd, latents)

    assert not torch.equal(call(tiny_sd, latents, [Zero()]), stock)
    assert torch.equal(call(tiny_sd, latents, [Zero()], announce=False), stock)


@torch.no_grad()
def test_explicit_probabilities_give_the_fused_result_in_double_precision(tiny_sd_64, latents):
    read = Read()

    explicit = call(tiny_sd_64, latents, [read])

    assert (explicit - call(tiny_sd_64, latents)).abs().max() < 1e-10
    assert set(read.seen) == set(tiny_sd_64.sites())
    for site, p in read.seen.items():
        rows, columns = site.size((12, 20))
        assert p.shape[:1] == (2,) and p.shape[2:] == (rows * columns, rows * columns if site.kind == "self" else 77)
        assert (p.sum(-1) - 1).abs().max() < 1e-12


@torch.no_grad()
def test_probabilities_go_from_one_control_to_the_next_and_only_to_those_that_asked(tiny_sd, latents):
    class Uniform(Read):
        def probabilities(self, site, rows, p, i, state):
            return torch.full_like(p, 1 / p.shape[-1])

    class Deaf(Through):
        def probabilities(self, site, rows, p, i, state):
            raise AssertionError("did not ask")

    read = Read()

    call(tiny_sd, latents, [Uniform(), Deaf(), read])

    assert all((p == 1 / p.shape[-1]).all() for p in read.seen.values())


@torch.no_grad()
def test_the_first_control_is_the_outermost(tiny_sd, latents):
    order = []

    class Named(Through):
        def __init__(self, name):
            self.name = name

        def sites(self, sites):
            return sites[:1]

        def attention(self, site, rows, q, k, v, attend, i, state):
            order.append(f"{self.name} in")
            out = attend(q, k, v)
            order.append(f"{self.name} out")
            return out

    call(tiny_sd, latents, [Named("first"), Named("second")])

    assert order == ["first in", "second in", "second out", "first out"]


@torch.no_grad()
def test_a_control_may_sum_two_attentions(tiny_sd_64, latents):
    class Half(Through):
        def attention(self, site, rows, q, k, v, attend, i, state):
            return attend(q, k, 0.25 * v) + attend(q, k, 0.75 * v)

    assert (call(tiny_sd_64, latents, [Half()]) - call(tiny_sd_64, latents)).abs().max() < 1e-10


@torch.no_grad()
def test_queries_of_another_row_make_self_attention_follow_it(tiny_sd_64, latents):
    class Swap(Control):
        def sites(self, sites):
            return sites[:1]

        def attention(self, site, rows, q, k, v, attend, i, state):
            target, source = rows.of(*rows.blocks[0]), rows.of(*rows.blocks[1])
            q, k, v = (torch.cat([x[source], x[target]]) for x in (q, k, v))
            out = attend(q, k, v)
            return torch.cat([out[source], out[target]])

    assert (call(tiny_sd_64, latents, [Swap()]) - call(tiny_sd_64, latents)).abs().max() < 1e-12


@torch.no_grad()
def test_controls_get_interval_state_and_rows(tiny_sd, latents):
    got = []

    class Note(Through):
        def sites(self, sites):
            return sites[5:6]

        def active(self, i, state):
            return i == 7

        def qkv(self, site, rows, q, k, v, i, state):
            got.append((site.index, rows, i, state))
            return q, k, v

    z = latents
    with tiny_sd.controlled([Note()], ["state"]) as handle:
        for i in (6, 7):
            handle.enter(ROWS, i)
            tiny_sd(z, torch.full((2,), 500.0), tiny_sd.encode_prompt(["", ""]))
            handle.leave()

    assert got == [(5, ROWS, 7, "state")]


@torch.no_grad()
def test_only_chosen_sites_get_another_processor(tiny_sd):
    class Cross(Control):
        def sites(self, sites):
            return [site for site in sites if site.kind == "cross" and site.place == "up"]

    before = processors(tiny_sd)

    with tiny_sd.controlled([Cross()], [None]):
        changed = {name for name, value in processors(tiny_sd).items() if value != before[name]}

    expected = {f"{s.name}.processor" for s in tiny_sd.sites() if s.kind == "cross" and s.place == "up"}
    assert changed == expected


def test_the_very_same_processors_and_no_hooks_are_back_after_an_exception(tiny_sd, latents):
    class Fails(Through, Layer):
        def output(self, layer, rows, x, i, state):
            raise RuntimeError("inside the network")

    before = processors(tiny_sd)

    with pytest.raises(RuntimeError, match="inside the network"):
        call(tiny_sd, latents, [Fails("mid_block.resnets.0")])

    assert processors(tiny_sd) == before
    assert hooks(tiny_sd) == []


def test_a_refused_control_leaves_nothing_behind(tiny_sd):
    before = processors(tiny_sd)

    with pytest.raises(SettingsError), tiny_sd.controlled([Through(), Layer("nowhere")], [None, None]):
        pass

    assert processors(tiny_sd) == before
    assert hooks(tiny_sd) == []


@torch.no_grad()
def test_outputs_of_layers_pass_through_the_controls_that_chose_them(tiny_sd, latents):
    tensors, tuples = Layer("up_blocks.1.resnets.1"), Layer("up_blocks.1.attentions.0", factor=0.5)

    output = call(tiny_sd, latents, [tensors, tuples])

    assert tensors.shapes == [("up_blocks.1.resnets.1", (2, 32, 3, 5))]
    assert tuples.shapes == [("up_blocks.1.attentions.0", (2, 32, 3, 5))]
    assert not torch.equal(output, call(tiny_sd, latents))
    assert torch.equal(call(tiny_sd, latents, [tensors]), call(tiny_sd, latents))


@pytest.mark.parametrize("explicit", [False, True])
def test_gradients_reach_the_latents_and_no_weight(tiny_sd, latents, explicit):
    control = Read() if explicit else Through()
    z = latents.clone().requires_grad_()

    call(tiny_sd, z, [control]).square().sum().backward()

    assert z.grad.isfinite().all() and z.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in tiny_sd.parameters())


def test_gradients_flow_through_probabilities_to_the_latents(tiny_sd, latents):
    read = Read()
    z = latents.clone().requires_grad_()

    call(tiny_sd, z, [read])
    last = [p for site, p in read.seen.items() if site.kind == "cross"][-1]
    (gradient,) = torch.autograd.grad(last.square().sum(), z)

    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (Layer(), ["Layer chose no attention site", "16 self sites", "16 cross sites", "layers"]),
        (Control(), ["Control chose no attention site"]),
        (Layer("up_blocks.1.resnet.1"), ["'up_blocks.1.resnet.1'", "did you mean 'up_blocks.1.resnets.1'"]),
    ],
)
def test_a_control_that_matches_nothing_is_refused_with_what_there_is(tiny_sd, control, words):
    with pytest.raises(SettingsError) as error, tiny_sd.controlled([control], [None]):
        pass

    for word in words:
        assert word in str(error.value)


def test_a_site_of_another_network_is_refused(tiny_sd):
    class Foreign(Control):
        def sites(self, sites):
            return [Site("transformer_blocks.0.attn", "joint", "joint", 0, 0, 0, 2)]

    with pytest.raises(SettingsError, match=r"Foreign chose .*transformer_blocks\.0\.attn"):
        tiny_sd.controlled([Foreign()], [None]).__enter__()


def test_a_control_that_only_blends_needs_no_site(tiny_sd):
    class Blend(Control):
        def blend(self, z, z_next, i, state):
            return z_next

    with tiny_sd.controlled([Blend()], [None]) as handle:
        assert handle.controls


@torch.no_grad()
def test_a_site_that_was_passed_by_while_its_control_was_active_is_an_error(tiny_sd, latents):
    before = processors(tiny_sd)

    def replaced_meanwhile():
        with tiny_sd.controlled([Through()], [None]) as handle:
            tiny_sd.unet.get_submodule(tiny_sd.sites()[3].name).set_processor(AttnProcessor2_0())
            handle.enter(ROWS, 0)
            tiny_sd(latents, torch.full((2,), 500.0), tiny_sd.encode_prompt(["", ""]))

    with pytest.raises(
        SettingsError, match=r"never called down_blocks\.0\.attentions\.1\.transformer_blocks\.0\.attn2"
    ):
        replaced_meanwhile()

    assert processors(tiny_sd) == before


def test_a_control_that_was_never_active_need_not_be_called(tiny_sd, latents):
    class Never(Through):
        def active(self, i, state):
            return False

    with torch.no_grad():
        assert torch.equal(call(tiny_sd, latents, [Never()]), call(tiny_sd, latents))


def test_a_processor_of_another_library_is_refused_and_kept(tiny_sd):
    class Foreign:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    attention = tiny_sd.unet.get_submodule(tiny_sd.sites()[0].name)
    stock, foreign = attention.processor, Foreign()
    attention.set_processor(foreign)
    try:
        with pytest.raises(SettingsError, match=r"Through cannot be installed at down_blocks.*Foreign"):
            tiny_sd.controlled([Through()], [None]).__enter__()
        assert attention.processor is foreign
    finally:
        attention.set_processor(stock)


def test_a_replaced_forward_is_refused(tiny_sd, monkeypatch):
    attention = tiny_sd.unet.get_submodule(tiny_sd.sites()[0].name)
    monkeypatch.setitem(vars(attention), "forward", lambda *args, **kwargs: args[0])

    with pytest.raises(SettingsError, match="a replaced forward"):
        tiny_sd.controlled([Through()], [None]).__enter__()


def test_controls_inside_controls_are_refused(tiny_sd):
    with (
        tiny_sd.controlled([Through()], [None]),
        pytest.raises(SettingsError, match="SiteProcessor"),
        tiny_sd.controlled([Through()], [None]),
    ):
        pass


def test_attention_of_a_wrong_shape_is_named(tiny_sd, latents):
    class Short(Through):
        def qkv(self, site, rows, q, k, v, i, state):
            return q[:, :, :1], k, v

    with torch.no_grad(), pytest.raises(SettingsError, match=r"Short turned attention of shape"):
        call(tiny_sd, latents, [Short()])


LAYERS = {
    "plain": {},
    "cross": {"cross_attention_dim": 24},
    "cross with norm": {"cross_attention_dim": 24, "cross_attention_norm": "layer_norm"},
    "norm and residual": {
        "norm_num_groups": 4,
        "residual_connection": True,
        "rescale_output_factor": 1.5,
        "bias": True,
    },
    "normed queries and keys": {"qk_norm": "layer_norm"},
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_processor_equals_the_stock_one_on_every_kind_of_layer(kind, masked, dtype):
    torch.manual_seed(0)
    attention = Attention(16, heads=2, dim_head=8, **LAYERS[kind]).to(dtype).eval()
    x = torch.randn(2, 16, 3, 5).to(dtype) if "residual" in kind else torch.randn(2, 15, 16).to(dtype)
    text = torch.randn(2, 7, 24).to(dtype) if "cross" in kind else None
    keys = 7 if "cross" in kind else 15
    mask = torch.where(torch.rand(2, 1, keys) < 0.3, -1e4, 0.0).to(dtype) if masked else None
    stock = attention(x, text, attention_mask=mask)
    site = Site("attention", "self", "down", 0, 0, 0, 1)
    handle = ControlHandle([Through(), Read()], [None, None])
    handle.enter(ROWS, 0)

    attention.set_processor(SiteProcessor(site, attention.processor, handle, [0]))
    fused = attention(x, text, attention_mask=mask)
    attention.set_processor(SiteProcessor(site, None, handle, [1]))
    explicit = attention(x, text, attention_mask=mask)

    assert torch.equal(fused, stock)
    assert (explicit - stock).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)


def test_hooks_on_a_compiled_network_are_refused(tiny_sd):
    class Compiled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

    with pytest.raises(SettingsError, match="compiled"):
        controlled_network(Compiled(tiny_sd.unet), (), [Layer("_orig_mod.mid_block")], [None]).__enter__()
