"""A process that commits one artifact and halts at the last moment, so that tests can race or kill it there.

Usage: ``python store_worker.py URI SOURCE_FOLDER SUMMARY``, with the repository on PYTHONPATH. It prints ``ready``
when all parts are written and only the deciding step (the rename, the conditional put) is left, waits for a line on
stdin, and at last prints the manifest that it ended with.
"""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
KEY = "0" * 64


def start(uri: str, source: Path, summary: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a worker; ``wait_ready`` before anything else is done with it."""
    return subprocess.Popen(
        [sys.executable, __file__, uri, str(source), summary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {}), "PYTHONPATH": str(REPOSITORY)},
    )


def wait_ready(*workers: subprocess.Popen[str]) -> None:
    """Return once all parts of all workers are written."""
    for worker in workers:
        assert worker.stdout is not None
        first = worker.stdout.readline()
        assert first == "ready\n", f"the worker said {first!r} and left with {worker.wait()}"


def race(*workers: subprocess.Popen[str]) -> list[str]:
    """Let all ready workers go at once; the manifest that each ended with."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    return answers


def kill(worker: subprocess.Popen[str]) -> None:
    """End a worker as ``kill -9`` does, once it is ready."""
    wait_ready(worker)
    with worker:  # closes its pipes
        worker.kill()


def _halting(function):
    def halted(*arguments):
        print("ready", flush=True)
        sys.stdin.readline()
        return function(*arguments)

    return halted


def main() -> None:
    from ssl_backdoor.store import open_store

    uri, source, summary = sys.argv[1:]
    if uri.startswith("s3://"):
        from ssl_backdoor.store.s3 import S3Store

        S3Store._put_first = _halting(S3Store._put_first)
    else:
        os.rename = _halting(os.rename)
    store = open_store(uri)
    ref = store.commit("ingest", KEY, Path(source), spec={}, inputs={}, summary={"by": summary}, seconds=0.0)
    print(store.manifest(ref).model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
