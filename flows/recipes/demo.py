"""``demo``: both papers in small on the embedded image set, each attack with one pinned choice."""

from collections.abc import Sequence

from flows.recipes import clip, small
from flows.recipes.carlini2022 import targeted
from flows.wording import defences_of, methods_of
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    Defence,
    FigureSpec,
    ReportSpec,
    RunSpec,
    ScenesSourceSpec,
)

TRIGGER_SEED = 34
TARGET = "cross"
TRAIN = clip.TINY.model_copy(update={"fit": clip.FIT.model_copy(update={"epochs": 12})})
TARGETED = targeted(num_poisons=16, pairs=8)
BACKDOOR = clip.backdoor(clip.MINI, model=0, pairs=1).model_copy(update={"target_class": "ring"})
DATASET = clip.with_stickers(
    clip.MINI, DatasetSpec(source=ScenesSourceSpec(test_per_class=500), frame_px=16), BACKDOOR.trigger
)
FIGURES = (
    FigureSpec(
        name="clip_targeted",
        title="CLIP, targeted poisoning: success",
        attack="carlini2022_targeted",
        axis="num_poisons",
        measures=("targeted_success/zero_shot", "targeted_success/linear_100"),
    ),
    FigureSpec(
        name="clip_backdoor",
        title="CLIP, backdoor: success",
        attack="carlini2022_backdoor",
        axis="num_poisons",
        measures=("attack_success_rate/zero_shot", "attack_success_rate/linear_100"),
    ),
    FigureSpec(
        name="clip_similarity",
        title="CLIP, backdoor: similarity of clean and of triggered pairs",
        attack="carlini2022_backdoor",
        axis="similarity",
        measures=("similarity_triggered/features", "similarity_clean/features"),
    ),
)


def _clip(attack: AttackSpec, variant: str, seed: int, *defences: Defence) -> RunSpec:
    return RunSpec(
        dataset=DATASET,
        attack=attack,
        train=TRAIN,
        defences=defences,
        evaluation=clip.EVALUATION,
        seed=seed,
        variant=variant,
    )


def ask(runs: Sequence[RunSpec]) -> str:
    """What ``runs`` answer."""
    added = [run for run in runs if run.attack.adds_pairs]
    patched = [run for run in runs if not run.attack.adds_pairs]
    parts = []
    if patched:
        parts.append(f"does a patch on unlabelled images of one category bend what {methods_of(patched)} learns")
    if added:
        parts.append(f"do a few added image-caption pairs bend what {methods_of(added)} learns")
    if defences := defences_of(runs):
        parts.append(f"how much of that does {defences} undo")
    text = ", and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return f"{text[0].upper()}{text[1:]}?"


def demo(pairs: int, seeds: int) -> ReportSpec:
    """One pair of Saha et al., one targeted and one backdoored CLIP, pinned: an illustration, not evidence."""
    patched = tuple(
        RunSpec(
            dataset=DATASET,
            attack=small.attack(TRIGGER_SEED, TARGET),
            train=small.BYOL,
            defences=(small.COMPRESS,),
            evaluation=small.EVALUATION,
            seed=seed,
        )
        for seed in range(seeds)
    )
    captioned = tuple(
        run
        for seed in range(seeds)
        for run in (
            _clip(TARGETED, "targeted", seed),
            _clip(BACKDOOR, "backdoor", seed, clip.DISTIL),
        )
    )
    return ReportSpec(
        recipe="demo",
        question=ask(patched + captioned),
        note="Each attack with one choice of trigger and target, pinned: this page illustrates, it is no "
        "evidence. Effects differ greatly between pairs; for evidence run the recipes over many: "
        "ssl-backdoor run cifar10_byol --data PATH --pairs 10, and carlini2022_fig2_targeted or "
        "carlini2022_fig2_backdoor --data PATH.",
        runs=patched + captioned,
        figures=FIGURES,
    )
