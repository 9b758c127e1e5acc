"""What was run, in words, from the runs and their artifacts: a recipe's text could be made false by settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

from ssl_backdoor.report.frame import EvaluatedModel
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
from ssl_backdoor.words import listing, method_label, plural

_MOST_NAMES = 12


def describe_setting(
    runs: Sequence[RunSpec], models: Sequence[EvaluatedModel], images: Mapping[DatasetSpec, Mapping[str, Any]]
) -> dict[str, str]:
    """What each part of ``runs`` was, by its name; what differs between runs is listed, or told as a range.

    Args:
        runs: of one report.
        models: every encoder of them; their facts say how many poisons there were, and on what.
        images: the summary of the ingestion of each dataset.
    """
    words = {
        "data": "; ".join(_distinct(_data(one, images.get(one, {})) for one in _distinct(r.dataset for r in runs)))
    }
    words["encoders"] = "; ".join(_distinct(_training(run.train) for run in runs))
    by_attack: dict[str, list[EvaluatedModel]] = {}
    for model in models:
        if not model.made.is_clean:
            by_attack.setdefault(model.run.attack.kind, []).append(model)
    words |= {f"attack {kind.replace('_', ' ')}": _attack(found) for kind, found in by_attack.items()}
    defences = [one for run in runs for one in run.defences]
    if defences:
        words["defences"] = "; ".join(
            _distinct(
                f"{one.label} on {100 * share:g} % of the training images as trusted data"
                if (share := one.trusted_fraction)
                else one.label
                for one in defences
            )
        )
    pairs, seeds = len({model.replicate[0] for model in models}), len({run.seed for run in runs})
    words["repeats"] = f"{plural(pairs, 'trigger/target pair')}, {plural(seeds, 'seed')}"
    return {name: text for name, text in words.items() if text}


def _data(dataset: DatasetSpec, summary: Mapping[str, Any]) -> str:
    own = "the embedded image set" if isinstance(dataset.source, ScenesSourceSpec) else "the images given"
    classes = summary.get("classes", dataset.classes)
    names = ", ".join(classes[:_MOST_NAMES]) + ", ..." * (len(classes) > _MOST_NAMES)
    parts = [f"{own}, {plural(len(classes), 'class').replace('classs', 'classes')} ({names})" if classes else own]
    if {"num_train", "num_test"} <= summary.keys():
        parts.append(f"{summary['num_train']:,} training and {summary['num_test']:,} test images")
    if side_px := dataset.frame_px or dataset.resident_px:
        parts.append(f"{'stored' if dataset.frame_px else 'held for training'} at {side_px} px")
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
    return (
        f"{method_label(train.method.kind)} on {_backbone(train.backbone)}, {plural(fit.epochs, 'epoch')}, batches of "
        f"{fit.batch_size:,}, views of {fit.views.size_px} px"
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

    sides = sorted({one["patch_frac"] for one in facts if "patch_frac" in one})
    parts = [f"a patch of {100 * side:.3g} % of the side, {100 * side**2:.2g} % of the area" for side in sides]
    attack = models[0].run.attack
    adds = attack.adds_pairs or attack.adds_images
    what = "added pairs" if attack.adds_pairs else "added images" if attack.adds_images else "poisoned images"
    each = " for each target image" if models[0].run.attack.targets else ""
    parts += told("num_poisons", f"{what}{each}")
    parts += told("poison_fraction_of_target", "% of the target's training images", 100)
    parts += told("poison_fraction_of_dataset", "% of the training images" + " in number" * adds, 100)
    return ", ".join(parts)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _number(value: float) -> str:
    """Three digits, and whole numbers whole."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
