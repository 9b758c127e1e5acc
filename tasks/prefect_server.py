"""Prefect's server as this project starts it: `prefect server start`, for its own pages and whoever has the secret.

    python -m tasks.prefect_server --port 4200                  on loopback
    python -m tasks.prefect_server --host 0.0.0.0 --port 4200 --address prefect:4200 ...   in a container
    python -m tasks.prefect_server --socket FD                  on a socket that was opened for it

``PREFECT_SERVER_API_AUTH_STRING`` is the secret (``user:password``), which clients send as ``PREFECT_API_AUTH_STRING``
and people type into the page once. Prefect's other settings are as of `prefect server start`.
"""

import argparse
import gc
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.guard import App, Guard, own_addresses
from tasks.sqlite_urls import sqlite_url


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; exit code 2 where there is no secret."""
    parser = argparse.ArgumentParser(prog="tasks.prefect_server", description="Prefect's server, behind a guard.")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--address", action="append", default=[], help="HOST:PORT by which clients know it; repeatable")
    parser.add_argument("--socket", type=int, help="number of an open socket, in place of --host and --port")
    options = parser.parse_args(arguments)
    if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        sys.stderr.write("prefect_server: set PREFECT_SERVER_API_AUTH_STRING to user:password, it is empty or unset.\n")
        return 2
    bound = socket.socket(fileno=options.socket) if options.socket is not None else None
    port = bound.getsockname()[1] if bound is not None else options.port
    addresses = own_addresses(port) | set(options.address)
    os.environ["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] = "true"
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(sorted(f"http://{one}" for one in addresses))
    if "?" in (home := os.environ.get("PREFECT_HOME", "")):  # Prefect's own URL of its database would end there
        url = sqlite_url(Path(home, "prefect.db"), "sqlite+aiosqlite")
        os.environ.setdefault("PREFECT_API_DATABASE_CONNECTION_URL", url)
    gc.set_threshold(100_000)  # as in flows.cli.main
    import uvicorn

    level = os.environ.get("PREFECT_SERVER_LOGGING_LEVEL", "warning").lower()
    # Prefect's settings are read at its import, which happens in `_app`.
    config = uvicorn.Config(_app(addresses), host=options.host, port=port, lifespan="on", log_level=level)
    uvicorn.Server(config).run([bound] if bound is not None else None)
    return 0


def _app(addresses: set[str]) -> App:
    from prefect.server.api.server import create_app

    return Guard(create_app(final=True), addresses)


if __name__ == "__main__":
    sys.exit(main())
