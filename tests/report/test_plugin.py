"""The plugin within TensorBoard, by its routes and in a browser."""

from __future__ import annotations

import json
import os
import threading
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from tensorboard import program
from tensorboard.plugins.core.core_plugin import CorePluginLoader
from werkzeug.test import Client

from framework.report.plugin import InveditPlugin, Loader
from tests.report.world import HOSTILE, World, picture, sweep


def client_of(plugin, route):
    return Client(plugin.get_plugin_apps()[route])


def plugin_of(root):
    return InveditPlugin(SimpleNamespace(logdir=str(root)))


def data_of(plugin, **words):
    return json.loads(client_of(plugin, "/data").get("/data", query_string=words).data)


def test_the_document_comes_once_and_again_when_something_is_committed(tmp_path):
    world = World(tmp_path / "run", ["a", "b"])
    world.finish("a")
    plugin = plugin_of(tmp_path)

    first = data_of(plugin)
    same = data_of(plugin, tag=first["tag"], group=first["group"])
    world.finish("b")
    later = data_of(plugin, tag=first["tag"], group=first["group"])

    assert [row["id"] for row in first["document"]["rows"]] == ["a"]
    assert same["document"] is None
    assert [row["id"] for row in later["document"]["rows"]] == ["a", "b"]


def test_experiments_of_one_folder_are_shown_one_at_a_time_the_newest_first(tmp_path):
    sweep(tmp_path / "old", ("x", "y"), 1)
    sweep(tmp_path / "new", ("z",), 1)
    os.utime(tmp_path / "new" / "z" / "manifest.lock.jsonl", (2e9, 2e9))
    plugin = plugin_of(tmp_path)

    assert data_of(plugin)["groups"] == ["new", "old"]
    assert [run["name"] for run in data_of(plugin)["document"]["runs"]] == ["z"]
    assert [run["name"] for run in data_of(plugin, group="old")["document"]["runs"]] == ["x", "y"]


def test_a_folder_without_runs_is_an_inactive_plugin_with_an_empty_page(tmp_path):
    plugin = plugin_of(tmp_path)

    assert not plugin.is_active()
    assert data_of(plugin)["document"]["runs"] == []
    sweep(tmp_path / "later", ("x",), 1)
    assert plugin.is_active()


@pytest.mark.parametrize("logdir", ["", "gs://bucket/runs"])
def test_there_is_no_plugin_without_a_local_folder(logdir):
    assert Loader().load(SimpleNamespace(logdir=logdir)) is None


@pytest.fixture
def secret(tmp_path):
    """A run below a root, and a picture beside the root that must not be seen."""
    (tmp_path / "secret.png").write_bytes(picture(1))
    world = World(tmp_path / "root" / "run", ["a"])
    world.finish("a")
    world.figure("NoiseStatistics-variance.png")
    plugin = plugin_of(tmp_path / "root")
    data_of(plugin)
    return SimpleNamespace(plugin=plugin, world=world, outside=tmp_path / "secret.png")


def test_committed_pictures_and_figures_are_served(secret):
    pictures = client_of(secret.plugin, "/picture")
    words = {"group": ".", "run": "run", "sample": "a", "file": "edit.png"}

    answer = pictures.get("/picture", query_string=words)
    figure = client_of(secret.plugin, "/figure").get(
        "/figure", query_string={**words, "file": "NoiseStatistics-variance.png"}
    )

    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    assert answer.data == (secret.world.folder("a") / "edit.png").read_bytes()
    assert figure.status_code == 200


@pytest.mark.parametrize("route", ["/picture", "/figure"])
@pytest.mark.parametrize(
    "changed",
    [
        {"file": "../../../../secret.png"},
        {"file": "..%2f..%2f..%2f..%2fsecret.png"},
        {"file": "/etc/passwd"},
        {"file": "meta.json"},
        {"file": "edit.png\0"},
        {"file": ""},
        {"sample": "../a"},
        {"sample": "../../../.."},
        {"run": "../run"},
        {"run": ".."},
        {"group": ".."},
        {"group": "../root"},
    ],
)
def test_nothing_but_what_the_records_name_is_served(secret, route, changed):
    known = {"group": ".", "run": "run", "sample": "a", "file": "edit.png" if route == "/picture" else "x.png"}

    answer = client_of(secret.plugin, route).get(route, query_string={**known, **changed})

    assert answer.status_code in (404,), answer.data[:80]
    assert picture(1) not in answer.data


def test_a_link_out_of_the_run_is_not_followed(secret):
    size = secret.outside.stat().st_size
    target = secret.world.folder("a") / "edit.png"
    target.unlink()
    target.symlink_to(secret.outside)
    line = json.loads(secret.world.journal.read_bytes().splitlines()[-1])
    line["files"]["edit.png"]["size"] = size
    secret.world.note(line)
    data_of(secret.plugin)

    words = {"group": ".", "run": "run", "sample": "a", "file": "edit.png"}

    assert client_of(secret.plugin, "/picture").get("/picture", query_string=words).status_code == 404


def test_thumbnails_are_small_and_kept_by_the_browser(tmp_path):
    world = World(tmp_path / "run", ["a"])
    world.finish("a", pictures={"edit.png": picture(1, side=512) + b"\0" * 40_000})
    plugin = plugin_of(tmp_path)
    address = data_of(plugin)["document"]["rows"][0]["cells"][0]["edits"][0][0]

    answer = client_of(plugin, "/picture").get(address.removeprefix("."))

    assert (answer.mimetype, len(answer.data) < 20_000) == ("image/jpeg", True)
    assert "max-age" in answer.headers["Cache-Control"]


@pytest.fixture
def tensorboard(tmp_path):
    """TensorBoard with no plugin but ours, on a port of its own."""
    board = program.TensorBoard(plugins=[CorePluginLoader(), Loader()])
    where = ["--logdir", str(tmp_path / "root"), "--host", "127.0.0.1", "--port", "0"]
    board.configure(argv=["tensorboard", *where, "--load_fast", "false"])
    server = board._make_server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.get_url()
    server.shutdown()
    thread.join()


def test_the_tab_shows_samples_as_they_are_committed_and_no_html_of_theirs(page, tmp_path, tensorboard):
    world = World(tmp_path / "root" / "run", [HOSTILE, "b", "c"], noise=True)
    world.finish(HOSTILE, prompts=(HOSTILE, "a cat"))
    address = f"{tensorboard.rstrip('/')}/data/plugin_entry.html?name={quote('invedit')}"

    page.open(address)
    assert page.until(lambda: page.texts("#samples .row h3")) == [HOSTILE]
    page.click("[data-mode=slider]")
    page.one("#samples .split")
    page.until(
        lambda: page.run("return [...document.querySelectorAll('#samples img')].every((i) => i.naturalWidth > 0)")
    )
    page.one(".chart")
    world.finish("b")

    page.until(lambda: page.texts("#samples .row h3") == [HOSTILE, "b"])
    assert page.one("#samples .split"), "what was chosen stays"
    assert page.session.title != "stolen"
    assert [complaint for complaint in page.complaints() if "favicon" not in complaint] == []
