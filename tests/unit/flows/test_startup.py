"""The time until a run begins is measured once an hour and home; that of a server that this shell names each time."""

import json
from types import SimpleNamespace

import pytest

from flows import settings
from flows.estimate import command


@pytest.fixture
def probes(tmp_path, monkeypatch):
    """How often a probe was started, each half a second."""
    started = []

    def run(*_, **__):
        started.append(1)
        return SimpleNamespace(returncode=0, stdout=str(command.time.perf_counter() + 0.5))

    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr(settings, "HOME", tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return started


def test_a_home_keeps_the_figure(probes):
    assert command._startup_s() == command._startup_s() == pytest.approx(0.5, abs=0.2)
    assert len(probes) == 2, "the first fills the file cache"


@pytest.mark.parametrize("change", [{"at": 0}, {"at": 1e12}, {"machine": ["another"]}, {"seconds": None}, None])
def test_what_is_old_or_not_ours_is_measured_anew(probes, tmp_path, change):
    command._startup_s()
    file = tmp_path / "startup.json"
    file.write_text("{" if change is None else json.dumps({**json.loads(file.read_text()), **change}))
    command._startup_s()
    assert len(probes) == 4
    command._startup_s()
    assert len(probes) == 4


def test_a_named_server_is_asked_each_time(probes, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    command._startup_s()
    command._startup_s()
    assert len(probes) == 4
    assert not (tmp_path / "startup.json").exists()
