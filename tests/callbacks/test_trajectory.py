from __future__ import annotations

import math

import pytest
import torch

from callbacks.trajectory import Trajectory, linear_previews
from framework.errors import SettingsError
from framework.statistics.moments import Moments
from methods.ddim import DDIM
from methods.edit_friendly import EditFriendlyDDPM
from methods.sdedit import SDEdit
from tests.callbacks.world import Events, GaussianPictures, batch_of, pictures, run_of


def module(**settings):
    return DDIM(GaussianPictures(), **{"steps": 8, **settings})


def test_latents_are_kept_on_request_by_level():
    result = module().edit(batch_of(pictures(2)), callbacks=[Trajectory(save=True, previews="none")])

    tensors = result.measurements[1]["Trajectory"].tensors
    assert tensors["inversion_levels"].tolist() == list(range(8))
    assert tensors["denoising_levels"].tolist() == list(range(1, 9))
    assert torch.equal(tensors["inversion_latents"][:, 0], result.record.latents[:8, 1])
    assert torch.equal(tensors["denoising_latents"][-1, 0], result.latents.target[1])


def test_every_nth_step_and_the_last_one_are_kept():
    result = module().edit(batch_of(pictures(1)), callbacks=[Trajectory(save=True, every_n_steps=3, previews="none")])

    assert result.measurements[0]["Trajectory"].tensors["denoising_levels"].tolist() == [1, 4, 7, 8]


def test_latents_are_not_kept_without_a_request():
    result = module().edit(batch_of(pictures(1)), callbacks=[Trajectory()])

    assert set(result.measurements[0]["Trajectory"].tensors) == {"inversion_moments", "denoising_moments"}


def test_moments_of_each_level_are_those_of_the_latents():
    result = module().edit(batch_of(pictures(2)), callbacks=[Trajectory()])

    found = result.measurements[1]["Trajectory"].tensors["inversion_moments"]
    assert torch.equal(found, Moments.of(result.record.latents[:, 1]).to_tensor())


def test_previews_are_decoded_estimates_with_the_edit_at_the_end():
    backbone = GaussianPictures()
    method = DDIM(backbone, steps=8)

    result = method.edit(batch_of(pictures(2)), callbacks=[Trajectory(preview_steps=3)])

    measurement = result.measurements[0]["Trajectory"]
    picture = measurement.pictures["trajectory"]
    assert measurement.values["preview_steps"] == [0, 4, 7]
    assert picture.shape == (16, 4 * 16 + 3 * 4, 3)
    assert torch.equal(picture[:, -16:], (result.edits[0][0] * 255).round().byte().permute(1, 2, 0))
    assert backbone.decoded == 2 + 3


def test_small_previews_are_smaller():
    result = module().edit(batch_of(pictures(1)), callbacks=[Trajectory(preview_steps=2, tile=8)])

    assert result.measurements[0]["Trajectory"].pictures["trajectory"].shape == (8, 3 * 8 + 2 * 4, 3)


def test_a_linear_preview_finds_a_linear_decoder():
    generator = torch.Generator().manual_seed(0)
    mix, shift = torch.rand(3, 6, generator=generator) / 12, torch.rand(3, generator=generator) / 4
    z0, z = torch.rand(4, 6, 8, 8, generator=generator), torch.rand(2, 6, 8, 8, generator=generator)

    def decoded(z):
        small = torch.einsum("oc,bchw->bohw", mix, z) + shift[:, None, None] + 0.2
        return small.repeat_interleave(2, -1).repeat_interleave(2, -2)

    (preview,) = linear_previews(z0, decoded(z0), [z], size=(16, 16))

    torch.testing.assert_close(preview, decoded(z), atol=1e-5, rtol=0)


def test_linear_previews_need_no_decoder():
    backbone = GaussianPictures()

    result = DDIM(backbone, steps=8).edit(batch_of(pictures(2)), callbacks=[Trajectory(previews="linear")])

    assert backbone.decoded == 2
    assert result.measurements[0]["Trajectory"].pictures["trajectory"].shape[0] == 16


def test_draws_are_folded_and_the_first_one_is_shown():
    method = EditFriendlyDDPM(GaussianPictures(), steps=8, skip=0, draws=2)

    result = method.edit(batch_of(pictures(2)), callbacks=[Trajectory(save=True)])

    tensors = result.measurements[1]["Trajectory"].tensors
    assert tensors["inversion_latents"].shape == (8, 2, 3, 16, 16)
    assert Moments.from_tensor(tensors["inversion_moments"]).n.unique().tolist() == [2 * 3 * 16 * 16]


def test_a_failed_sample_has_no_trajectory_and_the_others_keep_theirs(tmp_path):
    images = pictures(3)
    images[1, 0, 0, 0] = math.nan

    run = run_of(tmp_path, module(), [batch_of(images)], [Trajectory(previews="linear")])

    summary = run.summary("Trajectory")
    assert summary["images"] == 2 and list(summary["left_out"]["first"]) == ["picture-1"]
    assert all(math.isfinite(row["standard_deviation"]) for row in summary["inversion"])


def test_a_method_without_inversion_has_a_trajectory_of_denoising_alone(tmp_path):
    events = Events()

    run = run_of(
        tmp_path, SDEdit(GaussianPictures(), steps=8, strength=0.5), [batch_of(pictures(1))], [Trajectory()], events
    )

    assert "inversion" not in run.summary("Trajectory")
    assert events.tags("add_scalar") == {"3_latent/mean_denoising", "3_latent/sd_denoising"}
    assert events.tags("add_image") == {"4_edits/trajectory/picture-0"}
    assert "Trajectory-deviation.png" in run.files()


def test_an_unknown_preview_is_refused_with_the_nearest_word():
    with pytest.raises(SettingsError, match="did you mean 'decode'"):
        Trajectory(previews="decoded")
