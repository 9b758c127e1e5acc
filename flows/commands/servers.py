"""Which servers a shell is pointed at, which ones run under its home, and whether they answer."""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from flows import settings
from ssl_backdoor.errors import SpecError

_VARIABLES = {"Prefect": "PREFECT_API_URL", "MLflow": "MLFLOW_TRACKING_URI", "Ray": "RAY_ADDRESS"}
_PORTS = {"http": 80, "https": 443, "ray": 10001}
_STACK = ("prefect", "mlflow", "s3", "postgres", "ray")
_WAIT_S = 2.0


class Server(NamedTuple):
    """A server that a variable of this shell names."""

    name: str
    variable: str
    address: str
    """``host:port``: no path, no password."""
    is_up: bool


def find_named() -> list[Server]:
    """The servers that this shell's runs use; what is not among them is embedded in the run itself.

    Raises:
        SpecError: a variable holds what is no address.
    """
    return [
        Server(name, _VARIABLES[name], f"{host}:{port}", _answers(host, port))
        for name, (host, port) in read_addresses().items()
    ]


def read_addresses() -> dict[str, tuple[str, int]]:
    """Host and port of each server that this shell names; none is asked.

    Raises:
        SpecError: a variable holds what is no address.
    """
    found = {}
    for name, variable in _VARIABLES.items():
        given = os.environ.get(variable, "")
        try:
            url = urlsplit(given if "://" in given else f"//{given}")
            port = url.port or _PORTS.get(url.scheme)
        except ValueError as error:  # its value may hold a password
            raise SpecError(f"{variable} holds no address with a port of 1 to 65535: fix or unset it") from error
        if url.hostname and port:
            found[name] = (url.hostname, port)
    return found


def probe_home() -> Mapping[str, bool] | None:
    """Whether each service of ``make up`` under the home answers; None where none were ever set up there.

    Raises:
        StoreError: they were, and their configuration cannot be read.
    """
    ports = settings.read_stack_config("ports")
    return None if ports is None else {name: name in ports and _answers("127.0.0.1", ports[name]) for name in _STACK}


def _answers(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    # No host has a name with an empty or an endless label, which is a UnicodeError.
    with contextlib.suppress(OSError, UnicodeError), socket.create_connection((host, port), timeout=_WAIT_S):
        return True
    return False
