"""``ssl-backdoor doctor``: what this machine has, what is missing, how to fix it."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from flows import settings
from flows.commands import machine, servers
from ssl_backdoor.errors import UserError
from ssl_backdoor.store import is_folder, open_store
from ssl_backdoor.store.local import folder_of
from ssl_backdoor.store.survey import contents_of

_NEEDED = ("torch", "pyarrow", "pydantic", "pillow", "prefect", "ray", "mlflow", "fastapi", "open-clip-torch", "timm")
_MIN_FREE_BYTES = 2 * 1024**3
_MAX_AHEAD_S = 60.0


class Finding(NamedTuple):
    """One line of the examination."""

    ok: bool
    name: str
    text: str


def examine(store_uri: str) -> list[Finding]:
    """Check everything a run needs."""
    return [
        _python(),
        *_packages(),
        _devices(),
        *_machine(),
        *_store(store_uri),
        *_servers(),
        _disk(store_uri),
    ]


def _python() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(sys.version_info >= (3, 11), "python", f"{found} (3.11 or newer is needed)")


def _packages() -> list[Finding]:
    findings = []
    for name in _NEEDED:
        try:
            found = version(name)
        except PackageNotFoundError:
            findings.append(Finding(False, name, "not installed: run `make setup`"))
            continue
        broken = name == "fastapi" and tuple(int(part) for part in found.split(".")[:2]) >= (0, 151)
        text = f"{found}: prefect 3.8 breaks with 0.151 and newer; run `make setup`" if broken else found
        findings.append(Finding(not broken, name, text))
    return findings


def _devices() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(True, "devices", f"{os.cpu_count()} CPUs, {', '.join(gpus) or 'no GPU (none is needed)'}")


def _machine() -> Iterator[Finding]:
    """What every run checks before it starts anything."""
    for name, examine in machine.CHECKS:
        try:
            yield Finding(True, name, examine())
        except UserError as error:
            yield Finding(False, name, str(error))
    yield Finding(True, "launcher", machine.describe_launcher())


def _store(store_uri: str) -> list[Finding]:
    try:
        store = open_store(store_uri)
        store.check()
        ahead_s = time.time() - contents_of(store).clock_s()
    except UserError as error:
        return [Finding(False, "store", str(error))]
    findings = [Finding(True, "store", f"{store_uri} can be written and read")]
    if abs(ahead_s) > _MAX_AHEAD_S:
        side = "ahead of" if ahead_s > 0 else "behind"
        text = f"this machine's is {abs(ahead_s):,.0f} s {side} the store's: set it, S3 refuses requests 15 minutes off"
        findings.append(Finding(False, "clock", text))
    return findings


def _servers() -> list[Finding]:
    """Servers that this shell's runs would use; none is named where all is embedded."""
    try:
        named = servers.find_named()
    except UserError as error:
        return [Finding(False, "servers", str(error))]
    return [
        Finding(True, one.name, f"{one.address} answers")
        if one.is_up
        else Finding(False, one.name, f"{one.address} does not answer: start it (`make up`), or unset {one.variable}")
        for one in named
    ]


def _disk(store_uri: str) -> Finding:
    """Room for artifacts (of a store in a bucket, for what is fetched and kept in the home) and for scratch files."""
    try:
        places = {"the store": folder_of(store_uri)} if is_folder(store_uri) else {"the home": settings.HOME}
    except UserError:  # which is told above
        places = {"the home": settings.HOME}
    with suppress(OSError):  # none can be written, which is told above
        places["temporary files"] = Path(tempfile.gettempdir())
    free = {name: shutil.disk_usage(_nearest_existing(place)).free for name, place in places.items()}
    text = ", ".join(f"{count / 1024**3:.1f} GiB free for {name}" for name, count in free.items())
    if min(free.values()) < _MIN_FREE_BYTES:
        return Finding(False, "disk", f"{text}: free at least 2 GiB, or choose another --store or TMPDIR")
    return Finding(True, "disk", text)


def _nearest_existing(place: Path) -> Path:
    """``place``, or the nearest folder above it that is there."""
    return next(each for each in (place.absolute(), *place.absolute().parents) if each.is_dir())
