import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings, temporary_settings

from ssl_backdoor.errors import TrainingError, UserError
from tasks import embedded_prefect, prefect_server

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
    monkeypatch.setattr(embedded_prefect, "_server", None)
    yield
    if embedded_prefect._server is not None:
        embedded_prefect._end_server(embedded_prefect._server)


@pytest.fixture
def began(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_prefect, "_PROGRAM", ("-c", _SERVES.format(began=str(tmp_path / "began"))))
    return tmp_path / "began"


def test_a_shell_that_is_pointed_at_a_server_starts_none(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    embedded_prefect.start()
    assert embedded_prefect.api_url() is None
    before = PREFECT_API_URL.value()
    with embedded_prefect.use_server():
        assert PREFECT_API_URL.value() == before


def test_flows_speak_to_it_and_it_is_begun_once(began):
    for _ in range(2):
        embedded_prefect.start()
        with embedded_prefect.use_server():
            assert PREFECT_API_URL.value() == embedded_prefect.api_url()
            assert get_current_settings().flows.heartbeat_frequency is None
    assert PREFECT_API_URL.value() != embedded_prefect.api_url()
    assert began.read_text() == "x"


def test_nobody_else_gets_its_port_before_it_listens(monkeypatch):
    monkeypatch.setattr(embedded_prefect, "_PROGRAM", ("-c", "import time; time.sleep(60)"))
    embedded_prefect.start()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", embedded_prefect._server.port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", embedded_prefect._server.port), timeout=5)


_SCOLDS = """
import sys
print("12:00:00 | ERROR | Traceback (most recent call last):", file=sys.stderr)
print("sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked at a://me:pa55@b/c")
print("(Background on this error at: https://example.org/e3q8)")
sys.exit(3)
"""


def test_a_server_takes_no_module_from_the_working_folder(monkeypatch, tmp_path):
    (tmp_path / "planted.py").write_text("exit('planted')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded_prefect, "_PROGRAM", ("-c", "import planted"))
    embedded_prefect.start()
    with pytest.raises(TrainingError, match="No module named 'planted'"), embedded_prefect.use_server():
        pass


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("exit(3)", "code 3, without output"),
        ("exit(1)", "code 1, without output"),
        ("exit('a line\\n\\nand the last')", "code 1, its last error is 'and the last'"),
        (_SCOLDS, r"code 3, its last error is 'sqlalchemy.*database is locked at a://b/c'"),
    ],
)
def test_a_server_that_cannot_run_is_told_in_a_sentence(monkeypatch, capfd, program, said):
    monkeypatch.setattr(embedded_prefect, "_PROGRAM", ("-c", program))
    embedded_prefect.start()
    with pytest.raises(TrainingError, match=f"ended with {said}: .*PREFECT_API_URL"), embedded_prefect.use_server():
        pass
    assert capfd.readouterr() == ("", "")


def test_without_a_secret_the_server_does_not_start(monkeypatch, capsys):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    assert prefect_server.main(["--port", "1"]) == 2
    assert "set PREFECT_SERVER_API_AUTH_STRING" in capsys.readouterr().err


def test_each_server_has_a_secret_of_its_own_that_no_command_line_holds(began):
    embedded_prefect.start()
    secret = embedded_prefect._server.secret
    with embedded_prefect.use_server():
        assert PREFECT_API_AUTH_STRING.value() == secret
    assert PREFECT_API_AUTH_STRING.value() is None
    assert secret not in str(embedded_prefect._server.process.args)
    embedded_prefect._end_server(embedded_prefect._server)
    embedded_prefect.start()
    assert embedded_prefect._server.secret != secret


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (401, "wants another password: set PREFECT_API_AUTH_STRING"),
        (404, r"does not answer: start it \(`make up`\), or fix or unset PREFECT_API_URL"),
        (200, r"does not answer: start it \(`make up`\)"),  # with a page of something else
        (None, r"does not answer: start it \(`make up`\)"),
    ],
)
def test_a_server_that_was_named_and_refuses_or_is_away_is_told_in_one_sentence(answer, said):
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = f"http://127.0.0.1:{server.server_port}/api"
        if answer is None:
            server.shutdown()
            server.server_close()
        with (
            temporary_settings({PREFECT_API_URL: api.replace("//", "//user:kept-secret@")}),
            pytest.raises(UserError, match=rf"^the Prefect server at {api} {said}") as refused,
            embedded_prefect.use_server(),
        ):
            pytest.fail("it goes on")
        server.shutdown()
    assert "kept-secret" not in str(refused.value)
