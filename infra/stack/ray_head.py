"""Ray's head node. ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`` makes it resolve itself to 127.0.0.1 and bind nothing else.

Run as a program (``python -m infra.stack.ray_head HOST:PORT``) this asks the cluster, with the environment's token,
whether a node is alive: Ray reads its settings at import, so the question has a process of its own.
"""

import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from infra.stack.config import Config, ray_environment, s3_environment
from infra.stack.ports import LOOPBACK, answers
from infra.stack.service import Service, program, run_tool
from ssl_backdoor.errors import UserError
from tasks.ray_settings import RAYS, folder_for_sockets

_OBJECT_STORE_BYTES = 200 * 1024**2
_PROBE_S = 20.0
_ALIVE_S = 5.0  # the node comes some seconds after the port, and each probe imports Ray for most of a CPU second


def temp_folder(config: Config) -> Path:
    """A folder for Ray, this user's alone: short, because sockets may have paths of 107 bytes at most."""
    name = hashlib.sha256(str(config.folder).encode()).hexdigest()[:8]
    return Path(folder_for_sockets()) / f"ssl-up-{name}"


def clear(config: Config) -> None:
    """Drop Ray's folder: logs and sockets of sessions that ended."""
    shutil.rmtree(temp_folder(config), ignore_errors=True)


def _prepare(config: Config) -> None:
    clear(config)
    folder = temp_folder(config)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise UserError(f"Ray's folder {str(folder)!r} is somebody else's: remove it, or set TMPDIR to another place")


def _command(config: Config) -> list[str]:
    return [
        *(program("ray"), "start", "--head", "--block"),
        f"--node-ip-address={LOOPBACK}",
        f"--port={config.ports['ray']}",
        f"--ray-client-server-port={config.ports['ray_client']}",
        f"--dashboard-agent-listen-port={config.ports['ray_agent']}",
        *("--min-worker-port=0", "--max-worker-port=0"),
        *("--include-dashboard=false", "--disable-usage-stats", "--log-color=false"),
        f"--num-cpus={os.cpu_count() or 1}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={temp_folder(config) / RAYS}",
    ]


def _environment(config: Config) -> Mapping[str, str]:
    """Workers read and write the store themselves, with the rights of ``writer``: no key travels through Ray."""
    return {**ray_environment(config), **s3_environment(config, "writer")}


def _healthy(config: Config) -> bool:
    if not answers(config.ports["ray"]):
        return False
    command = [sys.executable, "-m", "infra.stack.ray_head", config.address("ray")]
    return run_tool(command, config, ray_environment(config), _PROBE_S)[0] == 0


def _probe(address: str) -> int:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a compiled module, without stubs
    from ray.exceptions import RayError

    alive, deadline = 0, time.monotonic() + _ALIVE_S  # GcsNodeInfo.GcsNodeState
    try:
        client = GcsClient(address=address)
        while not any(node.state == alive for node in client.get_all_node_info(timeout=5).values()):
            if time.monotonic() > deadline:
                return 1
            time.sleep(0.1)
    except RayError:
        return 1
    return 0


SERVICE = Service(
    name="ray",
    ports=("ray", "ray_client", "ray_agent"),
    needs=(),
    url=lambda config: config.address("ray"),
    command=_command,
    environment=_environment,
    healthy=_healthy,
    prepare=_prepare,
)


if __name__ == "__main__":
    sys.exit(_probe(sys.argv[1]))
