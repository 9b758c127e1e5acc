"""What ``ssl-backdoor estimate`` says of a run, beside what the run then takes, on a shell of its own.

    python -m tests.benchmarks.bench_estimate [--quick] [--data CIFAR10] [--out FOLDER]

The demo, and with ``--data`` one pair of the mini recipes. "ours" is the estimate and the other figure what happened:
wall-clock of the command, seconds of the stages that devices do, bytes of the store. A ratio of 1.10 means that the
run took a tenth more than was said. Asked is a quarter at most, either way; once each.
"""

from collections.abc import Iterator

from tasks.scheduler import ORDER
from tasks.stages import ON_RAY
from tests.benchmarks.bench_overhead import CELL, home
from tests.benchmarks.harness import Comparison, Options, main

ASKED = 0.25
MINI = (
    ("cifar10_byol", "--pairs", "1"),
    ("saha2022_table1", "--pairs", "1", "--seeds", "1", "--methods", "moco_v2,simclr"),
    ("carlini2022_fig2_backdoor", "--seeds", "1"),
)


def compare(arguments: tuple[str, ...]) -> Iterator[Comparison]:
    """One recipe: said, then done."""
    with home() as here:
        _, said = here.told("estimate", *arguments)
        wall_s, _ = here.told("run", *arguments)
        made = [here.store.manifest(here.store.ref(stage, key)) for stage in ORDER for key in here.store.keys(stage)]
    num_bytes = sum(file.bytes for one in made for file in one.files.values()) / 1e6
    happened = {
        "wall-clock, s": (said["wall_s"], wall_s),
        "time of devices, s": (3600 * said["device_hours"], sum(one.seconds for one in made if one.stage in ON_RAY)),
        "store, MB": (sum(one["bytes"] for one in said["stages"].values()) / 1e6, num_bytes),
    }
    case = " ".join(one for one in arguments if one not in ("--set", "--data") and "=" not in one and "/" not in one)
    for name, (estimated, found) in happened.items():
        is_near = abs(found / estimated - 1) <= ASKED
        yield Comparison(
            f"{case}: {name}",
            "",
            {"ours": [estimated], "what happened": [found]},
            "less",
            note="" if is_near else "off",
        )


def run(options: Options) -> Iterator[Comparison]:
    yield from compare(CELL if options.quick else ("demo",))
    if options.data and not options.quick:
        for arguments in MINI:
            yield from compare((*arguments, "--data", options.data))


if __name__ == "__main__":
    main(run, __doc__)
