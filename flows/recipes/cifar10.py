"""``cifar10_byol`` and ``cifar10_moco``: ten pairs on five classes of real CIFAR-10, on two CPU cores.

The pairs were fixed before the first run and none is dropped. Half of the target poisoned stands beside all of it.
"""

from flows.recipes import small
from ssl_backdoor.specs import DatasetSpec, ReportSpec, RunSpec, TrainSpec

CLASSES = ("airplane", "automobile", "cat", "frog", "horse")
PAIRS = tuple((11 + index, CLASSES[index % len(CLASSES)]) for index in range(10))
DATASET = DatasetSpec(classes=CLASSES, max_train_per_class=1000, max_test_per_class=1000, frame_px=16)
FRACTIONS = ((1.0, ""), (0.5, "fraction_0.5"))


def _recipe(name: str, method: str, train: TrainSpec, pairs: int, seeds: int) -> ReportSpec:
    return ReportSpec(
        recipe=name,
        question=f"Over {pairs} trigger/target pairs fixed beforehand, does a patch on one category's unlabelled "
        f"images make a {method} encoder collapse triggered images, and towards the target, "
        "and how much of that does distillation on a trusted quarter remove?",
        note="Five classes of CIFAR-10 at 16 px and a patch of 14 % of the area: far from the paper's scale. "
        "All images of the target are poisoned; the same with half of them stands beside.",
        runs=tuple(
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
        ),
    )


def cifar10_byol(pairs: int, seeds: int) -> ReportSpec:
    """BYOL."""
    return _recipe("cifar10_byol", "BYOL", small.BYOL, pairs, seeds)


def cifar10_moco(pairs: int, seeds: int) -> ReportSpec:
    """MoCo v2."""
    return _recipe("cifar10_moco", "MoCo v2", small.MOCO, pairs, seeds)
