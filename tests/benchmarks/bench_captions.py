"""Searching the captions of a set for a class, as the backdoor and the targeted attack of Carlini & Terzis need it.

    python -m tests.benchmarks.bench_captions [--quick] [--out FOLDER]

3,000,000 generated captions of about 60 characters; one in a hundred names the class. Ours finds whole words in any
case; the peer is what a script would do (`phrase in caption.lower()` over a list of strings), the ceiling Arrow's own
substring kernel on the same column, which knows no words. Arrow has one thread. Memory is what a search adds to the
process's peak, the captions already loaded.
"""

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.caption_sets import search
from tests.benchmarks.bench_poison import FULL, NUM_CLASSES, QUICK, captions
from tests.benchmarks.harness import Comparison, Options, alone, main, timed

PEER, CEILING = "Python's in", "Arrow's substring kernel"


def found(column: pa.ChunkedArray) -> None:
    assert len(search(column, "Class 007")) == len(column) // NUM_CLASSES


def found_nothing(column: pa.ChunkedArray) -> None:
    """A phrase that is not there: all words are counted to name near ones."""
    with pytest.raises(DataError, match="near it are class"):
        search(column, "clas")


def measure(num_rows: int, repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, peak MB) of each contender once a repetition; in a process of its own."""
    pa.set_cpu_count(1)
    column = pa.chunked_array(list(captions(num_rows)))
    texts = column.to_pylist()
    contenders: dict[str, Callable[[], object]] = {
        "found": lambda: found(column),
        "found nothing": lambda: found_nothing(column),
        PEER: lambda: [row for row, text in enumerate(texts) if "class 007" in text.lower()],
        CEILING: lambda: pc.indices_nonzero(pc.match_substring(column, "class 007")),
    }
    found(column.slice(0, 2_000))
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for repetition in range(repetitions):
        for name in list(contenders)[:: 1 if repetition % 2 == 0 else -1]:
            costs[name].append(timed(contenders[name]))
    return costs


def run(options: Options) -> Iterator[Comparison]:
    num_rows = (QUICK if options.quick else FULL)[-1]
    costs = alone(measure, num_rows, options.repetitions)
    case = f"{num_rows:,} captions"
    seconds, peaks = ({name: [cost[index] for cost in each] for name, each in costs.items()} for index in range(2))
    found = {"ours": seconds["found"], PEER: seconds[PEER], CEILING: seconds[CEILING]}
    yield Comparison(f"search, {case}", "s", found, "less")
    yield Comparison(f"search, {case}", "MB of memory", {"ours": peaks["found"]}, "less")
    yield Comparison(f"search in vain, near words named, {case}", "s", {"ours": seconds["found nothing"]}, "less")
    yield Comparison(
        f"search in vain, near words named, {case}", "MB of memory", {"ours": peaks["found nothing"]}, "less"
    )


if __name__ == "__main__":
    main(run, __doc__)
