import socket

import pytest
from prefect.settings import PREFECT_API_URL, get_current_settings

from ssl_backdoor.errors import TrainingError
from tasks import own_server

_SERVES = """
import socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass

with Path({began!r}).open("a") as file:
    file.write("x")
server = HTTPServer(("", 0), Healthy, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.server_activate()
server.serve_forever()
"""
"""In the server's place; notes each time that it is begun."""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No server of this process before, none after."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(own_server, "_server", None)
    yield
    if own_server._server is not None:
        own_server._end(own_server._server)


@pytest.fixture
def began(tmp_path, monkeypatch):
    monkeypatch.setattr(own_server, "_PROGRAM", _SERVES.format(began=str(tmp_path / "began")))
    return tmp_path / "began"


def test_a_shell_that_is_pointed_at_a_server_starts_none(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    own_server.begin()
    assert own_server.address() is None
    before = PREFECT_API_URL.value()
    with own_server.used():
        assert PREFECT_API_URL.value() == before


def test_flows_speak_to_it_and_it_is_begun_once(began):
    for _ in range(2):
        own_server.begin()
        with own_server.used():
            assert PREFECT_API_URL.value() == own_server.address()
            assert get_current_settings().flows.heartbeat_frequency is None
    assert PREFECT_API_URL.value() != own_server.address()
    assert began.read_text() == "x"


def test_nobody_else_gets_its_port_before_it_listens(monkeypatch):
    monkeypatch.setattr(own_server, "_PROGRAM", "import time; time.sleep(60)")
    own_server.begin()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", own_server._server.port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", own_server._server.port), timeout=5)


_SCOLDS = """
import sys
print("12:00:00 | ERROR | Traceback (most recent call last):", file=sys.stderr)
print("sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked at a://me:pa55@b/c")
print("(Background on this error at: https://example.org/e3q8)")
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("exit(3)", "code 3, and said nothing"),
        ("exit(1)", "code 1, and said nothing"),
        ("exit('a line\\n\\nand the last')", "code 1, its last words are 'and the last'"),
        (_SCOLDS, r"code 3, its last words are 'sqlalchemy.*database is locked at a://\*\*\*@b/c'"),
    ],
)
def test_a_server_that_cannot_run_is_told_in_a_sentence(monkeypatch, capfd, program, said):
    monkeypatch.setattr(own_server, "_PROGRAM", program)
    own_server.begin()
    with pytest.raises(TrainingError, match=f"ended with {said}: .*PREFECT_API_URL"), own_server.used():
        pass
    assert capfd.readouterr() == ("", "")
