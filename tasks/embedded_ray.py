"""The Ray cluster that a run starts for itself: on loopback, with a token of its own, gone with the run.

Ray of itself listens on every interface, keeps one token for all clusters of a user, and writes its sockets and logs
where everybody may read. Nothing here depends on who started the flow, or on what was imported before.
"""

import atexit
import fcntl
import ipaddress
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without stubs
from ray.job_config import JobConfig

from ssl_backdoor.errors import TrainingError
from tasks.ray_settings import PREFIX, RAY_CLOSED, RAYS, folder_for_sockets

LOOPBACK = "127.0.0.1"


class OwnModules(JobConfig):
    """Workers look for modules where this process does, and nowhere else.

    Ray would put the working folder first, where anybody's ``tasks`` or ``torch.py`` may lie.
    """

    def _get_proto_job_config(self) -> Any:
        known = {os.path.abspath(place) for place in sys.path}
        self._py_driver_sys_path = [place for place in self._py_driver_sys_path if place in known]
        return super()._get_proto_job_config()  # type: ignore[no-untyped-call]


class _Cluster(NamedTuple):
    folder: Path
    lock: IO[bytes]
    environment: Mapping[str, str | None]
    """What the variables were before."""


_cluster: _Cluster | None = None


def start(num_cpus: int, **options: Any) -> None:
    """Start a cluster of this machine and join it; ``stop`` ends it.

    Args:
        num_cpus: that Ray hands out.
        options: more of ``ray.init``.

    Raises:
        UserError: no folder for temporary files can hold Ray's sockets.
        TrainingError: the cluster could be reached from another machine, or without its token.
    """
    global _cluster
    folder, lock = _make_folder()
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    wanted = {**RAY_CLOSED, "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": None}
    _cluster = _Cluster(folder, lock, {name: os.environ.get(name) for name in wanted})
    _set(wanted)
    atexit.register(stop)
    can_join, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # read at Ray's import
    try:
        read_token_anew()
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=200 * 1024**2,
            _temp_dir=str(folder / RAYS),
            _node_ip_address=LOOPBACK,
            job_config=OwnModules(),
            **options,
        )
        _check_closed()
    except BaseException:
        stop()
        raise
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = can_join


def stop() -> None:
    """Leave whatever cluster was joined; end the one of ``start``, where that was it, and remove all it wrote."""
    global _cluster
    if ray.is_initialized():
        ray.shutdown()
    if (ended := _cluster) is not None:
        _cluster = None
        atexit.unregister(stop)
        _set(ended.environment)
        _remove(ended.folder, ended.lock)


def read_token_anew() -> None:
    """Have Ray forget what it knows of tokens since an earlier cluster, and look at the environment."""
    Config.initialize("")  # before the other: a thread that still runs must find a mode for the token that it finds
    AuthenticationTokenLoader.instance().reset_cache()


def _check_closed() -> None:
    addresses = [ray.util.get_node_ip_address(), *(node["NodeManagerAddress"] for node in ray.nodes())]
    if not is_token_auth_enabled() or not all(ipaddress.ip_address(one).is_loopback for one in addresses):
        raise TrainingError(
            f"Ray {ray.__version__} started on {', '.join(addresses)}, or without a token: expected loopback and a "
            "token; use the version of infra/constraints.txt"
        )


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _make_folder() -> tuple[Path, IO[bytes]]:
    """A new folder of this user alone, and the lock that tells others that somebody uses it."""
    place = folder_for_sockets()
    _remove_abandoned(Path(place))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    lock = (folder / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_abandoned(place: Path) -> None:
    """Remove folders of runs that were killed: nobody holds their locks."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's, or being removed
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            lock = os.fdopen(os.open(folder / "lock", os.O_RDONLY | os.O_NOFOLLOW), "rb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            _remove(folder, lock)


def _remove(folder: Path, lock: IO[bytes]) -> None:
    with lock:
        shutil.rmtree(folder, ignore_errors=True)  # a process of Ray's may write its last line meanwhile
