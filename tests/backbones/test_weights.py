from __future__ import annotations

import logging
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub

from framework.backbones import StableDiffusion
from framework.backbones.names import bundled_models, local_folder
from framework.errors import SettingsError

UNET = "unet/diffusion_pytorch_model.safetensors"


def loading(folder, **settings):
    with pytest.raises(SettingsError) as error:
        StableDiffusion(str(folder), **settings).load()
    return str(error.value)


def test_missing_weights_are_named(changed_sd):
    folder = changed_sd()
    (folder / UNET).unlink()

    assert f"it has no {UNET}; the download or copy is incomplete" in loading(folder)


def test_pickled_weights_are_refused_without_being_opened(changed_sd, tmp_path):
    folder = changed_sd()
    (folder / UNET).unlink()
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return marker.touch, ()

    torch.save(Hostile(), folder / "unet/diffusion_pytorch_model.bin")
    (folder / "text_encoder/pytorch_model.bin").write_bytes(b"beside safetensors it does not matter")

    message = loading(folder)

    assert "only the pickled unet/diffusion_pytorch_model.bin" in message and "safetensors" in message
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0, 6, 1000, -1])
def test_cut_weights_are_named_with_what_to_do(changed_sd, kept):
    folder = changed_sd()
    path = folder / UNET
    path.write_bytes(path.read_bytes()[:kept])

    message = loading(folder)

    assert str(path) in message and "remove it and get it again" in message


def test_weights_of_another_config_are_refused(changed_sd):
    folder = changed_sd({"unet/config.json": {"layers_per_block": 3}})

    message = loading(folder)

    assert "the weights of unet lack" in message or "unet cannot be loaded" in message


def test_weights_of_another_width_are_refused(changed_sd):
    folder = changed_sd({"text_encoder/config.json": {"intermediate_size": 128}})

    assert "text_encoder" in loading(folder)


def test_a_variant_is_found_and_a_missing_one_names_what_there_is(changed_sd):
    folder = changed_sd()
    for stem in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        (folder / f"{stem}.safetensors").rename(folder / f"{stem}.fp16.safetensors")

    StableDiffusion(str(folder), variant="fp16").load()

    message = loading(folder)
    assert f"it has no {UNET}, but unet/diffusion_pytorch_model.fp16.safetensors; set `variant`" in message


def test_sharded_weights_load(changed_sd, tiny_sd):
    folder = changed_sd()
    (folder / UNET).unlink()
    tiny_sd.unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1

    backbone = StableDiffusion(str(folder))
    backbone.load()

    assert all(torch.equal(a, b) for a, b in zip(backbone.unet.parameters(), tiny_sd.unet.parameters(), strict=True))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0\1"])
def test_a_broken_config_is_named(changed_sd, text):
    folder = changed_sd()
    (folder / "unet/config.json").write_text(text)

    with pytest.raises(SettingsError, match=r"unet/config\.json"):
        StableDiffusion(str(folder))


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"it has no model_index\.json"):
        StableDiffusion(str(tmp_path))


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all"])
def test_a_path_that_does_not_exist_is_never_asked_of_the_hub(model, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: pytest.fail("asked the hub"))

    with pytest.raises(SettingsError, match="there is no folder"):
        StableDiffusion(model)


def test_without_network_the_message_says_so(monkeypatch, tmp_path):
    with pytest.raises(SettingsError) as error:
        StableDiffusion("owner/name", cache_dir=str(tmp_path))

    assert "never downloaded and the hub cannot be reached" in str(error.value)
    assert "HF_HUB_OFFLINE" in str(error.value)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (hub.GatedRepoError, "is gated: accept its licence"),
        (hub.RepositoryNotFoundError, "the hub knows no model owner/name"),
        (hub.RevisionNotFoundError, "has no revision 'v9'"),
        (hub.LocalEntryNotFoundError, "the hub cannot be reached"),
        (hub.OfflineModeIsEnabled, "the hub cannot be reached"),
        (hub.HFValidationError, "is no hub id"),
        (hub.HfHubHTTPError, "the hub answered"),
        (TimeoutError, "broke off (TimeoutError)"),
    ],
)
def test_reasons_why_the_hub_gives_nothing_are_told_apart_and_no_token_is_shown(raised, words, monkeypatch, caplog):
    secret = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", secret)

    class Raised(raised):
        def __init__(self):
            Exception.__init__(self, f"request with Authorization: Bearer {secret}")

    Raised.__name__ = raised.__name__

    def fail(*args, **kwargs):
        raise Raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)

    with caplog.at_level(logging.DEBUG), pytest.raises(SettingsError) as error:
        StableDiffusion("owner/name", revision="v9")

    assert words in str(error.value)
    assert secret not in str(error.value) + caplog.text
    assert error.value.__suppress_context__


def test_a_hub_id_that_was_withdrawn_leads_to_its_copy():
    with pytest.raises(SettingsError, match="stable-diffusion-v1-5/stable-diffusion-v1-5"):
        StableDiffusion("runwayml/stable-diffusion-v1-5")


def test_a_short_name_that_is_nearly_right_is_offered():
    with pytest.raises(SettingsError, match="did you mean 'shapes'"):
        StableDiffusion("shaped")


def test_a_bundled_model_is_found_without_importing_its_package():
    assert "shapes" in bundled_models()
    assert local_folder("shapes").as_posix().endswith("experiments/shapes/weights/diffusion")
    assert local_folder("owner/name") is None


@pytest.fixture
def cached_hub(tiny_sd_folder, tmp_path):
    """The hub's cache after owner/tiny was downloaded at one commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "cache/models--owner--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    shutil.copytree(tiny_sd_folder, home / "snapshots" / commit)
    return tmp_path / "cache", commit


def test_a_downloaded_model_runs_offline_and_keeps_its_commit(cached_hub, tiny_sd):
    cache, commit = cached_hub

    backbone = StableDiffusion("owner/tiny", cache_dir=str(cache), local_files_only=True)
    backbone.load()

    assert (backbone.identity["model"], backbone.identity["weights"]) == ("owner/tiny", commit)
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), tiny_sd.parameters(), strict=True))


def test_a_branch_that_moves_on_between_configs_and_weights_changes_nothing(cached_hub):
    cache, commit = cached_hub
    backbone = StableDiffusion("owner/tiny", cache_dir=str(cache), local_files_only=True)

    (cache / "models--owner--tiny/refs/main").write_text("f" * 40)
    backbone.load()

    assert backbone.identity["weights"] == commit


def test_only_files_that_are_needed_are_downloaded(monkeypatch, tiny_sd_folder):
    asked = []

    def small(repository, name, **options):
        path = tiny_sd_folder / name
        return str(path) if path.is_file() else pytest.fail(f"asked for {name}")

    def snapshot(repository, *, allow_patterns, **options):
        asked.extend(allow_patterns)
        return str(tiny_sd_folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", small)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)

    StableDiffusion("owner/tiny", revision="v1").load()

    assert UNET in asked
    assert not any(pattern.endswith((".bin", ".ckpt", ".py")) or pattern in ("*", "unet/*") for pattern in asked)
