import json
import os
import unicodedata

import pytest
import yaml

from framework.data import TI2I, Folder, Manifest, PieBench, RunLengthMask
from framework.errors import SettingsError
from tests.data.pictures import noise, save


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("cat.png", "dog.jpg"):
        save(folder / name, noise(16, 16))
    return folder


def problems(source):
    with pytest.raises(SettingsError) as caught:
        source.samples()
    return caught.value.problems


def lines(root, *entries):
    texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / "manifest.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return Manifest(root)


def entry(**changes):
    return {"image": "cat.png", "source": "a cat", "target": "a tiger", **changes}


# Folder


def test_a_folder_pairs_pictures_with_captions_and_masks(root):
    (root / "cat.txt").write_text("a cat\na tiger\n")
    (root / "dog.txt").write_text("\ufeff\r\na wolf\r\na fox\r\n\r\n", encoding="utf-8")
    save(root / "cat_mask.png", noise(16, 16, 1))

    samples = Folder(root).samples()

    assert [(s.id, s.source, s.target) for s in samples] == [
        ("cat", "a cat", "a tiger"),
        ("dog/0", "", "a wolf"),
        ("dog/1", "", "a fox"),
    ]
    assert samples[0].image == root / "cat.png" and samples[0].mask == root / "cat_mask.png"
    assert samples[1].mask is None


def test_pictures_without_captions_take_the_prompts_of_the_settings(root):
    (root / "dog.txt").write_text("a dog")

    samples = Folder(root, target="a wolf", source="an animal").samples()

    assert [(s.id, s.source, s.target) for s in samples] == [("cat", "an animal", "a wolf"), ("dog", "a dog", "a wolf")]


def test_several_targets_of_the_settings_make_several_samples(root):
    assert [s.id for s in Folder(root, target=["a", "b"]).samples()] == ["cat/0", "cat/1", "dog/0", "dog/1"]


def test_pictures_without_any_target_are_all_named(root):
    found = problems(Folder(root))

    assert len(found) == 2 and "cat.txt" in found[0] and "dog.jpg: has no target prompt" in found[1]


def test_a_blank_line_between_targets_is_an_empty_target(root):
    (root / "cat.txt").write_text("a cat\na\n\nb")
    (root / "dog.jpg").unlink()

    assert "target is empty" in problems(Folder(root))[0]


def test_pictures_that_share_a_stem_are_an_error_that_names_both(root):
    save(root / "cat.webp", noise(16, 16))

    assert "cat.png; cat.webp" in problems(Folder(root, target="x"))[0]


def test_a_mask_without_its_picture_is_an_error(root):
    save(root / "bird_mask.png", noise(16, 16, 1))

    assert "no picture 'bird'" in problems(Folder(root, target="x"))[0]


def test_a_caption_without_its_picture_is_told_and_an_error_when_strict(root, caplog):
    (root / "bird.txt").write_text("a bird\na hen")

    assert len(Folder(root, target="x").samples()) == 2
    assert "bird.txt" in caplog.text
    assert "bird.txt has no picture" in problems(Folder(root, target="x", strict=True))[0]


def test_a_caption_that_is_not_utf8_is_an_error(root):
    (root / "cat.txt").write_bytes(b"a caf\xe9\nx")

    assert "UTF-8" in problems(Folder(root, target="x"))[0]


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "notes.md").touch()

    assert "notes.md" in problems(Folder(tmp_path))[0]


def test_hidden_files_and_sub_folders_are_left_alone(root):
    save(root / ".hidden.png", noise(16, 16))
    save(root / "more" / "bird.png", noise(16, 16))

    assert [s.id for s in Folder(root, target="x").samples()] == ["cat", "dog"]


@pytest.mark.parametrize("name", ["cat.txt", "link.png"])
def test_a_link_out_of_the_folder_is_refused(root, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    (root / name).symlink_to(tmp_path / "secret")

    assert "leads out" in problems(Folder(root, target="x"))[0]


def test_a_link_inside_the_folder_is_followed(root):
    (root / "link.png").symlink_to(root / "cat.png")

    assert [s.id for s in Folder(root, target="x").samples()] == ["cat", "dog", "link"]


def test_pipes_and_loops_of_links_are_refused(root):
    os.mkfifo(root / "pipe.png")
    (root / "loop.png").symlink_to(root / "loop.png")

    found = problems(Folder(root, target="x"))

    assert len(found) == 2 and "loop.png" in found[0] and "is a pipe" in found[1]


# Roots and options


def test_a_root_that_does_not_exist_names_what_is_near(root, monkeypatch):
    monkeypatch.chdir(root.parent)

    found = problems(Folder("picturs"))[0]

    assert "did you mean 'pictures'?" in found and str(root.parent) in found


def test_a_relative_root_counts_from_the_working_directory(root, monkeypatch):
    monkeypatch.chdir(root.parent)

    assert Folder("pictures", target="x").samples()[0].image == root / "cat.png"
    assert Folder("pictures").folder == root


def test_a_root_inside_a_package_is_found_from_any_folder(tmp_path, monkeypatch):
    package = tmp_path / "site" / "bundled_pictures"
    save(package / "inner" / "cat.png", noise(16, 16))
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.chdir(tmp_path)

    assert Folder("package:bundled_pictures/inner", target="x").samples()[0].image == package / "inner" / "cat.png"
    assert "did you mean 'inner'" in problems(Folder("package:bundled_pictures/iner"))[0]
    assert "leads out" in problems(Folder("package:bundled_pictures/../x"))[0]
    assert "cannot be imported" in problems(Folder("package:no_such_package/x"))[0]


def test_wrong_options_are_reported_together_with_what_is_allowed():
    with pytest.raises(SettingsError) as caught:
        Folder(
            "x", batch_size=0, resize="cropp", on_error="halt", limit=-1, background=(0, 0), size=[64], max_ratio="8"
        )

    text = str(caught.value)
    for words in (
        "batch_size=0",
        "did you mean 'crop'",
        "skip, stop",
        "limit=-1",
        "background=",
        "size=[64]",
        "max_rat",
    ):
        assert words in text
    assert len(caught.value.problems) == 7


def test_a_size_contradicts_native():
    with pytest.raises(SettingsError, match="contradicts"):
        Folder("x", resize="native", size=64)


def test_the_limit_keeps_the_first_samples(root):
    assert [s.id for s in Folder(root, target="x", limit=1).samples()] == ["cat"]


# Manifest


def test_every_form_of_manifest_gives_the_same_samples(root):
    save(root / "mask.png", noise(16, 16, 1))
    entries = [
        entry(id="one", type="7", mask="mask.png", tags=["indoor"], negative="blurry", instruction="do it"),
        {"image": "dog.jpg", "target": "a wolf", "mask": {"rle": [3, 4], "size": [16, 16]}, "type": 3},
        entry(target=["a lion", "a lynx"], id="many"),
    ]
    (root / "a.jsonl").write_text("\n\n".join(json.dumps(e) for e in entries))
    (root / "b.json").write_text(json.dumps(entries))
    (root / "c.yaml").write_text(yaml.safe_dump(entries))

    read = [Manifest(root, file=name).samples() for name in ("a.jsonl", "b.json", "c.yaml")]

    assert read[0] == read[1] == read[2] == Manifest(root / "a.jsonl").samples()
    one, dog, lion, lynx = read[0]
    assert (one.id, one.edit_type, one.negative, one.instruction) == ("one", "7", "blurry", "do it")
    assert one.mask == root / "mask.png" and one.extra == {"tags": ["indoor"]}
    assert (dog.id, dog.source, dog.edit_type) == ("dog", "", "3")
    assert dog.mask == RunLengthMask((3, 4), (16, 16), True)
    assert [(s.id, s.target) for s in (lion, lynx)] == [("many/0", "a lion"), ("many/1", "a lynx")]


def test_all_problems_of_a_manifest_come_together_with_line_and_reason(root):
    source = lines(
        root,
        entry(id="a", target=""),
        "{not json}",
        entry(id="b", image="bird.png"),
        {"image": "cat.png", "targt": "x"},
        "[1, 2]",
        entry(id="c", source=7, target="  "),
    )

    found = problems(source)

    assert len(found) == 7
    text = "\n".join(found)
    assert "line 1, id 'a': target is empty" in text
    assert "line 2, column 2: this is not JSON" in text
    assert "line 3, id 'b': there is no file 'bird.png'" in text
    assert "line 4: has no 'target'; did you mean 'targt'?" in text
    assert "line 5: is of type list" in text
    assert "line 6, id 'c': source=7 is of type int" in text
    assert "line 6, id 'c': target='  ' holds only spaces" in text


def test_duplicate_ids_are_an_error_that_lists_the_lines(root):
    found = problems(lines(root, entry(id="x"), entry(id="y"), entry(id="x")))

    assert len(found) == 1 and "line 1; manifest.jsonl, line 3" in found[0] and "'x'" in found[0]


@pytest.mark.parametrize("pair", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("STRASSE", "stra\u00dfe")])
def test_ids_that_differ_only_by_case_or_unicode_form_are_an_error(root, pair):
    found = problems(lines(root, entry(id=pair[0]), entry(id=pair[1])))

    assert len(found) == 1 and "only by case or unicode form" in found[0] and "line 2" in found[0]


def test_ids_default_to_the_stem_and_their_clashes_are_found(root):
    assert "share the id 'cat'" in problems(lines(root, entry(), entry()))[0]


@pytest.mark.parametrize("value", [12, "", " ", "a\nb", "a\0b", ["x"], True])
def test_ids_that_are_no_names_are_refused(root, value):
    assert "id=" in problems(lines(root, entry(id=value)))[0]


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}, True])
def test_a_source_prompt_that_is_not_text_is_refused(root, value):
    assert "source=" in problems(lines(root, entry(source=value)))[0]


@pytest.mark.parametrize("value", ["a\tb", "a\nb", "a\x00b", "a\x7fb", "a\x85b", "\ud800"])
def test_control_characters_in_prompts_are_refused(root, value):
    assert "control characters" in problems(lines(root, entry(target=value)))[0]


def test_an_empty_source_prompt_is_allowed_and_a_blank_one_is_not(root):
    assert lines(root, entry(source="")).samples()[0].source == ""
    assert "only spaces" in problems(lines(root, entry(source="  ")))[0]


def test_prompts_keep_their_characters_in_composed_form(root):
    sample = lines(root, entry(source="cafe\u0301 \U0001f600 \u732b", target="x  y ")).samples()[0]

    assert sample.source == "caf\u00e9 \U0001f600 \u732b" == unicodedata.normalize("NFC", sample.source)
    assert sample.target == "x  y "


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "leads out"),
        ("more/../../secret.png", "leads out"),
        ("/etc/passwd", "absolute"),
        ("C:/x.png", "Windows"),
        ("\\\\host\\x.png", "Windows"),
        ("a\0.png", "control"),
        ("con.png", "reserved"),
        ("", "path ''"),
        (5, "path 5"),
        (".", "a folder"),
        ("x" * 300 + ".png", "cannot be used"),
    ],
)
def test_unsafe_paths_are_refused_with_the_reason(root, path, reason):
    save(root.parent / "secret.png", noise(16, 16))

    assert reason in problems(lines(root, entry(image=path, id="a")))[0]
    assert problems(lines(root, entry(mask=path, id="a")))[0].count("mask") == 1


def test_paths_out_of_the_root_are_used_when_that_is_allowed(root):
    outside = save(root.parent / "outside.png", noise(16, 16))
    lines(root, entry(image=str(outside)), entry(image="../outside.png", id="b"))

    samples = Manifest(root, allow_absolute=True).samples()

    assert samples[0].image == outside and samples[1].image.samefile(outside)


def test_a_device_is_refused_even_where_absolute_paths_are_allowed(root):
    lines(root, entry(image="/dev/zero", id="a"))

    assert "is a device" in problems(Manifest(root, allow_absolute=True))[0]


@pytest.mark.parametrize(
    "mask",
    [
        {"rle": [1, 2, 3], "size": [4, 4]},
        {"rle": [-1, 2], "size": [4, 4]},
        {"rle": [1.5, 2], "size": [4, 4]},
        {"rle": [True, 2], "size": [4, 4]},
        {"rle": "1 2", "size": [4, 4]},
        {"rle": [1, 2], "size": [4]},
        {"rle": [1, 2], "size": [0, 4]},
        {"rle": [1, 2], "size": [10**6, 10**6]},
        {"rle": [1, 2], "border": 1},
        {"rel": [1, 2]},
        "nowhere.png",
        7,
    ],
)
def test_malformed_masks_are_refused_with_the_id(root, mask):
    found = problems(lines(root, entry(id="m", mask=mask)))

    assert len(found) == 1 and "id 'm': mask" in found[0]


def test_a_key_given_twice_is_an_error_in_every_form(root):
    (root / "a.jsonl").write_text('{"image": "cat.png", "target": "x", "target": "y"}')
    (root / "b.yaml").write_text("- image: cat.png\n  target: x\n  target: y\n")

    assert "'target' is given twice" in problems(Manifest(root, file="a.jsonl"))[0]
    found = problems(Manifest(root, file="b.yaml"))[0]
    assert "'target' is given twice" in found and "line 3" in found


def test_unsafe_yaml_tags_and_endless_references_are_refused(root):
    (root / "a.yaml").write_text(
        "- !!python/object/apply:os.system ['true']\n- &a [*a]\n- {image: cat.png, target: x}\n"
    )

    found = problems(Manifest(root, file="a.yaml"))

    assert len(found) == 2 and "line 1" in found[0] and "line 2" in found[1]


def test_broken_yaml_names_line_and_column(root):
    (root / "a.yaml").write_text("- image: cat.png\n  target: [x\n")

    assert "line 3" in problems(Manifest(root, file="a.yaml"))[0]


def test_deeply_nested_documents_are_refused_without_a_traceback(root):
    (root / "a.jsonl").write_text("[" * 200_000)
    (root / "b.yaml").write_text("- " + "[" * 5_000)

    assert problems(Manifest(root, file="a.jsonl"))
    assert problems(Manifest(root, file="b.yaml"))


def test_yaml_dates_stay_text_and_nan_is_refused(root):
    (root / "a.yaml").write_text("- {image: cat.png, target: x, day: 2024-01-31}\n")
    (root / "b.yaml").write_text("- {image: cat.png, target: x, score: .nan}\n")
    (root / "c.jsonl").write_text('{"image": "cat.png", "target": "x", "score": NaN}')

    assert Manifest(root, file="a.yaml").samples()[0].extra == {"day": "2024-01-31"}
    assert "'score'" in problems(Manifest(root, file="b.yaml"))[0]
    assert "NaN is not JSON" in problems(Manifest(root, file="c.jsonl"))[0]


def test_a_manifest_that_is_no_list_is_an_error(root):
    for name, text in (("a.json", '{"image": 1}'), ("b.yaml", "image: 1"), ("c.csv", "x")):
        (root / name).write_text(text)
        assert name in problems(Manifest(root, file=name))[0]


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.json", "manifest.yaml"])
def test_an_empty_manifest_is_an_error(root, name):
    (root / name).write_text("[]" if name.endswith("json") else "")

    assert "holds no sample" in problems(Manifest(root))[0]


def test_a_missing_manifest_names_what_is_there(root):
    assert "has no manifest.jsonl" in problems(Manifest(root))[0]
    (root / "edits.jsonl").touch()
    assert "did you mean 'edits.jsonl'" in problems(Manifest(root, file="edit.jsonl"))[0]


def test_two_manifests_need_a_name(root):
    (root / "manifest.json").write_text("[]")
    (root / "manifest.yaml").write_text("[]")

    assert "several manifests" in problems(Manifest(root))[0]


# PIE-Bench


def pie(root, **entries):
    save(root / "annotation_images" / "6_colour" / "bird.png", noise(20, 20))
    (root / "mapping_file.json").write_text(json.dumps(entries))
    return root


def pie_entry(**changes):
    return {
        "image_path": "6_colour/bird.png",
        "original_prompt": "a [red] bird",
        "editing_prompt": "a [blue] bird",
        "editing_instruction": "make it blue",
        "editing_type_id": "6",
        "blended_word": "bird crow",
        "mask": [3, 4],
        **changes,
    }


def test_pie_bench_is_read_as_its_scripts_read_it(tmp_path):
    root = pie(tmp_path, **{"000000000007": pie_entry(shapes_edit={"kind": "colour"})})

    (sample,) = PieBench(root).samples()

    assert (sample.id, sample.source, sample.target) == ("000000000007", "a red bird", "a blue bird")
    assert sample.image == root / "annotation_images" / "6_colour" / "bird.png"
    assert (sample.instruction, sample.edit_type) == ("make it blue", "6")
    assert (sample.blend_source, sample.blend_target) == ("bird", "crow")
    assert sample.mask == RunLengthMask((3, 4), None, True)
    assert sample.extra == {"shapes_edit": {"kind": "colour"}}


def test_pie_bench_keeps_brackets_and_drops_the_border_on_request(tmp_path):
    root = pie(tmp_path, a=pie_entry())

    (sample,) = PieBench(root, strip_brackets=False, border=False, mask_size=[512, 512]).samples()

    assert sample.source == "a [red] bird"
    assert sample.mask == RunLengthMask((3, 4), (512, 512), False)


def test_only_the_brackets_are_removed(tmp_path):
    (sample,) = PieBench(pie(tmp_path, a=pie_entry(editing_prompt="a [] bird "))).samples()

    assert sample.target == "a  bird "


def test_pie_bench_selects_types_and_names_unknown_ones(tmp_path):
    root = pie(tmp_path, a=pie_entry(), b=pie_entry(editing_type_id="1"))

    assert [s.id for s in PieBench(root, types=[1]).samples()] == ["b"]
    assert "type '9'; it has 1, 6" in problems(PieBench(root, types=["6", "9"]))[0]


def test_an_empty_blended_word_is_none(tmp_path):
    (sample,) = PieBench(pie(tmp_path, a=pie_entry(blended_word=""))).samples()

    assert sample.blend_source is None and sample.blend_target is None


def test_malformed_pie_entries_are_named_with_their_id_all_together(tmp_path):
    incomplete = pie_entry()
    del incomplete["editing_prompt"]
    root = pie(
        tmp_path,
        a=pie_entry(mask=[1, 2, 3]),
        b=pie_entry(blended_word="bird"),
        c=incomplete,
        d=pie_entry(image_path="/etc/passwd"),
        e=pie_entry(image_path="../../x.png"),
        f=[],
    )

    found = problems(PieBench(root))

    assert len(found) == 6
    for name, reason in (
        ("a", "come in pairs"),
        ("b", "blended_word='bird'"),
        ("c", "has no 'editing_prompt'"),
        ("d", "absolute"),
        ("e", "leads out"),
        ("f", "is of type list"),
    ):
        assert any(f"id '{name}'" in problem and reason in problem for problem in found)


def test_a_blended_word_that_is_not_in_its_prompt_is_an_error_when_strict(tmp_path):
    root = pie(tmp_path, a=pie_entry())

    found = problems(PieBench(root, strict=True))

    assert len(found) == 1 and "'crow' is not in the target prompt" in found[0]


def test_an_id_given_twice_in_the_mapping_is_an_error(tmp_path):
    root = pie(tmp_path, a=pie_entry())
    text = json.dumps(pie_entry())
    (root / "mapping_file.json").write_text(f'{{"a": {text}, "a": {text}}}')

    assert "'a' is given twice" in problems(PieBench(root))[0]


# TI2I


def test_the_yaml_family_is_read_with_codes_and_indices(root):
    (root / "edits.yaml").write_text(
        """
- init_img: /cat.png
  source_prompt: "a drawing of a cat "
  target_prompts: [a photo of a cat, " a sculpture of a cat"]
  target_codes: [photo]
  note: first
- input_img: dog.jpg
  target_prompts: [a wolf]
""",
    )

    samples = TI2I(root).samples()

    assert [(s.id, s.source, s.target) for s in samples] == [
        ("cat/photo", "a drawing of a cat", "a photo of a cat"),
        ("cat/1", "a drawing of a cat", "a sculpture of a cat"),
        ("dog/0", "", "a wolf"),
    ]
    assert samples[0].image == root / "cat.png" and samples[0].extra == {"note": "first"}


def test_malformed_entries_of_the_yaml_family_come_together(root):
    (root / "edits.yaml").write_text("- {init_image: cat.png, target_prompts: [x]}\n- {init_img: dog.jpg}\n- 3\n")

    found = problems(TI2I(root))

    assert len(found) == 3
    assert "line 1" in found[0] and "did you mean 'init_image'" in found[0]
    assert "line 2: has no 'target_prompts'" in found[1] and "line 3" in found[2]
