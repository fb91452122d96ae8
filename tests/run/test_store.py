"""The store on its own: names, commits, journals, keys, and what a torn or full disk does to them."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from pathlib import Path

import pytest

from framework.errors import SettingsError
from framework.run import files as files_module
from framework.run.files import StoreError, json_line, plain
from framework.run.finished import StoredRun, write_table
from framework.run.identity import Identity, differences
from framework.run.journal import Journal, SampleEntry, mend_journals
from framework.run.names import folder_name
from framework.run.store import LockedSample, RunStore, lock_samples

IDENTITY = Identity({"method": {"skip": 18}, "seed": 0}, {"toy": 1}, {"invedit": "1"})
FILES = {"edit.png": b"picture", "meta.json": b'{"id":"a"}\n', "statistics.safetensors": b"numbers" * 99}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "run")
    store.prepare(IDENTITY, locked("a", "b"), "config: 1\n")
    return store


def locked(*ids: str, identity: Identity = IDENTITY, content: str = "content") -> tuple[LockedSample, ...]:
    return lock_samples([(name, f"{content} of {name}") for name in ids], identity)


@pytest.mark.parametrize("name", ["000000000012", "IMG_0001", "a-b+c@d=e,f.g", "x" * 80])
def test_a_safe_id_names_its_folder(name: str) -> None:
    assert folder_name(name) == name


UNSAFE = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:x",
    "con",
    "NUL.txt",
    "com1",
    "a\0b",
    ".hidden",
    "-rf",
]
UNSAFE += ["ends.", "ends ", "猫", "é", "e\u0301", "x" * 81, "x" * 300, "a\nb", "a\u2028b", "\udc80"]


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_id_gets_a_safe_name_of_its_own(name: str) -> None:
    safe = folder_name(name)

    assert safe != name and len(safe.encode()) <= 100
    assert Path(safe).name == safe and safe.isascii() and safe.isprintable()
    assert safe[0] not in ".-" and safe[-1] not in ". " and safe.split(".")[0].lower() not in ("con", "nul", "com1")
    assert safe not in {
        folder_name(other) for other in (name + "x", "x" + name, unicodedata.normalize("NFC", name) + "/")
    }


def test_ids_that_differ_only_by_case_are_refused() -> None:
    with pytest.raises(SettingsError, match="'Cat' and 'cat' would share the folder"):
        locked("Cat", "dog", "cat")


def test_a_committed_sample_is_done(store: RunStore) -> None:
    a, b = store.locked()

    store.commit(a, FILES, {"rank": 0})

    assert set(store.state().done) == {"a"} and not store.state().complete
    assert {f.name: f.read_bytes() for f in (store.samples / "a").iterdir()} == FILES
    store.commit(b, FILES, {})
    assert store.state().complete


@pytest.mark.parametrize("damage", ["missing", "shorter", "changed"])
def test_a_sample_whose_files_are_not_as_recorded_is_not_done(store: RunStore, damage: str) -> None:
    store.commit(store.locked()[0], FILES, {})
    file = store.samples / "a" / "edit.png"

    {
        "missing": file.unlink,
        "shorter": lambda: file.write_bytes(b"pict"),
        "changed": lambda: file.write_bytes(b"PICTURE"),
    }[damage]()

    assert not store.state().done


def test_any_line_that_the_files_bear_out_makes_a_sample_done(store: RunStore) -> None:
    sample = store.locked()[0]
    store.commit(sample, FILES, {})

    Journal(store.records, 1).append(SampleEntry("a", sample.key, "done", "a"))
    line = store.journal.path.read_text()
    (store.records / "rank-2.jsonl").write_text(line.replace('"size":7', '"size":8'))

    assert store.state().done["a"].files["edit.png"].size == 7


def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next(store: RunStore) -> None:
    a, b = store.locked()
    store.commit(a, FILES, {})
    whole = store.journal.path.read_bytes()
    store.commit(b, FILES, {})
    line = store.journal.path.read_bytes()[len(whole) :]

    for length in range(len(line)):
        store.journal.path.write_bytes(whole + line[:length])
        assert set(store.state().done) == {"a"}
        mend_journals(store.records)
        assert store.journal.path.read_bytes() == whole
    store.commit(b, FILES, {})

    assert store.state().complete


def test_lines_that_are_no_records_are_passed_over(store: RunStore) -> None:
    rubbish = b'nonsense\n[]\n{}\n{"kind":"sample"}\n{"kind":"sample","files":3}\n{"kind":"start","x":1}\n\xff\xfe\n'
    store.journal.path.write_bytes(rubbish)

    store.commit(store.locked()[0], FILES, {})

    assert set(store.state().done) == {"a"}


def test_temporary_files_of_a_killed_run_are_cleaned_up(store: RunStore) -> None:
    (store.samples / "a").mkdir()
    left = [store.samples / "a" / "edit.png.tmp-123", store.records / "summary.json.tmp-9", store.directory / "x.tmp-1"]
    for file in left:
        file.write_bytes(b"half")

    store.prepare(IDENTITY, store.locked(), "config: 1\n")

    assert not any(file.exists() for file in left)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_any_write_leaves_the_sample_undone(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    a, b = store.locked()
    store.commit(a, FILES, {})
    write = files_module.write_all
    failing = 0

    for failing in range(len(FILES) + 1):
        calls = iter(range(100))

        def fail(descriptor: int, data: bytes) -> None:
            if next(calls) == failing:  # noqa: B023
                os.write(descriptor, data[: len(data) // 2])
                raise OSError(code, os.strerror(code))
            write(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr("framework.run.files.write_all", fail)
            patch.setattr("framework.run.journal.write_all", fail)
            with pytest.raises(StoreError, match=os.strerror(code)) as problem:
                store.commit(b, FILES, {})
        assert ("Free some space" in str(problem.value)) == (code != errno.EIO)
        assert set(store.state().done) == {"a"}
        assert not list(store.directory.rglob("*.tmp-*"))
        assert store.journal.path.read_bytes().endswith(b"\n")
    store.commit(b, FILES, {})

    assert failing == len(FILES) and store.state().complete


def test_committing_under_other_settings_replaces_all_files(store: RunStore) -> None:
    store.commit(store.locked()[0], FILES | {"edit-1.png": b"second"}, {})
    other = Identity({"method": {"skip": 12}}, {}, {})
    samples = locked("a", "b", identity=other)

    store.commit(samples[0], {"edit.png": b"other"}, {})

    assert [file.name for file in (store.samples / "a").iterdir()] == ["edit.png"]
    assert set(store.state(samples).done) == {"a"} and not store.state(store.locked()).done


def test_a_failed_sample_keeps_its_reason_until_it_is_done(store: RunStore) -> None:
    a, b = store.locked()

    store.fail(a, "not a picture", {"time": 1.0})
    store.fail(a, "still not a picture", {"time": 2.0})

    assert store.state().failed["a"].reason == "still not a picture"
    assert [entry.id for entry in store.failures({"a": a, "b": b}).values()] == ["a"]
    store.commit(a, FILES, {"time": 3.0})
    assert not store.state().failed and not store.failures({"a": a})


def test_a_failure_removes_results_of_other_settings(store: RunStore) -> None:
    store.commit(store.locked()[0], FILES, {})

    store.fail(locked("a", identity=Identity({}, {}, {}))[0], "reason", {})

    assert not (store.samples / "a").exists()


def test_changed_settings_model_code_and_data_are_named(store: RunStore) -> None:
    samples = store.locked()
    store.commit(samples[0], FILES, {})
    other = Identity({"method": {"skip": 24}, "seed": 0}, {"toy": 2}, {"invedit": "1", "methods.x": "f"})

    changes = "\n".join(store.changes(other, locked("a", "c", identity=other, content="new")))

    assert "settings.method.skip: 18 before, 24 now" in changes and "seed" not in changes
    assert "model.toy: 1 before, 2 now" in changes
    assert "code.methods.x: absent before, 'f' now" in changes
    assert "1 samples that are gone: 'b'" in changes and "1 samples that are new: 'c'" in changes
    assert "1 finished samples whose image, mask or text changed: 'a'" in changes
    assert store.changes(IDENTITY, samples) == []


def test_a_changed_order_of_samples_is_a_change_because_batches_change(store: RunStore) -> None:
    store.commit(store.locked()[0], FILES, {})

    assert store.changes(IDENTITY, locked("b", "a")) == ["the order of the samples, which decides their batches"]


def test_mending_a_sample_that_failed_is_no_change(store: RunStore) -> None:
    a, b = store.locked()
    store.commit(a, FILES, {})
    mended = lock_samples([("a", a.content), ("b", "mended")], IDENTITY)

    assert store.changes(IDENTITY, mended) == []
    assert mended[1].key != b.key


def test_nothing_is_mixed_while_nothing_is_done(store: RunStore) -> None:
    assert store.changes(Identity({}, {}, {}), locked("x", identity=Identity({}, {}, {}))) == []


def test_a_key_depends_on_id_content_settings_model_and_code() -> None:
    keys = {
        IDENTITY.key("a", "content"),
        IDENTITY.key("b", "content"),
        IDENTITY.key("a", "other"),
        Identity({"method": {"skip": 19}, "seed": 0}, {"toy": 1}, {"invedit": "1"}).key("a", "content"),
        Identity(IDENTITY.settings, {"toy": 2}, IDENTITY.code).key("a", "content"),
        Identity(IDENTITY.settings, IDENTITY.model, {"invedit": "2"}).key("a", "content"),
    }

    assert len(keys) == 6
    assert IDENTITY.key("a", "content") in keys


def test_differences_are_listed_by_place() -> None:
    before = {"a": [1, {"b": 2}], "c": [1], "d": 1}

    assert differences(before, {"a": [1, {"b": 3}], "c": [1, 2], "e": None}) == [
        "a[1].b: 2 before, 3 now",
        "c: [1] before, [1, 2] now",
        "d: 1 before, absent now",
        "e: absent before, None now",
    ]


def test_json_is_canonical_and_holds_no_word_for_what_is_not_finite() -> None:
    line = json_line({"b": float("nan"), "a": (1, 2.5), "c": {"y": float("inf"), "x": Path("p/q")}, "d": "é\u2028\n"})

    assert line == '{"a":[1,2.5],"b":null,"c":{"x":"p/q","y":null},"d":"é\u2028\\n"}\n'.encode()
    with pytest.raises(TypeError, match="object cannot be written as json"):
        plain({"x": object()})


def test_ids_with_line_separators_and_halves_of_surrogates_survive_the_manifest(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    samples = locked("a\u2028b\x85c", "\udc80", "plain")

    store.prepare(IDENTITY, samples, "")
    store.commit(samples[1], FILES, {})

    assert store.locked() == samples
    assert set(store.state().done) == {"\udc80"}


def test_a_finished_run_iterates_in_the_order_of_ids_and_tabulates(tmp_path: Path) -> None:
    import pyarrow.parquet

    store = RunStore(tmp_path / "run")
    store.prepare(IDENTITY, locked("b", "a10", "a2", "c"), "")
    for value, sample in enumerate(store.locked()[:3]):
        meta = json.dumps({"id": sample.id, "measurements": {"M": {"x": value, "list": [1]}}}).encode()
        store.commit(sample, {"meta.json": meta}, {"seconds": 0.5})
    store.fail(store.locked()[3], "because", {"seconds": 1})

    run = StoredRun(store.directory)
    write_table(run)

    assert [sample.id for sample in run.samples()] == ["a10", "a2", "b"]
    assert next(iter(run.samples())).statistics() == {}
    table = pyarrow.parquet.read_table(store.directory / "records.parquet").to_pydict()
    assert table["id"] == ["a10", "a2", "b", "c"]
    assert table["meta.measurements.M.x"] == [1.0, 2.0, 0.0, None]
    assert table["meta.measurements.M.list"] == ["[1]", "[1]", "[1]", None]
    assert table["reason"] == [None, None, None, "because"]


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is not a run: it has no manifest\.lock\.jsonl"):
        StoredRun(tmp_path)
