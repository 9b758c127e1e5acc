"""What of this machine or shell stands in the way of a run: found before anything starts, and by `doctor`."""

import os
import re
import resource
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import getproxies_environment

import flows
import ssl_backdoor
import tasks
from flows.commands.servers import read_addresses
from ssl_backdoor.errors import UserError
from tasks.ray_settings import folder_for_sockets

_MIN_FILES = 512
_FILES = 4096
_PREFECT_NAME = re.compile(r"^\s*(?:export\s+)?(PREFECT_\w+)\s*=", re.MULTILINE)
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")


def check() -> None:
    """Raise what is in the way.

    Raises:
        UserError: the first of it, in one sentence.
    """
    for _, examine in CHECKS:
        examine()


def check_open_files() -> str:
    """How many files this process may open; the soft limit is raised to what Ray and Prefect take.

    Raises:
        UserError: the hard limit is lower than that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FILES:
        return f"{soft:,} files may be open" if soft != resource.RLIM_INFINITY else "any number of files may be open"
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if most < _MIN_FILES:
        raise UserError(
            f"a run opens some {_MIN_FILES} files at once, this shell allows {most}: raise it (ulimit -n {_FILES})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return f"{most:,} files may be open"


def check_temporary_folder() -> str:
    """Where temporary files and Ray's sockets go.

    Raises:
        UserError: no place can be written, or none is short enough for sockets.
    """
    try:
        place = tempfile.gettempdir()
    except OSError as error:
        raise UserError(
            "no folder for temporary files can be written: set TMPDIR to one that can, or free some space"
        ) from error
    short = folder_for_sockets()
    return f"{place}{'' if short == place else f', and {short} for sockets, which must have short names'}"


def check_proxies() -> str:
    """Which proxies the environment names; loopback goes around them.

    Raises:
        UserError: one that HTTP clients cannot use, not even for another address.
    """
    proxies = getproxies_environment()
    if not proxies:
        return "none is named"
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        names = ", ".join(name for name in os.environ if name.lower().endswith("_proxy"))
        cure = "pip install socksio, or unset it" if isinstance(error, ImportError) else "fix or unset it"
        raise UserError(
            f"a proxy of {names} cannot be used by Python's httpx ({type(error).__name__}): {cure}"
        ) from None
    return f"loopback goes around {', '.join(f'{name}_proxy' for name in proxies if name != 'no')}"


def check_packages() -> str:
    """Where the three packages come from.

    Raises:
        UserError: ``tasks`` or ``flows`` is another project's.
    """
    here = _root(ssl_backdoor)
    strange = [module.__name__ for module in (tasks, flows) if _root(module) != here]
    if strange:
        raise UserError(
            f"expected {' and '.join(strange)} beside ssl_backdoor in {str(here)!r}, found another project's: leave "
            "its folder out of PYTHONPATH, or uninstall that package"
        )
    return f"from {here}"


def describe_launcher() -> str:
    """What a launcher of replicas left in the environment; only replicas that a training started look at it."""
    found = [name for name in os.environ if name in _LAUNCHER or name.startswith("SLURM_")]
    return f"{', '.join(sorted(found)[:4])} are set; commands do not look at them" if found else "none is set"


def check_addresses() -> str:
    """Which servers this shell names, not whether they answer: their clients read the variables at import.

    Raises:
        UserError: a variable holds what is no address.
    """
    return f"this shell names {', '.join(read_addresses()) or 'no server: all is embedded'}"


def check_prefect_files() -> str:
    """Whether the working folder holds settings of Prefect's, which it reads wherever it is started.

    Raises:
        UserError: it does, and the rest of a run would not see them.
    """
    if found := list(_prefect_settings()):
        raise UserError(
            f"Prefect would take settings from this folder's {' and '.join(found)}, which the rest of a run does not "
            "see: export them in the shell in place of that, or run from another folder"
        )
    return "Prefect finds no settings of its own in this folder"


def _prefect_settings() -> Iterator[str]:
    """Each of the three files that holds some, with their names; those that the environment sets count for nothing."""
    named = {name for name in _PREFECT_NAME.findall(_text(".env")) if name not in os.environ}
    if named:
        yield f".env ({', '.join(sorted(named)[:3])})"
    for file, path in (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect"))):
        try:
            table: Any = tomllib.loads(_text(file))
            for name in path:
                table = table.get(name, {})
        except (tomllib.TOMLDecodeError, AttributeError):
            continue  # Prefect finds nothing there either
        if table:
            yield file


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("files", check_open_files),
    ("temporary", check_temporary_folder),
    ("proxies", check_proxies),
    ("packages", check_packages),
    ("addresses", check_addresses),
    ("folder", check_prefect_files),
)
"""Each says what is so, or raises what is in the way."""


def _root(module: ModuleType) -> Path:
    return Path(module.__path__[0]).resolve().parent
