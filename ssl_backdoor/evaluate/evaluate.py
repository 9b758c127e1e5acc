"""Score one frozen backbone: features once, probes on them, the per-image record, then the numbers.

What is left behind: predictions, measurements, similarity and (with target images) targets, each .parquet under the
schema of its name; map.npz: features float32 (M, D), label int32 (M,), triggered bool (M,) of up to 300 clean images,
then the same ones triggered; with a trigger neighbours.npz, see ``write_neighbours``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.evaluate import probes
from ssl_backdoor.evaluate.features import Condition, Features, labelled, split_features
from ssl_backdoor.evaluate.layers import Reading
from ssl_backdoor.evaluate.metrics import (
    UNSEEN,
    Measurement,
    average_subsets,
    average_unseen,
    measure_features,
    measure_predictions,
    measure_targets,
    measurements_table,
    subset_mark,
)
from ssl_backdoor.evaluate.neighbours import write_neighbours
from ssl_backdoor.evaluate.probes import NamedProbe
from ssl_backdoor.evaluate.read import EvaluationInputs
from ssl_backdoor.evaluate.retrieval import measure_retrieval
from ssl_backdoor.evaluate.similarity import similarity_table
from ssl_backdoor.evaluate.targets import score_targets
from ssl_backdoor.methods.clip_towers import TextTower
from ssl_backdoor.poison.targets import choose_targets
from ssl_backdoor.poison.triggers.unseen import unseen_triggers
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs import EvaluationSpec, TargetsSpec, TriggerSpec
from ssl_backdoor.specs.probe import FeatureProbe, OwnFeaturesProbe, TextProbe
from ssl_backdoor.tables import PREDICTIONS
from ssl_backdoor.train.checkpoint import TEXT_WEIGHTS, load_backbone, load_text_tower

_MAP_IMAGES = 300


def evaluate(
    spec: EvaluationSpec,
    dataset: Dataset,
    model: Path,
    *,
    trigger: TriggerSpec | None,
    trigger_file: Path | None,
    target_label: int | None,
    out: Path,
    seed: int,
    targets: TargetsSpec | None = None,
    on_progress: OnProgress = silent,
    device: str = "cpu",
) -> dict[str, Any]:
    """Probe the backbone in folder ``model`` on test images: clean, triggered, and under triggers never seen.

    Probes see clean training images with true labels, or class names alone; never a poison. ``dataset`` may be another
    than the backbone's (transfer). ``trigger_file`` holds the bytes of an image trigger (else its own path is read).
    Without ``trigger`` only clean images are scored, without ``target_label`` the target's numbers are left out.
    ``targets`` are what an attack under ``seed`` aims at.

    Returns {"measurements": {"name/condition/probe": value}}; the files written under ``out`` are listed above.

    Raises:
        DataError: no labelled training or test image, or images that cannot be used.
        SpecError: a trigger that does not fit the evaluated frame or has no other patterns, more targets than test
            images, zero_shot of a model without a text tower, linear_layers of what is no ResNet, or too much to hold.
        CheckpointError: the backbone cannot be loaded, or its features are not finite.
    """
    _check_split(dataset, "test")
    conditions = _conditions(spec, trigger, trigger_file, target_label, seed)
    chosen = choose_targets(dataset.samples, dataset.classes, targets, seed) if targets else None
    text_tower = _text_tower(model, device) if any(probe.needs_text_tower for probe in spec.probes) else None
    backbone = load_backbone(model).to(device).to(memory_format=torch.channels_last)
    train = _clean_training_features(spec, dataset, backbone, seed, on_progress)
    inputs = EvaluationInputs(backbone, dataset, conditions, spec, seed, on_progress)
    others = [probe.read(inputs) for probe in spec.probes if isinstance(probe, OwnFeaturesProbe)]
    named = _probes(spec, dataset.classes, train, text_tower, seed, device)
    test = split_features(backbone, dataset, "test", conditions, spec, seed, on_progress)
    readings = chain((Reading(test, named),), *others)
    predictions, scored = _read(readings, len(dataset.classes), chosen, device, on_progress)
    rows = [*measure_predictions(predictions, dataset.classes, target_label), *_similarities(test)]
    rows += measure_targets(scored) if scored is not None else ()
    rows += [row for metric in spec.metrics for row in metric.measure(predictions, dataset.classes, target_label)]
    rows = average_unseen(rows)
    if text_tower:
        rows += measure_retrieval(text_tower, test.values["clean"], labelled(dataset, "test")["caption"].to_pylist())
    rows = average_subsets(rows)
    tables = {"predictions": predictions, "measurements": measurements_table(rows), "targets": scored}
    shown = {name: values for name, values in test.values.items() if not name.startswith(UNSEEN)}
    _write_tables(out, tables | {"similarity": similarity_table(shown, device, _clean_labels(named, predictions))})
    _write_map(test, seed, out / "map.npz")
    if trigger is not None:
        write_neighbours(dataset, train, test, conditions[1], target_label, spec, seed, out / "neighbours.npz")
    return {"measurements": {f"{row.name}/{row.condition}/{row.probe}": row.value for row in rows}}


def _write_tables(out: Path, tables: Mapping[str, pa.Table | None]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if table is not None:
            pq.write_table(table, out / f"{name}.parquet")


def _text_tower(model: Path, device: str) -> TextTower:
    if not (model / TEXT_WEIGHTS).is_file():
        raise SpecError(
            "the probe zero_shot needs a model with a text tower, and this one has none: "
            "train with method clip, or leave zero_shot out of evaluation.probes"
        )
    return load_text_tower(model).to(device)


def _check_split(dataset: Dataset, split: str) -> None:
    labels = dataset.samples["label"].filter(pc.equal(dataset.samples["split"], split))
    if not len(labels):
        raise DataError(
            f"the dataset has no {split} images, and evaluation needs some: "
            "give a source with both splits, or set test_fraction"
        )
    if pc.max(labels).as_py() < 0:
        raise DataError(
            f"none of the {len(labels)} {split} images has a label, and evaluation needs some: give a labelled source"
        )


def _conditions(
    spec: EvaluationSpec, trigger: TriggerSpec | None, trigger_file: Path | None, target_label: int | None, seed: int
) -> list[Condition]:
    """Clean; triggered; and the same stamps with the pixels of triggers that no encoder was trained on."""
    if trigger is None:
        return [Condition("clean")]
    source = trigger.read(trigger_file)
    unseen = unseen_triggers(trigger, spec.unseen_triggers, sub_seed(seed, "pair", str(target_label)), source)
    conditions = [Condition(f"{UNSEEN}_{number}", one) for number, one in enumerate(unseen, start=1)]
    return [Condition("clean"), Condition("triggered", trigger, source), *conditions]


def _clean_training_features(
    spec: EvaluationSpec, dataset: Dataset, backbone: nn.Module, seed: int, on_progress: OnProgress
) -> Features | None:
    """None where no probe of the spec learns."""
    if not any(probe.learns for probe in spec.probes):
        return None
    _check_split(dataset, "train")
    return split_features(backbone, dataset, "train", [Condition("clean")], spec, seed, on_progress)


def _probes(
    spec: EvaluationSpec,
    classes: Sequence[str],
    train: Features | None,
    text_tower: TextTower | None,
    seed: int,
    device: str,
) -> list[NamedProbe]:
    """Every probe of the spec on the backbone's features: those that learn, then those of the text tower."""
    named = _trained_probes(spec, train, len(classes), seed, device) if train else []
    if text_tower:
        of_text = [probe for probe in spec.probes if isinstance(probe, TextProbe)]
        named += [NamedProbe(probe.kind, probe.scores(text_tower, classes)) for probe in of_text]
    return named


def _trained_probes(
    spec: EvaluationSpec, train: Features, num_classes: int, seed: int, device: str
) -> list[NamedProbe]:
    """Every probe of the spec that learns, trained on the clean training features; kNN uses all labels."""
    clean, labels = train.values["clean"].to(device), train.labels.to(device)
    subsets = {
        f"_{100 * fraction:g}{subset_mark(draw)}": torch.from_numpy(
            probes.labelled_subset(train.keys, train.labels.numpy(), fraction, seed, draw)
        ).to(device)
        for fraction in spec.label_fractions
        for draw in range(spec.num_subsets(fraction))
    }
    named = []
    for probe in spec.probes:
        if isinstance(probe, FeatureProbe):
            of_probe: Mapping[str, Tensor | slice] = subsets if probe.uses_label_fractions else {"": slice(None)}
            for suffix, rows in of_probe.items():
                fitted = probe.fit(clean[rows], labels[rows], num_classes, seed)
                heads = fitted if isinstance(fitted, Mapping) else {probe.kind: fitted}
                named += [NamedProbe(head + suffix, scores) for head, scores in heads.items()]
    return named


def _read(
    readings: Iterable[Reading],
    num_classes: int,
    targets: pa.Table | None,
    device: str,
    on_progress: OnProgress,
) -> tuple[pa.Table, pa.Table | None]:
    """PREDICTIONS of all readings and, where there are ``targets``, TARGETS. Progress is that of the first one."""
    predictions, scored = list[pa.Table](), list[pa.Table]()
    for test, named in readings:
        predictions += _predictions(test, named, num_classes, device, silent if predictions else on_progress)
        if targets is not None:
            scored.append(score_targets(targets, test, named, device))
    return pa.concat_tables(predictions), pa.concat_tables(scored) if scored else None


def _predictions(
    test: Features, named: Sequence[NamedProbe], num_classes: int, device: str, on_progress: OnProgress
) -> Iterator[pa.Table]:
    n, done = len(test.labels), 0
    labels = pa.array(test.labels.numpy(), pa.int32())
    for condition, values in test.values.items():
        on_device: Tensor = values.to(device)
        for probe in named:
            predicted = pa.array(probes.predict(probe.scores, on_device, num_classes).cpu().numpy(), pa.int32())
            yield pa.table(
                [test.keys, labels, pa.repeat(condition, n), pa.repeat(probe.name, n), predicted], schema=PREDICTIONS
            )
            done += 1
            on_progress(Progress(done, len(test.values) * len(named), "probes"))


def _clean_labels(named: Sequence[NamedProbe], predictions: pa.Table) -> Tensor | None:
    """int64 (N,): of the clean images, by the last of the probes on features, zero_shot where there is one."""
    if not named:
        return None
    of_probe = pc.and_(pc.equal(predictions["probe"], named[-1].name), pc.equal(predictions["condition"], "clean"))
    return torch.from_numpy(predictions.filter(of_probe)["predicted"].to_numpy().astype(np.int64))


def _similarities(test: Features) -> Iterator[Measurement]:
    clean = test.values["clean"].numpy()
    for condition, values in test.values.items():
        if condition != "clean":
            yield from measure_features(clean, values.numpy(), condition)


def _write_map(test: Features, seed: int, file: Path) -> None:
    """The same few test images, clean and triggered, for the embedding map."""
    n = len(test.labels)
    rows = np.sort(stream(seed, "map").choice(n, min(n, _MAP_IMAGES), replace=False))
    parts = [test.values[name].numpy()[rows] for name in ("clean", "triggered") if name in test.values]
    np.savez(
        file,
        features=np.concatenate(parts),
        label=np.tile(test.labels.numpy()[rows].astype(np.int32), len(parts)),
        triggered=np.repeat(np.arange(len(parts)) == 1, len(rows)),
    )
