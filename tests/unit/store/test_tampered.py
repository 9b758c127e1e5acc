"""One artifact that was tampered with: it is named, and the rest of the store is served."""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.commands import gc, status
from ssl_backdoor.errors import StoreError
from ssl_backdoor.store import LocalStore
from ssl_backdoor.store.survey import survey
from tasks import tracking

GOOD, BAD = "a" * 64, "b" * 64
Change = Callable[[dict[str, Any]], object]


def text(change: Change) -> Callable[[Path], object]:
    def write(manifest: Path) -> None:
        content = json.loads(manifest.read_text())
        change(content)
        manifest.write_text(json.dumps(content))

    return write


def sparse(manifest: Path) -> None:
    with manifest.open("wb") as file:
        file.truncate(2**40)


def pipe(manifest: Path) -> None:
    manifest.unlink()
    os.mkfifo(manifest)


def folder(manifest: Path) -> None:
    manifest.unlink()
    manifest.mkdir()


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "no byte": lambda manifest: manifest.write_bytes(b""),
    "half": lambda manifest: manifest.write_bytes(manifest.read_bytes()[:200]),
    "no text": lambda manifest: manifest.write_bytes(b"\xff\xfe\0\x1b[2J"),
    "no object": lambda manifest: manifest.write_text("[]"),
    "deep": lambda manifest: manifest.write_text("[" * 100_000),
    "deep in its summary": lambda manifest: manifest.write_text(
        manifest.read_text().replace('"summary": {', f'"summary": {{"x": {"[" * 50_000}{"]" * 50_000},')
    ),
    "huge": sparse,
    "no number": text(lambda content: content.update(seconds=float("nan"))),
    "no number within": text(lambda content: content["summary"].update(x=[float("-inf")])),
    "a number out of range": lambda manifest: manifest.write_text(
        manifest.read_text().replace('"seconds":', '"seconds": 1e999, "x":')
    ),
    "before it began": text(lambda content: content.update(seconds=-5)),
    "for ever": text(lambda content: content.update(seconds=1e300)),
    "a number of 5,000 digits": text(lambda content: content["files"]["x"].update(bytes=int("9" * 4000))),
    "less than nothing": text(lambda content: content["files"]["x"].update(bytes=-1)),
    "out of its folder": text(lambda content: content["files"].update({"../../x": content["files"]["x"]})),
    "another's": text(lambda content: content.update(key=GOOD)),
    "no inputs": text(lambda content: content.update(inputs={"dataset": 7})),
    "a pipe's name": text(lambda content: content["files"].update({"a\nb": content["files"]["x"]})),
    "a spec that is none": text(lambda content: content.update(spec="poison")),
}
UNFIT: dict[str, Callable[[Path], object]] = {
    "no spec": text(lambda content: content.update(spec={})),
    "runs that are none": text(lambda content: content.update(spec={"recipe": ["x"], "runs": 7})),
    "a summary of another kind": text(lambda content: content.update(summary={"performance": "fast", "classes": 3})),
    "no summary": text(lambda content: content.update(summary={}, inputs={})),
}
"""Whole manifests that do not hold what their stage writes."""
NO_FILE = {"pipe": pipe, "folder": folder}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Two reports, two datasets and two poisons."""
    store, made = LocalStore(tmp_path / "store"), tmp_path / "made"
    made.mkdir()
    (made / "x").write_text("content")
    for stage in ("report", "ingest", "poison"):
        for key in (GOOD, BAD):
            spec = {"kind": stage, "recipe": "demo", "runs": []}
            store.commit(stage, key, made, spec=spec, inputs={}, summary={"a": 1}, seconds=1.0)
    return store


def place(store: LocalStore, stage: str = "report") -> Path:
    return Path(store.root.removeprefix("file://")) / stage / BAD / "manifest.json"


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_named_and_the_rest_is_served(case, store, quiet, capsys):
    UNREADABLE[case](place(store))
    with pytest.raises(StoreError, match=f"of {store.root}/report/{BAD}") as caught:
        store.manifest(store.ref("report", BAD))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    found = survey(store)
    assert {ref.key for ref in found.unreadable} == {BAD}
    assert len(found.artifacts) == 5
    shown = status.status(store)
    assert shown["stages"]["report"]["finished"] == 1
    assert any(BAD in line for line in status.render(shown))
    cleaned = gc.collect(store, gc.GcOptions(delete=True, older_than_days=0.0))
    assert any(BAD in line for line in gc.render(cleaned))
    assert json.dumps([shown, cleaned], allow_nan=False)
    assert store.keys("report") == (GOOD, BAD)
    assert cli._show(Namespace(recipe=f"report/{GOOD[:8]}", store=store.root)) == 0
    assert json.loads(capsys.readouterr().out)["key"] == GOOD
    assert list(reindexed(store)) == [f"report/{GOOD[:12]} demo: MLflow run 7", BAD]


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_its_stage_is_named_and_the_rest_is_served(case, store, quiet, capsys, tmp_path):
    for stage in ("report", "ingest", "poison"):
        UNFIT[case](place(store, stage))
    shown = status.status(store)
    assert json.dumps([shown, *status.render(shown)], allow_nan=False)
    assert gc.collect(store, gc.GcOptions())["unreadable"] == {}
    assert cli._show(Namespace(recipe=f"report/{BAD}", store=store.root)) == 0
    for stage in ("ingest", "poison"):
        with pytest.raises(StoreError, match=f"{stage}/{BAD} does not hold what a {stage} artifact holds"):
            cli._export(Namespace(ref=f"{stage}/{BAD}", store=store.root, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", NO_FILE)
def test_what_is_no_file_is_no_artifact(case, store, quiet):
    NO_FILE[case](place(store))
    assert store.find("report", BAD) is None
    assert store.keys("report") == (GOOD,)
    assert status.status(store)["stages"]["report"]["finished"] == 1
    with pytest.raises(StoreError):
        store.manifest(store.ref("report", BAD))


def test_a_folder_with_another_name_is_no_artifact(store):
    for name in ("two words", "\x1b[2J", ".hidden", "ä"):
        other = place(store).parent.with_name(name)
        other.mkdir()
        (other / "manifest.json").write_text("{}")
    assert store.keys("report") == (GOOD, BAD)


def test_an_outage_of_mlflow_ends_reindexing(store, monkeypatch):
    def refuse(*_: object) -> str:
        raise tracking.StoreAwayError("MLflow cannot be written")

    monkeypatch.setattr(tracking, "write", refuse)
    monkeypatch.setattr(tracking.mlflow, "MlflowClient", object)
    with pytest.raises(StoreError, match="MLflow cannot"):
        list(tracking.reindex(store, print))


def reindexed(store: LocalStore):
    """The lines of what was written to an MLflow that takes everything, then the keys of what was left out."""
    damaged: list[str] = []

    def write(report, read_from, _: object) -> str:
        read_from.manifest(report)
        return "7"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "write", write)
        patch.setattr(tracking.mlflow, "MlflowClient", object)
        yield from tracking.reindex(store, damaged.append)
    assert len(damaged) == 1
    yield BAD if f"/{BAD}" in damaged[0] else damaged[0]
