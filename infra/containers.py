"""The stack in containers: what ``compose.yaml`` and ``kubernetes/`` run beside the servers themselves.

    python -m infra.containers secrets                         the passwords of a new stack, into infra/compose.env
    python -m infra.containers prepare|finish|healthy SERVICE  the steps of `make up`, each in the container it is for
    python -m infra.containers deploy                          the deployments of infra/prefect.yaml
    python -m infra.containers beside-ray COMMAND...           a command that uses Ray, on a Ray node of its own

Secrets come from the environment: ``RAY_TOKEN`` is the stack's ``ray_token``, and so on.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import psutil

from infra.stack import config as configuration
from infra.stack import http, ports, processes, web
from infra.stack.config import Config
from infra.stack.errors import ServiceError
from infra.stack.service import Service, program
from infra.stack.services import SERVICES
from ssl_backdoor.errors import SslBackdoorError, UserError

SECRETS_FILE = configuration.ROOT / "infra" / "compose.env"
HOSTS: Mapping[str, str] = {name: name for name in ("postgres", "s3", "prefect", "mlflow", "ray")}
PORTS: Mapping[str, int] = {**ports.DEFAULTS, "postgres": 5432}
"""Where servers listen inside the containers; PostgreSQL's image keeps PostgreSQL's own port."""
WORKER_HEALTH = "http://127.0.0.1:8080/health"
NODE_BYTES = 100 * 1024**2
_MARK = "SSL_BACKDOOR_NODE"
_LOOK_S = 1.0
_GRACE_S = 20.0


def settings(environ: Mapping[str, str], hosts: Mapping[str, str] = HOSTS) -> Config:
    """The stack as a container sees it, with those secrets alone that its environment holds."""
    secrets = {name: environ[name.upper()] for name in configuration.SECRETS if environ.get(name.upper())}
    return Config(configuration.folder_of(environ), PORTS, secrets, hosts)


def write_secrets(path: Path) -> None:
    """Fresh secrets as lines for ``docker compose --env-file``, mode 0600; those that are there stay as they are.

    Raises:
        UserError: all are there already.
    """
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    known = {line.partition("=")[0].strip() for line in kept.splitlines()}
    fresh = configuration.new(path.parent, PORTS).secrets
    missing = {name.upper(): value for name, value in fresh.items() if name.upper() not in known}
    if not missing:
        raise UserError(f"{str(path)!r} is there: the volumes hold its passwords; to begin anew remove both")
    kept += "" if kept.endswith("\n") or not kept else "\n"
    configuration.write_private(path, kept + "".join(f"{name}={value}\n" for name, value in missing.items()))


def prepare(name: str) -> None:
    """What is to be done before the service of this container starts."""
    config = settings(os.environ)
    configuration.make_folder(config.folder)
    _service(name).prepare(config)


def healthy(name: str) -> bool:
    """Whether the service of this container is well."""
    if name == "worker":  # `make up` asks the server; here the worker has a page of its own
        return http.request(WORKER_HEALTH)[0] == 200
    return _service(name).healthy(settings(os.environ, hosts={}))


def deploy() -> None:
    """Register the flows.

    Raises:
        ServiceError: Prefect refuses.
    """
    problem = web.deploy(settings(os.environ))
    if problem is not None:
        raise ServiceError(problem)


def beside_ray(command: Sequence[str]) -> int:
    """Run ``command`` beside a node of the cluster at ``RAY_ADDRESS`` that takes no work: a Ray driver needs one.

    Either ends the other, so that whoever restarts the container gets both anew.

    Returns:
        The command's exit code.

    Raises:
        UserError: no cluster is named.
        ServiceError: it cannot be joined, or the node was lost.
    """
    node = _join(os.environ.get("RAY_ADDRESS", ""))
    child = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: child.terminate())
    while processes.alive(node):
        try:
            code = child.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            continue
        processes.send(node, signal.SIGTERM)
        return code if code >= 0 else 128 - code
    child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
    raise ServiceError(f"the Ray node beside {command[0]!r} was lost; both have ended")


def _join(address: str) -> processes.Process:
    if not address:
        raise UserError("RAY_ADDRESS names no cluster: set it to the HOST:PORT of Ray's head")
    mark = token_hex(16)
    flags = ["--num-cpus=0", "--num-gpus=0", f"--object-store-memory={NODE_BYTES}"]
    flags += ["--disable-usage-stats", "--log-color=false"]
    command = [program("ray"), "start", f"--address={address}", *flags]
    joined = subprocess.run(command, env={**os.environ, _MARK: mark})
    nodes = _raylets(mark)
    if joined.returncode != 0 or not nodes:
        raise ServiceError(f"no node could join the Ray cluster at {address}: see the lines above")
    return nodes.pop()


def _raylets(mark: str = "") -> set[processes.Process]:
    """Ray's nodes on this machine that carry ``mark``: another may join at the same time, and is not ours to end."""
    found = set()
    for pid, each in processes.snapshot().items():
        with suppress(psutil.Error):  # it ended meanwhile, or is somebody else's
            node = psutil.Process(pid)
            if node.name() == "raylet" and mark in node.environ().get(_MARK, ""):
                found.add(each.process)
    return found


def _service(name: str) -> Service:
    found = {each.name: each for each in SERVICES}
    if name not in found:
        raise UserError(f"there is no service {name!r}: expected one of {', '.join(found)}")
    return found[name]


def _run(arguments: Sequence[str]) -> int:
    match list(arguments):
        case ["secrets"]:
            write_secrets(SECRETS_FILE)
        case ["prepare", name]:
            prepare(name)
        case ["finish", *names] if names:
            for name in names:
                _service(name).finish(settings(os.environ))
        case ["healthy", name]:
            return 0 if healthy(name) else 1
        case ["deploy"]:
            deploy()
        case ["beside-ray", *command] if command:
            return beside_ray(command)
        case _:
            raise UserError(f"expected secrets, prepare, finish, healthy, deploy or beside-ray, found {arguments}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 done, 1 a service failed or is not well, 2 a mistake of the user; of beside-ray the command's."""
    try:
        return _run(arguments)
    except SslBackdoorError as error:
        sys.stderr.write(f"containers: {error}\n")
        return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
