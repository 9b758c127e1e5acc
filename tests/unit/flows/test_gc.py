"""What `ssl-backdoor gc` takes and what it leaves, on a file system; tests/pipeline/test_housekeeping.py has S3."""

import errno
import hashlib
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.commands.gc import GcOptions, collect, render, report_slow_progress
from ssl_backdoor.data.stored import open_dataset
from ssl_backdoor.errors import SpecError, StoreError
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import contents, open_store
from ssl_backdoor.store.garbage import garbage, reachable, sweep
from ssl_backdoor.store.survey import survey
from tests.support import store_commits

HEX = "0123456789abcdef" * 2
EVERYTHING = GcOptions(delete=True, unreached=True, older_than_days=0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(folder):
    return open_store(str(folder))


@pytest.fixture
def later(monkeypatch):
    """`later(days)`: the store's clock goes on."""

    def pass_days(days: float) -> None:
        monkeypatch.setattr(contents.LocalContents, "clock_s", lambda _: time.time() + days * 86_400)

    return pass_days


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def make(store, stage, name, tmp_path, **inputs):
    """A finished artifact of one file of 5 bytes and one in a folder."""
    files = tmp_path / "files" / name
    (files / "train").mkdir(parents=True)
    (files / "hello.txt").write_text("hello")
    (files / "train" / "empty").touch()
    spec = {"recipe": name, "runs": [{}, {}]} if stage == "report" else {}
    keys = {role: key_of(one) for role, one in inputs.items()}
    return store.commit(stage, key_of(name), files, spec=spec, inputs=keys, summary={}, seconds=2.0)


@pytest.fixture
def chain(store, tmp_path):
    """Two reports that share their images; and a training that went into none."""
    made = {
        "images": make(store, "ingest", "images", tmp_path, source="raw"),
        "encoder": make(store, "train", "encoder", tmp_path, dataset="images"),
        "other": make(store, "train", "other", tmp_path, dataset="images"),
        "lonely": make(store, "train", "lonely", tmp_path, dataset="images"),
    }
    made["page"] = make(store, "report", "page", tmp_path, model="encoder")
    made["second"] = make(store, "report", "second", tmp_path, model="other")
    return made


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(told, part="items"):
    return [one["name"].partition("/")[0] + "/" + one["name"].partition("/")[2][:8] for one in told[part]]


def place(ref):
    return f"{ref.stage}/{ref.key[:8]}"


def test_reports_reach_what_they_were_made_from_and_so_on(store, chain):
    found = survey(store)
    assert reachable(found) == set(chain.values()) - {chain["lonely"]}
    assert reachable(found, {chain["second"]}) == {chain["page"], chain["encoder"], chain["images"]}


def test_a_cycle_of_inputs_ends(store, tmp_path):
    one, two = make(store, "train", "one", tmp_path, model="two"), make(store, "report", "two", tmp_path, model="one")
    assert reachable(survey(store)) == {one, two}


def test_without_delete_nothing_changes(store, folder, chain, later):
    store_commits.kill(store_commits.start(store.root, folder.parent / "files" / "images", "crashed"))
    before = below(folder)
    later(31)
    told = collect(store, GcOptions(unreached=True))
    assert below(folder) == before
    assert not told["deleted"]
    assert {one["reason"] for one in told["items"]} == {
        "unfinished: no manifest names it",
        "no report was made from it",
    }
    assert list(render(told))[-1] == (f"2 things, 5 files, {told['bytes']} B would go: --delete removes them")
    json.dumps(told, allow_nan=False)


def test_finished_artifacts_go_only_where_asked_for_and_only_the_unreached(store, folder, chain, later):
    later(31)
    told = collect(store, GcOptions(delete=True))
    assert (told["items"], names(told, "unreached")) == ([], [place(chain["lonely"])])
    told = collect(store, GcOptions(delete=True, unreached=True))
    assert names(told) == [place(chain["lonely"])]
    assert (told["files"], told["bytes"]) == (2, 5)
    assert sorted(survey(store).artifacts, key=str) == sorted(set(chain.values()) - {chain["lonely"]}, key=str)
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(map(key_of, ("encoder", "other")))
    for name in ("images", "encoder", "page"):
        assert (store.fetch(chain[name]) / "hello.txt").read_text() == "hello"
    again = collect(store, GcOptions(delete=True, unreached=True))
    assert list(render(again)) == ["nothing to delete"]


def test_young_artifacts_stay_for_the_report_that_is_still_to_come(store, chain, later):
    later(29)
    told = collect(store, GcOptions(delete=True, unreached=True))
    assert (told["items"], names(told, "young")) == ([], [place(chain["lonely"])])
    assert collect(store, EVERYTHING)["files"] == 2


def test_a_forgotten_report_goes_with_what_it_alone_reaches(store, chain):
    forget = [key_of("second")[:10]]
    told = collect(store, GcOptions(forget=forget, older_than_days=0))
    gone = [place(chain[name]) for name in ("second", "other", "lonely")]
    assert names(told, "unreached") == [gone[0], *sorted(gone[1:])]  # a report before what it was made from
    told = collect(store, EVERYTHING._replace(forget=forget))
    assert names(told) == [gone[0], *sorted(gone[1:])]
    assert set(survey(store).artifacts) == {chain["page"], chain["encoder"], chain["images"]}


@pytest.mark.parametrize("key", ["0", "report/0", ""])
def test_a_report_to_forget_must_be_one(store, chain, key):
    assert not any(key_of(name).startswith("0") for name in ("page", "second"))
    with pytest.raises(SpecError, match="expected one report whose key begins with"):
        collect(store, GcOptions(forget=[key]))


def test_a_running_commit_is_left_alone_and_a_dead_one_goes_after_a_day(store, folder, tmp_path, later):
    source = tmp_path / "source"
    source.mkdir()
    (source / "hello.txt").write_text("hello")
    running = store_commits.start(store.root, source, "running")
    store_commits.wait_ready(running)
    told = collect(store, GcOptions(delete=True))
    assert (told["items"], len(told["young"])) == ([], 1)
    assert store.keys("ingest") == ()  # its manifest is written already, and hidden
    store_commits.race(running)
    assert store.find("ingest", store_commits.KEY) is not None

    collect(store, EVERYTHING)
    store_commits.kill(store_commits.start(store.root, source, "killed"))
    later(0.9)
    assert collect(store, GcOptions(delete=True))["items"] == []
    later(1.1)
    assert collect(store, GcOptions(delete=True))["files"] == 2
    assert list((folder / "ingest").iterdir()) == []


def test_a_folder_without_manifest_stands_in_no_ones_way_any_more(store, folder, chain, tmp_path):
    hollow = folder / "train" / key_of("hollow")
    (hollow / "shards").mkdir(parents=True)
    (hollow / "shards" / "part.tar").write_text("part")
    with pytest.raises(StoreError, match="folder without a manifest"):
        make(store, "train", "hollow", tmp_path)
    assert names(collect(store, GcOptions(delete=True, older_than_days=0))) == [f"train/{key_of('hollow')[:8]}"]
    assert not hollow.exists()


def test_a_commit_that_ends_after_the_survey_keeps_its_parts(store, folder, chain):
    manifest = folder / "train" / key_of("encoder") / "manifest.json"
    kept = manifest.read_bytes()
    manifest.unlink()
    found = garbage(survey(store), 0, 0)
    assert [item.name for item in found.rubbish] == [f"train/{key_of('encoder')}"]
    manifest.write_bytes(kept)
    assert list(sweep(store, found.rubbish)) == []
    assert (store.fetch(chain["encoder"]) / "hello.txt").read_text() == "hello"


def test_checkpoints(store, folder, chain, tmp_path, later):
    state = tmp_path / "state"
    state.write_text("state")
    for name in ("encoder", "unfinished"):
        for step in (10, 20):
            store.save_checkpoint("train", key_of(name), step, state)
    half = folder / ".checkpoints" / "train" / key_of("unfinished") / f".{HEX}"
    half.write_text("ha")
    assert collect(store, GcOptions(delete=True))["items"] == []
    later(2)
    told = collect(store, GcOptions(delete=True))
    assert {one["reason"] for one in told["items"]} == {
        "left by an interrupted write",
        "checkpoints of a finished training",
    }
    assert (told["files"], told["bytes"]) == (3, 12)
    assert store.load_checkpoint("train", key_of("encoder")) is None
    assert store.load_checkpoint("train", key_of("unfinished"))[0] == 20
    later(31)
    told = collect(store, GcOptions(delete=True))
    assert [one["reason"] for one in told["items"]] == ["checkpoints of a training that was not resumed"]
    assert list((folder / ".checkpoints" / "train").iterdir()) == []
    store.save_checkpoint("train", key_of("unfinished"), 30, state)
    assert store.load_checkpoint("train", key_of("unfinished"))[0] == 30


def test_what_is_not_the_stores_is_left_and_named(store, folder, chain):
    mine = [
        "notes.txt",
        "train/cats/1.jpg",
        f"train/{key_of('lonely')}/mine.txt",
        ".checkpoints/notes",
        "empty/of/mine",
    ]
    for name in mine[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / mine[-1]).mkdir(parents=True)
    before = below(folder)
    told = collect(store, EVERYTHING)
    assert sorted(told["unknown"]) == sorted(mine)
    assert told["items"] == []  # the lonely artifact stays, whole, with what somebody put beside its files
    assert below(folder) == before
    assert (folder / mine[-1]).is_dir()
    assert f"left, not of this store: {mine[0]}" in render(told)


def test_links_are_never_followed(store, folder, chain, tmp_path):
    outside = tmp_path / "outside"
    attempt = outside / f".{key_of('x')}.{HEX}"
    attempt.mkdir(parents=True)
    (attempt / "precious").write_text("precious")
    half = folder / "train" / f".{key_of('half')}.{HEX}"
    half.mkdir()
    (half / "link").symlink_to(attempt / "precious")
    (half / "part").write_text("part")
    (folder / "train" / attempt.name).symlink_to(attempt)
    (folder / "defend").symlink_to(outside)
    told = collect(store, GcOptions(delete=True, older_than_days=0))
    assert told["files"] == 1
    links = [f"train/{half.name}/link", f"train/{attempt.name}", "defend"]
    assert sorted(told["unknown"]) == sorted(links)
    assert (attempt / "precious").read_text() == "precious"
    assert all((folder / name).is_symlink() for name in links)
    with pytest.raises(SpecError, match=r"^what reports reach is not known: .* found a link at "):
        collect(store, EVERYTHING)
    assert set(survey(store).artifacts) == set(chain.values())


def test_a_folder_that_may_be_listed_and_not_looked_into_is_told_in_one_sentence(store, chain, monkeypatch):
    def refused(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    listed = [SimpleNamespace(name="theirs", is_dir=lambda **_: False, stat=refused)]
    monkeypatch.setattr(contents.os, "scandir", lambda _: iter(listed))
    with pytest.raises(StoreError, match="not writable or readable for this user"):
        survey(store)


def test_an_unreadable_manifest_is_named_and_makes_nothing_unreached(store, folder, chain):
    broken = folder / "report" / key_of("page") / "manifest.json"
    broken.write_bytes(broken.read_bytes()[:50])
    told = collect(store, GcOptions(delete=True, older_than_days=0))
    assert (told["items"], told["unreached"]) == ([], [])
    assert list(told["unreadable"]) == [f"report/{key_of('page')}"]
    assert any(line.startswith("left: expected a whole manifest") for line in render(told))
    with pytest.raises(SpecError, match="what reports reach is not known: expected a whole manifest"):
        collect(store, EVERYTHING)
    assert len(below(folder)) == 3 * len(chain)


def test_an_interrupted_removal_leaves_nothing_half_visible_and_is_taken_up(store, folder, chain, monkeypatch):
    unlink = Path.unlink
    calls = []

    def interrupted(path, missing_ok=False):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(store, EVERYTHING)
    assert store.find("train", key_of("lonely")) is None
    assert store.keys("train") == tuple(sorted(map(key_of, ("encoder", "other"))))
    (left,) = [path for path in (folder / "train").iterdir() if path.name.startswith(".")]
    assert [one["reason"] for one in collect(store, EVERYTHING)["items"]] == ["unfinished: no manifest names it"]
    assert not left.exists()
    assert list(render(collect(store, EVERYTHING))) == ["nothing to delete"]


def test_a_run_that_was_about_to_reuse_it_says_so_and_the_next_makes_it_anew(store):
    source = ScenesSourceSpec(train_per_class=2, test_per_class=1, side_px=16)
    call = StageCall(IngestStage(dataset=DatasetSpec(source=source, frame_px=16)), source="scenes")
    first = run_stage(call, store).ref
    digest = store.manifest(first).digest
    assert run_stage(call, store).reused
    assert len(collect(store, EVERYTHING)["items"]) == 1
    with pytest.raises(StoreError, match=r"^expected an artifact at .*, found no manifest; run its stage first"):
        open_dataset(store, first)
    again = run_stage(call, store)
    assert (again.ref, again.reused, store.manifest(first).digest) == (first, False, digest)


def test_progress_is_told_only_where_it_takes_long(capsys):
    now_s = 100.0
    listen = report_slow_progress("looking", clock=lambda: now_s)
    listen(Progress(1, 9, "manifests"))
    now_s = 102.5
    listen(Progress(2000, 0, "files"))
    listen(Progress(3, 9, "manifests"))
    now_s = 105.0
    listen(Progress(4, 9, "manifests"))
    assert capsys.readouterr().err.splitlines() == [
        "ssl-backdoor: looking: 2,000 files",
        "ssl-backdoor: looking: 4 of 9 manifests",
    ]
