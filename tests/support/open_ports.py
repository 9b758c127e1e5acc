"""What a stranger on this machine or another finds open while a command runs.

`python -m tests.support.open_ports watch COMMAND...` runs the command in this network, looks at all that it starts and
prints one JSON object. `... knock` reads lists of ports from stdin, one a line, and asks there without a token or a
password, as another user where this one is root.

A stranger speaks HTTP and gRPC, and knows what each kind of server here is asked for.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.terminal.reaper import descendants
from tests.support import ROOT
from tests.support.listening_sockets import is_loopback, listening

STRANGER = 65534
_PROGRAM = (sys.executable, "-m", "tests.support.open_ports")
ALONE = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--net")
"""Before a command: a network of its own, which ``watch`` gives an address that another machine could reach."""
_POLL_S = 0.5
_ASK_S = 5.0
_CALL_S = 60.0  # a refusal comes at once; a machine at work may be late with it
_REFUSALS = (400, 401, 403, 404, 405)
_PAGES = (
    *(("GET", page) for page in ("/", "/api/admin/version", "/api/version", "/metrics", "/api/job_agent/jobs/")),
    *(("GET", page) for page in ("/logs", "/api/2.0/mlflow/experiments/search?max_results=1")),
    *(("POST", page) for page in ("/get_or_create_runtime_env", "/api/job_agent/jobs/", "/api/flows/filter")),
)
_CALLS = (
    "CoreWorkerService/GetCoreWorkerStats",
    "InternalKVGcsService/InternalKVGet",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "RayletDriver/ClusterInfo",
    "ReporterService/GetTraceback",
)


def knock(port: int) -> list[str]:
    """What a stranger is answered at ``port``; nothing where every request is refused."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_S)
        connection.request("GET", "/")
        connection.getresponse().close()
    except http.client.BadStatusLine as line:
        return _call(port) if line.args[0].startswith("\0\0") else []  # a frame of HTTP/2: gRPC
    except OSError:
        return []  # it is gone, or says nothing
    answered = []
    for method, page in _PAGES:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_S)
        with suppress(OSError, http.client.HTTPException):
            connection.request(method, page, b"{}" if method == "POST" else None)
            if connection.getresponse().status not in _REFUSALS:
                answered.append(f"{method} {page}")
    return answered


def _call(port: int) -> list[str]:
    import grpc

    said = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in _CALLS:
            method = channel.unary_unary(f"/ray.rpc.{call}", request_serializer=bytes, response_deserializer=bytes)
            try:
                method(b"", timeout=_CALL_S)
                said[call] = "answered"
            except grpc.RpcError as error:
                said[call] = error.code().name
    refusals = {"UNAUTHENTICATED", "UNAVAILABLE"}  # the second: it has gone
    if not refusals & set(said.values()):
        return [f"{call}: {code}" for call, code in said.items()]
    return [f"{call}: {code}" for call, code in said.items() if code not in {*refusals, "UNIMPLEMENTED"}]


class Seen:
    """What was found while somebody looked."""

    def __init__(self) -> None:
        self.outside: set[str] = set()
        """Listeners that another machine could reach."""
        self.listened: dict[int, str] = {}
        """Port -> what listened there."""
        self.answers: dict[int, list[str]] = {}
        """Port -> what a stranger was answered, where he was."""
        self._known: set[tuple[int, int]] = set()
        self._stranger: subprocess.Popen[str] | None = None

    def look(self, pids: Iterable[int]) -> None:
        """See where ``pids`` listen now, and knock where nobody did."""
        new = []
        for pid in pids:
            with suppress(OSError):
                title, found = _title(pid), listening([pid])
                self.outside |= {f"{title}: {address}:{port}" for address, port in found if not is_loopback(address)}
                for _, port in found:
                    if (pid, port) not in self._known:
                        self._known.add((pid, port))
                        self.listened[port] = title
                        new.append(port)
        if new:
            self.answers |= {int(port): answers for port, answers in json.loads(self._ask(new)).items()}

    def _ask(self, ports: list[int]) -> str:
        if self._stranger is None:  # one for all: gRPC takes a second to import
            piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._stranger = subprocess.Popen([*_PROGRAM, "knock"], cwd=ROOT, **piped)
        assert self._stranger.stdin is not None
        assert self._stranger.stdout is not None
        self._stranger.stdin.write(f"{json.dumps(ports)}\n")
        self._stranger.stdin.flush()
        return self._stranger.stdout.readline()

    def close(self) -> None:
        """Send the stranger away."""
        if self._stranger is not None:
            self._stranger.communicate(timeout=60)


def readable(folder: Path) -> list[str]:
    """What of ``folder`` this user may list, read or connect to."""
    found = []
    with suppress(OSError):
        found += [str(one) for one in folder.iterdir()]
    with suppress(OSError):
        found.append((folder / "token").read_text())
    for name in ("plasma_store", "raylet"):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "r" / "session_latest" / "sockets" / name))
            found.append(name)
    return found


def _become_stranger() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)


def _title(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    return " ".join(word.rpartition("/")[2] for word in words[:4])


def watch(command: Sequence[str]) -> dict[str, object]:
    """Run ``command`` to its end. What of it listened, what was open, and what it left in the temporary folder."""
    for words in (
        "link set lo up",
        "link add seen type veth peer name far",
        "link set far up",
        "link set seen up",
        "addr add 10.78.0.1/24 dev seen",
        "route add default via 10.78.0.2",  # by which Ray finds the address of its machine
    ):
        subprocess.run(["ip", *words.split()], check=True)
    seen, folders = Seen(), {}
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said)
        while running.poll() is None:
            seen.look(descendants(running.pid) | {running.pid})
            for folder in Path(tempfile.gettempdir()).glob("ssl-ray-*"):
                if str(folder) not in folders and (folder / "r" / "session_latest" / "sockets").exists():
                    asked = [*_PROGRAM, "read", str(folder)]
                    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
                    folders[str(folder)] = json.loads(told.stdout)
            time.sleep(_POLL_S)
        seen.close()
        said.seek(0)
        text = said.read()
    return {
        "code": running.returncode,
        "said": text[-3000:],
        "listened": seen.listened,
        "outside": sorted(seen.outside),
        "answers": {seen.listened[port]: answers for port, answers in seen.answers.items()},
        "readable": folders,
        "left": [str(one) for one in Path(tempfile.gettempdir()).glob("ssl-ray-*")],
    }


def main(action: str, *arguments: str) -> None:
    if action == "watch":
        print(json.dumps(watch(arguments)))
        return
    for each in (knock, _call):
        each(1)  # what this imports a stranger may not read
    _become_stranger()
    if action == "knock":
        for line in sys.stdin:
            print(json.dumps({port: answers for port in json.loads(line) if (answers := knock(port))}), flush=True)
    else:
        print(json.dumps(readable(Path(arguments[0]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
