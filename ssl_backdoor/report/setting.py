"""What was run, in words, from the runs and their artifacts: a recipe's text could be made false by settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

from ssl_backdoor.report.frame import EvaluatedModel, probe_label
from ssl_backdoor.specs import (
    BackboneSpec,
    DatasetSpec,
    ExternalSpec,
    OpenCLIPSpec,
    PatchStickersSpec,
    ResNetSpec,
    RunSpec,
    ScenesSourceSpec,
    TemplateCaptionsSpec,
    TrainSpec,
    ViTSpec,
)
from ssl_backdoor.store import Manifest
from ssl_backdoor.words import listing, method_label, plural

_MOST_NAMES = 12
_MOST_IN_TITLE = 3
_WITH, _WHEN, _AGAIN = "made with", "encoders made", "the same again"
MADE = frozenset((_WITH, _WHEN, _AGAIN))
"""Parts of a setting that are no choice of an experiment."""
_OPTIMISERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def describe_setting(
    runs: Sequence[RunSpec],
    models: Sequence[EvaluatedModel],
    images: Mapping[DatasetSpec, Manifest],
    encoders: Sequence[Manifest] = (),
    key: str = "",
) -> dict[str, str]:
    """What each part of ``runs`` was, by its name; what differs between runs is listed, or told as a range.

    All of it follows from the specs and from what artifacts say of themselves, so that the page of the same artifacts
    is the same.

    Args:
        runs: of one report.
        models: every encoder of them; their facts say how many poisons there were, and on what.
        images: the ingestion of each dataset.
        encoders: the artifacts of all encoders, which say what made them and when.
        key: of the report.
    """
    words = {"data": "; ".join(_distinct(_data(one, images.get(one)) for one in _distinct(r.dataset for r in runs)))}
    words["encoders"] = "; ".join(_distinct(_training(run.train) for run in runs))
    by_attack: dict[str, list[EvaluatedModel]] = {}
    for model in models:
        if not model.made.is_clean:
            by_attack.setdefault(model.run.attack.kind, []).append(model)
    words |= {f"attack {kind.replace('_', ' ')}": _attack(found) for kind, found in by_attack.items()}
    defences = [one for run in runs for one in run.defences]
    words["defences"] = "; ".join(
        _distinct(
            f"{one.label} on {100 * share:g} % of the training images as trusted data"
            if (share := one.trusted_fraction)
            else one.label
            for one in defences
        )
    )
    probes = _distinct(name for run in runs for name in run.evaluation.probe_names(run.train.backbone))
    words["probes"] = f"{listing([probe_label(name) for name in probes])}; {_unseen(runs)}"
    pairs, seeds = len({model.replicate[0] for model in models}), sorted({run.seed for run in runs})
    shown = listing([f"{seed}" for seed in seeds[:_MOST_NAMES]]) + ", ..." * (len(seeds) > _MOST_NAMES)
    words["repeats"] = f"{plural(pairs, 'trigger/target pair')}, {plural(len(seeds), 'seed')} ({shown})"
    words |= _made(encoders)
    if key:
        data = "" if all(isinstance(run.dataset.source, ScenesSourceSpec) for run in runs) else " --data PATH"
        words[_AGAIN] = f"ssl-backdoor run report/{key[:12]}{data}"
    return {name: text for name, text in words.items() if text}


def title_of(runs: Sequence[RunSpec], data: Iterable[str]) -> str:
    """A page's title, of at most a line or two: what was attacked, how, and on which ``data``."""
    methods = _distinct(method_label(run.train.method.kind) for run in runs)
    attacks = _distinct(run.attack.kind.replace("_", " ") for run in runs)
    sets = _distinct(data)
    told = f"{_title_part(methods, 'method')} under {_title_part(attacks, 'attack')}"
    return f"{told}: {_title_part(sets, 'dataset')}" if sets else told


def _title_part(names: Sequence[str], what: str) -> str:
    return listing(names) if len(names) <= _MOST_IN_TITLE else plural(len(names), what)


def _unseen(runs: Sequence[RunSpec]) -> str:
    counts = sorted({run.evaluation.unseen_triggers for run in runs})
    return f"{listing([f'{count}' for count in counts])} unseen triggers for each pair and seed"


def _made(encoders: Sequence[Manifest]) -> dict[str, str]:
    """By which versions and when, as the encoders' artifacts say; where they differ all are named."""
    named = {"ssl-backdoor": "", "commit": "commit ", "python": "Python ", "torch": "torch ", "numpy": "NumPy ",
             "machine": "on "}  # fmt: skip
    told = [
        f"{prefix or f'{name} '}{listing(_distinct(found))}"
        for name, prefix in named.items()
        if (found := [one.versions[name] for one in encoders if name in one.versions])
    ]
    dates = sorted(one.created for one in encoders if one.created)
    when = "" if not dates else f"{dates[0]} UTC" if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]} UTC"
    return {_WITH: ", ".join(told), _WHEN: when}


def data_label(dataset: DatasetSpec, summary: Mapping[str, Any]) -> str:
    """In a row of a table: 10 classes, 5,000 images, 16 px."""
    parts = ["embedded set"] if isinstance(dataset.source, ScenesSourceSpec) else []
    if classes := summary.get("classes", dataset.classes):
        parts.append(f"{len(classes)} classes")
    if "num_train" in summary:
        parts.append(f"{summary['num_train']:,} images")
    if side_px := dataset.frame_px or dataset.resident_px:
        parts.append(f"{side_px} px")
    return ", ".join(parts) or "images given"


def _data(dataset: DatasetSpec, ingested: Manifest | None) -> str:
    summary = ingested.summary if ingested else {}
    own = "the embedded image set" if isinstance(dataset.source, ScenesSourceSpec) else "the images given"
    classes = summary.get("classes", dataset.classes)
    names = ", ".join(classes[:_MOST_NAMES]) + ", ..." * (len(classes) > _MOST_NAMES)
    parts = [f"{own}, {plural(len(classes), 'class').replace('classs', 'classes')} ({names})" if classes else own]
    if {"num_train", "num_test"} <= summary.keys():
        parts.append(f"{summary['num_train']:,} training and {summary['num_test']:,} test images")
    if side_px := dataset.frame_px or dataset.resident_px:
        parts.append(f"{'stored' if dataset.frame_px else 'held for training'} at {side_px} px")
    if ingested and (digest := ingested.inputs.get("source")):
        parts.append(f"digest {digest[:12]}")
    if isinstance(dataset.captions, TemplateCaptionsSpec):
        parts.append("captions written from the class")
    if isinstance(dataset.stickers, PatchStickersSpec):
        count = (
            f"{summary['num_stickers']:,}" if "num_stickers" in summary else f"{100 * dataset.stickers.train_frac:g} %"
        )
        parts.append(
            f"{count} of the training images, of all classes, bear a patch with a pattern of its own (stickers)"
        )
    return ", ".join(parts)


def _training(train: TrainSpec) -> str:
    fit = train.fit
    kind = fit.optimizer.kind
    return (
        f"{method_label(train.method.kind)} on {_backbone(train.backbone)}, {plural(fit.epochs, 'epoch')}, "
        f"{_OPTIMISERS.get(kind, kind)} at rate {fit.optimizer.lr:g}, batches of {fit.batch_size:,}, "
        f"views of {fit.views.size_px} px"
    )


def _backbone(backbone: BackboneSpec) -> str:
    match backbone:
        case ResNetSpec(depth=depth, width=width):
            return f"ResNet-{depth}" + (f" ({width} channels)" if width != 64 else "")
        case ViTSpec(patch_px=patch_px, depth=depth, embed_dim=dim):
            return f"ViT (patches of {patch_px} px, {depth} blocks of {dim})"
        case OpenCLIPSpec(config=config):
            return config
        case ExternalSpec(library=library, name=name):
            return f"{name} ({'a file of its own' if library == 'own' else library})"
        case _:
            assert_never(backbone)


def _attack(models: Sequence[EvaluatedModel]) -> str:
    """Its patch and how many images it poisons, or how many pairs it adds."""
    facts = [model.facts for model in models]

    def told(name: str, unit: str, scale: float = 1.0) -> list[str]:
        values = sorted({one[name] for one in facts if name in one})
        return [f"{listing([_number(scale * value) for value in values])} {unit}"] if values else []

    triggers = _distinct(m.run.attack.trigger.name for m in models if m.run.attack.trigger is not None)
    targets = _distinct(m.target_name for m in models if m.target_name)
    sides = sorted({one["patch_frac"] for one in facts if "patch_frac" in one})
    parts = [f"a patch of {100 * side:.3g} % of the side, {100 * side**2:.2g} % of the area" for side in sides]
    if triggers:
        parts.insert(0, f"trigger {_few(triggers)}")
    if targets:
        parts.append(f"target {_few(targets)}")
    attack = models[0].run.attack
    adds = attack.adds_pairs or attack.adds_images
    what = "added pairs" if attack.adds_pairs else "added images" if attack.adds_images else "poisoned images"
    each = " for each target image" if models[0].run.attack.targets else ""
    parts += told("num_poisons", f"{what}{each}")
    parts += told("poison_fraction_of_target", "% of the target's training images", 100)
    parts += told("poison_fraction_of_dataset", "% of the training images" + " in number" * adds, 100)
    return ", ".join(parts)


def _few(names: Sequence[str]) -> str:
    return listing(names) if len(names) <= _MOST_NAMES else f"of {len(names)}"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _number(value: float) -> str:
    """Three digits, and whole numbers whole."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
