"""A process that commits one artifact and halts at the last moment, so that tests can race or kill it there.

Usage: ``python store_commits.py URI VERB SOURCE SUMMARY``, with the repository on PYTHONPATH. The verb ``commit`` keeps
the folder SOURCE as it is, ``ingest`` makes it a dataset first, as a run does. It prints ``ready`` when all parts are
written and only the deciding step (the rename, the conditional put) is left, waits for a line on stdin, and at last
prints the manifest that it ended with. A mistake that the user can fix is printed instead, and the exit code is 2. With
CLOCK_OFF_S in the environment its clock is wrong by so many seconds.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

KEY = "0" * 64


def start(
    uri: str, source: Path, summary: str, environment: dict[str, str] | None = None, verb: str = "commit"
) -> subprocess.Popen[str]:
    """Start a worker; ``wait_ready`` before anything else is done with it."""
    return subprocess.Popen(
        [sys.executable, __file__, uri, verb, str(source), summary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)},
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


def shift_clock(off_s: float) -> None:
    """Make the clock wrong for the Python code that this process imports from now on."""
    import datetime
    import time

    real_s, off = time.time, datetime.timedelta(seconds=off_s)

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + off

        @classmethod
        def utcnow(cls):
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: real_s() + off_s
    datetime.datetime = Shifted


def main() -> None:
    uri, verb, source, summary = sys.argv[1:]
    if "CLOCK_OFF_S" in os.environ:
        shift_clock(float(os.environ["CLOCK_OFF_S"]))
    from ssl_backdoor.errors import UserError
    from ssl_backdoor.specs import DatasetSpec
    from ssl_backdoor.stages import IngestStage, StageCall, run_stage
    from ssl_backdoor.store import open_store

    if uri.startswith("s3://"):
        from ssl_backdoor.store.s3 import S3Store

        S3Store._put_first = _halting(S3Store._put_first)
    else:
        os.rename = _halting(os.rename)
    try:
        store = open_store(uri)
        if verb == "ingest":
            ref = run_stage(StageCall(IngestStage(dataset=DatasetSpec()), data=source), store).ref
        else:
            about = {"spec": {}, "inputs": {}, "summary": {"by": summary}, "seconds": 0.0}
            ref = store.commit("ingest", KEY, Path(source), **about, adopts=True)
    except UserError as error:
        print(error, flush=True)
        sys.exit(2)
    print(store.manifest(ref).model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
