"""What poisoning costs next to copying the dataset: `python -m tests.benchmarks.bench_poison [--quick]`.

300 poisons in manifests of 60,000 and 3,000,000 rows. The rows point to a few real images in one shard, so planning and
crafting do all their work (table scans, hashing, reads, decoding, stamping, encoding, writing) without 3 M images on
disk. Copying is extrapolated from a measured copy of one file to rows x mean image size, and labelled so. Memory is the
growth of the process's peak while planning and crafting, the samples table already loaded; one process per row count.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import (
    AttackSpec,
    Carlini2022BackdoorSpec,
    DatasetSpec,
    GridTriggerSpec,
    Saha2022TargetedSpec,
    Saha2022UntargetedSpec,
)
from ssl_backdoor.tables import SAMPLES
from tests.tiny_sets import tiny_dataset

NUM_POISONS, NUM_CLASSES = 300, 100
NUM_WORDS, WORDS_PER_CAPTION = 20_000, 8
FULL, QUICK = (60_000, 3_000_000), (10_000, 100_000)
COPY_BYTES = 256 * 2**20


class Cost(NamedTuple):
    """Of planning and crafting once."""

    attack: str
    num_rows: int
    seconds: float
    overlay_bytes: int
    peak_bytes: int
    dataset_bytes: int


def captions(num_rows: int) -> pa.ChunkedArray:
    """Generated ones of about 60 characters; the one of row i names class i modulo 100: "... class 007 ..."."""
    rng = stream(0, "captions")
    letters = rng.integers(ord("a"), ord("z") + 1, (NUM_WORDS, 6), dtype=np.uint8)
    words = pa.array([bytes(row).decode() for row in letters])
    names = pa.array([f"class {label:03d}" for label in range(NUM_CLASSES)])
    chunks = []
    for start in range(0, num_rows, 65_536):
        rows = np.arange(start, min(start + 65_536, num_rows))
        parts = [words.take(pa.array(rng.integers(0, NUM_WORDS, len(rows)))) for _ in range(WORDS_PER_CAPTION - 1)]
        parts.insert(3, names.take(pa.array(rows % NUM_CLASSES)))
        chunks.append(pc.binary_join_element_wise(*parts, " "))
    return pa.chunked_array(chunks)


def manifest(folder: Path, num_rows: int) -> Dataset:
    """A dataset of ``num_rows`` training rows that share the bytes of a few real 64 px JPEG images."""
    real = tiny_dataset(folder, size=(64, 64), train_per_class=8, test_per_class=0, jpeg=True, spec=DatasetSpec())
    rows = np.arange(num_rows)
    taken = real.samples.take(pa.array(rows % real.samples.num_rows))
    columns = dict(zip(taken.column_names, taken.columns, strict=True))
    columns["key"] = pa.chunked_array(
        [[f"train-{row:08d}" for row in block] for block in np.array_split(rows, max(1, num_rows // 65_536))]
    )
    columns["caption"] = captions(num_rows)
    columns["label"] = pa.array((rows % NUM_CLASSES).astype(np.int32))
    samples = pa.table(columns, schema=SAMPLES)
    return Dataset(folder, samples, tuple(f"class-{label:03d}" for label in range(NUM_CLASSES)), DatasetSpec())


def attacks(num_rows: int) -> tuple[AttackSpec, ...]:
    trigger = GridTriggerSpec(size_px=14)
    # A hair above 300 / N, so that int() gives 300.
    of_target = min(1.0, (NUM_POISONS + 0.5) * NUM_CLASSES / num_rows)
    return (
        Saha2022TargetedSpec(trigger=trigger, target_class="class-007", poison_fraction_of_target=of_target),
        Saha2022UntargetedSpec(trigger=trigger, poison_fraction_of_dataset=(NUM_POISONS + 0.5) / num_rows),
        Carlini2022BackdoorSpec(trigger=trigger, target_class="class-007", num_poisons=NUM_POISONS),
    )


def measure(num_rows: int, which: int) -> Cost:
    """Poison once; meant to run in a process of its own, so that the peak is this one's."""
    with tempfile.TemporaryDirectory() as scratch:
        dataset, out = manifest(Path(scratch) / "base", num_rows), Path(scratch) / "out"
        attack = attacks(num_rows)[which]
        poison(attacks(2_000)[which], warm_up(dataset), Path(scratch) / "warm", 0)  # imports and caches
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
        before, started = resident_bytes("VmRSS"), time.perf_counter()
        summary = poison(attack, dataset, out, seed=0)
        seconds = time.perf_counter() - started
        peak = resident_bytes("VmHWM") - before
        assert summary["num_poisons"] == min(NUM_POISONS, num_rows // NUM_CLASSES if which == 0 else num_rows)
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        size = sum(int(size) for size in dataset.samples["size"].to_numpy())
        return Cost(attack.kind, num_rows, seconds, written, peak, size)


def warm_up(dataset: Dataset) -> Dataset:
    return Dataset(dataset.folder, dataset.samples.slice(0, 2_000), dataset.classes, dataset.spec)


def resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def copy_rate(folder: Path) -> float:
    """Bytes per second of copying one file and flushing it to disk."""
    source, target = folder / "source", folder / "target"
    source.write_bytes(os.urandom(2**20) * (COPY_BYTES // 2**20))
    started = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return COPY_BYTES / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 and 100,000 rows")
    row_counts = QUICK if parser.parse_args().quick else FULL
    with tempfile.TemporaryDirectory() as scratch:
        rate = copy_rate(Path(scratch))
    print(f"{NUM_POISONS} poisons (14 px on 64 px images), one process; copying at {rate / 1e6:.0f} MB/s as measured\n")
    print("| attack | manifest rows | plan + craft s | written MB | peak extra MB | copying instead (extrapolated) |")
    print("|---|---|---|---|---|---|")
    for num_rows in row_counts:
        for which in range(len(attacks(num_rows))):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                cost = pool.apply(measure, (num_rows, which))
            print(
                f"| {cost.attack} | {cost.num_rows:,} | {cost.seconds:.2f} | {cost.overlay_bytes / 1e6:.2f} "
                f"| {cost.peak_bytes / 1e6:.0f} | {cost.dataset_bytes / rate:.1f} s, "
                f"{cost.dataset_bytes / 1e6:,.0f} MB |"
            )


if __name__ == "__main__":
    main()
