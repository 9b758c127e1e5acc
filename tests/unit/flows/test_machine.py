"""Machines and shells as they are: what stands in a run's way is one sentence, before anything starts."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace
from urllib.request import getproxies_environment, proxy_bypass_environment

import httpx
import pytest
import sqlalchemy

from flows import settings
from flows.commands import doctor, machine
from ssl_backdoor.errors import StoreError, UserError
from tasks.loopback import around_proxies
from tasks.sqlite_urls import file_of, sqlite_url

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "corp.example, 10.0.0.1"}, "corp.example,10.0.0.1,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b,a"}, "a,b,127.0.0.1,localhost,::1"),
        ({"no_proxy": "", "NO_PROXY": "localhost"}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "corp.example,*"}, "*"),
    ],
)
def test_loopback_goes_around_every_proxy(given, named, monkeypatch):
    found = around_proxies({**given, "http_proxy": "http://proxy:3128"})
    assert found == {"NO_PROXY": named, "no_proxy": named}
    assert around_proxies(found) == found
    for name, value in {"http_proxy": "http://proxy:3128", "ALL_PROXY": "http://proxy:3128", **found}.items():
        monkeypatch.setenv(name, value)
    for address in ("127.0.0.1:4200", "localhost:5000"):
        assert proxy_bypass_environment(address, getproxies_environment())
        with httpx.Client() as client:
            assert client._transport_for_url(httpx.URL(f"http://{address}")) is client._transport
    assert bool(proxy_bypass_environment("far.example:80", getproxies_environment())) == ("*" in named)


@pytest.mark.parametrize(
    ("variable", "value", "cure"),
    [
        ("ALL_PROXY", "socks5://me:pa55@127.0.0.1:1080", "pip install socksio"),
        ("http_proxy", "nonsense://x", "fix or unset it"),
        ("HTTPS_PROXY", "foo:bar", "fix or unset it"),
        ("NO_PROXY", "[::1]", "fix or unset it"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(variable, value, cure, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"a proxy of {variable} cannot be used .*{cure}") as caught:
        machine.check_proxies()
    assert "pa55" not in str(caught.value)


def test_proxies_that_can_be_used(monkeypatch):
    assert machine.check_proxies() == "none is named"
    monkeypatch.setenv("http_proxy", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", "x")
    assert machine.check_proxies() == "loopback goes around http_proxy"


ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "set_to", "words"),
    [
        ((64, 100_000), (4096, 100_000), "4,096 files"),
        ((256, 1024), (1024, 1024), "1,024 files"),
        ((64, ANY), (4096, ANY), "4,096 files"),
        ((8192, 8192), None, "8,192 files"),
        ((ANY, ANY), None, "any number of files"),
        ((32, 32), None, "this shell allows 32: raise it"),
    ],
)
def test_open_files(limits, set_to, words, monkeypatch):
    asked = []
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(machine.resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    if "allows" in words:
        with pytest.raises(UserError, match=words):
            machine.check_open_files()
    else:
        assert words in machine.check_open_files()
    assert asked == ([] if set_to is None else [set_to])


def test_no_folder_for_temporary_files(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(machine.tempfile, "gettempdir", none)
    with pytest.raises(UserError, match="no folder for temporary files can be written: set TMPDIR"):
        machine.check_temporary_folder()
    assert [one.ok for one in doctor._machine() if one.name == "temporary"] == [False]


def test_a_long_folder_for_temporary_files_is_used_but_for_sockets(monkeypatch):
    long = f"/{'long' * 20}"
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: long)
    assert machine.check_temporary_folder() == f"{long}, and /tmp for sockets, which must have short names"


def test_another_projects_packages_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "tasks", SimpleNamespace(__name__="tasks", __path__=[str(tmp_path / "tasks")]))
    with pytest.raises(UserError, match=r"expected tasks beside ssl_backdoor .* out of PYTHONPATH"):
        machine.check()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PREFECT_API_URL", "http://[::1"),
        ("PREFECT_API_URL", "http://me:pa55@127.0.0.1:99999/api"),
        ("MLFLOW_TRACKING_URI", "http://host:port"),
        ("RAY_ADDRESS", "127.0.0.1:-1"),
    ],
)
def test_an_address_that_is_none_is_told(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable} holds no address") as caught:
        machine.check()
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (".env", "A=1\nexport PREFECT_API_URL = http://me:pa55@host/api\n", r"\.env \(PREFECT_API_URL\)"),
        ("prefect.toml", '[api]\nurl = "http://host/api"\n', r"prefect\.toml"),
        ("pyproject.toml", "[tool.prefect]\nprofile = 'lab'\n", r"pyproject\.toml"),
        (".env", "# PREFECT_API_URL=x\nMY_PREFECT_API=1\nPREFECT_HOME=x\n", ""),
        ("prefect.toml", "", ""),
        ("prefect.toml", "][", ""),
        ("pyproject.toml", "[project]\nname='x'\n", ""),
        ("pyproject.toml", "tool = 7\n", ""),
    ],
)
def test_settings_of_prefects_in_the_working_folder_are_told(tmp_path, monkeypatch, file, text, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / file).write_text(text)
    if not told:
        assert machine.check_prefect_files() == "Prefect finds no settings of its own in this folder"
        return
    with pytest.raises(UserError, match=f"from this folder's {told}, which .*: export them") as caught:
        machine.check_prefect_files()
    assert "pa55" not in str(caught.value)


def test_doctor_tells_each(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    told = {one.name: one for one in doctor._machine()}
    assert list(told) == ["files", "temporary", "proxies", "packages", "addresses", "folder", "launcher"]
    assert all(one.ok for one in told.values())
    assert "commands do not look at them" in told["launcher"].text


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """An environment that ``embed`` may write to."""
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    monkeypatch.setattr(settings, "HOME", tmp_path / "a?b#c%20d é")
    return os.environ


def test_the_database_of_a_home_with_an_odd_name_is_in_it(shell):
    settings.embed()
    file = settings.HOME / "mlflow.db"
    assert file_of(shell["MLFLOW_TRACKING_URI"]) == file
    with sqlalchemy.create_engine(shell["MLFLOW_TRACKING_URI"]).connect() as connection:
        connection.execute(sqlalchemy.text("create table a (b)"))
    assert file.exists()


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%3Fb", "a b", "é", "a&b=c?uri=true", "file:x"])
def test_a_url_of_a_database_names_its_file(name, tmp_path):
    file = tmp_path / name / "x.db"
    assert file_of(sqlite_url(file)) == file
    assert file_of("http://127.0.0.1:5000") is None
    file.parent.mkdir()
    sqlalchemy.create_engine(sqlite_url(file)).connect().close()
    assert file.exists()


def test_a_user_without_a_home_gets_the_runs_own(shell, monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(settings.Path, "home", nowhere)
    settings.embed()
    assert shell["HOME"] == str(settings.HOME)
    assert shell["USER"] == str(os.getuid())


def test_a_working_folder_that_is_gone_is_told(shell, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreError, match="the working folder was removed: change to another"):
        settings.embed()


def test_a_home_whose_name_is_no_text_is_told(shell, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "HOME", tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(StoreError, match="is not UTF-8: set SSL_BACKDOOR_HOME"):
        settings.embed()
