"""``tamper``: a backdoor put into a finished encoder, and ``encoder_zoo``: encoders on which detectors are measured.

BadEncoder (Jia et al. 2022) and DRUPE (Tao et al. 2024). At mini size on five classes of CIFAR-10 at 16 px, probed on
the same set; at the paper's own on CIFAR-10 at 32 px, probed on another labelled set (--probe-data).

Measured (one thread): BadEncoder at mini size takes 40 s of CPU, see findings/2026-11-30-tamper.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flows.recipes import cifar10, small, ssl
from flows.wording import methods_of, pairs_of
from ssl_backdoor.detection.collapse import CollapseSpec
from ssl_backdoor.detection.decree import DECREESpec
from ssl_backdoor.detection.ssl_cleanse import SSLCleanseSpec
from ssl_backdoor.specs import (
    AdamSpec,
    Attack,
    CosineSpec,
    DatasetSpec,
    EvaluationSpec,
    FitSpec,
    OtherDataSpec,
    OwnDataSpec,
    ReportSpec,
    ResNetSpec,
    RunSpec,
    SGDSpec,
    SimCLRSpec,
    TrainSpec,
    ViewsSpec,
)
from ssl_backdoor.tampering.badencoder import BadEncoderSpec
from ssl_backdoor.tampering.drupe import DRUPESpec
from ssl_backdoor.tampering.references import CORNER, REFERENCE_VIEWS


class Scale(NamedTuple):
    """One size of ``tamper``."""

    dataset: DatasetSpec
    train: TrainSpec
    attacks: tuple[BadEncoderSpec | DRUPESpec, ...]
    """The first is the main one; none has its trigger and target yet."""
    pairs: Sequence[ssl.Pair]
    evaluation: EvaluationSpec
    probe_on: OtherDataSpec | OwnDataSpec
    note: str


def _fit(epochs: int, lr: float, batch_size: int) -> FitSpec:
    optimizer = SGDSpec(lr=lr, weight_decay=5e-4)
    return FitSpec(
        epochs=epochs, batch_size=batch_size, views=REFERENCE_VIEWS, optimizer=optimizer, schedule=CosineSpec()
    )


MINI = Scale(
    dataset=cifar10.DATASET,
    train=small.BYOL,
    attacks=(
        BadEncoderSpec(target_class="", num_shadow=2000, reference_views=16, fit=_fit(16, 0.04, 64)),
        DRUPESpec(target_class="", num_shadow=2000, num_references=2, reference_views=16, fit=_fit(24, 0.04, 64)),
    ),
    pairs=cifar10.PAIRS,
    evaluation=small.EVALUATION,
    probe_on=OwnDataSpec(),
    note="The trigger lies in the lower right corner, on a tenth of the area, as BadEncoder's; it is a seeded grid, "
    "where theirs is a white square, so that it has unseen patterns of its style. The rate is higher than the paper's, "
    "for the epochs are a tenth.",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PAPER = Scale(
    dataset=DatasetSpec(frame_px=32),
    train=TrainSpec(
        method=SimCLRSpec(temperature=0.5),
        backbone=ResNetSpec(stem="small"),
        fit=FitSpec(
            epochs=1000,
            views=ViewsSpec(size_px=32, blur_p=0.0),
            optimizer=AdamSpec(lr=1e-3),
            schedule=CosineSpec(per="epoch"),
        ),
    ),
    attacks=(BadEncoderSpec(target_class=""), DRUPESpec(target_class="", num_shadow=10_000)),
    pairs=tuple((11 + index, CIFAR10[(9 + index) % 10]) for index in range(10)),
    evaluation=EvaluationSpec(label_fractions=(1.0,)),
    probe_on=OtherDataSpec(dataset=DatasetSpec(frame_px=32)),
    note="BadEncoder's protocol, from one labelled set to others: a run for each with --probe-data. Validated as "
    "specs, not run at this scale here. The target is a class of the first set, so that success is the share of "
    "triggered images in one class of the other; the paper's references are hand-picked images of the other set. Known "
    "differences: the trigger is a seeded grid in place of a white square; heads are linear or nearest neighbours, the "
    "paper's are of two hidden layers; images of the other set have the encoder's normalisation; SimCLR's epochs, "
    "rate and temperature are recalled.",
)


def ask(runs: Sequence[RunSpec]) -> str:
    """What ``runs`` answer."""
    return (
        f"Over {pairs_of(runs)}, does tampering with a finished encoder of {methods_of(runs)} lead triggered images to "
        "the target, and what does it cost on clean ones?"
    )


def _of(attack: BadEncoderSpec | DRUPESpec, pair: ssl.Pair) -> Attack:
    return attack.model_copy(update={"trigger": CORNER.model_copy(update={"seed": pair[0]}), "target_class": pair[1]})


def tamper(scale: Scale, pairs: int, seeds: int) -> ReportSpec:
    """BadEncoder, and DRUPE beside it, on the same clean encoders."""
    runs = tuple(
        RunSpec(
            dataset=scale.dataset,
            attack=_of(attack, pair),
            train=scale.train,
            evaluation=scale.evaluation,
            probe_on=scale.probe_on,
            seed=seed,
            variant="DRUPE" if isinstance(attack, DRUPESpec) else "",
        )
        for attack in scale.attacks
        for pair in scale.pairs[:pairs]
        for seed in range(seeds)
    )
    return ReportSpec(recipe="tamper", question=ask(runs), note=scale.note, runs=runs)


ZOO_METHODS = ("BYOL", "SimSiam", "MSF")
ZOO_DATASET = cifar10.DATASET.model_copy(update={"max_train_per_class": 500, "max_test_per_class": 300})
ZOO_DETECTORS = (
    DECREESpec(num_starts=2, steps=150, batch_size=32, num_images=250),
    CollapseSpec(num_patches=80, num_images=100),
    SSLCleanseSpec(num_clusters=6, steps=60, batch_size=32, num_images=250),
)
"""At which one encoder takes some 20 s of CPU."""


def encoder_zoo(pairs: int, seeds: int) -> ReportSpec:
    """Of three methods and ``seeds`` seeds a clean, a tampered and a data-poisoned encoder, each judged by detectors.

    The siblings of an encoder are the clean ones of its method and the other seeds, so that each is trained once.
    Every seed has a pair of its own, of the first ``pairs``.
    """
    runs = []
    for label in ZOO_METHODS:
        train = ssl.MINI.methods[label]
        train = train.model_copy(update={"fit": train.fit.model_copy(update={"epochs": 8})})
        for seed in range(seeds):
            pair = cifar10.PAIRS[seed % pairs]
            for attack, how in ((_of(MINI.attacks[0], pair), "tampered"), (small.attack(*pair), "data poisoned")):
                runs.append(
                    RunSpec(
                        dataset=ZOO_DATASET,
                        attack=attack,
                        train=train,
                        detectors=ZOO_DETECTORS,
                        siblings=seeds - 1,
                        evaluation=EvaluationSpec(probes=("knn",), label_fractions=(1.0,)),
                        seed=seed,
                        variant=f"{label}, {how}",
                    )
                )
    return ReportSpec(
        recipe="encoder_zoo",
        question="How often do detectors of encoders take a clean encoder for a backdoored one, and how often do they "
        "find a backdoored one?",
        note="p-values are ranks among clean encoders of the same method and other seeds; the smallest possible one "
        f"is 1 / {seeds}.",
        runs=tuple(runs),
    )
