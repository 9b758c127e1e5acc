import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest

from ssl_backdoor.errors import SpecError, StoreError
from ssl_backdoor.store import Manifest, Range, open_store
from tests.support import store_commits

KEY = store_commits.KEY


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def make_source(folder, text="hello"):
    (folder / "shards").mkdir(parents=True)
    (folder / "samples.txt").write_text(text)
    (folder / "shards" / "empty.tar").write_bytes(b"")
    return folder


def commit(store, source, key=KEY, **changes):
    about = {"spec": {"kind": "x"}, "inputs": {"data": "d"}, "summary": {"n": 1}, "seconds": 2.0}
    return store.commit("ingest", key, source, **{**about, **changes})


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_committed_is_found_described_and_fetched(store, source, tmp_path):
    assert store.find("ingest", KEY) is None
    ref = commit(store, source)
    assert ref == store.find("ingest", KEY) == store.ref("ingest", KEY)
    assert ref.uri == f"{store.root}/ingest/{KEY}"
    manifest = store.manifest(ref)
    assert (manifest.spec, manifest.inputs, manifest.summary) == ({"kind": "x"}, {"data": "d"}, {"n": 1})
    assert manifest.files["samples.txt"].bytes == 5
    # sha256 of "hello" and of nothing, from the standard's examples
    assert manifest.files["samples.txt"].sha256.startswith("2cf24dba5fb0a30e26e83b2ac5b9e29e")
    assert manifest.files["shards/empty.tar"].sha256.startswith("e3b0c44298fc1c149afbf4c8996fb924")
    folder = store.fetch(ref, ["samples.txt"])
    assert folder == tmp_path / "store" / "ingest" / KEY
    assert (folder / "samples.txt").read_text() == "hello"
    assert below(tmp_path / "store" / "ingest") == [
        KEY,
        *(f"{KEY}/{name}" for name in ("manifest.json", "samples.txt", "shards", "shards/empty.tar")),
    ]


def test_the_source_is_copied_and_stays(store, source):
    ref = commit(store, source)
    (source / "samples.txt").write_text("changed afterwards")
    assert (store.fetch(ref) / "samples.txt").read_text() == "hello"


def test_parts_of_files_are_read_in_the_order_asked_for(store, source):
    ref = commit(store, source)
    wanted = [("samples.txt", 1, 3), ("samples.txt", 0, 1), ("samples.txt", 3, 9), ("gone.tar", 0, 4)]
    assert list(store.read(ref, [Range(*each) for each in wanted])) == [b"ell", b"h", b"lo", b""]
    with pytest.raises(StoreError, match="relative path"):
        next(store.read(ref, [Range("../../outside", 0, 1)]))


def test_a_second_commit_adopts_the_first(store, source, tmp_path):
    first = commit(store, source)
    assert commit(store, make_source(tmp_path / "other", "other"), summary={"n": 2}, adopts=True) == first
    assert store.manifest(first).summary == {"n": 1}
    assert (store.fetch(first) / "samples.txt").read_text() == "hello"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "samples.txt").write_text("other"), "samples.txt"),
        (lambda folder: (folder / "more.txt").write_text("more"), "more.txt"),
        (lambda folder: (folder / "samples.txt").unlink(), "samples.txt"),
        (lambda folder: (folder / "samples.txt").rename(folder / "renamed.txt"), "renamed.txt, samples.txt"),
    ],
)
def test_other_files_under_a_key_that_is_taken_are_refused(store, source, tmp_path, change, named):
    first = commit(store, source)
    assert commit(store, make_source(tmp_path / "same")) == first
    change(other := make_source(tmp_path / "other"))
    with pytest.raises(StoreError, match=rf"found others \({named}\).*commit under another key"):
        commit(store, other)
    assert (store.fetch(first) / "samples.txt").read_text() == "hello"


def test_two_processes_race_and_one_wins(store, tmp_path):
    workers = [store_commits.start(store.root, make_source(tmp_path / name, name), name) for name in ("one", "two")]
    store_commits.wait_ready(*workers)
    assert store.find("ingest", KEY) is None
    answers = [Manifest.model_validate_json(answer) for answer in store_commits.race(*workers)]
    kept = store.manifest(store.ref("ingest", KEY))
    assert answers == [kept, kept]
    assert (store.fetch(store.ref("ingest", KEY)) / "samples.txt").read_text() == kept.summary["by"]
    assert os.listdir(tmp_path / "store" / "ingest") == [KEY]


def test_a_crash_before_the_rename_leaves_nothing_findable(store, source, tmp_path):
    store_commits.kill(store_commits.start(store.root, source, "crashed"))
    (leftover,) = os.listdir(tmp_path / "store" / "ingest")
    assert leftover.startswith(".")
    assert store.find("ingest", KEY) is None
    with pytest.raises(StoreError, match="found no manifest"):
        store.manifest(store.ref("ingest", KEY))
    assert store.manifest(commit(store, source)).summary == {"n": 1}


def test_a_failure_removes_the_unfinished_folder(store, source, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    state = source / "samples.txt"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for action in (
            lambda: commit(store, source),
            lambda: store.save_checkpoint("train", KEY, 1, state),
            store.check,
        ):
            with pytest.raises(StoreError, match="disk full"):
                action()
    assert os.listdir(tmp_path / "store" / "ingest") == []
    assert os.listdir(tmp_path / "store" / ".checkpoints" / "train" / KEY) == []
    store.check()
    assert sorted(os.listdir(tmp_path / "store")) == [".checkpoints", "ingest"]


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs root; the same paths are tested by a patched fsync")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(source, tmp_path):
    with mounted(tmp_path / "tiny", "size=256k"):
        store = open_store(str(tmp_path / "tiny"))
        (source / "large").write_bytes(bytes(1 << 20))
        with pytest.raises(StoreError, match=r"^cannot use the store file:.*: disk full; "):
            commit(store, source)
        assert os.listdir(tmp_path / "tiny" / "ingest") == []
        (source / "large").unlink()
        assert store.fetch(commit(store, source)).is_dir()


def test_a_read_only_file_system(source, tmp_path):
    with mounted(tmp_path / "readonly", "size=256k,ro"):
        store = open_store(str(tmp_path / "readonly"))
        for action in (store.check, lambda: commit(store, source)):
            with pytest.raises(StoreError, match="read-only"):
                action()
        assert store.find("ingest", KEY) is None


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/ssl-backdoor-store"])
def test_an_unwritable_root_is_one_sentence(place, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"^cannot use the store file://.*choose another place$"):
        open_store(str(tmp_path / place))


def test_a_file_in_the_place_of_a_stage(store, source, tmp_path):
    (tmp_path / "store" / "ingest").write_text("in the way")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        commit(store, source)


def test_a_foreign_folder_in_the_artifacts_place_is_not_adopted(store, source, tmp_path):
    (tmp_path / "store" / "ingest" / KEY / "mine").mkdir(parents=True)
    with pytest.raises(StoreError, match="folder without a manifest"):
        commit(store, source)
    assert below(tmp_path / "store" / "ingest") == [KEY, f"{KEY}/mine"]


@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_manifest_is_an_error(store, source, keep):
    ref = commit(store, source)
    file = store.fetch(ref) / "manifest.json"
    file.write_bytes(file.read_bytes()[:keep])
    for action in (store.manifest, store.fetch):
        with pytest.raises(StoreError, match=f"found {keep} bytes that are not one; delete that artifact"):
            action(ref)


def test_the_manifest_of_another_artifact_is_an_error(store, source):
    ref, other = commit(store, source), commit(store, source, key="1" * 64)
    (store.fetch(ref) / "manifest.json").write_bytes((store.fetch(other) / "manifest.json").read_bytes())
    with pytest.raises(StoreError, match="found that of ingest/111"):
        store.manifest(ref)


def test_fetching_names_what_is_missing(store, source):
    ref = commit(store, source)
    with pytest.raises(StoreError, match=r"expected model.bin in ingest/0+, found samples.txt, shards/empty.tar"):
        store.fetch(ref, ["model.bin"])
    (store.fetch(ref) / "samples.txt").write_text("hell")
    with pytest.raises(StoreError, match=r"samples.txt of 5 bytes .* found 4 bytes"):
        store.fetch(ref)
    (store.fetch(ref, ["shards/empty.tar"]) / "samples.txt").unlink()
    with pytest.raises(StoreError, match=r"samples.txt of 5 bytes .* found none"):
        store.fetch(ref)


@pytest.mark.parametrize("key", ["", "..", "../x", "a/b", ".hidden", "a\n"])
def test_a_key_cannot_leave_the_store(store, key):
    with pytest.raises(SpecError, match="expected a stage of"):
        store.find("train", key)
    with pytest.raises(SpecError, match="expected a stage of"):
        store.ref("nonsense", "k")


def test_links_reserved_names_and_missing_folders_are_refused(store, source, tmp_path):
    (source / "link").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="found a link"):
        commit(store, source)
    (source / "link").unlink()
    (source / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        commit(store, source)
    with pytest.raises(StoreError, match="expected a folder of files"):
        commit(store, tmp_path / "nowhere")
    assert os.listdir(tmp_path / "store" / "ingest") == []


def test_checkpoints_keep_the_two_newest_and_skip_a_truncated_one(store, tmp_path):
    state, folder = tmp_path / "state", tmp_path / "store" / ".checkpoints" / "train" / KEY
    assert store.load_checkpoint("train", KEY) is None
    for step in (50, 100, 150):
        state.write_text(f"state {step}")
        store.save_checkpoint("train", KEY, step, state)
    assert [name[:11] for name in sorted(os.listdir(folder))] == ["step-000100", "step-000150"]
    step, newest = store.load_checkpoint("train", KEY)
    assert (step, newest.read_text()) == (150, "state 150")

    os.truncate(newest, 4)
    step, older = store.load_checkpoint("train", KEY)
    assert (step, older.read_text()) == (100, "state 100")
    os.truncate(older, 4)
    assert store.load_checkpoint("train", KEY) is None

    state.write_text("state 150, computed again")
    store.save_checkpoint("train", KEY, 150, state)
    step, file = store.load_checkpoint("train", KEY)
    assert (step, file.read_text()) == (150, "state 150, computed again")
    assert store.load_checkpoint("train", "1" * 64) is None
    store.drop_checkpoints("train", KEY)
    store.drop_checkpoints("train", KEY)
    assert store.load_checkpoint("train", KEY) is None
    assert not folder.exists()


def test_check_leaves_nothing_behind(store, tmp_path):
    store.check()
    assert os.listdir(tmp_path / "store") == []
