"""Short names of settings: ``--target cat`` is the setting ``target=cat``, which changes what it means in every run.

A setting without a dot whose name stands in ``SHORTHANDS``. It changes the runs that it fits, and leaves those under
another attack or method as they are. What a run has in common with what takes its place is kept: another attack keeps
trigger and target, another method the sizes of its heads.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from flows.overrides import parse_run
from ssl_backdoor.data.counts import Counts
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.plan import label_of
from ssl_backdoor.specs import Repair, ReportSpec, RunSpec, Trigger, members
from ssl_backdoor.specs import backbone_of as library_backbone

Document: TypeAlias = dict[str, Any]
"""A run as plain data."""
SMALL_PX = 64
"""Up to this side images keep their resolution at the first layer."""
Change: TypeAlias = Callable[[Document, RunSpec, str, Counts | None], None]
"""Of a run as plain data, and as it is, by the value; counts of the images where the data were looked at."""
_USUAL_PATCH = {"size_frac": 0.25, "train_location": (0.0, 1.0), "test_location": (0.0, 1.0)}


def split(settings: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The short settings by name, the last of each, and the others.

    ``attack={"kind": ...}`` is no short one: it names every field.
    """
    short: dict[str, str] = {}
    others: list[str] = []
    for setting in settings:
        name, _, value = setting.partition("=")
        is_whole = name == "attack" and value.lstrip().startswith("{")
        if name in SHORTHANDS and value and not is_whole:
            short[name] = value
        else:
            others.append(setting)
    return short, tuple(others)


def expand(report: ReportSpec, short: Mapping[str, str], counts: Counts | None = None) -> ReportSpec:
    """``report`` with the short settings, in the order of ``SHORTHANDS``, made in every run that each fits.

    Raises:
        SpecError: a setting that fits no run, or has a value that cannot be meant.
    """
    runs = list(report.runs)
    for name, value in sorted(short.items(), key=lambda item: list(SHORTHANDS).index(item[0])):
        changed: list[RunSpec] = []
        refused: list[SpecError] = []
        for run in runs:
            document = run.model_dump(mode="json")
            try:
                SHORTHANDS[name](document, run, value, counts)
                changed.append(parse_run(document, f"--{name.replace('_', '-')} {value}"))
            except SpecError as error:
                refused.append(error)
                changed.append(run)
        if len(refused) == len(runs) and refused:
            raise refused[0]
        runs = changed
    return report.model_copy(update={"runs": tuple(dict.fromkeys(runs))})


def kind_among(family: str, kind: str, option: str) -> type[Any]:
    """The class of ``kind``.

    Raises:
        SpecError: there is none; the message lists near ones.
    """
    known = members(family)
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=3) or [one for one in known if one != "none"]
        raise SpecError(f"--{option} expects a kind of {family} such as {', '.join(near)}, found {kind!r:.80}")
    return known[kind]


def whole(value: str, option: str, least: int = 1) -> int:
    """``value`` as a whole number of ``least`` or more.

    Raises:
        SpecError: it is none.
    """
    if not re.fullmatch(r"\d{1,9}", value) or int(value) < least:
        raise SpecError(f"--{option} expects a whole number of {least} or more, found {value!r:.80}")
    return int(value)


def _attack(document: Document, run: RunSpec, kind: str, _: Counts | None) -> None:
    wanted = kind_among("attack", kind, "attack")
    kept = ("trigger", "target_class", "targets", "codec")
    shared = {name: document["attack"][name] for name in kept if name in document["attack"]}
    document["attack"] = {"kind": kind, **{name: one for name, one in shared.items() if name in wanted.model_fields}}


def _method(document: Document, run: RunSpec, kind: str, _: Counts | None) -> None:
    wanted = kind_among("method", kind, "method")
    before = document["train"]["method"]
    document["train"]["method"] = {name: one for name, one in before.items() if name in wanted.model_fields}
    document["train"]["method"]["kind"] = kind


def _backbone(document: Document, run: RunSpec, name: str, _: Counts | None) -> None:
    document["train"]["backbone"] = backbone_of(name, document["train"]["backbone"], run.train.fit.views.size_px)


def backbone_of(name: str, before: Mapping[str, Any], side_px: int) -> dict[str, Any]:
    """The fields of the backbone of that name, for views of ``side_px``, in place of ``before``.

    Raises:
        SpecError: there is no such backbone.
    """
    if found := re.fullmatch(r"resnet(8|10|18|50)(?:-w(\d{1,3}))?", name):
        stem = "small" if side_px <= SMALL_PX else "imagenet"
        return {"kind": "resnet", "depth": int(found[1]), "width": int(found[2] or 64), "stem": stem}
    if name == "vit":
        patch_px = next(px for px in (16, 8, 4, 2, 1) if px <= max(1, side_px // 8) and side_px % px == 0)
        return {"kind": "vit", "patch_px": patch_px, "embed_dim": 192, "depth": 12, "num_heads": 3}
    if "/" in name:
        with_text_tower = before["kind"] == "open_clip"
        return library_backbone(name, side_px, with_text_tower=with_text_tower).model_dump(mode="json")
    if before["kind"] == "open_clip":
        return {**before, "config": name}
    raise SpecError(
        f"--backbone expects resnet8, resnet10, resnet18 or resnet50 (with its width: resnet8-w16), vit, LIBRARY/NAME "
        f"of timm, torchvision or open_clip, or FILE.py:FUNCTION, found {name!r:.80}; with --method clip also a "
        "configuration of open_clip"
    )


def _image_size(document: Document, run: RunSpec, value: str, _: Counts | None) -> None:
    side_px = whole(value, "image-size", 8)
    if run.evaluation.crop_px or run.dataset.resident_px:
        raise SpecError(
            "--image-size is for recipes that store their images in one frame (dataset.frame_px): set "
            "dataset.resident_px, evaluation.resize_px, evaluation.crop_px and train.fit.views.size_px here"
        )
    scale = side_px / run.dataset.frame_px if run.dataset.frame_px else 1.0
    for place in _dictionaries(document):
        if "crop_scale" in place:  # views
            place["size_px"] = side_px
        elif place.get("size_px") and "train_location" in place:  # a patch: the same share of the image
            place["size_px"] = max(1, round(scale * place["size_px"]))
    document["dataset"]["frame_px"] = side_px
    if document["train"]["backbone"]["kind"] == "resnet":
        document["train"]["backbone"]["stem"] = "small" if side_px <= SMALL_PX else "imagenet"


def _dictionaries(value: Any) -> Iterator[Document]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dictionaries(one)


def _target(document: Document, run: RunSpec, name: str, counts: Counts | None) -> None:
    if "target_class" not in document["attack"]:
        raise SpecError(f"--target is for attacks on one class, but {run.attack.kind} has none: leave it out")
    if counts is not None and counts.classes:
        label_of(name, counts.classes)
    document["attack"]["target_class"] = name


def _trigger(document: Document, run: RunSpec, name: str, _: Counts | None) -> None:
    before = document["attack"].get("trigger")
    if before is None:
        raise SpecError(f"--trigger is for attacks with a trigger, but {run.attack.kind} has none: leave it out")
    is_kind = name in members("trigger")
    wanted = kind_among("trigger", name if is_kind else "image", "trigger")
    kept = {one: value for one, value in before.items() if one in wanted.model_fields}
    has_side = kept.get("size_px") or kept.get("size_frac")
    patch = {} if has_side or "size_frac" not in wanted.model_fields else _USUAL_PATCH
    new = {"kind": wanted.model_fields["kind"].default} if is_kind else {"kind": "image", "file": name, "sha256": ""}
    document["attack"]["trigger"] = {**kept, **patch, **new}
    if not is_kind:
        found: Trigger = wanted.model_validate(document["attack"]["trigger"])
        document["attack"]["trigger"] = found.with_digest().model_dump(mode="json")  # a file that is none: said here


def _poisons(document: Document, run: RunSpec, value: str, counts: Counts | None) -> None:
    number, attack = whole(value, "poisons"), document["attack"]
    if "num_poisons" in attack:
        attack["num_poisons"] = number
        return
    field = _fraction_field(attack, run, "poisons")
    if counts is None:
        raise SpecError(f"--poisons is a number, but {run.attack.kind} takes a share here: give --poison-fraction")
    candidates = _num_candidates(field, attack, counts)
    if number > candidates:
        raise SpecError(f"--poisons asks for {number}, but there are {candidates} images to poison: ask for fewer")
    attack[field] = min(1.0, (number + 0.5) / candidates)  # the share is rounded down


def _poison_fraction(document: Document, run: RunSpec, value: str, counts: Counts | None) -> None:
    attack = document["attack"]
    try:
        fraction = float(value)
    except ValueError:
        fraction = 0.0
    if not 0.0 < fraction <= 1.0:
        raise SpecError(f"--poison-fraction expects a share in (0, 1], found {value!r:.80}")
    if "num_poisons" in attack:
        if counts is None:
            raise SpecError(f"--poison-fraction is a share, but {run.attack.kind} takes a number: give --poisons")
        attack["num_poisons"] = max(1, round(fraction * counts.num_train))
        return
    attack[_fraction_field(attack, run, "poison-fraction")] = fraction


def _fraction_field(attack: Document, run: RunSpec, option: str) -> str:
    for name in ("poison_fraction_of_target", "poison_fraction_of_dataset"):
        if name in attack:
            return name
    raise SpecError(f"--{option} is for attacks on the data that state an amount, but {run.attack.kind} has none")


def _num_candidates(field: str, attack: Document, counts: Counts) -> int:
    if field == "poison_fraction_of_dataset":
        return counts.num_train
    return counts.train_per_class[label_of(attack["target_class"], counts.classes)]


def _epochs(document: Document, run: RunSpec, value: str, _: Counts | None) -> None:
    """Of the training; a defence's own change in the same proportion."""
    fit = document["train"]["fit"]
    scale = whole(value, "epochs") / fit["epochs"]
    for own in (defence["fit"] for defence in document["defences"] if defence.get("fit")):
        own["epochs"] = max(1, round(scale * own["epochs"]))
    fit["epochs"] = int(value)


def _defence(document: Document, run: RunSpec, value: str, counts: Counts | None) -> None:
    """Those of the run as they stand there; others train as the run does, as far as they train."""
    kinds = [kind.strip() for kind in value.split(",") if kind.strip()]
    if kinds == ["none"]:
        document["defences"] = []
        return
    there = {one["kind"]: one for one in document["defences"]}
    document["defences"] = [there.get(kind) or _new_defence(kind, run) for kind in kinds]


def _new_defence(kind: str, run: RunSpec) -> Document:
    """Of default fields, but for those that are as large as the images: how it trains, and queues."""
    fields = kind_among("defence", kind, "defence").model_fields
    new: Document = {"kind": kind}
    like = next((one for one in run.defences if isinstance(one, Repair) and one.fit is not None), None)
    fit = (like and like.fit) or run.train.fit
    if "fit" in fields:
        new["fit"] = fit.model_dump(mode="json")
    if "augmented_views" in fields:
        new["augmented_views"] = {**fit.views.model_dump(mode="json"), "crop_scale": (0.5, 1.0)}
    if "trusted_fraction" in fields:
        new["trusted_fraction"] = (like.trusted_fraction if like is not None else 0.0) or 0.25
    if "queue_size" in fields:
        new["queue_size"] = 1024
    return new


SHORTHANDS: Mapping[str, Change] = {
    "attack": _attack,
    "method": _method,
    "image_size": _image_size,
    "backbone": _backbone,
    "target": _target,
    "trigger": _trigger,
    "poisons": _poisons,
    "poison_fraction": _poison_fraction,
    "epochs": _epochs,
    "defence": _defence,
}
"""In the order in which they are made: later ones look at what earlier ones left."""
