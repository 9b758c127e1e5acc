"""``demo``: the whole attack and defence on the embedded image set, with one pinned pair."""

from flows.recipes import small
from ssl_backdoor.specs import DatasetSpec, ReportSpec, RunSpec, ScenesSourceSpec

TRIGGER_SEED = 34
TARGET = "cross"


def demo(pairs: int, seeds: int) -> ReportSpec:
    """One pair, pinned: an illustration, not evidence."""
    source = ScenesSourceSpec()
    return ReportSpec(
        recipe="demo",
        question="Does a small patch on one category's unlabelled images bend what BYOL learns, "
        "and does distillation on a trusted quarter of the data straighten it?",
        note="One trigger/target pair, pinned because it shows the effect: this page illustrates, it is no evidence. "
        "Effects differ greatly between pairs; for evidence run the ten-pair recipe: "
        "ssl-backdoor run cifar10_byol --data PATH --pairs 10.",
        runs=tuple(
            RunSpec(
                dataset=DatasetSpec(source=source, frame_px=16),
                attack=small.attack(TRIGGER_SEED, TARGET),
                train=small.BYOL,
                defence=small.COMPRESS,
                evaluation=small.EVALUATION,
                seed=seed,
            )
            for seed in range(seeds)
        ),
    )
