"""`python -m tests.support.two_nodes FOLDER`: a training over two Ray nodes that share nothing; one is lost.

Runs as root of user, network, mount and process namespaces of its own (`NAMESPACES`). Here are the head, SeaweedFS and
the driver. The other node has a second network, reached over a pair of Ethernet ends, and finds an empty folder where
this one keeps its files: what it needs it must fetch from the store. Prints one JSON object.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.seaweedfs import ObjectStore
from tests.support.waiting import wait_until

NAMESPACES = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid"),
    *("--fork", "--kill-child", "--mount-proc"),
)
EPOCHS = 30
NOTICED_SOON = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
HEAD, OTHER, PORT = "10.77.0.1", "10.77.0.2", 6379
RAY = str(Path(sys.executable).parent / "ray")
JOIN = f"""
set -e
mount -t tmpfs tmpfs "$FOLDER"
ip link set lo up
until ip addr add {OTHER}/24 dev other 2>/dev/null; do sleep 0.05; done
ip link set other up
exec "$@"
"""


def node(*arguments: str) -> list[str]:
    """A node of one CPU that stays in the foreground."""
    return [RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=100000000", *arguments]


def begin(command: list[str], log: Path) -> subprocess.Popen:
    """Start ``command``, its output in ``log``."""
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


def ip(*arguments: str) -> None:
    """Change the network of this namespace."""
    subprocess.run(["ip", *arguments], check=True)


def network(pid: int) -> str:
    """Which network a process is in; empty for a process that has ended."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return ""


def running() -> list[int]:
    """All processes."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def networks_of_trainers() -> int:
    """In how many networks a replica trains."""
    titled = []
    for pid in running():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                titled.append(pid)
    return len({network(pid) for pid in titled} - {""})


def begin_head(folder: Path) -> None:
    """This node."""
    address = [f"--node-ip-address={HEAD}", f"--port={PORT}", f"--temp-dir={folder / 'ray'}"]
    begin(node("--head", "--include-dashboard=false", *address), folder / "head.log")
    asked = [RAY, "health-check", "--address", f"{HEAD}:{PORT}"]
    wait_until(lambda: subprocess.run(asked, capture_output=True).returncode == 0, timeout_s=240, what="the head")


def begin_other(folder: Path) -> subprocess.Popen:
    """The other node, its network joined to this one."""
    command = node(f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}")
    other = begin(["unshare", "--net", "--mount", "sh", "-c", JOIN, "sh", *command], folder / "other.log")
    wait_until(lambda: network(other.pid) != network(os.getpid()), timeout_s=60, what="the other network")
    ip("link", "set", "other", "netns", str(other.pid))
    return other


def lose(other: subprocess.Popen) -> None:
    """SIGKILL to every process of the other node, as a power cut does."""
    lost = network(other.pid)
    for pid in running():
        if network(pid) == lost:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main(folder: Path) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "lab", "type", "bridge")  # stays when the other node is gone, and its cable with it
    ip("addr", "add", f"{HEAD}/24", "dev", "lab")
    ip("link", "set", "lab", "up")
    ip("link", "add", "head", "type", "veth", "peer", "name", "other")
    ip("link", "set", "head", "master", "lab")
    ip("link", "set", "head", "up")
    (folder / "weed").mkdir()
    server = ObjectStore(folder / "weed", host=HEAD)
    server.start()
    server.make_bucket(server.bucket)
    os.environ.update(server.environment, FOLDER=str(folder), SSL_BACKDOOR_CACHE=str(folder / "cache"))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    os.environ.update(RAY_ADDRESS=f"{HEAD}:{PORT}", **NOTICED_SOON)
    begin_head(folder)
    print(json.dumps(train(f"s3://{server.bucket}/lab", begin_other(folder))))


def train(store_uri: str, other: subprocess.Popen) -> dict[str, Any]:
    """Train on both nodes, lose the other one after a checkpoint."""
    import ray

    from ssl_backdoor.progress import Progress
    from ssl_backdoor.specs import Resources
    from ssl_backdoor.store import open_store
    from tasks.ray_fit import ProgressMonitor, connect, disconnect, run_on_ray
    from tests.support import ray_training

    store = open_store(store_uri)
    resources = Resources(workers=2, min_workers=1, device="cpu", checkpoint_every_steps=ray_training.EVERY_STEPS)
    seen: dict[str, Any] = {}

    def listen(title: str, progress: Progress) -> None:
        print(title, progress.done, file=sys.stderr, flush=True)
        if not seen and progress.unit == "steps" and progress.done > 2 * ray_training.EVERY_STEPS:
            seen.update(networks=networks_of_trainers(), lost_at=progress.done)
            threading.Thread(target=lose, args=(other,)).start()

    connect(resources)
    wait_until(lambda: ray.cluster_resources().get("CPU") == 2, timeout_s=240, what="both nodes")
    monitor = ProgressMonitor(listen)
    try:
        finished = run_on_ray(ray_training.training(store, 2, EPOCHS), store.root, resources, monitor)
    finally:
        monitor.close()
        disconnect()
    return {"key": finished.ref.key, **store.manifest(finished.ref).summary, **seen}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
