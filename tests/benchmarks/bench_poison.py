"""What poisoning costs beside copying the dataset, which is how every peer poisons.

    python -m tests.benchmarks.bench_poison [--quick] [--out FOLDER]

0.01 % and 0.5 % of 60,000, 1,000,000 and 3,000,000 images are poisoned (Saha et al.'s untargeted attack, a 14 px grid
on 64 px JPEGs), and 300 pairs are put among 3,000,000 captions (Carlini & Terzis' backdoor). Timed is the whole poison
stage on a store in a folder: the table is looked through, the chosen images are read, checked, stamped, written. The
rows share the bytes of a few real images, so that 3,000,000 of them need no 10 GB; of the largest set they are also
indexed in place (dataset.copy=false), in a tar outside of the store. Copying is extrapolated from one
file of 256 MiB, copied and flushed in each repetition. Memory is what the stage adds to the process's peak.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022UntargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import AttackSpec, DatasetSpec
from ssl_backdoor.stages import IngestStage, PoisonStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, LocalStore
from ssl_backdoor.tables import SAMPLES, SOURCES
from tests.benchmarks.harness import Comparison, Options, alone, main, timed
from tests.support.tiny_sets import tiny_dataset

FRACTIONS, NUM_PAIRS, NUM_CLASSES = (0.0001, 0.005), 300, 100
NUM_WORDS, WORDS_PER_CAPTION, BLOCK = 20_000, 8, 65_536
FULL, QUICK = (60_000, 1_000_000, 3_000_000), (10_000, 20_000)
COPY_BYTES = 256 * 2**20
TRIGGER = GridTriggerSpec(size_px=14)
ASKED_S, ASKED_MB = 5.0, 200.0  # of the largest set


class Cost(NamedTuple):
    """Of one poison stage; figures a repetition."""

    num_poisons: int
    seconds: list[float]
    peak_mb: list[float]
    written_mb: float


def captions(num_rows: int) -> Iterator[pa.Array]:
    """In blocks: about 60 characters each; the one of row i names class i modulo 100: "... class 007 ..."."""
    rng = stream(0, "captions")
    letters = rng.integers(ord("a"), ord("z") + 1, (NUM_WORDS, 6), dtype=np.uint8)
    words = pa.array([bytes(row).decode() for row in letters])
    names = pa.array([f"class {label:03d}" for label in range(NUM_CLASSES)])
    for start in range(0, num_rows, BLOCK):
        rows = np.arange(start, min(start + BLOCK, num_rows))
        parts = [words.take(pa.array(rng.integers(0, NUM_WORDS, len(rows)))) for _ in range(WORDS_PER_CAPTION - 1)]
        parts.insert(3, names.take(pa.array(rows % NUM_CLASSES)))
        yield pc.binary_join_element_wise(*parts, " ")


def ingested(store: LocalStore, scratch: Path, num_rows: int, *, is_copied: bool = True) -> tuple[ArtifactRef, float]:
    """An artifact of ``num_rows`` training images that share the bytes of a few real ones; megabytes of all images."""
    names = [f"class-{label:03d}" for label in range(NUM_CLASSES)]
    folder, images = (scratch / f"{num_rows}-{kind}-{is_copied}" for kind in ("artifact", "images"))
    folder.mkdir()
    of_images = tiny_dataset(
        folder if is_copied else images, size=(64, 64), train_per_class=8, test_per_class=0, jpeg=True
    )
    few = of_images.samples
    if not is_copied:
        shards = pc.unique(few["shard"]).to_pylist()
        uris = [(images / shard).as_uri() for shard in shards]
        sizes = [(images / shard).stat().st_size for shard in shards]
        place = few.column_names.index("shard")
        few = few.set_column(place, "shard", pa.array(uris).take(pc.index_in(few["shard"], pa.array(shards))))
        columns = [pa.array(uris), pa.array(sizes), pa.nulls(len(uris), pa.string())]
        pq.write_table(pa.table(columns, schema=SOURCES), folder / "sources.parquet")
    size_mb = 0.0
    with pq.ParquetWriter(folder / "samples.parquet", SAMPLES) as table:
        for block, texts in enumerate(captions(num_rows)):
            rows = block * BLOCK + np.arange(len(texts))
            taken = few.take(pa.array(rows % few.num_rows))
            columns = dict(zip(taken.column_names, taken.columns, strict=True)) | {
                "key": pa.array([f"train-{row:08d}" for row in rows]),
                "caption": texts,
                "label": pa.array((rows % NUM_CLASSES).astype(np.int32)),
            }
            table.write_table(pa.table(columns, schema=SAMPLES))
            size_mb += pc.sum(taken["size"]).as_py() / 1e6
    stage = IngestStage(dataset=DatasetSpec(copy=is_copied))
    spec = {"spec": stage.model_dump(mode="json"), "summary": {"classes": names}}
    return store.commit("ingest", f"{num_rows * 2 + is_copied:064x}", folder, inputs={}, seconds=0.0, **spec), size_mb


def measure(root: str, ref: ArtifactRef, warm: ArtifactRef, attack: AttackSpec, repetitions: int) -> Cost:
    """Poison so often, each time from another seed; in a process of its own, so that the peak is this one's."""
    store, seconds, peaks, sizes = LocalStore(Path(root)), [], [], []
    small = attack.model_copy(update={"num_poisons": 10, "poison_fraction_of_dataset": 0.001})
    run_stage(StageCall(PoisonStage(attack=small, seed=0), {"dataset": warm}), store)  # imports, threads
    for seed in range(1, repetitions + 1):
        call = StageCall(PoisonStage(attack=attack, seed=seed), {"dataset": ref})
        second, peak = timed(lambda call=call: run_stage(call, store))
        made = store.manifest(store.ref(call.stage, call.key))
        seconds.append(second)
        peaks.append(peak)
        sizes.append(sum(file.bytes for file in made.files.values()) / 1e6)
    return Cost(made.summary["num_poisons"], seconds, peaks, sizes[0])


def copy_rate(folder: Path) -> float:
    """Megabytes per second of copying one file and flushing it to disk."""
    source, target = folder / "source", folder / "target"
    if not source.exists():
        source.write_bytes(os.urandom(2**20) * (COPY_BYTES // 2**20))
    began_s = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return COPY_BYTES / 1e6 / (time.perf_counter() - began_s)


def compared(case: str, cost: Cost, size_mb: float, rates: Sequence[float], is_asked: bool) -> Iterator[Comparison]:
    """Seconds, bytes and memory of one stage."""
    repetitions = len(cost.seconds)

    def asked(limit: float) -> dict[str, list[float]]:
        return {"asked": [limit] * repetitions} if is_asked else {}

    bars = {"asked": 1.0} if is_asked else {}
    copying = {"copying": [size_mb / rate for rate in rates]}
    yield Comparison(case, "s", {"ours": cost.seconds, **copying, **asked(ASKED_S)}, "less", bars)
    written = {"ours": [cost.written_mb] * repetitions, "copying": [size_mb] * repetitions}
    yield Comparison(case, "MB written", written, "less")
    yield Comparison(case, "MB of memory", {"ours": cost.peak_mb, **asked(ASKED_MB)}, "less", bars)


def run(options: Options) -> Iterator[Comparison]:
    row_counts = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rates = [copy_rate(scratch) for _ in range(options.repetitions)]
        store = LocalStore(scratch / "store")
        warm, _ = ingested(store, scratch, 2_000)
        for num_rows in row_counts:
            ref, size_mb = ingested(store, scratch, num_rows)
            is_largest = num_rows == row_counts[-1]
            for fraction in FRACTIONS:
                attack = Saha2022UntargetedSpec(trigger=TRIGGER, poison_fraction_of_dataset=fraction)
                cost = alone(measure, str(scratch / "store"), ref, warm, attack, options.repetitions)
                case = f"{cost.num_poisons:,} of {num_rows:,} images"
                yield from compared(case, cost, size_mb, rates, is_largest)
        indexed, _ = ingested(store, scratch, num_rows, is_copied=False)
        for fraction in FRACTIONS:
            attack = Saha2022UntargetedSpec(trigger=TRIGGER, poison_fraction_of_dataset=fraction)
            cost = alone(measure, str(scratch / "store"), indexed, warm, attack, options.repetitions)
            case = f"{cost.num_poisons:,} of {num_rows:,} images in place"
            yield from compared(case, cost, size_mb, rates, is_asked=True)
        backdoor = Carlini2022BackdoorSpec(trigger=TRIGGER, target_class="class-007", num_poisons=NUM_PAIRS)
        cost = alone(measure, str(scratch / "store"), ref, warm, backdoor, options.repetitions)
        yield from compared(f"{NUM_PAIRS} pairs among {num_rows:,}", cost, size_mb, rates, is_asked=True)


if __name__ == "__main__":
    main(run, __doc__)
