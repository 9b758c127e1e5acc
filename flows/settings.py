"""Default settings of a shell's runs: everything in one folder, no servers to start, no telemetry.

Imported before prefect, ray and mlflow, which read their settings from the environment at import.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

from ssl_backdoor.errors import StoreError
from tasks.sqlite_urls import sqlite_url

HOME = Path(os.environ.get("SSL_BACKDOOR_HOME", ".lab"))


def default_store() -> str:
    """The store of this shell: ``SSL_BACKDOOR_STORE``, or a folder under the home."""
    return os.environ.get("SSL_BACKDOOR_STORE") or str(HOME / "store")


def read_stack_config(part: Literal["ports", "environment"]) -> dict[str, Any] | None:
    """A part of what `make up` keeps under the home; None where it never ran there.

    Raises:
        StoreError: it ran, and its configuration cannot be read.
    """
    file = HOME / "stack" / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))[part])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{str(file)!r} cannot be read as a stack's configuration ({type(error).__name__}): "
            "restore it, or set SSL_BACKDOOR_HOME to another home"
        ) from error


def of_stack() -> dict[str, str]:
    """The variables that point a shell at the services that ``make up`` runs under the home; they hold secrets.

    Raises:
        StoreError: none were ever started there, or their configuration cannot be read.
    """
    found = read_stack_config("environment")
    if found is None:
        raise StoreError(
            f"no services were set up under {str(HOME)!r}: run `make up` first, or set SSL_BACKDOOR_HOME to where they "
            "are"
        )
    return found


def embed() -> None:
    """Point every service at the home folder unless the environment names a server; turn telemetry off.

    Raises:
        StoreError: the home folder cannot be made, or the working folder is gone.
    """
    try:
        Path.cwd()
        home = HOME.resolve()
        str(home).encode()
    except OSError as error:
        raise StoreError("the working folder was removed: change to another, and run again") from error
    except UnicodeError as error:
        raise StoreError(
            f"the home folder {str(HOME)!r} lies where a name is not UTF-8: set SSL_BACKDOOR_HOME"
        ) from error
    try:
        Path.home()
    except RuntimeError:  # no HOME, and a user without an entry, as in many containers: libraries look for both
        os.environ["HOME"] = str(home)
    if not {"LOGNAME", "USER", "LNAME", "USERNAME"} & os.environ.keys():
        os.environ["USER"] = str(os.getuid())
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "MLFLOW_TRACKING_URI": sqlite_url(home / "mlflow.db"),
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # Code that is compiled and loaded: not where torch keeps it, under a name in /tmp that anybody can foresee.
        "TORCHINDUCTOR_CACHE_DIR": str(home / "torchinductor"),
    }
    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("SSL_BACKDOOR_MLFLOW_ARTIFACTS", (home / "mlruns").as_uri())
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    try:
        Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # prefect's server does not make it
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the home folder {str(HOME)!r} cannot be made ({error.strerror}): set SSL_BACKDOOR_HOME to another"
        ) from error
