"""Homes whose Prefect has its database already: the migrations of a new one take seven CPU seconds."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

_MAKE = """
from flows import settings
settings.embed()
from tasks import embedded_prefect
with embedded_prefect.use_server():
    pass
"""


def give_database(home: Path) -> None:
    """Put an empty database, and what Prefect's server notes beside it, under ``home``, where there is none."""
    if not (home / "prefect").exists():
        shutil.copytree(_template(), home / "prefect")


def _template() -> Path:
    """The folder that a server of this version left, made once on this machine."""
    place = Path(tempfile.gettempdir()) / f"ssl-backdoor-tests-{os.geteuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    made = place / f"prefect-{version('prefect')}"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=place) as home:
                named = ("PREFECT_", "SSL_BACKDOOR_")
                env = {name: value for name, value in os.environ.items() if not name.startswith(named)}
                subprocess.run([sys.executable, "-c", _MAKE], env={**env, "SSL_BACKDOOR_HOME": home}, check=True)
                with closing(sqlite3.connect(Path(home) / "prefect" / "prefect.db")) as database:
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                (Path(home) / "prefect").rename(made)
    return made
