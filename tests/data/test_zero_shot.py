from __future__ import annotations

import pytest

from framework.data import ZeroShot
from framework.errors import SettingsError
from tests.data.pictures import noise, save


@pytest.fixture
def root(tmp_path):
    for name in ("cat2dog/b.jpg", "cat2dog/a.png", "sketch2oil_pastel/one.png"):
        save(tmp_path / name, noise(16, 16))
    (tmp_path / "cat2dog" / "a.txt").write_text("a cat on a catwalk\n")
    (tmp_path / "cat2dog" / "b.txt").write_text("two cats, one cat asleep")
    (tmp_path / "sketch2oil_pastel" / "one.txt").write_text("a sketch of a house")
    (tmp_path / "sentences").mkdir()
    return tmp_path


def problems(source):
    with pytest.raises(SettingsError) as caught:
        source.samples()
    return caught.value.problems


def bank(root, word, text):
    (root / "sentences" / f"{word}.txt").write_text(text)


def test_each_task_exchanges_its_words_in_the_captions(root):
    found = [(s.id, s.source, s.target, s.edit_type) for s in ZeroShot(root).samples()]

    assert found == [
        ("cat2dog/a", "a cat on a catwalk", "a dog on a catwalk", "cat2dog"),
        ("cat2dog/b", "two cats, one cat asleep", "two cats, one dog asleep", "cat2dog"),
        ("sketch2oil_pastel/one", "a sketch of a house", "a oil pastel of a house", "sketch2oil_pastel"),
    ]


def test_banks_of_sentences_go_to_every_sample_of_a_task_that_has_both(root):
    bank(root, "cat", "a cat sits\n\n a cat runs \n")
    bank(root, "dog", "a dog sits\n")
    bank(root, "sketch", "a sketch\n")

    cat, _, sketch = ZeroShot(root).samples()

    assert cat.extra["source_sentences"] == ["a cat sits", "a cat runs"]
    assert cat.extra["target_sentences"] == ["a dog sits"]
    assert "source_sentences" not in sketch.extra


def test_only_the_tasks_that_are_asked_for_are_read(root):
    assert [s.id for s in ZeroShot(root, tasks=["sketch2oil_pastel"]).samples()] == ["sketch2oil_pastel/one"]


def test_captions_and_targets_of_the_settings_have_the_words_of_the_task(root):
    (root / "cat2dog" / "a.txt").unlink()

    samples = ZeroShot(root, caption="a photo of a {source}", target="{target}, not {source}").samples()

    assert (samples[0].source, samples[0].target) == ("a photo of a cat", "dog, not cat")
    assert samples[1].source == "two cats, one cat asleep"


def test_everything_that_is_wrong_is_named_together(root):
    (root / "cat2dog" / "a.txt").unlink()
    (root / "cat2dog" / "b.txt").write_text("an animal")
    bank(root, "cat", "\n")
    bank(root, "dog", "a dog")
    (root / "horse2zebra").mkdir()

    found = problems(ZeroShot(root))

    assert len(found) == 4
    assert "sentences/cat.txt holds no sentence" in found[0]
    assert "cat2dog/a.png: has no caption; write it into cat2dog/a.txt" in found[1]
    assert "cat2dog/b.jpg: the caption 'an animal' has no word 'cat'" in found[2]
    assert "horse2zebra has no picture" in found[3]


@pytest.mark.parametrize(
    ("tasks", "word"), [(["cat2dgo"], "did you mean"), (["sentences"], "is not <source>2<target>")]
)
def test_tasks_that_are_none_are_refused(root, tasks, word):
    assert word in problems(ZeroShot(root, tasks=tasks))[0]


def test_a_folder_without_tasks_says_what_it_holds(tmp_path):
    (tmp_path / "pictures").mkdir()

    assert "it holds pictures" in problems(ZeroShot(tmp_path))[0]


def test_a_caption_behind_a_link_that_leads_out_of_the_root_is_refused(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("a cat")
    (root / "cat2dog" / "a.txt").unlink()
    (root / "cat2dog" / "a.txt").symlink_to(outside)

    assert "leads out of" in problems(ZeroShot(root))[0]
