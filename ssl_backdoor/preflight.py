"""Whether the data fit what is planned on them: all that needs no training is checked before the first one.

The same checks run three times, each with more known: on specs alone, on the listing before an image is decoded, and on
the ingested images. What would fail is refused; what would give weak numbers is a remark.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ssl_backdoor.data.counts import Counts, Measured, measure
from ssl_backdoor.data.stored import open_lazy_dataset
from ssl_backdoor.defences.trusted import num_trusted
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.plan import label_of
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    EvaluationSpec,
    ExternalSpec,
    Filter,
    FitSpec,
    Repair,
    TamperAttack,
    TrainSpec,
    Trigger,
)
from ssl_backdoor.specs.trigger import Frame
from ssl_backdoor.stages import (
    DefendStage,
    EvaluateStage,
    FilterStage,
    IngestStage,
    PoisonStage,
    StageCall,
    TamperStage,
    TrainStage,
)
from ssl_backdoor.store import ArtifactRef, ArtifactStore


class Known(NamedTuple):
    """What is known of the images of a dataset."""

    spec: DatasetSpec
    counts: Counts | None = None
    """From its listing on."""
    measured: Measured | None = None
    """Once it is ingested."""

    @property
    def held_px(self) -> int:
        """Shorter side at which images are trained on and evaluated; 0 where it is not known yet."""
        size = self.measured.smallest.values() if self.measured and not self.measured.unlike else ()
        return self.spec.frame_px or self.spec.resident_px or min((min(one[1:]) for one in size), default=0)


def check(calls: Mapping[ArtifactRef, StageCall], known: Mapping[ArtifactRef, Known]) -> list[str]:
    """Refuse what would fail in ``calls``; return remarks on weak numbers, each once.

    Args:
        calls: every stage that is planned, by its reference.
        known: of the datasets that are looked at, by their references; stages on others are left out.

    Raises:
        SpecError: data and plan do not fit.
    """
    remarks: dict[str, None] = {}
    for call in calls.values():
        images = known.get(call.inputs["dataset"]) if "dataset" in call.inputs else None
        if images is None:
            continue
        if (problem := next(_problems(call, images, _judge(call, calls)), None)) is not None:
            raise SpecError(f"{call.title}: {problem}" if call.title else problem)
        remarks |= dict.fromkeys(_remarks(call, images))
    return list(remarks)


def known_from_specs(calls: Mapping[ArtifactRef, StageCall]) -> dict[ArtifactRef, Known]:
    """Of every dataset in ``calls`` its spec."""
    return {ref: Known(call.spec.dataset) for ref, call in calls.items() if isinstance(call.spec, IngestStage)}


def known_from_artifact(store: ArtifactStore, ref: ArtifactRef) -> Known:
    """Of the ingested dataset ``ref`` everything.

    Raises:
        StoreError: it cannot be read.
    """
    images = open_lazy_dataset(store, ref)
    measured = measure(images.samples, images.classes)
    return Known(images.spec, measured.counts, measured)


def _judge(call: StageCall, calls: Mapping[ArtifactRef, StageCall]) -> Filter | None:
    """Of a training the filter that some samples are left out by."""
    judged = calls.get(call.inputs["filter"]) if "filter" in call.inputs else None
    match judged.spec if judged else None:
        case FilterStage(defence=Filter() as chosen):
            return chosen
    return None


def _problems(call: StageCall, images: Known, judge: Filter | None) -> Iterator[str]:
    match call.spec:
        case PoisonStage(attack=attack) | TamperStage(attack=attack):
            yield from _problems_of_attack(attack, images)
            if isinstance(attack, TamperAttack) and images.counts is not None:
                yield from filter(None, [attack.shortage(images.counts.num_train)])
        case TrainStage(train=train):
            yield from _problems_of_training(train, images)
            if judge is not None and images.counts is not None:
                yield from _problems_of_removal(train, judge, images.counts.num_train)
        case DefendStage(defence=Repair() as repair) if repair.fit is not None and images.counts is not None:
            yield from _problems_of_trusted(repair, repair.fit, images.counts)
        case EvaluateStage():
            yield from _problems_of_evaluation(call.spec, images)


def _problems_of_attack(attack: AttackSpec, images: Known) -> Iterator[str]:
    if (counts := images.counts) is not None:
        label = label_of(attack.target_class, counts.classes) if attack.target_class and counts.classes else None
        if label is not None and attack.poisons_target_class and not counts.train_per_class[label]:
            yield f"the target class {attack.target_class!r} has no training images to poison: choose another"
        if attack.targets is not None and attack.targets.num_targets > counts.num_test:
            yield (
                f"attack.targets.num_targets asks for {attack.targets.num_targets} labelled test images, but there are "
                f"{counts.num_test}: lower it, or keep more (dataset.test_fraction, max_test_per_class)"
            )
    if (trigger := attack.trigger) is None:
        return
    if images.spec.frame_px:
        yield from _misfit(trigger, images.spec.frame_px, "train", "the stored frame (dataset.frame_px)")
    elif images.measured is not None:
        is_of_target = attack.poisons_target_class and attack.target_class in images.measured.counts.classes
        target = images.measured.counts.classes.index(attack.target_class) if is_of_target else None
        candidates = [
            one
            for (split, label), one in images.measured.smallest.items()
            if split == "train" and target in (None, label)
        ]
        if candidates:
            one = min(candidates, key=lambda sized: min(sized[1:]))
            what = f"the training image {one.key!r} of {one.width} x {one.height} px"
            yield from (
                f"{text}, or remove it, or set dataset.frame_px"
                for text in _misfit(trigger, min(one[1:]), "train", what)
            )


def _misfit(trigger: Trigger, side_px: int, frame: Frame, what: str) -> Iterator[str]:
    """Why the trigger cannot be put on ``what``: one from a file is tried with other pixels, which need none."""
    if (other := trigger.unseen(0) if trigger.is_from_file else trigger) is None:
        return
    try:
        other.apply_one(np.zeros((side_px, side_px, 3), np.uint8), 0, frame)
    except SpecError as error:
        yield f"the trigger does not fit {what}: {error}"


def _problems_of_training(train: TrainSpec, images: Known) -> Iterator[str]:
    if isinstance(train.backbone, ExternalSpec) and images.counts is None:
        from ssl_backdoor.methods.external import outline  # imports torch, and the other library

        outline(train.backbone)
    if images.counts is not None and (shortage := train.fit.shortage(images.counts.num_train)):
        yield shortage
    if (measured := images.measured) is None:
        return
    if train.method.has_text_tower and measured.num_uncaptioned:
        yield (
            f"this method learns from captions, but {measured.num_uncaptioned} of {measured.counts.num_train} training "
            "images have none; set dataset.captions to kind templates to have them written from the class, or "
            "dataset.captions_required to leave such images out"
        )
    yield from _unlike(images, "train")


def _problems_of_removal(train: TrainSpec, judge: Filter, num_train: int) -> Iterator[str]:
    left_out = judge.most_left_out(num_train)
    if train.fit.shortage(num_train - left_out):
        yield (
            f"the filter {judge.kind} may leave out {left_out} of {num_train} training images, and one batch needs "
            f"{train.fit.batch_size}: lower its budget or train.fit.batch_size"
        )


def _unlike(images: Known, split: str) -> Iterator[str]:
    if images.measured is None or images.spec.frame_px or images.spec.resident_px:
        return
    if (two := images.measured.unlike.get(split)) is not None:
        shown = " and ".join(f"{one.key!r} has {one.width} x {one.height} px" for one in two)
        yield f"images need one size, but {shown}: set dataset.resident_px or dataset.frame_px to bring all to one side"


def _problems_of_trusted(repair: Repair, fit: FitSpec, counts: Counts) -> Iterator[str]:
    groups = [number for number in (*counts.train_per_class, counts.num_unlabelled) if number]
    trusted = sum(num_trusted(number, repair.trusted_fraction) for number in groups)
    if trusted < fit.batch_size:
        yield (
            f"one batch of the defence needs {fit.batch_size} trusted images, but trusted_fraction "
            f"{repair.trusted_fraction} gives {trusted}; raise it or lower the batch_size"
        )


def _problems_of_evaluation(spec: EvaluateStage, images: Known) -> Iterator[str]:
    evaluation, trigger = spec.evaluation, spec.trigger
    if not evaluation.probes:
        yield "evaluation.probes is empty, so that nothing would be measured: name some, such as linear"
    if not evaluation.label_fractions and any(probe.uses_label_fractions for probe in evaluation.probes):
        yield "evaluation.label_fractions is empty, but its probes learn on each of them: give some, such as 1.0"
    if images.counts is not None:
        yield from problems_of_test(images.counts, spec.target_class)
        labelled = [number for number in images.counts.train_per_class if number]
        if any(probe.learns for probe in evaluation.probes) and len(labelled) < 2:
            yield (
                f"probes learn to tell classes apart, but {len(labelled)} have labelled training images: "
                "bring two classes or more, or name the folders of the classes as class/0001.jpg"
            )
    if not evaluation.crop_px:
        yield from _unlike(images, "test")
    if held := images.held_px:
        short = evaluation.resize_px or held
        if evaluation.crop_px > short:
            yield f"evaluation.crop_px {evaluation.crop_px} is larger than the images, whose shorter side is {short} px"
        if trigger is not None:
            yield from _misfit(trigger, evaluation.crop_px or short, "test", "the evaluated frame")


def problems_of_test(counts: Counts, target_class: str) -> Iterator[str]:
    """Why an encoder could not be evaluated on the test images, towards ``target_class`` where there is one."""
    if not counts.num_test and not counts.num_unlabelled_test:
        yield (
            "the data have no test images, and evaluation needs some: bring a test split, give one with --test-data, "
            "or set dataset.test_fraction"
        )
    elif not counts.num_test:
        yield (
            f"none of the {counts.num_unlabelled_test} test images has a class, and evaluation needs labels: "
            "sort them as test/class/0001.jpg, or give labelled ones with --test-data"
        )
    elif target_class and counts.classes:
        of_target = counts.test_per_class[label_of(target_class, counts.classes)]
        if not of_target:
            yield (
                f"the target class {target_class!r} has none of the {counts.num_test} test images: choose another "
                "target class, or bring test images of it"
            )
        elif of_target == counts.num_test:
            yield (
                f"all {counts.num_test} test images are of the target class {target_class!r}, so that nothing can be "
                "mistaken for it: bring test images of other classes"
            )


def _remarks(call: StageCall, images: Known) -> Iterator[str]:
    match call.spec:
        case TrainStage(train=train) if 0 < images.held_px < train.fit.views.size_px:
            yield (
                f"views of {train.fit.views.size_px} px are enlarged from images of {images.held_px} px "
                "(train.fit.views.size_px, dataset.frame_px)"
            )
        case EvaluateStage(evaluation=evaluation) if images.counts is not None:
            yield from _remarks_on_classes(evaluation, images.counts)


def _remarks_on_classes(evaluation: EvaluationSpec, counts: Counts) -> Iterator[str]:
    train_of = {name: number for name, number in zip(counts.classes, counts.train_per_class, strict=True) if number}
    if not train_of:
        return
    for probe in evaluation.probes:
        yield from probe.remarks(train_of)
    least = min(train_of, key=train_of.__getitem__)
    if any(probe.learns and probe.uses_label_fractions for probe in evaluation.probes):
        for fraction in evaluation.label_fractions:
            if fraction * train_of[least] < 1:
                yield (
                    f"label fraction {fraction:g}: class {least!r} has {train_of[least]} training images, of which one "
                    f"is labelled, {1 / train_of[least]:.2g} of them"
                )
    untested = [name for name, number in zip(counts.classes, counts.test_per_class, strict=True) if not number]
    if untested and counts.num_test:
        yield f"{_some(untested)} of {len(counts.classes)} classes without test images: accuracy is over the others"


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(map(repr, names[:3]))}{', ...' * (len(names) > 3)})"
