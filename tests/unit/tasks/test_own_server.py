import pytest
from prefect.settings import PREFECT_API_URL, get_current_settings

from ssl_backdoor.errors import TrainingError
from tasks import own_server

_SERVES = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass

began = Path({began!r})
began.write_text(began.read_text() + "x" if began.exists() else "x")
if len(began.read_text()) < {ready}:
    sys.exit({code})
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""
"""In the server's place: one that ends with ``code`` until it is begun for the ``ready``-th time."""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No server of this process before, none after."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(own_server, "_server", None)
    yield
    if own_server._server is not None:
        own_server._end(own_server._server.process)


@pytest.fixture
def began(tmp_path, monkeypatch):
    def at(ready: int, code: int = own_server._NO_PORT):
        file = tmp_path / "began"
        monkeypatch.setattr(own_server, "_PROGRAM", _SERVES.format(began=str(file), ready=ready, code=code))
        return file

    return at


def test_a_shell_that_is_pointed_at_a_server_starts_none(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    own_server.begin()
    assert own_server.address() is None
    before = PREFECT_API_URL.value()
    with own_server.used():
        assert PREFECT_API_URL.value() == before


def test_flows_speak_to_it_and_it_is_begun_once(began):
    file = began(ready=1)
    for _ in range(2):
        own_server.begin()
        with own_server.used():
            assert PREFECT_API_URL.value() == own_server.address()
            assert get_current_settings().flows.heartbeat_frequency is None
    assert PREFECT_API_URL.value() != own_server.address()
    assert file.read_text() == "x"


def test_another_port_is_tried_where_one_is_taken_meanwhile(began):
    file = began(ready=3)
    own_server.begin()
    first = own_server.address()
    with own_server.used():
        assert own_server.address() != first
    assert file.read_text() == "xxx"


@pytest.mark.parametrize(("program", "said"), [("exit(3)", "code 3"), ("exit(1)", "code 1")])
def test_a_server_that_cannot_run_is_told_in_a_sentence(monkeypatch, program, said):
    monkeypatch.setattr(own_server, "_PROGRAM", program)
    own_server.begin()
    with pytest.raises(TrainingError, match=f"ended with {said}: .*PREFECT_API_URL"), own_server.used():
        pass


def test_a_server_that_did_not_start_is_begun_once_more_and_no_oftener(began):
    file = began(ready=2, code=own_server._NO_START)
    own_server.begin()
    with own_server.used():
        assert file.read_text() == "xx"
    own_server._end(own_server._server.process)
    file.unlink()
    began(ready=3, code=own_server._NO_START)
    own_server.begin()
    with pytest.raises(TrainingError, match="ended with code 3"), own_server.used():
        pass
    assert file.read_text() == "xx"
