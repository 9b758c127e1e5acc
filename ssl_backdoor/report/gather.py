"""The report stage: gathers what the runs left in the store and has the page written."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.data.stored import open_lazy_dataset, open_overlay
from ssl_backdoor.identity import artifact_key
from ssl_backdoor.report.examples import read_examples
from ssl_backdoor.report.frame import EvaluatedModel, covariates
from ssl_backdoor.report.page import Setup, write_report
from ssl_backdoor.report.setting import data_label, describe_setting, title_of
from ssl_backdoor.report.stealth import stealth
from ssl_backdoor.specs import Arm, DatasetSpec, ReportSpec, RunSpec
from ssl_backdoor.store import ArtifactRef, ArtifactStore, Manifest

TRIGGER = "trigger.png"
MAX_INSPECTED_POISONS = 50  # poisons of each attack, at most, that a report compares with their originals


def report(spec: ReportSpec, inputs: Mapping[str, ArtifactRef], store: ArtifactStore, out: Path) -> dict[str, Any]:
    """Gather what the inputs left in the store; roles are "RUN/poison", "RUN/ARM/model" and "RUN/ARM/scores"."""
    models, poisons, ingested, encoders = [], {}, dict[DatasetSpec, Manifest](), []
    triggers: dict[str, Path] = {}
    first: dict[str, ArtifactRef] = {}  # by kind of attack
    figures = {figure.attack for figure in spec.figures}
    for index, run in enumerate(spec.runs):
        poison = inputs[f"{index:03d}/poison"]
        crafted = store.manifest(poison)
        images = store.manifest(store.ref("ingest", crafted.inputs["dataset"]))
        ingested[run.dataset] = images
        if TRIGGER in crafted.files:
            triggers.setdefault(run.attack.label, store.fetch(poison, [TRIGGER]) / TRIGGER)
        first.setdefault(run.attack.kind, poison)
        if run.attack.kind not in figures:  # a figure's own table says how many
            poisons[run.label] = crafted.summary
        for one, arms in _one_defence_each(run):
            for name, arm in arms.items():
                if (place := f"{index:03d}/{arm.role}") + "/scores" not in inputs:
                    continue
                model, scores = inputs[f"{place}/model"], inputs[f"{place}/scores"]
                folder, made = store.fetch(scores), store.manifest(model)
                encoders.append(made)
                histogram = folder / "similarity.parquet"
                models.append(
                    EvaluatedModel(
                        run=one,
                        arm=name,
                        measurements=pa.concat_tables(_measurements(store, inputs, f"{place}/")),
                        predictions=pq.read_table(folder / "predictions.parquet"),
                        map_file=folder / "map.npz",
                        seconds=made.seconds + store.manifest(scores).seconds,
                        curves=_curves(store, model),
                        facts=covariates(one, arm.trained_on == "clean", made, crafted, images),
                        similarity=pq.read_table(histogram) if histogram.exists() else None,
                        neighbours=sheet if (sheet := folder / "neighbours.npz").exists() else None,
                        encoder=model.key,
                    )
                )
    seconds = _seconds(inputs, store)
    looks = {kind: _poisons(poison, store, kind) for kind, poison in first.items()}
    examples = [example for shown, _ in looks.values() for example in shown]
    stealth = {kind: measured for kind, (_, measured) in looks.items() if measured}
    key = artifact_key("report", spec, {role: ref.key for role, ref in inputs.items()})
    data = {dataset: data_label(dataset, made.summary) for dataset, made in ingested.items()}
    words = describe_setting(spec.runs, models, ingested, encoders, key)
    setup = Setup(words, data, triggers, title_of(spec.runs, data.values()))
    written = write_report(spec, models, examples, poisons, out, seconds, stealth=stealth, setup=setup)
    return written | {"seconds": seconds}


def _measurements(store: ArtifactStore, inputs: Mapping[str, ArtifactRef], place: str) -> Iterator[pa.Table]:
    """Those of the encoder at ``place``, and of the filter and the detectors that judged it or what it learned from."""
    for role, ref in inputs.items():
        if role.startswith(place) and not role.endswith("/model"):
            yield pq.read_table(store.fetch(ref, ["measurements.parquet"]) / "measurements.parquet")


def _curves(store: ArtifactStore, model: ArtifactRef) -> pa.Table | None:
    """Those of the training that made the encoder; None of a repair that trains nothing."""
    if "curves.parquet" not in store.manifest(model).files:
        return None
    return pq.read_table(store.fetch(model, ["curves.parquet"]) / "curves.parquet")


def _one_defence_each(run: RunSpec) -> Iterator[tuple[RunSpec, dict[str, Arm]]]:
    """``run`` once for each of its defences, as a report compares them, and its arms as a report calls them."""
    clean, poisoned, *defended = run.arms
    undefended = {"control": clean, "suspect": poisoned}
    if len(defended) != 2:
        yield run.model_copy(update={"defences": ()}), undefended
    for repaired_clean, repaired in zip(defended[::2], defended[1::2], strict=True):
        changes: dict[str, Any] = {"defences": (repaired.defence,)}
        if len(defended) > 2:
            changes["variant"] = ", ".join(filter(None, (run.variant, repaired.label.partition(" + ")[2])))
        arms = undefended | {"student": repaired, "distilled_control": repaired_clean}
        yield run.model_copy(update=changes), arms


def _seconds(inputs: Mapping[str, ArtifactRef], store: ArtifactStore) -> dict[str, float]:
    """Wall-clock of the distinct artifacts behind a report, summed by stage."""
    total: dict[str, float] = {}
    for ref in dict.fromkeys(inputs.values()):
        total[ref.stage] = round(total.get(ref.stage, 0.0) + store.manifest(ref).seconds, 3)
    return total


def _poisons(poison: ArtifactRef, store: ArtifactStore, attack: str, shown: int = 6) -> tuple[list[Any], Any]:
    """The first poisoned images with their originals, and how visible the first ``MAX_INSPECTED_POISONS`` are."""
    dataset = open_lazy_dataset(store, store.ref("ingest", store.manifest(poison).inputs["dataset"]))
    overlay = open_overlay(store, poison)
    reader = read_examples(dataset, overlay, attack, MAX_INSPECTED_POISONS)
    examples = list(islice(reader, shown))
    if "stretch" in overlay.rows.column_names:  # each is made of two images, and like neither
        return examples, None
    return examples, stealth((one.original, one.poisoned, one.box) for one in chain(examples, reader))
