"""A web server on loopback with a certificate of its own, which answers ranges of bytes as it is told to."""

import contextlib
import datetime
import ipaddress
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class WebServer:
    """``files`` by path; ``answers`` first has its say: a status, headers and body, or None."""

    address: str
    certificate: Path
    files: dict[str, bytes] = field(default_factory=dict)
    answers: Callable[[str, dict[str, str]], tuple[int, dict[str, str], bytes] | None] = lambda *_: None
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tag: str = '"first"'


@contextlib.contextmanager
def https_server(folder: Path) -> Iterator[WebServer]:
    """A running server."""
    server = _Server(("127.0.0.1", 0), _Handler)
    certificate, key = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.web = WebServer(f"https://127.0.0.1:{server.server_port}", certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
    made = made.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    pem = folder / "certificate.pem", folder / "key.pem"
    pem[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return pem


class _Server(ThreadingHTTPServer):
    web: WebServer

    def handle_error(self, request, client_address) -> None:
        """A client that gave up has noticed by itself."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        web, headers = self.server.web, {name.lower(): value for name, value in self.headers.items()}
        web.seen.append((self.path, headers))
        status, more, body = web.answers(self.path, headers) or self._plain(headers)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | more).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _plain(self, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        data = self.server.web.files.get(self.path)
        if data is None:
            return 404, {}, b""
        begin, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", headers["range"]).groups())
        if begin >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        part = data[begin : end + 1]
        where = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
        return 206, {"Content-Range": where, "ETag": self.server.web.tag}, part
