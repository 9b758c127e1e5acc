"""Searching captions and injecting poisons among them: `python -m tests.benchmarks.bench_captions [--quick]`.

3,000,000 generated captions of about 60 characters; one in a hundred names the class that is searched. Arrow has one
thread. Memory is the growth of the process's peak, the captions already loaded; one process a line. Injecting is all
that the poison stage does for 300 pairs of the backdoor attack: search, choice of images, stamping, overlay.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest

from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.caption_sets import search
from tests.benchmarks.bench_poison import FULL, NUM_CLASSES, NUM_POISONS, QUICK, captions, measure, resident_bytes


class Search(NamedTuple):
    """One search."""

    num_found: int
    seconds: float
    peak_bytes: int


def found(column: pa.ChunkedArray) -> int:
    return len(search(column, "Class 007"))


def found_nothing(column: pa.ChunkedArray) -> int:
    """A phrase that is not there: all words are counted to name near ones."""
    with pytest.raises(DataError, match="near it are class"):
        search(column, "clas")
    return 0


def measure_search(num_rows: int, do: Callable[[pa.ChunkedArray], int]) -> Search:
    """Search once; meant to run in a process of its own, so that the peak is this one's."""
    pa.set_cpu_count(1)
    column = captions(num_rows)
    do(column.slice(0, 2_000))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before, started = resident_bytes("VmRSS"), time.perf_counter()
    count = do(column)
    return Search(count, time.perf_counter() - started, resident_bytes("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 captions")
    num_rows = (QUICK if parser.parse_args().quick else FULL)[-1]
    context = multiprocessing.get_context("spawn")
    print(f"{num_rows:,} captions, {captions(1_000).nbytes / 1_000:.0f} bytes each, one Arrow thread\n")
    print("| step | seconds | peak extra MB |")
    print("|---|---|---|")
    for name, do in (("search, {} found", found), ("search, {} found, near words named", found_nothing)):
        with context.Pool(1) as pool:
            cost = pool.apply(measure_search, (num_rows, do))
        assert cost.num_found == (num_rows // NUM_CLASSES if do is found else 0)
        print(f"| {name.format(f'{cost.num_found:,}')} | {cost.seconds:.2f} | {cost.peak_bytes / 1e6:.0f} |")
    with context.Pool(1) as pool:
        injected = pool.apply(measure, (num_rows, 2))
    print(f"| inject {NUM_POISONS} pairs | {injected.seconds:.2f} | {injected.peak_bytes / 1e6:.0f} |")


if __name__ == "__main__":
    main()
