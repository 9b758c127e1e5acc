"""Score one frozen backbone: features once, probes on them, the per-image record, then the numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.evaluate import probes
from ssl_backdoor.evaluate.features import Condition, Features, split_features
from ssl_backdoor.evaluate.metrics import Measurement, measure_features, measure_predictions, measurements_table
from ssl_backdoor.poison.triggers import read_source
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import EvaluationSpec, GridTriggerSpec, TriggerSpec
from ssl_backdoor.tables import PREDICTIONS
from ssl_backdoor.train.checkpoint import load_backbone

_MAP_IMAGES = 300


class NamedProbe(NamedTuple):
    """A trained probe under the name it is reported by, e.g. "linear_10"."""

    name: str
    classify: probes.Classify


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
    on_progress: OnProgress = silent,
    device: str = "cpu",
) -> dict[str, Any]:
    """Probe the backbone in folder ``model`` on clean, triggered and unseen-trigger test images.

    Probes see clean training images with their true labels; a poison never reaches them. ``trigger_file`` holds the
    bytes of an image trigger (else its own path is read). Without ``trigger`` only clean images are scored, without
    ``target_label`` the target's numbers are left out.

    Writes under ``out``: predictions.parquet (PREDICTIONS), measurements.parquet (MEASUREMENTS) and map.npz (features
    float32 (M, D), label int32 (M,), triggered bool (M,): up to 300 clean images, then the same ones triggered).

    Returns:
        {"measurements": {"name/condition/probe": value}}.

    Raises:
        DataError: no labelled training or test image, or images that cannot be used.
        SpecError: the trigger does not fit the evaluated frame, or is itself the unseen one.
        CheckpointError: the backbone cannot be loaded, or its features are not finite.
    """
    for split in ("train", "test"):
        _check_split(dataset, split)
    out.mkdir(parents=True, exist_ok=True)
    conditions = _conditions(spec, trigger, trigger_file)
    backbone = load_backbone(model).to(device).to(memory_format=torch.channels_last)
    train = split_features(backbone, dataset, "train", conditions[:1], spec, seed, on_progress)
    test = split_features(backbone, dataset, "test", conditions, spec, seed, on_progress)
    named = _probes(spec, train, len(dataset.classes), seed, device)
    predictions = pa.concat_tables(_predictions(test, named, device, on_progress))
    rows = [*measure_predictions(predictions, dataset.classes, target_label), *_similarities(test)]
    pq.write_table(predictions, out / "predictions.parquet")
    pq.write_table(measurements_table(rows), out / "measurements.parquet")
    _write_map(test, seed, out / "map.npz")
    return {"measurements": {f"{row.name}/{row.condition}/{row.probe}": row.value for row in rows}}


def _check_split(dataset: Dataset, split: str) -> None:
    labels = dataset.samples["label"].filter(pc.equal(dataset.samples["split"], split))
    if not len(labels):
        raise DataError(
            f"The dataset has no {split} images, and evaluation needs some: "
            "give a source with both splits, or set test_fraction."
        )
    if pc.max(labels).as_py() < 0:
        raise DataError(
            f"None of the {len(labels)} {split} images has a label, and evaluation needs some: give a labelled source."
        )


def _conditions(spec: EvaluationSpec, trigger: TriggerSpec | None, trigger_file: Path | None) -> list[Condition]:
    """Clean; triggered; and the same stamp with the pixels of a grid that no encoder was trained on."""
    clean = Condition("clean")
    if trigger is None:
        return [clean]
    shared = {name: getattr(trigger, name) for name in GridTriggerSpec.model_fields.keys() & type(trigger).model_fields}
    unseen = GridTriggerSpec.model_validate(shared | {"kind": "grid", "seed": spec.unseen_trigger_seed})
    if unseen == trigger:
        raise SpecError(
            f"unseen_trigger_seed {spec.unseen_trigger_seed} is the attack's own trigger seed: choose another, "
            "so that the control trigger is one no encoder was trained on."
        )
    source = read_source(trigger, trigger_file)
    return [clean, Condition("triggered", trigger, source), Condition("unseen_trigger", unseen)]


def _probes(spec: EvaluationSpec, train: Features, num_classes: int, seed: int, device: str) -> list[NamedProbe]:
    """Every probe of the spec, trained on the clean training features; kNN uses all labels."""
    clean, labels = train.values["clean"].to(device), train.labels.to(device)
    subsets = {
        fraction: torch.from_numpy(probes.labelled_subset(train.keys, train.labels.numpy(), fraction, seed)).to(device)
        for fraction in spec.label_fractions
    }
    named = []
    for probe in spec.probes:
        if probe == "knn":
            named.append(NamedProbe("knn", probes.knn(clean, labels, num_classes, spec.knn_neighbours)))
            continue
        for fraction, rows in subsets.items():
            match probe:
                case "linear":
                    classify = probes.linear(clean[rows], labels[rows], num_classes, spec.linear_l2)
                case "linear_sgd":
                    classify = probes.linear_sgd(clean[rows], labels[rows], num_classes, seed)
                case _:
                    assert_never(probe)
            named.append(NamedProbe(f"{probe}_{100 * fraction:g}", classify))
    return named


def _predictions(test: Features, named: list[NamedProbe], device: str, on_progress: OnProgress) -> Iterator[pa.Table]:
    n, done = len(test.labels), 0
    labels = pa.array(test.labels.numpy(), pa.int32())
    for condition, values in test.values.items():
        on_device: Tensor = values.to(device)
        for probe in named:
            predicted = pa.array(probe.classify(on_device).cpu().numpy(), pa.int32())
            yield pa.table(
                [test.keys, labels, pa.repeat(condition, n), pa.repeat(probe.name, n), predicted], schema=PREDICTIONS
            )
            done += 1
            on_progress(Progress(done, len(test.values) * len(named), "probes"))


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
