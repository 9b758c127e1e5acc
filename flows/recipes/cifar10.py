"""``cifar10_byol`` and ``cifar10_moco``: ten pairs on five classes of real CIFAR-10, on two CPU cores.

The pairs were fixed before the first run and none is dropped. Half of the target poisoned stands beside all of it.
"""

from collections.abc import Sequence

from flows.recipes import small
from flows.wording import defences_of, methods_of, pairs_of
from ssl_backdoor.specs import DatasetSpec, ReportSpec, RunSpec, TrainSpec

CLASSES = ("airplane", "automobile", "cat", "frog", "horse")
PAIRS = tuple((11 + index, CLASSES[index % len(CLASSES)]) for index in range(10))
DATASET = DatasetSpec(classes=CLASSES, max_train_per_class=1000, max_test_per_class=1000, frame_px=16)
FRACTIONS = ((1.0, ""), (0.5, "50 % of the target"))


def ask(runs: Sequence[RunSpec]) -> str:
    """What ``runs`` answer."""
    defences = defences_of(runs)
    removed = f", and how much of that does {defences} remove" if defences else ""
    return (
        f"Over {pairs_of(runs)}, does a patch on one category's unlabelled images make encoders of {methods_of(runs)} "
        f"collapse triggered images, and towards the target{removed}?"
    )


def _recipe(name: str, train: TrainSpec, pairs: int, seeds: int) -> ReportSpec:
    runs = tuple(
        RunSpec(
            dataset=DATASET,
            attack=small.attack(trigger_seed, target, fraction),
            train=train,
            defences=(small.COMPRESS,),
            evaluation=small.EVALUATION,
            seed=seed,
            variant=variant,
        )
        for fraction, variant in FRACTIONS
        for trigger_seed, target in PAIRS[:pairs]
        for seed in range(seeds)
    )
    return ReportSpec(recipe=name, question=ask(runs), runs=runs)


def cifar10_byol(pairs: int, seeds: int) -> ReportSpec:
    """BYOL."""
    return _recipe("cifar10_byol", small.BYOL, pairs, seeds)


def cifar10_moco(pairs: int, seeds: int) -> ReportSpec:
    """MoCo v2."""
    return _recipe("cifar10_moco", small.MOCO, pairs, seeds)
