"""What a command says at its end of what it made."""

import sqlite3
from contextlib import closing

from flows.commands.results import describe, find_reused, next_commands
from ssl_backdoor.specs import ReportSpec
from ssl_backdoor.store import LocalStore
from tasks.recorded import REPORT_KEY, is_recorded
from tasks.sqlite_urls import sqlite_url

REPORT = ReportSpec(recipe="mine", question="?", runs=())


def made(store, folder, stage, key, **summary):
    folder.mkdir(exist_ok=True)
    (folder / "x").write_text(key)
    return store.commit(stage, key * 16, folder, spec={}, inputs={}, summary=summary, seconds=1.0)


def test_a_stage_command_names_what_it_made_and_what_comes_next(tmp_path):
    store = LocalStore(tmp_path / "store")
    facts = {
        "classes": ["cat", "dog"],
        "num_train": 600,
        "num_rejected": 2,
        "captioner": {"cat": "a"},
        "of_target": 0.5,
    }
    images = made(store, tmp_path / "files", "ingest", "abcd", **facts)
    unmade = store.ref("ingest", "e" * 64)
    found = describe(REPORT, store.ref("report", "f" * 64), store, "ingest", [images, unmade])
    assert found["text"].splitlines() == [
        "mine: done up to ingest",
        "ingest/abcdabcdabcd: classes 2, train 600, rejected 2, of_target 0.5",
    ]
    assert next_commands(["ingest", "mine.yaml", "--data", "my photos"], "ingest", [images, unmade]) == [
        "next: ssl-backdoor poison mine.yaml --data 'my photos'",
        "or:   ssl-backdoor show ingest/abcdabcdabcd, or ssl-backdoor export ingest/abcdabcdabcd --out DIR",
    ]
    assert found["made"] == {f"ingest/{'abcd' * 16}": facts}


def test_of_many_artifacts_the_first_are_named(tmp_path):
    store = LocalStore(tmp_path / "store")
    refs = [made(store, tmp_path / "files", "train", f"{index:04x}", steps=1) for index in range(12)]
    lines = describe(REPORT, refs[0], store, "train", refs)["text"].splitlines()
    assert len(lines) == 12
    assert lines[-1] == "and 2 more"
    assert next_commands(["train", "mine.yaml"], "train", refs)[1] == "or:   ssl-backdoor show train/000000000000"


def test_a_run_is_reused_once_its_last_stage_is_there_and_mlflow_has_its_report(tmp_path, monkeypatch):
    """Where a Prefect server is named its page shows every run, also one that has nothing to do."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    database = tmp_path / "mlflow?.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_url(database))
    store = LocalStore(tmp_path / "store")
    page, images = (store.ref(stage, "ab" * 32) for stage in ("report", "ingest"))
    calls = dict.fromkeys((images, page))
    assert find_reused(calls, store, "ingest") is None
    for ref in (images, page):
        made(store, tmp_path / "files", ref.stage, "abab")
    assert find_reused(calls, store, "ingest") == (images,)
    assert find_reused(calls, store, "filter") is None
    assert find_reused(calls, store, "report") is None
    with closing(sqlite3.connect(database)) as tables, tables:
        tables.execute("create table runs (run_uuid, status, lifecycle_stage)")
        tables.execute("create table tags (run_uuid, key, value)")
        tables.execute("insert into tags values ('a', ?, ?)", (REPORT_KEY, page.key))
        tables.execute("insert into runs values ('a', 'RUNNING', 'active')")
    assert find_reused(calls, store, "report") is None
    with closing(sqlite3.connect(database)) as tables, tables:
        tables.execute("update runs set status = 'FINISHED'")
    assert find_reused(calls, store, "report") == (page,)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert find_reused(calls, store, "report") is None


def test_mlflows_tables_are_as_they_are_asked(tmp_path, monkeypatch):
    database = tmp_path / "mlflow.db"
    database.write_text("no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_url(database))
    assert not is_recorded("ab" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert not is_recorded("ab" * 32)
