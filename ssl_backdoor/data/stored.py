"""Opens what earlier stages left in a store: the ingested images, the poison, and what a training reads of both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_backdoor.data.dataset import Dataset, LazyDataset, Overlay
from ssl_backdoor.data.in_place import Places
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from ssl_backdoor.store.base import explain_damage


def open_lazy_dataset(store: ArtifactStore, ref: ArtifactRef) -> LazyDataset:
    """The ingested dataset behind ``ref``, reading from its shards only the images that are asked for."""
    classes, spec = _read_classes_and_spec(store, ref)
    names = ["samples.parquet"] if spec.copy else ["samples.parquet", "sources.parquet"]
    folder = store.fetch(ref, names)
    places = _open_places(ref, spec, folder)
    return LazyDataset(folder / names[0], classes, spec, lambda ranges: store.read(ref, ranges), places)


def open_dataset(store: ArtifactStore, ref: ArtifactRef) -> Dataset:
    """The ingested dataset behind ``ref``; DataError where it was indexed in place and its files changed since."""
    folder = store.fetch(ref)
    with explain_damage(ref):
        samples = pq.read_table(folder / "samples.parquet")
    classes, spec = _read_classes_and_spec(store, ref)
    if (places := _open_places(ref, spec, folder)) is not None:
        places.check()
    return Dataset(folder, samples, classes, spec, places)


def _open_places(ref: ArtifactRef, spec: DatasetSpec, folder: Path) -> Places | None:
    """The files of an index; None of images that were copied."""
    with explain_damage(ref):
        return None if spec.copy else Places(folder / "sources.parquet")


def _read_classes_and_spec(store: ArtifactStore, ref: ArtifactRef) -> tuple[tuple[str, ...], DatasetSpec]:
    """The classes of an ingested dataset, and its spec."""
    manifest = store.manifest(ref)
    with explain_damage(ref):
        return tuple(manifest.summary["classes"]), DatasetSpec.model_validate(manifest.spec["dataset"])


def open_overlay(store: ArtifactStore, ref: ArtifactRef) -> Overlay:
    """The poison overlay behind ``ref``."""
    with explain_damage(ref):
        return Overlay(folder := store.fetch(ref), pq.read_table(folder / "overlay.parquet"))


def open_training_data(store: ArtifactStore, inputs: Mapping[str, ArtifactRef]) -> tuple[Dataset, Overlay | None]:
    """The dataset and the poison of a training, without the samples that a filter leaves out."""
    dataset = open_dataset(store, inputs["dataset"])
    overlay = open_overlay(store, inputs["poison"]) if "poison" in inputs else None
    if "filter" not in inputs:
        return dataset, overlay
    judged = pq.read_table(store.fetch(inputs["filter"], ["filtered.parquet"]) / "filtered.parquet")
    left_out = judged.filter(judged["is_left_out"])["key"].combine_chunks()

    def kept(rows: pa.Table, *, of_training: bool) -> pa.Table:
        goes = pc.is_in(rows["key"], value_set=left_out)
        return rows.filter(pc.invert(pc.and_(goes, pc.equal(rows["split"], "train")) if of_training else goes))

    dataset = replace(dataset, samples=kept(dataset.samples, of_training=True))
    return dataset, overlay and replace(overlay, rows=kept(overlay.rows, of_training=False))
