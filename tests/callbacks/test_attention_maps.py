from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from callbacks.attention_maps import AttentionMaps, inside_over_outside
from framework.backbones import SD3
from framework.control import Control
from framework.errors import SettingsError
from framework.guidance import ClassifierFree
from framework.step import COND, Stream
from methods.ddim import DDIM
from methods.flowedit import FlowEdit
from methods.local_blend import LocalBlend
from methods.prompt_to_prompt import PromptToPrompt
from methods.sdedit import SDEdit
from tests.callbacks.world import Events, run_of
from tests.small import MODELS, batch_of


def batch(source="a photo of a cat", target="a photo of a dog"):
    one = batch_of([0])
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., :32, :] = 1
    sample = replace(one.samples[0], source=source, target=target)
    return replace(one, samples=(sample,), masks=masks)


def module(network, controls=(), **more):
    return DDIM(network, steps=2, guidance=ClassifierFree(target=3.0), controls=controls, **more)


CONTROLS = [PromptToPrompt("replace"), LocalBlend([["cat"], ["dog"]], scale=1, start=0.0)]


@pytest.mark.parametrize("controls", [[], CONTROLS], ids=["plain", "controlled"])
def test_reading_maps_changes_no_bit(network, controls):
    watched = module(network, controls).edit(batch(), callbacks=[AttentionMaps()])
    alone = module(network, controls).edit(batch())

    assert torch.equal(watched.latents[Stream.TARGET], alone.latents[Stream.TARGET])


def test_maps_are_averages_of_the_steps_and_add_up_to_less_than_one(network):
    result = module(network).edit(batch(), callbacks=[AttentionMaps()])

    tensors, values = result.measurements[0]["AttentionMaps"].tensors, result.measurements[0]["AttentionMaps"].values
    assert values["words"] == {"source": ["a", "photo", "of", "cat"], "target": ["a", "photo", "of", "dog"]}
    for stream in ("source", "target"):
        assert tensors[f"{stream}_steps"].shape[:2] == (2, 4)
        torch.testing.assert_close(tensors[stream], tensors[f"{stream}_steps"].float().mean(0), rtol=0, atol=1e-3)
        assert float(tensors[stream].amin()) > 0 and float(tensors[stream].sum(0).amax()) < 1


def test_maps_are_seen_as_prompt_to_prompt_leaves_them(network):
    result = module(network, [PromptToPrompt("replace", cross=1.0)]).edit(batch(), callbacks=[AttentionMaps()])

    tensors = result.measurements[0]["AttentionMaps"].tensors
    torch.testing.assert_close(tensors["target"], tensors["source"], rtol=0, atol=1e-6)


def test_a_method_without_a_source_row_and_split_calls_have_maps_of_the_target(network):
    two = replace(batch(), samples=(batch().samples[0], replace(batch_of([1]).samples[0], id="other")))
    two = replace(two, images=batch_of([0, 1]).images, masks=None, frames=two.frames * 2, notes=((), ()))
    settings = {"steps": 4, "strength": 0.5, "guidance": ClassifierFree(target=3.0)}

    whole = SDEdit(network, **settings).edit(two, callbacks=[AttentionMaps(words=["dog", "Castle"])])
    split = SDEdit(network, **settings, max_rows=2).edit(two, callbacks=[AttentionMaps(words=["dog", "Castle"])])

    for index, word in enumerate(("dog", "castle")):
        found = [r.measurements[index]["AttentionMaps"] for r in (whole, split)]
        assert found[0].values["words"] == {"target": [word]}
        torch.testing.assert_close(found[0].tensors["target"], found[1].tensors["target"], rtol=0, atol=1e-6)


class Probabilities(Control):
    """Keeps the target's attention of the picture to one text position, of every layer and step."""

    def __init__(self, position):
        self.position, self.seen = position, {}

    def sites(self, sites):
        return [site for site in sites if site.kind == "joint"]

    def wants_probabilities(self, site, i, state):
        return True

    def probabilities(self, site, rows, p, i, state):
        text = p[rows.of(Stream.TARGET, COND)][:, :, site.image_part, site.text_part]
        self.seen.setdefault(i, []).append(text.mean(1)[..., self.position])
        return p


def test_joint_attention_is_read_from_the_picture_to_the_text():
    network = SD3(str(MODELS / "tiny-sd3"), dtype="float64", max_sequence_length=4)
    reader = Probabilities(position=5)

    def edit(*callbacks, controls=()):
        return FlowEdit(network, steps=2, n_max=2, controls=controls).edit(batch(), callbacks=callbacks)

    watched, alone = edit(AttentionMaps(words=["dog"])), edit()
    edit(controls=[reader])

    assert torch.equal(watched.latents[Stream.TARGET], alone.latents[Stream.TARGET])
    maps = watched.measurements[0]["AttentionMaps"].tensors["target_steps"][:, 0].flatten(1)
    expected = torch.stack([torch.stack(layers).mean(0)[0] for _, layers in sorted(reader.seen.items())])
    torch.testing.assert_close(maps.double(), expected, rtol=2e-3, atol=1e-6)


def test_a_run_ends_with_pictures_and_the_median_of_the_edited_word(network, tmp_path):
    events = Events()

    run = run_of(tmp_path, module(network), [batch()], [AttentionMaps(tile=32, preview_steps=1)], events)

    folder = run.directory / "samples" / "image-0"
    assert {path.name for path in folder.glob("*.png")} >= {"attention.png", "attention-cat.png", "attention-dog.png"}
    assert Image.open(folder / "attention.png").size == (4 * 32 + 3 * 4, 2 * (32 + 14) + 4)
    measured = json.loads((folder / "meta.json").read_text())["measurements"]["AttentionMaps"]
    assert measured["changed"] == {"source": ["cat"], "target": ["dog"]}
    summary = run.summary("AttentionMaps")["inside_over_outside"]
    assert summary["source"] == pytest.approx(
        {
            "words": 1,
            "median": measured["inside_over_outside"]["source"]["cat"],
            "above_1": int(measured["inside_over_outside"]["source"]["cat"] > 1),
        }
    )
    assert "4_edits/attention/image-0" in events.tags("add_image")


def test_the_ratio_weighs_cells_by_their_share():
    weights = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
    mask = torch.zeros(4, 4)
    mask[:, :2] = 1

    assert inside_over_outside(weights, mask) == pytest.approx(3)
    mask[:, :3] = 1
    assert inside_over_outside(weights, mask) == pytest.approx((6 + 1) / 3)
    assert inside_over_outside(weights, torch.ones(4, 4)) is None


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingsError, match="words='dog'"):
        AttentionMaps(words="dog")
