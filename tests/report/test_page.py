"""The report in a browser, opened from the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.report.page import json_for_html, render_page, write_report
from tests.report.world import HOSTILE, World, document_of, picture, sweep


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "toy sweep"
    worlds = sweep(root, ("first", "second"), 4)
    world = worlds["first"]
    world.finish("s0", psnr=30.0, far=0.0, pictures={"attention-square.png": picture(9)}, notes=["the end was dropped"])
    world.figure("NoiseStatistics-variance.png")
    return write_report([root])


def images_loaded(page, selector):
    script = """
        const images = [...document.querySelectorAll(arguments[0])];
        return images.length > 0 && images.every((image) => image.complete && image.naturalWidth > 0)"""
    return page.until(lambda: page.run(script, selector), f"pictures of {selector} are there")


def test_the_report_shows_everything_from_the_disk_without_a_complaint(page, report):
    page.open(report.as_uri())

    assert page.one("h1").text == "toy sweep"
    assert page.one(".status").text == "Complete"
    assert page.texts(".methods tbody th") == ["firstFirst", "secondSecond"]
    assert "toy PSNRdB ↑" in page.texts(".methods thead th")
    assert page.texts("#samples .row h3") == ["s0", "s1", "s2", "s3"]
    assert page.texts("#samples .row:first-child mark") == ["red", "blue"]
    assert len(page.all("#worst .cell")) == 8
    assert "Variance" in [text.capitalize() for text in page.texts(".chart figcaption")]
    assert "seed: 0" in page.texts(".reproduce pre")[1]
    assert page.one("#failures").is_displayed() is False
    images_loaded(page, "#samples .row:first-child img")
    assert page.complaints() == []


def test_means_in_the_table_are_those_of_the_samples_and_the_best_is_marked(page, report):
    page.open(report.as_uri())

    cells = page.texts(".methods tbody tr td:nth-child(4)")
    assert [cell.split("±")[0] for cell in cells] == ["25.5", "24.5"]
    assert cells[0].endswith("n 4")
    assert page.texts(".methods .best b") == ["1.5", "25.5", "1.5"], "equal means are all the best"


def test_sorting_puts_the_worst_first_and_filters_leave_what_fits(page, report):
    page.open(report.as_uri())
    ids = lambda: page.texts("#samples .row h3")  # noqa: E731
    choose = """
        const select = document.querySelector(`select[aria-label="${arguments[0]}"]`);
        select.value = [...select.options].find((option) => option.textContent === arguments[1]).value;
        select.dispatchEvent(new Event("change"))"""

    page.one("#samples .row")
    page.run(choose, "sort by", "by toy PSNR")
    assert ids() == ["s3", "s2", "s1", "s0"]
    page.run(choose, "sort by", "by far")
    assert ids() == ["s3", "s2", "s1", "s0"], "larger distances are worse"
    page.run(choose, "edit type", "type 2")
    assert ids() == ["s3", "s1"]
    page.run(choose, "edit type", "all edit types")
    page.run(choose, "which samples", "with notes")
    assert ids() == ["s0"]
    page.run(choose, "which samples", "all samples")
    page.one("#samples input[type=search]").send_keys("s2 SQUARE")
    page.until(lambda: ids() == ["s2"])


def test_the_slider_of_a_cell_moves_by_mouse_and_keys(page, report):
    page.open(report.as_uri())
    page.click("[data-mode=slider]")
    stack = "document.querySelector('#samples .row .stack:has(.after)')"
    split = f"return getComputedStyle({stack}).getPropertyValue('--split')"

    page.one("#samples .split")
    assert page.run(split) == "50%"
    page.run("document.querySelector('#samples .split').focus()")
    page.press("\ue014")  # right arrow

    assert page.run(split) == "51%"


@pytest.mark.parametrize(
    ("mode", "condition"),
    [
        ("reconstruction", "after.src.endsWith('reconstruction.png')"),
        ("difference", "getComputedStyle(after).mixBlendMode === 'difference'"),
    ],
)
def test_reconstructions_and_differences_are_one_button_away(page, report, mode, condition):
    page.open(report.as_uri())
    page.click(f"[data-mode={mode}]")

    page.until(lambda: page.run(f"const after = document.querySelector('#samples .after'); return {condition}"))


def test_a_sample_opens_large_and_is_walked_by_keys(page, report):
    right, down, escape = "\ue014", "\ue015", "\ue00c"
    page.open(report.as_uri())
    page.run("document.querySelector('#samples button.picture').focus()")
    page.press("\ue007")  # enter

    assert page.one("dialog[open] h2").text.split() == ["s0", "first"]
    assert page.texts("dialog .words figcaption") == ["square"]
    assert "the end was dropped" in page.texts("dialog .facts li")
    page.press(right, down)
    page.until(lambda: page.one("dialog h2").text.split() == ["s1", "second"])
    split = "return document.querySelector('dialog .split').value"
    page.press(" ")
    page.until(lambda: page.run(split) == "100", "the source alone")
    page.press(" ")
    page.until(lambda: page.run(split) == "0", "the edit alone")
    page.press("d")
    page.one("dialog .large.difference")
    page.press(escape)
    page.until(lambda: not page.all("dialog[open]"))


def test_ids_prompts_and_reasons_are_text_and_nothing_of_them_runs(page, tmp_path):
    world = World(tmp_path / "run", [HOSTILE, "failed one", "<b>bold</b>"], method=HOSTILE)
    world.finish(HOSTILE, prompts=(HOSTILE, HOSTILE + " again"), notes=[HOSTILE], kind=HOSTILE)
    world.fail("failed one", HOSTILE)
    world.finish("<b>bold</b>")
    (world.directory / "config.yaml").write_text(f"method: {HOSTILE!r}\n")

    report = write_report([world.directory])
    page.open(report.as_uri())

    assert page.texts("#samples .row h3") == [HOSTILE, "failed one", "<b>bold</b>"]
    assert page.texts("#failures td:nth-child(3)") == [HOSTILE]
    page.click("#samples button.picture")
    page.one("dialog[open]")
    assert page.session.title == "run - invedit report"
    assert not page.all("main script, main b b, img[src='x']")
    assert HOSTILE not in report.read_text("utf-8")
    assert page.complaints() == []


def test_a_script_that_gets_into_the_page_does_not_run(page, report, tmp_path):
    text = report.read_text("utf-8")
    forged = tmp_path / "forged.html"
    evil = "<script>document.title = 'stolen'</script><img src=x onerror=\"document.title='stolen'\">"
    forged.write_text(text.replace("</main>", f"</main>{evil}"))

    page.open(forged.as_uri())

    page.one("#samples .row")
    assert page.session.title != "stolen"
    assert any("Content Security Policy" in complaint for complaint in page.complaints())


def test_failures_are_grouped_by_reason_and_problems_are_named(page, tmp_path):
    world = World(tmp_path / "run", ["a", "b", "c", "d"])
    world.finish("a")
    world.fail("b", "out of memory")
    world.fail("c", "out of memory")
    (world.folder("a") / "edit.png").unlink()

    page.open(write_report([world.directory]).as_uri())

    assert page.one(".status").text == "Stopped"
    assert page.texts(".counts") == ["3 samples · 1 method · 1 of 4 edits done · 2 failed · 1 left"]
    assert page.texts("#failures tbody tr") == ["runbcout of memory"]
    assert "edit.png is missing" in page.texts(".problems li")[0]
    page.click("#failures .link")
    assert page.one("dialog .reason").text.split("\n")[-1] == "out of memory"


def test_the_page_fits_a_phone_and_follows_a_dark_system(page, report):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    try:
        page.open(report.as_uri())
        page.one("#samples .row")
        light = page.run("return getComputedStyle(document.body).backgroundColor")
        page.session.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)

        assert page.run("return document.documentElement.scrollWidth") == 390
        assert page.run("return getComputedStyle(document.body).backgroundColor") != light
    finally:
        page.session.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.session.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_only_rows_near_the_window_are_built_and_more_follow(page, tmp_path):
    world = World(tmp_path / "run", [f"s{index:03}" for index in range(120)])
    world.finish("s000")
    line = world.journal.read_text().splitlines()[-1]
    for name in world.ids[1:]:
        world.note(json.loads(line.replace("s000", name)))
    page.open(write_report([world.directory]).as_uri())

    first = page.until(lambda: len(page.all("#samples .row")))
    assert first < 120
    assert page.one("#samples [role=status]").text.startswith("120 of 120 samples")

    def scrolled():
        page.run("document.querySelector('#samples .end').scrollIntoView()")
        return len(page.all("#samples .row")) == 120

    page.until(scrolled)


def test_a_single_file_shows_its_pictures_wherever_it_is(page, tmp_path):
    sweep(tmp_path / "runs", ("first",), 2)
    one = write_report([tmp_path / "runs"], tmp_path / "one.html", single_file=True)
    (tmp_path / "mail").mkdir()

    page.open(one.rename(tmp_path / "mail" / "one.html").as_uri())

    images_loaded(page, "#samples img")
    assert page.complaints() == []


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028", "&lt;"])
def test_json_cannot_end_the_element_that_holds_it(text):
    encoded = json_for_html({"a": text})

    assert not set("<>&\u2028") & set(encoded)
    assert document_round_trip(encoded) == {"a": text}


def document_round_trip(encoded):
    return json.loads(encoded)


def test_the_page_asks_nobody_else_for_anything(report):
    text = report.read_text("utf-8")

    assert "default-src 'none'" in text
    assert "https://" not in text
    assert text.count("http://") == text.count("http://www.w3.org/2000/svg"), "only the name of the drawings' language"


def test_a_title_is_escaped():
    document = {"title": "<i>&", "rows": []}

    assert "<title>&lt;i&gt;&amp; - invedit report</title>" in render_page(document)


def test_a_report_may_be_written_anywhere_and_links_back(tmp_path):
    sweep(tmp_path / "runs", ("with space",), 1)
    (tmp_path / "elsewhere").mkdir()

    page = write_report([tmp_path / "runs"], tmp_path / "elsewhere" / "page.html")

    assert document_of(page)["rows"][0]["picture"][1] == "../runs/with%20space/samples/s0/source.png"
    assert Path(tmp_path / "runs" / "with space" / "samples" / "s0" / "source.png").is_file()
