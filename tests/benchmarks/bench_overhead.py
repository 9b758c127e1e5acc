"""What Prefect, Ray, MLflow and the store cost around the science, on a shell of its own (embedded servers, one home).

    python -m tests.benchmarks.bench_overhead [--quick] [--out FOLDER]

- a cell, cold: one BYOL cell (control, suspect, both distilled, four evaluations, report) with a second or so of
  training, in a home where nothing ever ran: databases are made, Ray starts. Counted is the command's wall-clock minus
  the longest chain of its stages' own seconds.
- reused: `demo` once more in the home where it has run, as a command, until its process has ended. (The first run's
  trainings take one epoch: what is reused costs no less for that.)
- matrix: 20 cells (10 seeds of two pairs: 30 trainings, 40 evaluations) as one cold command, beside the seconds that
  the trainings and evaluations of four of those cells take in two plain processes, before and after it, five times over
  and shared between two cores. Ingestion, poisoning, the report and its record count as cost.

"asked" for seconds: at most those of the contender of that name.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from flows.pipeline import plan_stages
from flows.plan import plan
from ssl_backdoor.data.images import encode_png
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.seeds import stream
from ssl_backdoor.stages import StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, open_store
from tasks.planner import Sources
from tests.benchmarks.harness import Comparison, Options, main
from tests.support.command_server import TINY_SETTINGS

CELL = ("demo", "--methods", "byol", *(part for one in TINY_SETTINGS for part in ("--set", one)))
DEMO = ("demo", "--set", "train.fit.epochs=1", "--set", "defences.*.fit.epochs=1")
MATRIX, PAIRS = "saha2022_table1", 2
CORES = 2
CLASSES = ("airplane", "automobile", "cat", "frog", "horse")
VARIABLES = ("PREFECT_API_URL", "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SSL_BACKDOOR_STORE")


class Home:
    """A folder that a shell keeps everything in, Ray's files too."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.store = open_store(str(self.folder / "home" / "store"))

    def command(self, *arguments: str) -> float:
        """Seconds of `ssl-backdoor run`."""
        return self.told("run", *arguments)[0]

    def told(self, *arguments: str) -> tuple[float, dict[str, Any]]:
        """Seconds of a command, from its start to the end of its process, and what it prints."""
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        environment |= {"SSL_BACKDOOR_HOME": str(self.folder / "home"), "TMPDIR": str(self.folder)}
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments, "--json"],
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
        if ended.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
        return seconds, json.loads(ended.stdout)

    def seconds(self, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, float]:
        """What each stage took by itself."""
        return {ref: self.store.manifest(ref).seconds for ref in refs}


@contextmanager
def home() -> Iterator[Home]:
    """A new one. Ray's sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="b") as folder:
        yield Home(folder)


def longest_chain(calls: Mapping[ArtifactRef, StageCall], seconds: Mapping[ArtifactRef, float]) -> float:
    """Seconds of the stages that must follow one another, however many run at once."""

    @cache
    def until(ref: ArtifactRef) -> float:
        return seconds[ref] + max((until(one) for one in calls[ref].inputs.values()), default=0.0)

    return max(until(ref) for ref in calls)


def bare(calls: Mapping[ArtifactRef, StageCall], root: str) -> None:
    """Do all stages in two plain processes, each as soon as its inputs are there."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for a stage of one thread
    done, running, left = set[ArtifactRef](), dict[Future[None], ArtifactRef](), dict(calls)
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        while left or running:
            for ref in [ref for ref, call in left.items() if done.issuperset(call.inputs.values())]:
                running[pool.submit(_make, left.pop(ref), root)] = ref
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                done.add(running.pop(future))


def _make(call: StageCall, root: str) -> None:
    run_stage(call, open_store(root))


def overhead(here: Home) -> float:
    """Seconds of the first command of a home that are no stage's own."""
    wall = here.command(*CELL)
    calls = plan_stages(plan("demo", methods="byol", settings=TINY_SETTINGS), here.store, source_digest)
    return wall - longest_chain(calls, here.seconds(calls))


def shells(options: Options) -> Iterator[Comparison]:
    """A cell in a home where nothing ever ran; and what has run, again."""
    with home() as here:
        around = [overhead(here)]
        command = CELL if options.quick else DEMO
        if command is DEMO:
            here.command(*command)
        seconds = [here.command(*command) for _ in range(options.repetitions)]
    while len(around) < options.repetitions:
        with home() as here:
            around.append(overhead(here))
    for case, asked, ours in (("a cell, cold", 20.0, around), ("demo, fully reused", 10.0, seconds)):
        yield Comparison(case, "s", {"ours": ours, "asked": [asked] * len(ours)}, "less", {"asked": 1.0})


def pictures(folder: Path, train: int, test: int) -> str:
    """Noise in five classes, 32 px."""
    for split, count in (("train", train), ("test", test)):
        for name in CLASSES:
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = stream(index, split, name).integers(0, 256, (32, 32, 3), dtype="uint8")
                (place / f"{index:05d}.png").write_bytes(encode_png(pixels))
    return str(folder)


def matrix(options: Options) -> Iterator[Comparison]:
    seeds, sampled, epochs, sizes = (1, 1, 1, (40, 10)) if options.quick else (10, 2, 6, (400, 100))
    settings = (f"train.fit.epochs={epochs}",)
    with tempfile.TemporaryDirectory() as folder:
        data = pictures(Path(folder) / "images", *sizes)

        def sample() -> dict[str, float]:
            """Seconds of the sampled cells' stages, summed by stage, as if there were all the cells."""
            with home() as here:
                asked = plan(MATRIX, pairs=PAIRS, seeds=sampled, methods="byol", settings=settings, has_data=True)
                calls = plan_stages(asked, here.store, source_digest, Sources(data))
                bare(calls, here.store.root)
                seconds = here.seconds(calls)
            names = ("train", "evaluate")
            return {name: sum(s for ref, s in seconds.items() if ref.stage == name) * seeds / sampled for name in names}

        samples = [sample()]
        with home() as here:
            asked = ("--pairs", str(PAIRS), "--seeds", str(seeds), "--methods", "byol")
            wall = here.command(MATRIX, "--data", data, *asked, "--set", *settings)
        samples += [] if options.quick else [sample()]
    training = mean(one["train"] for one in samples) / CORES
    both = [sum(one.values()) / CORES for one in samples]
    case = f"matrix of {PAIRS * seeds} cells"
    yield Comparison(
        case,
        "s",
        {"ours": [wall], "bare training and evaluation": [mean(both)], "bare training alone": [training]},
        "less",
        {"bare training and evaluation": 0.9},
        note=f"one run; bare, before and after it: {', '.join(f'{seconds:.1f}' for seconds in both)} s.",
    )


def run(options: Options) -> Iterator[Comparison]:
    yield from shells(options)
    yield from matrix(options)


if __name__ == "__main__":
    main(run, __doc__)
