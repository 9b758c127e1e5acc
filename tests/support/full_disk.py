"""`python -m tests.support.full_disk WAY FOLDER`: work where there is no room left, and the same again where there is.

WAY is ``mount``: below FOLDER a file system of 8 MiB is made and filled; for a process in a mount namespace of its own.
Or ``limit``: no file may grow beyond 16 KiB, which every user can ask for. Prints a JSON object: for each piece of work
the sentence it ended with, the files it left behind, and what the same came to afterwards.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.errors import StoreError
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import open_store
from tests.support import halting_training

DATASET = DatasetSpec(source=ScenesSourceSpec(train_per_class=20, test_per_class=2, side_px=64))
IMAGES = StageCall(IngestStage(dataset=DATASET), source="scenes")
KEY = "0" * 64


@contextlib.contextmanager
def no_room(way: str, small: Path) -> Iterator[None]:
    """Hardly any room is left in ``small``, or for a file anywhere."""
    if way == "limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    space = os.statvfs(small)
    (small / "ballast").write_bytes(bytes(space.f_bavail * space.f_frsize - (64 << 10)))
    yield
    (small / "ballast").unlink()


def main(way: str, folder: Path) -> None:
    small, roomy = folder / "small", folder / "roomy"
    for each in (small, roomy):
        each.mkdir()
    if way == "mount":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", small], check=True)
    here, there = open_store(str(small / "store")), open_store(str(roomy / "store"))
    ingest(DATASET, None, roomy / "files")
    training = halting_training.training(there)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(roomy / "torch")  # else PyTorch makes a folder there for good
    tempfile.tempdir = str(small / "tmp")
    (small / "tmp").mkdir()

    def commit() -> str:
        ref = here.commit("ingest", KEY, roomy / "files", spec={}, inputs={}, summary={}, seconds=0.0)
        return here.manifest(ref).digest

    pieces: dict[str, Callable[[], str]] = {
        "ingest": lambda: there.manifest(run_stage(IMAGES, there).ref).digest,
        "commit": commit,
        "train": lambda: there.manifest(halting_training.run(training, there).ref).digest,
    }
    told = {}
    for name, work in pieces.items():
        before = {path for path in folder.rglob("*") if path.is_file()}
        with no_room(way, small):
            try:
                sentence = f"came to {work()}"
            except StoreError as error:
                sentence = str(error)
        left = [str(path) for path in folder.rglob("*") if path.is_file() and path not in before]
        left += [str(path) for path in (small / "tmp").iterdir()]
        told[name] = {"sentence": sentence, "left": left, "afterwards": work()}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
