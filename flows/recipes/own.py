"""``own``: images of your own. What is not asked for follows from a look at them: size, test split, target, epochs.

A method's networks and optimiser are those of the small recipes. Epochs follow from the number of images, so that a
training has about as many steps as there; of a large set it has at least ten epochs.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np

from flows.overrides import dataset_of
from flows.recipes import clip, small, ssl
from flows.shorthand import SMALL_PX, kind_among, whole
from flows.wording import ask
from ssl_backdoor.data.counts import Counts, count
from ssl_backdoor.data.images import inspect
from ssl_backdoor.data.sources import open_source
from ssl_backdoor.data.survey import list_source
from ssl_backdoor.defences.trusted import num_trusted
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.plan import label_of
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import (
    Attack,
    DatasetSpec,
    EvaluationSpec,
    FitSpec,
    Repair,
    ReportSpec,
    ResNetSpec,
    RunSpec,
    Spec,
    TemplateCaptionsSpec,
    TrainSpec,
)
from tasks.planner import Sources

AnySpec = TypeVar("AnySpec", bound=Spec)
FIRST_TRIGGER = 11
_SAMPLE = 64
_LOOKED_AT = 5000  # training images that the sample is of: an archive is read up to there
_TEST_SHARE = 0.2
_USUAL_IMAGES = 5000  # of the small recipes, whose epochs are scaled
_MIN_EPOCHS, _MAX_EPOCHS = 10, 300
_STEP_PX = 8
_MIN_PX = 16
_MIN_TRUSTED = 16


class Facts(NamedTuple):
    """What a look at the data gave; few images were decoded."""

    dataset: DatasetSpec
    """As they are read; with a share held out where they have no test images."""
    counts: Counts
    side_px: int
    """Shorter side in px: the median of a sample."""
    is_captioned: bool
    """Most of a sample have a caption."""


def look(sources: Sources, settings: Sequence[str]) -> Facts:
    """List the data as an ingest does, and decode a sample of them.

    Args:
        sources: where they lie.
        settings: those of the dataset say how they are read, such as dataset.classes.

    Raises:
        DataError: they cannot be used.
        SpecError: a setting that the dataset refuses, a class or a split that it does not have; no data given.
    """
    if sources.data is None:
        raise SpecError("own follows your images, so they have to be there: give them with --data PATH")
    asked = [setting for setting in settings if setting.startswith("dataset.")]
    dataset = dataset_of(asked, has_test_data=sources.test_data is not None)
    source = open_source(dataset, sources.data, sources.test_data)
    selection = list_source(source, dataset, lambda *_: None)
    counts = count(selection)
    if not (counts.num_test or counts.num_unlabelled_test or dataset.test_fraction or sources.test_data):
        dataset = dataset.model_copy(update={"test_fraction": _TEST_SHARE})
        selection = list_source(source, dataset, lambda *_: None)
        counts = count(selection)
    rows = np.flatnonzero(selection.keep & ~selection.is_test)[:_LOOKED_AT]
    if not len(rows):
        raise DataError("there are no training images: expected a folder train/, or images in folders of their classes")
    wanted = set(rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int)].tolist())
    sides: list[int] = []
    num_captions = 0
    for item in islice(source.read(row in wanted for row in range(int(rows[-1]) + 1)), len(wanted)):
        num_captions += bool(item.caption)
        try:
            if isinstance(item.image, bytes):
                sides.append(min(inspect(item.image, dataset.max_image_pixels)[1:]))
            elif item.image is not None:
                sides.append(min(item.image.shape[:2]))
        except DataError:
            continue  # the ingest lists those that cannot be used, with their reasons
    if not sides:
        raise DataError(f"none of {len(wanted)} images that were looked at can be decoded: see ssl-backdoor inspect")
    return Facts(dataset, counts, round(median(sides)), num_captions > len(wanted) / 2)


class Plan(NamedTuple):
    """The runs on data that were looked at."""

    build: Callable[[int, int], ReportSpec]
    short: Mapping[str, str]
    """The short settings that are not in ``build`` already."""
    counts: Counts


def follow(sources: Sources, short: Mapping[str, str], settings: Sequence[str]) -> Plan:
    """The runs on the data of ``sources``: of the short settings method and image_size are made here.

    Raises:
        SpecError, DataError: as ``look``; there is no class to aim at.
    """
    facts = look(sources, settings)
    kind = short.get("method") or ("clip" if facts.is_captioned else "byol")
    has_text = kind_among("method", kind, "method").has_text_tower
    px = whole(short["image_size"], "image-size", 8) if "image_size" in short else usual_side(facts.side_px)
    targets = [short["target"]] if "target" in short else possible_targets(facts.counts)
    label_of(targets[0], facts.counts.classes)
    dataset = facts.dataset.model_copy(update={"frame_px": px})
    if has_text and not facts.is_captioned:
        dataset = dataset.model_copy(update={"captions": TemplateCaptionsSpec()})
    train = usual_training(kind, facts.counts.num_train, px)
    defences = usual_defences(has_text, facts.counts, px)
    evaluation = usual_evaluation(has_text, facts.counts)

    def build(pairs: int, seeds: int) -> ReportSpec:
        runs = tuple(
            RunSpec(
                dataset=dataset,
                attack=usual_attack(has_text, FIRST_TRIGGER + pair, targets[pair % len(targets)], facts.counts, px),
                train=train,
                defences=defences,
                evaluation=evaluation,
                seed=seed,
            )
            for pair in range(pairs)
            for seed in range(seeds)
        )
        return ReportSpec(recipe="own", question=ask(runs), note=_note(pairs, seeds), runs=runs)

    rest = {name: value for name, value in short.items() if name not in ("method", "image_size")}
    return Plan(build, rest, facts.counts)


def without_data(pairs: int, seeds: int) -> ReportSpec:
    """Nothing: what is run follows from the data.

    Raises:
        SpecError: always.
    """
    raise SpecError("own follows your images, so they have to be there: give them with --data PATH")


def _note(pairs: int, seeds: int) -> str:
    if pairs * seeds > 1:
        return ""
    return (
        "One trigger/target pair under one seed illustrates and is no evidence, since effects differ greatly between "
        "pairs: add --pairs 10."
    )


# ------------------------------------------------------------------------------------------------ the usual values


def usual_side(side_px: int) -> int:
    """Side of the stored frame: that of the images, in steps of 8, from 16 to 64 px."""
    return min(max(side_px // _STEP_PX * _STEP_PX, _MIN_PX), SMALL_PX)


def possible_targets(counts: Counts) -> list[str]:
    """The classes with training and test images, in order; where there is none those with either.

    Raises:
        SpecError: there are no classes.
    """
    if not counts.classes:
        raise SpecError(
            "the images have no classes, and an attack aims at one: sort them as class/0001.jpg, or give labelled test "
            "images with --test-data PATH"
        )
    numbers = zip(counts.classes, counts.train_per_class, counts.test_per_class, strict=True)
    return [name for name, train, test in numbers if train and test] or list(counts.classes)


def usual_attack(has_text: bool, trigger_seed: int, target: str, counts: Counts, px: int) -> Attack:
    """Saha et al.'s patch on half of the target's images; of CLIP Carlini & Terzis's on 1 % of the pairs."""
    trigger = GridTriggerSpec(
        seed=trigger_seed,
        cells=3 if px <= 2 * _MIN_PX else 4,
        size_frac=0.375 if px < 2 * _MIN_PX else 0.25,
        train_location=(0.0, 1.0),
        test_location=(0.0, 1.0),
    )
    if has_text:
        return Carlini2022BackdoorSpec(
            trigger=trigger, target_class=target, num_poisons=max(1, round(0.01 * counts.num_train))
        )
    return Saha2022TargetedSpec(trigger=trigger, target_class=target, poison_fraction_of_target=0.5)


def usual_training(kind: str, num_images: int, px: int) -> TrainSpec:
    """The small recipes' training of that method, brought to so many images of that side."""
    known = {one.method.kind: one for one in (*ssl.MINI.methods.values(), clip.TINY)}
    if (usual := known.get(kind)) is None:
        wanted = kind_among("method", kind, "method").backbone_kind
        like = next((one for one in known.values() if one.backbone.kind == wanted), clip.TINY)
        usual = TrainSpec.model_validate({"method": {"kind": kind}, "backbone": like.backbone, "fit": like.fit})
    fit, method = scale(usual.fit, num_images, _USUAL_IMAGES, px), shorten_queue(usual.method, num_images)
    backbone = usual.backbone
    if isinstance(backbone, ResNetSpec) and px > SMALL_PX:
        backbone = backbone.model_copy(update={"stem": "imagenet"})
    return usual.model_copy(update={"fit": fit, "method": method, "backbone": backbone})


def scale(fit: FitSpec, num_images: int, usual_images: int, px: int) -> FitSpec:
    """``fit`` of ``usual_images``, brought to another number of images of side ``px``.

    At least four batches an epoch; as many steps as before, within 10 and 300 epochs.
    """
    batch = min(fit.batch_size, max(2 * fit.bn_groups, 2 ** max(2, (max(num_images, 1) // 4).bit_length() - 1)))
    epochs = round(fit.epochs * usual_images / max(num_images, 1) * batch / fit.batch_size)
    views = fit.views.model_copy(update={"size_px": max(px, fit.views.size_px)})
    epochs = min(max(epochs, min(_MIN_EPOCHS, fit.epochs)), _MAX_EPOCHS)
    return fit.model_copy(update={"epochs": epochs, "batch_size": batch, "views": views})


def shorten_queue(spec: AnySpec, num_images: int) -> AnySpec:
    """``spec`` with a queue, if it has one, of no more embeddings than a power of two below the number of images."""
    queue = getattr(spec, "queue_size", 0)
    longest = 2 ** max(6, max(num_images, 1).bit_length() - 1)
    return spec.model_copy(update={"queue_size": longest}) if queue > longest else spec


def usual_defences(has_text: bool, counts: Counts, px: int) -> tuple[Repair, ...]:
    """Distillation on a trusted quarter; none where that has fewer than 16 images."""
    defence: Repair = clip.DISTIL if has_text else small.COMPRESS
    groups = [number for number in (*counts.train_per_class, counts.num_unlabelled) if number]
    trusted = sum(num_trusted(number, defence.trusted_fraction) for number in groups)
    if trusted < _MIN_TRUSTED or defence.fit is None:
        return ()
    usual = round(defence.trusted_fraction * _USUAL_IMAGES)
    fitted = defence.model_copy(update={"fit": scale(defence.fit, trusted, usual, px)})
    return (shorten_queue(fitted, trusted),)


def usual_evaluation(has_text: bool, counts: Counts) -> EvaluationSpec:
    """The common heads on all labels and, where every class has ten images, on a tenth."""
    labelled = [number for number in counts.train_per_class if number]
    if has_text:
        probes: tuple[object, ...] = ("zero_shot", "linear") if len(labelled) > 1 else ("zero_shot",)
    else:
        least = min(labelled, default=1)
        probes = ("knn" if least >= 20 else {"kind": "knn", "neighbours": least}, "linear")
    fractions = (0.1, 1.0) if min(labelled, default=0) >= 10 and not has_text else (1.0,)
    return EvaluationSpec.model_validate({"probes": probes, "label_fractions": fractions})
