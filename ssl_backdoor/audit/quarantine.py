"""Loads an encoder that nobody vouches for in a process of its own: no network, bounded memory and time.

    python -m ssl_backdoor.audit.quarantine REQUEST.json ANSWER.json

The process adopts the encoder into a store of its own, from which only safetensors and JSON are taken over. A hostile
file can end the process, and that is a finding.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ssl_backdoor.errors import SslBackdoorError, UserError
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store

MIN_BYTES = 4 << 30
"""Memory that loading may take in any case, beyond what the libraries themselves hold."""
TIMES_FILE = 8
TIMEOUT_S = 300.0
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000


class Loaded(NamedTuple):
    """An encoder that came through."""

    ref: ArtifactRef
    facts: Mapping[str, Any]
    """name, frame, feature_dim, has_text, remarks, mean, std, network (how it was kept away), seconds."""


class Refusal(NamedTuple):
    """One that did not."""

    reason: str
    kind: Literal["mistake", "file", "killed"]
    """mistake: the text names nothing; file: what is in it; killed: the process was ended."""


def load_apart(
    text: str, said: Mapping[str, Any], store: ArtifactStore, scratch: Path, timeout_s: float = TIMEOUT_S
) -> Loaded | Refusal:
    """Load and adopt the encoder ``text`` (see ``encoders``) in a process of its own, then into ``store``.

    Args:
        text: as the command line's SPEC, but for artifacts of a store.
        said: fields of ``encoders.Preprocessing``.
        store: where it is kept.
        scratch: an existing folder, for what the process leaves.
        timeout_s: seconds of the clock and of the processor.
    """
    ask, answer = scratch / "ask.json", scratch / "answer.json"
    bytes_of = max((path.stat().st_size for path in files_of(text)), default=0)
    ask.write_text(
        json.dumps(
            {
                "text": text,
                "said": dict(said),
                "store": str(scratch / "adopted"),
                "max_bytes": max(MIN_BYTES, TIMES_FILE * bytes_of),
                "max_s": timeout_s,
            }
        )
    )
    secret = ("AWS_", "PREFECT_", "MLFLOW")
    known = {name: value for name, value in os.environ.items() if not name.startswith(secret)}
    command = [sys.executable, "-m", "ssl_backdoor.audit.quarantine", str(ask), str(answer)]
    try:
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                command, timeout=timeout_s + 60, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL, env=known
            )
            errors.seek(max(0, errors.tell() - 300))
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2][:200]
    except subprocess.TimeoutExpired:
        return Refusal(f"loading it did not end within {timeout_s:.0f} s", "killed")
    if not answer.is_file():
        name = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        return Refusal(f"loading it ended the process ({name}{': ' * bool(last)}{last})", "killed")
    found = json.loads(answer.read_text())
    if "reason" in found:
        return Refusal(found["reason"], found["kind"])
    from ssl_backdoor.encoders import Encoder, adopt, load_encoder, own_backbone

    if ".py:" in text:
        own_backbone(text)  # a user's function is the user's own code: every process that uses the encoder runs it
    again = load_encoder(f"train/{found['key']}", open_store(str(scratch / "adopted")))  # safetensors and JSON
    return Loaded(adopt(Encoder(text, again.backbone, again.frame, again.text), store), found["facts"])


def files_of(text: str) -> tuple[Path, ...]:
    """The files of weights that ``text`` names, where they exist."""
    path = Path(text)
    if path.is_dir():
        return tuple(sorted(one for one in path.iterdir() if one.suffix in (".safetensors", ".bin") and one.is_file()))
    after = Path(text.partition(":")[2])
    return (after,) if ".py:" not in text and ":" in text and after.is_file() else ()


def _without_network() -> str:
    """Leave the network, by a namespace of the kernel where this machine allows it, else in Python alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_NETWORK) == 0 or libc.unshare(_NEW_NETWORK) == 0:
        return "none (a network namespace of its own)"

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
            raise PermissionError(f"an encoder under audit has no network ({event})")

    sys.addaudithook(refuse)
    return "refused to Python code (this machine allows no network namespace)"


def _held_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main(ask: str, answer: str) -> None:
    """The process: read what to load, load it, write what came of it."""
    importlib.import_module("ssl_backdoor.encoders")  # before memory is bounded: the libraries' share is not its own
    asked = json.loads(Path(ask).read_text())
    resource.setrlimit(resource.RLIMIT_CPU, (int(asked["max_s"]), int(asked["max_s"]) + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _held_bytes() + asked["max_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    network = _without_network()
    Path(answer).write_text(json.dumps(answer_to(asked, network)))


def answer_to(asked: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Load and adopt what ``asked`` names: its key and facts, or the reason why not and its kind (see ``Refusal``)."""
    from ssl_backdoor.encoders import Preprocessing, adopt, load_encoder

    said: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in asked["said"].items()
    }
    try:
        encoder = load_encoder(asked["text"], None, Preprocessing(**said))
        store = open_store(asked["store"])
        spec = encoder.backbone.spec
        facts = {
            "name": encoder.name,
            "frame": encoder.frame.model_dump(),
            "feature_dim": encoder.feature_dim,
            "has_text": encoder.text is not None,
            "remarks": list(encoder.remarks),
            "mean": getattr(spec, "mean", None),
            "std": getattr(spec, "std", None),
            "network": network,
        }
        return {"key": adopt(encoder, store).key, "facts": facts}
    except MemoryError:
        return {"reason": "loading it takes more memory than its size explains", "kind": "killed"}
    except UserError as error:
        is_file = type(error).__name__ == "CheckpointError" and bool(files_of(asked["text"]))
        return {"reason": str(error), "kind": "file" if is_file else "mistake"}
    except (SslBackdoorError, RuntimeError) as error:
        return {"reason": str(error).partition("\n")[0][:300], "kind": "file"}


if __name__ == "__main__":
    main(*sys.argv[1:])
