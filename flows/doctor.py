"""``ssl-backdoor doctor``: what this machine has, what is missing, how to mend it."""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ssl_backdoor.errors import UserError
from ssl_backdoor.store import open_store

_NEEDED = ("torch", "pyarrow", "pydantic", "pillow", "prefect", "ray", "mlflow", "fastapi", "open-clip-torch", "timm")
_MIN_FREE_BYTES = 2 * 1024**3


class Finding(NamedTuple):
    """One line of the examination."""

    ok: bool
    name: str
    text: str


def examine(store_uri: str) -> list[Finding]:
    """Look at everything a run needs."""
    return [_python(), *_packages(), _devices(), _store(store_uri), _disk()]


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


def _store(store_uri: str) -> Finding:
    try:
        open_store(store_uri).check()
    except UserError as error:
        return Finding(False, "store", str(error))
    return Finding(True, "store", f"{store_uri} can be written and read")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 1024**3:.1f} GiB free here"
    if free < _MIN_FREE_BYTES:
        return Finding(False, "disk", f"{text}: free at least 2 GiB, or set SSL_BACKDOOR_HOME to another disk")
    return Finding(True, "disk", text)
