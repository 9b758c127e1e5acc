"""TCP ports of the stack: default numbers, the variables that change them, and who holds one already."""

import contextlib
import secrets
import socket
from collections.abc import Iterable, Mapping

from ssl_backdoor.errors import SpecError

LOOPBACK = "127.0.0.1"
DEFAULTS: Mapping[str, int] = {
    "postgres": 55432,
    "s3": 8333,
    "s3_grpc": 18333,
    "s3_master": 9333,
    "s3_master_grpc": 19333,
    "s3_volume": 9340,
    "s3_volume_grpc": 19340,
    "s3_filer": 8888,
    "s3_filer_grpc": 18888,
    "s3_admin": 23646,
    "s3_admin_grpc": 33646,
    "ray": 6379,
    "ray_client": 10001,
    "ray_agent": 10002,
    "prefect": 4200,
    "mlflow": 5000,
}
_FREE_RANGE = range(20_000, 32_000)  # below what Linux hands to outgoing connections


def variable(name: str) -> str:
    """The environment variable that sets the port ``name``."""
    return f"SSL_BACKDOOR_PORT_{name.upper()}"


def choose(environ: Mapping[str, str], remembered: Mapping[str, int]) -> dict[str, int]:
    """The port of every listener: of its variable, else as remembered, else the default.

    ``SSL_BACKDOOR_PORTS=free`` takes free ports in place of the defaults.

    Raises:
        SpecError: a variable is no port number, or two listeners would share one.
    """
    wish = environ.get("SSL_BACKDOOR_PORTS", "")
    if wish not in ("", "free"):
        raise SpecError(f"SSL_BACKDOOR_PORTS takes the word free, found {wish!r}")
    given = {name: _number(name, environ[variable(name)]) for name in DEFAULTS if environ.get(variable(name))}
    chosen = {name: port for name, port in {**remembered, **given}.items() if name in DEFAULTS}
    missing = [name for name in DEFAULTS if name not in chosen]
    fresh = free(len(missing), avoid=chosen.values()) if wish == "free" else [DEFAULTS[name] for name in missing]
    chosen.update(zip(missing, fresh, strict=True))
    holders: dict[int, str] = {}
    for name, port in chosen.items():
        if port in holders:
            raise SpecError(f"port {port} is given to {holders[port]} and to {name}: set {variable(name)} to another")
        holders[port] = name
    return chosen


def free(count: int, avoid: Iterable[int] = ()) -> list[int]:
    """``count`` different ports of 127.0.0.1 that nobody listens on now."""
    taken = set(avoid)
    found: list[int] = []
    for port in secrets.SystemRandom().sample(_FREE_RANGE, len(_FREE_RANGE)):
        if len(found) == count:
            break
        if port not in taken and is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError:
            return False
        return True


def answers(port: int, timeout_s: float = 2.0) -> bool:
    """Whether somebody accepts connections on ``port`` of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=timeout_s):
        return True
    return False


def _number(name: str, text: str) -> int:
    port = int(text) if text.isascii() and text.isdecimal() else 0
    if not 1024 <= port <= 65535:
        raise SpecError(f"{variable(name)} takes a port from 1024 to 65535, found {text!r}")
    return port
