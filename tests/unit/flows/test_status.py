"""What `ssl-backdoor status` and `doctor` say of a store and of the servers around it."""

import hashlib
import json
import re
import socket
from collections import namedtuple

import pytest

from flows import settings
from flows.commands import doctor, servers
from flows.commands.status import render, status
from flows.terminal.units import bytes_text, duration_text
from ssl_backdoor.errors import SpecError, StoreError
from ssl_backdoor.store import contents, open_store
from ssl_backdoor.store.survey import contents_of

DAY_S = 86_400


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, and a shell that names no server."""
    monkeypatch.setattr(settings, "HOME", tmp_path / "home")
    for name in ("PREFECT_API_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path / "home"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def listener():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def make(store, stage, name, tmp_path, spec=None, seconds=2.0):
    files = tmp_path / "files" / name
    files.mkdir(parents=True)
    (files / "data").write_bytes(bytes(1500))
    return store.commit(stage, key_of(name), files, spec=spec or {}, inputs={}, summary={}, seconds=seconds)


def test_an_empty_store_is_one_page_too(store):
    told = status(store)
    text = "\n".join(render(told))
    assert "unfinished: none" in text
    assert "rubbish:    none" in text
    assert "reports:    none" in text
    assert "MLflow:     holds every report" in text


def test_what_is_finished_what_is_not_and_what_is_rubbish(store, tmp_path, monkeypatch):
    make(store, "train", "one", tmp_path, seconds=60.0)
    make(store, "train", "two", tmp_path, seconds=3_600.5)
    state = tmp_path / "state"
    state.write_text("state")
    for name in ("one", "three"):
        for step in (100, 1_500):
            store.save_checkpoint("train", key_of(name), step, state)
    hollow = tmp_path / "store" / "evaluate" / key_of("hollow")
    hollow.mkdir(parents=True)
    (hollow / "part").write_text("part")
    (tmp_path / "store" / "notes.txt").touch()
    now_s = contents_of(store).clock_s()
    monkeypatch.setattr(contents.LocalContents, "clock_s", lambda _: now_s + 3 * DAY_S)
    told = status(store)
    assert told["stages"]["train"] == {"finished": 2, "bytes": 3000, "seconds": 3660.5}
    assert told["stages"]["ingest"] == {"finished": 0, "bytes": 0, "seconds": 0}
    (work,) = told["unfinished"]
    assert (work["ref"], work["step"], work["bytes"]) == (f"train/{key_of('three')}", 1_500, 10)
    assert work["age_s"] == pytest.approx(3 * DAY_S, abs=60)
    assert told["rubbish"] == {"num": 2, "files": 3, "bytes": 14}
    assert told["unknown"] == ["notes.txt"]
    text = "\n".join(render(told))
    assert re.search(r"^train +2 +3\.0 kB +1 hour$", text, re.MULTILINE)
    assert re.search(rf"^ +train/{key_of('three')[:12]} +step 1,500, 3 days ago, 10 B$", text, re.MULTILINE)
    assert "2 unfinished attempts or left-overs, 3 files, 14 B: ssl-backdoor gc" in text
    json.dumps(told, allow_nan=False)


def test_the_last_ten_reports_newest_last_and_how_many_mlflow_lacks(store, tmp_path):
    made = [
        make(store, "report", f"page {n}", tmp_path, {"recipe": f"recipe {n}", "runs": [{}] * (n + 1)})
        for n in range(12)
    ]
    told = status(store)
    assert [one["ref"] for one in told["reports"]] == [f"report/{ref.key}" for ref in made]
    assert told["mlflow"] == {"missing": 12}
    shown = [line for line in render(told) if "  report/" in line]
    assert [line.split("  ")[-1] for line in shown] == [f"recipe {n}, {n + 1} runs" for n in range(2, 12)]
    assert "MLflow:     12 of 12 reports not recorded: ssl-backdoor reindex" in render(told)
    assert not (tmp_path / "mlflow.db").exists()  # looking makes nothing


def test_a_damaged_artifact_is_told(store, tmp_path):
    ref = make(store, "ingest", "one", tmp_path)
    (store.fetch(ref) / "manifest.json").write_text("{")
    told = status(store)
    assert told["stages"]["ingest"]["finished"] == 0
    assert any(line.startswith("DAMAGED:    expected a whole manifest of") for line in render(told))


def test_servers_of_the_shell_are_asked(store, monkeypatch, listener, closed_port, tmp_path):
    make(store, "report", "page", tmp_path, {"recipe": "demo", "runs": [{}]})
    assert "this shell: Prefect, MLflow, Ray embedded, kept in" in "\n".join(render(status(store)))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{listener}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:password@127.0.0.1:{closed_port}")
    told = status(store)
    assert told["servers"] == {
        "Prefect": {"address": f"127.0.0.1:{listener}", "answers": True},
        "MLflow": {"address": f"127.0.0.1:{closed_port}", "answers": False},
    }
    text = "\n".join(render(told))
    assert f"MLflow at 127.0.0.1:{closed_port} (DOES NOT ANSWER); Ray embedded" in text
    assert "MLflow:     not looked at, it does not answer" in text
    assert "password" not in text + json.dumps(told)


def test_services_of_the_home_are_asked(store, home, listener, closed_port):
    assert servers.probe_home() is None
    (home / "stack").mkdir(parents=True)
    config = home / "stack" / "config.json"
    ports = dict.fromkeys(("prefect", "mlflow", "s3", "postgres", "ray"), listener)
    for changed, sentence in (
        ({}, "make up:    all services answer in"),
        ({"s3": closed_port}, f"make up:    s3 of {home} DO NOT ANSWER: make up"),
        (dict.fromkeys(ports, closed_port), f"make up:    services of {home} are down"),
    ):
        config.write_text(json.dumps({"ports": {**ports, **changed}, "secrets": {}}))
        assert sentence in "\n".join(render(status(store)))
    for damaged in ("{", "[]", '{"ports": 1, "environment": 1}'):
        config.write_text(damaged)
        for read in (lambda: status(store), settings.of_stack):
            with pytest.raises(StoreError, match="cannot be read as a stack's configuration"):
                read()


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:80a/api", "http://127.0.0.1:70000", "http://[::1"])
def test_what_is_no_address_is_told_in_one_sentence_without_its_password(store, monkeypatch, address):
    monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(SpecError, match=r"^PREFECT_API_URL holds no address with a port .* unset it$"):
        status(store)
    (finding,) = findings(store.root, "servers")
    assert (finding.ok, "PREFECT_API_URL" in finding.text) == (False, True)


def test_a_name_that_no_host_can_have_does_not_answer(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://{'a' * 64}:4200/api")
    assert [one.is_up for one in servers.find_named() if one.name == "Prefect"] == [False]


def findings(store_uri, name):
    return [finding for finding in doctor.examine(str(store_uri)) if finding.name == name]


def test_doctor_names_a_server_that_does_not_answer(store, monkeypatch, listener, closed_port):
    assert findings(store.root, "Ray") == []
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener}")
    assert [one.ok for one in findings(store.root, "Ray")] == [True]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    (finding,) = findings(store.root, "Ray")
    assert (finding.ok, finding.text) == (
        False,
        f"127.0.0.1:{closed_port} does not answer: start it (`make up`), or unset RAY_ADDRESS",
    )


@pytest.mark.parametrize(("ahead_s", "told"), [(90, "90 s ahead of"), (-700, "700 s behind")])
def test_doctor_tells_of_a_wrong_clock(store, monkeypatch, ahead_s, told):
    assert findings(store.root, "clock") == []
    now_s = contents_of(store).clock_s()
    monkeypatch.setattr(contents.LocalContents, "clock_s", lambda _: now_s - ahead_s)
    (finding,) = findings(store.root, "clock")
    assert not finding.ok
    assert told in finding.text


def test_doctor_looks_at_the_disk_of_the_store(store, monkeypatch, tmp_path):
    Usage = namedtuple("Usage", "free")
    asked = []

    def usage(place):
        asked.append(place)
        return Usage(2**31 - 1 if place == tmp_path / "store" else 2**40)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    (finding,) = findings(tmp_path / "store", "disk")
    assert not finding.ok
    assert "2.0 GiB free for the store, 1024.0 GiB free for temporary files: free at least 2 GiB" in finding.text
    (finding,) = findings(tmp_path / "store" / "none" / "yet", "disk")
    assert asked[-2] == tmp_path / "store" / "none" / "yet"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_bytes_as_people_read_them(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3.0, "0 seconds"),
        (1.0, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (7_199, "1 hour"),
        (2 * DAY_S, "2 days"),
    ],
)
def test_durations_as_people_read_them(seconds, text):
    assert duration_text(seconds) == text
