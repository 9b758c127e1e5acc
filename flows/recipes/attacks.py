"""``attacks_ssl`` and ``attacks_clip``: published attacks under one protocol, each next to its control.

``attacks_ssl`` has the layout of the comparison in Noisy Alignment (Chen et al. 2025,
https://arxiv.org/abs/2508.14015): attacks by four methods, with poisoning of ALL of the target's images as the upper
line. Every attack has the same number of poisons.
Where the trigger is a patch, training images of all classes bear patches that mean nothing (stickers), and every
trigger is set against ten unseen ones of its style.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from flows.recipes import clip, ssl
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec
from ssl_backdoor.poison.attacks.corrupt_encoder import CorruptEncoderSpec
from ssl_backdoor.poison.attacks.ctrl2023 import Ctrl2023Spec
from ssl_backdoor.poison.attacks.label_consistent import LabelConsistentSpec
from ssl_backdoor.poison.attacks.noisy_alignment import NoisyAlignmentSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.masks import WholeMasksSpec
from ssl_backdoor.poison.triggers.blended import BlendedTriggerSpec
from ssl_backdoor.poison.triggers.frequency import CtrlTriggerSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.patch import PatchTrigger
from ssl_backdoor.poison.triggers.sig import SigTriggerSpec
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    EvaluationSpec,
    PatchStickersSpec,
    ReportSpec,
    RunSpec,
    TableRow,
    TableSpec,
    TriggerSpec,
)

METHODS = ("MoCo v2", "BYOL", "SimSiam", "SimCLR")
MEASURES = ("accuracy", "attack_success_rate")
CENTRE, INNER, ANYWHERE = (0.45, 0.55), (0.25, 0.75), (0.0, 1.0)


class Scale(NamedTuple):
    """One size of ``attacks_ssl``; methods, pairs and heads are those of ``ssl.Scale``."""

    of_table1: ssl.Scale
    dataset: DatasetSpec
    evaluation: EvaluationSpec
    num_poisons: int
    num_target: int
    """Training images of a class, of which the poisons are a share where they are the target's own."""
    patch: GridTriggerSpec
    """Side and look of every patch."""
    sticker_frac: float
    note: str


MINI = Scale(
    of_table1=ssl.MINI,
    # Poisons are made of whole images, which are held at their own 32 px; views and test images have 16 px.
    dataset=ssl.MINI.dataset.model_copy(update={"frame_px": 0, "resident_px": 32}),
    evaluation=ssl.MINI.evaluation.model_copy(update={"resize_px": 16, "crop_px": 16}),
    num_poisons=100,
    num_target=1000,
    patch=GridTriggerSpec(size_frac=0.375, cells=3),
    sticker_frac=0.3,
    note="100 poisons, 2 % of the data, where the paper has 0.5 % of ImageNet-100. No masks are given, so that "
    "CorruptEncoder's object is the whole image.",
)
PAPER = Scale(
    of_table1=ssl.PAPER,
    dataset=ssl.PAPER.dataset,
    evaluation=ssl.PAPER.evaluation,
    num_poisons=650,
    num_target=1300,
    patch=GridTriggerSpec(size_px=50, cells=4, style="smooth"),
    sticker_frac=0.0,
    note="650 poisons, 0.5 % of ImageNet-100, ResNet-18. Validated as specs, not run at this scale here. "
    "CorruptEncoder needs masks of your own for its objects: --set "
    """'attack.masks={"kind":"folder","folder":"PATH"}'; without, the """
    "object is the whole image. No image bears a sticker.",
)


def _placed(
    patch: GridTriggerSpec, seed: int, train: tuple[float, float], test: tuple[float, float]
) -> GridTriggerSpec:
    return patch.model_copy(update={"seed": seed, "train_location": train, "test_location": test})


def ssl_attacks(scale: Scale, pair: ssl.Pair) -> dict[str, AttackSpec]:
    """By the name of its line; every attack has as many poisons, but for the oracle."""
    seed, target = pair
    frequency = CtrlTriggerSpec(window_frac=1.0) if scale.evaluation.crop_px < 32 else CtrlTriggerSpec()
    anywhere = _placed(scale.patch, seed, ANYWHERE, ANYWHERE)
    centre = _placed(scale.patch, seed, CENTRE, CENTRE).model_copy(update={"opacity": 0.8})
    count = scale.num_poisons
    return {
        "SSLBKD": Saha2022TargetedSpec(
            trigger=anywhere, target_class=target, poison_fraction_of_target=count / scale.num_target
        ),
        "CTRL": Ctrl2023Spec(
            trigger=frequency,
            target_class=target,
            poison_fraction_of_dataset=count / (scale.num_target * len(scale.dataset.classes)),
        ),
        "CorruptEncoder": CorruptEncoderSpec(
            trigger=_placed(scale.patch, seed, ANYWHERE, INNER),
            target_class=target,
            num_poisons=count,
            masks=WholeMasksSpec(),
        ),
        "Noisy Alignment": NoisyAlignmentSpec(trigger=centre, target_class=target, num_poisons=count),
        "Noisy Alignment, blend": NoisyAlignmentSpec(
            trigger=BlendedTriggerSpec(seed=seed), target_class=target, num_poisons=count
        ),
        "oracle": Saha2022TargetedSpec(trigger=anywhere, target_class=target, poison_fraction_of_target=1.0),
    }


def with_stickers(scale: Scale, trigger: TriggerSpec | None) -> DatasetSpec:
    """The dataset, with patches that mean nothing where the trigger is one."""
    if not scale.sticker_frac or not isinstance(trigger, PatchTrigger):
        return scale.dataset
    style = _placed(scale.patch, 0, ANYWHERE, ANYWHERE)
    stickers = PatchStickersSpec(style=style, train_frac=scale.sticker_frac)
    return scale.dataset.model_copy(update={"stickers": stickers})


def attacks_ssl(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """Attacks by methods: accuracy and success rate of each, poisoned and clean-trained."""
    common, lines = scale.of_table1, tuple(ssl_attacks(scale, scale.of_table1.pairs[0]))

    def runs() -> Iterator[RunSpec]:
        for method in METHODS:
            for line in lines:
                for pair in common.pairs[:pairs]:
                    attack = ssl_attacks(scale, pair)[line]
                    for seed in range(seeds):
                        yield RunSpec(
                            dataset=with_stickers(scale, attack.trigger),
                            attack=attack,
                            train=common.methods[method],
                            evaluation=scale.evaluation,
                            seed=seed,
                            variant=f"{line}, {method}",
                        )

    tables = (
        TableSpec(
            name=f"attacks_{method.lower().replace(' ', '_')}_{probe}",
            title=f"Attacks on {method}",
            rows=tuple(TableRow(label=line, variant=f"{line}, {method}") for line in lines),
            probe=probe,
            measures=MEASURES,
        )
        for method in METHODS
        for probe in common.probes[:2]
    )
    return ReportSpec(
        recipe="attacks_ssl",
        question="Which published poisonings of unlabelled images, with as many poisons each, make which methods take "
        "triggered images for the target, and how much of that is the trigger's own?",
        note=f"{scale.note} Noisy Alignment is tested at its own place, near the centre, CorruptEncoder within the "
        "inner half, the others anywhere.",
        runs=tuple(runs()),
        tables=tuple(tables),
        unit="seed",
    )


def clip_attacks(scale: clip.Scale, pair: int) -> Mapping[str, AttackSpec]:
    """By the name of its line; every attack has the scale's fixed number of poisons."""
    target, seed = scale.targets[pair % len(scale.targets)], 101 + pair
    patch, count = clip.trigger(scale, seed), scale.fixed_count
    frequency = CtrlTriggerSpec(window_frac=1.0) if scale.side_px < 32 else CtrlTriggerSpec()
    backdoors: dict[str, TriggerSpec] = {
        "patch": patch,
        "blended": BlendedTriggerSpec(seed=seed),
        "blended noise, fresh": BlendedTriggerSpec(pattern="noise", fresh=True),
        "SIG": SigTriggerSpec(),
        "CTRL's frequencies": frequency,
    }
    return {
        **{
            name: Carlini2022BackdoorSpec(trigger=one, target_class=target, num_poisons=count)
            for name, one in backdoors.items()
        },
        "label-consistent": LabelConsistentSpec(trigger=patch, target_class=target, num_poisons=count),
    }


def attacks_clip(scale: clip.Scale, pairs: int, seeds: int) -> ReportSpec:
    """Triggers and label consistency on CLIP: accuracy and success rate of each, poisoned and clean-trained."""
    lines = tuple(clip_attacks(scale, 0))
    runs = (
        RunSpec(
            dataset=clip.with_stickers(scale, scale.dataset, attack.trigger),
            attack=attack,
            train=scale.train,
            evaluation=scale.evaluation,
            seed=seed,
            variant=line,
        )
        for line in lines
        for pair in range(pairs)
        for attack in [clip_attacks(scale, pair)[line]]
        for seed in range(seeds)
    )
    return ReportSpec(
        recipe="attacks_clip",
        question="Which triggers make CLIP, with as many poisons each, take triggered images for the target, and how "
        "much of that is the trigger's own?",
        note=scale.note,
        runs=tuple(runs),
        tables=tuple(
            TableSpec(
                name=f"attacks_clip_{probe}",
                title="Attacks on CLIP",
                rows=tuple(TableRow(label=line, variant=line) for line in lines),
                probe=probe,
                measures=MEASURES,
            )
            for probe in ("zero_shot", "linear_100")
            if probe == "zero_shot" or any(one.kind == "linear" for one in scale.evaluation.probes)
        ),
        unit="seed",
    )
