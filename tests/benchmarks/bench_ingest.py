"""Ingestion against a plain copy: `python -m tests.benchmarks.bench_ingest [--data ARCHIVE] [--quick]`.

Ours decodes and hashes every image and writes shards and tables; the floor only copies every member into a new tar
with the standard library. Drawn scenes stand in where no archive is given. No timed assertion.
"""

import argparse
import resource
import tarfile
import tempfile
import time
from pathlib import Path

from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec


def ours(data: str | None, count: int, out: Path) -> tuple[int, float]:
    """Images and seconds."""
    source = ScenesSourceSpec(train_per_class=count // 5, test_per_class=0)
    spec = DatasetSpec() if data else DatasetSpec(source=source)
    start = time.perf_counter()
    summary = ingest(spec, data, out)
    return summary["num_train"] + summary["num_test"], time.perf_counter() - start


def floor(archive: Path, out: Path) -> tuple[int, float]:
    """Members and seconds of a plain copy."""
    start, count = time.perf_counter(), 0
    with tarfile.open(archive, "r|*") as source, tarfile.open(out / "copy.tar", "w") as target:
        for member in source:
            if member.isfile():
                target.addfile(member, source.extractfile(member))
                count += 1
    return count, time.perf_counter() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    repetitions = 1 if options.quick else 5
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "ours"
            out.mkdir()
            images, seconds = ours(options.data and str(options.data), 500 if options.quick else 10_000, out)
            archive = options.data or next((out / "shards").glob("*.tar"))
            members, copying = floor(archive, Path(folder))
        rate, copy_rate = images / seconds, members / copying
        print(
            f"ours {images} images {seconds:.1f} s {rate:,.0f}/s, copy {copy_rate:,.0f}/s, ratio {rate / copy_rate:.2f}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
