"""A proxy on loopback before a real object store, which fails in the ways it is asked to.

A client that is pointed at ``FaultProxy.endpoint`` signs for that address, and the server behind it takes the
signature, because the Host header is handed on as it came. What is not to fail passes unchanged.
"""

import contextlib
import http.client
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

Kind = Literal["part", "conditional", "put", "begin", "complete", "get", "list", "head", "delete"]
Way = Literal["refuse", "lose", "drop", "cut", "shorten", "alter", "stall", "pass"]
Headers = list[tuple[str, str]]
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Fault:
    """What happens to the first ``times`` requests of a kind whose path ends with ``ending``; first ``before`` runs.

    refuse: 503 SlowDown, and the server hears nothing. lose: the server does it, the client is told 503. drop: the
    server does it, the connection ends without an answer. cut: the connection ends in the middle of the request's
    body, or else of the answer's. shorten, alter: the answer looks whole, but its body is half, or has another last
    byte. stall: no answer. pass: nothing else than ``before``.
    """

    kind: Kind
    way: Way
    times: float = math.inf
    ending: str = ""
    before: Callable[[], object] = lambda: None
    met: int = 0
    """Requests that it befell."""


def kind_of(method: str, path: str, conditional: bool) -> Kind:
    """What a request wants of the object store."""
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    match method:
        case "PUT":
            return "part" if "partNumber" in query else "conditional" if conditional else "put"
        case "POST":
            return "begin" if "uploads" in query else "complete"
        case "GET":
            return "list" if "list-type" in query else "get"
    return "head" if method == "HEAD" else "delete"


class FaultProxy:
    """Forwards to ``upstream`` (an http URL), but for its ``faults``; the first that fits is taken."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[Fault] = []
        self.seen: list[Kind] = []
        """Every request, as they came."""
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, *faults: Fault) -> tuple[Fault, ...]:
        """Let these happen from now on."""
        self.faults += faults
        return faults

    def take(self, kind: Kind, path: str) -> Fault:
        """The fault that befalls a request."""
        with self._lock:
            self.seen.append(kind)
            for fault in self.faults:
                if fault.kind == kind and fault.met < fault.times and urlsplit(path).path.endswith(fault.ending):
                    fault.met += 1
                    return fault
        return Fault(kind, "pass")


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A running proxy, ended on leaving."""
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    proxy: FaultProxy

    def handle_error(self, request, client_address) -> None:
        """A client that gave up, or a server that went away: the client has noticed by itself."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_) -> None:
        """Say nothing."""

    def _do(self) -> None:
        self.close_connection = True
        fault = self.server.proxy.take(kind_of(self.command, self.path, "If-None-Match" in self.headers), self.path)
        size = int(self.headers.get("Content-Length", 0))
        if fault.way == "cut" and size:
            self.rfile.read(size // 2)
            return
        body = self.rfile.read(size)
        fault.before()
        if fault.way == "stall":
            self.server.proxy.stopped.wait()
        elif fault.way == "refuse":
            self._answer(503, [], SLOW_DOWN)
        else:
            self._pass_on(fault.way, *self._forward(body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

    def _forward(self, body: bytes) -> tuple[int, Headers, bytes]:
        connection = http.client.HTTPConnection(self.server.proxy.upstream)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _pass_on(self, way: Way, status: int, headers: Headers, content: bytes) -> None:
        half = len(content) // 2
        match way:
            case "drop":
                return
            case "lose":
                self._answer(503, [], SLOW_DOWN)
            case "shorten":
                self._answer(status, headers, content[:half])
            case "alter":
                self._answer(status, headers, content[:-1] + bytes([content[-1] ^ 1]))
            case _:
                self._answer(status, headers, content, half if way == "cut" else None)

    def _answer(self, status: int, headers: Headers, content: bytes, upto: int | None = None) -> None:
        """Send an answer; of its body only the first ``upto`` bytes, if that is given."""
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content[:upto])
