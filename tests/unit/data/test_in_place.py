"""An index of images that stay in their tars gives what copies give, and never what they have become since."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from picture_files import cats_and_dogs, picture, write_folder, write_tar, write_zip

from ssl_backdoor.data.in_place import _groups
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.data.stored import open_dataset, open_lazy_dataset, open_overlay
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.errors import DataError
from ssl_backdoor.estimate.preview import preview_artifact
from ssl_backdoor.poison.attacks.saha2022 import Saha2022UntargetedSpec
from ssl_backdoor.poison.export import export
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec
from ssl_backdoor.stages import IngestStage, PoisonStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store

SPEC = DatasetSpec(test_fraction=0.2, captions_required=True)
ATTACK = Saha2022UntargetedSpec(trigger=GridTriggerSpec(size_px=4), poison_fraction_of_dataset=0.2)


def write_shards(folder: Path, shards: int = 3, each: int = 10) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        files = {}
        for number in range(shard * each, (shard + 1) * each):
            about = {"caption": f"picture {number}", "label": number % 2}
            files |= {f"{number:05d}.png": picture(number), f"{number:05d}.json": json.dumps(about).encode()}
        write_tar(folder / f"{shard:05d}.tar", files)
    return str(folder / f"{{00000..{shards - 1:05d}}}.tar")


def ingested(store: ArtifactStore, data: str, **fields: object) -> ArtifactRef:
    spec = SPEC.model_copy(update=fields)
    return run_stage(StageCall(IngestStage(dataset=spec), data=data), store).ref


def poisoned(store: ArtifactStore, images: ArtifactRef) -> ArtifactRef:
    return run_stage(StageCall(PoisonStage(attack=ATTACK, seed=0), {"dataset": images}), store).ref


def test_an_index_gives_what_copies_give(tmp_path: Path) -> None:
    data, store = write_shards(tmp_path / "shards"), open_store(str(tmp_path / "store"))
    copied, indexed = ingested(store, data), ingested(store, data, copy=False)
    assert set(store.manifest(indexed).files) == {"samples.parquet", "rejected.parquet", "sources.parquet"}
    assert store.manifest(indexed).summary["sources"][0][0] == "00000.tar"
    assert str(tmp_path) not in store.manifest(indexed).model_dump_json()
    one, two = open_dataset(store, copied), open_dataset(store, indexed)
    places = ["shard", "offset"]
    assert one.samples.drop_columns(places).equals(two.samples.drop_columns(places))
    assert two.samples["shard"][0].as_py() == (tmp_path / "shards" / "00000.tar").as_uri()
    overlays = [poisoned(store, images) for images in (copied, indexed)]
    assert store.manifest(overlays[0]).digest == store.manifest(overlays[1]).digest
    overlay = open_overlay(store, overlays[1])
    for split in ("train", "test"):
        expected = load_resident(one, split, overlay)
        assert torch.equal(expected.images, load_resident(two, split, overlay).images)
        order = torch.arange(len(expected.images)).flip(0)
        assert torch.equal(expected.images[order], Streamed(two, split, overlay)[order])
    of_first_shard = preview_artifact(store, indexed).images
    assert 0 < len(of_first_shard) <= 10
    assert set(of_first_shard) <= set(preview_artifact(store, copied).images)
    for name, dataset in (("one", one), ("two", two)):
        export(dataset, overlay, tmp_path / name)
    written, again = ((tmp_path / name / "train-000000.tar").read_bytes() for name in ("one", "two"))
    assert written == again
    (tmp_path / "shards" / "00002.tar").write_bytes(b"x")
    with pytest.raises(DataError, match="is not the one that was indexed"):
        export(two, overlay, tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_neighbours_are_read_at_once(tmp_path: Path) -> None:
    data, store = write_shards(tmp_path), open_store(str(tmp_path / "store"))
    dataset = open_dataset(store, ingested(store, data, copy=False))
    groups = list(_groups(dataset.samples))
    assert [len(group.images) for group in groups] == [10, 10, 10]
    some = dataset.samples.take([29, 3, 4, 3])
    assert [len(group.images) for group in _groups(some)] == [1, 2, 1]
    by_key = dict(zip(dataset.samples["key"].to_pylist(), dataset.read(dataset.samples), strict=True))
    assert list(dataset.read(some)) == [by_key[key] for key in some["key"].to_pylist()]


@pytest.mark.parametrize("change", ["an image", "the size", "gone"])
def test_what_changed_is_found_and_never_used(tmp_path: Path, change: str) -> None:
    data, store = write_shards(tmp_path), open_store(str(tmp_path / "store"))
    images = ingested(store, data, copy=False)
    dataset, shard = open_dataset(store, images), tmp_path / "00001.tar"
    whole = shard.read_bytes()
    if change == "gone":
        shard.unlink()
    elif change == "the size":
        shard.write_bytes(whole + bytes(10_240))
    else:
        shard.write_bytes(whole.replace(picture(13), picture(99)))
    expected = {"an image": "is not the one that was indexed", "gone": "cannot read file://"}.get(change, "")
    if expected:
        with pytest.raises(DataError, match=expected):
            list(dataset.read(dataset.samples))
        with pytest.raises(DataError, match=expected):
            list(open_lazy_dataset(store, images).read(dataset.samples))
    if change != "an image":  # seen before anything is read
        with pytest.raises(DataError, match=r"is not the file that was indexed|cannot read"):
            open_dataset(store, images)
    shard.write_bytes(whole.replace(picture(13), picture(99)))
    again = ingested(store, data, copy=False)
    assert again.key != images.key
    found = open_dataset(store, again)
    assert picture(99) in list(found.read(found.samples))


def test_the_same_shards_elsewhere_are_another_index_and_the_same_copy(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    here, there = write_shards(tmp_path / "here"), write_shards(tmp_path / "there")
    assert ingested(store, here).key == ingested(store, there).key
    assert ingested(store, here, copy=False).key != ingested(store, there, copy=False).key


def test_a_tar_of_folders_is_indexed_and_a_file_uri_is_a_path(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    tar = write_tar(tmp_path / "a b.tar", cats_and_dogs())
    images = ingested(store, tar.as_uri(), copy=False, captions_required=False)
    assert images == ingested(store, str(tar), copy=False, captions_required=False)
    samples = pq.read_table(store.fetch(images) / "samples.parquet")
    cats = samples.filter(pc.equal(samples["key"], "train-cat-001"))
    assert list(open_dataset(store, images).read(cats)) == [cats_and_dogs()["train/cat/001.png"]]


@pytest.mark.parametrize("kind", ["folder", "zip", "gz"])
def test_what_has_no_place_of_its_own_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        data = write_folder(tmp_path / "set", cats_and_dogs())
    elif kind == "zip":
        data = write_zip(tmp_path / "set.zip", cats_and_dogs())
    else:
        data = write_tar(tmp_path / "set.tar.gz", cats_and_dogs(), "w:gz")
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(DataError, match=r"uncompressed tar files, but 'te?r?a?i?n?s?t?/.*set dataset\.copy=true"):
        ingested(store, str(data), copy=False, captions_required=False)
    assert store.keys("ingest") == ()


def test_drawn_images_have_no_place() -> None:
    with pytest.raises(ValueError, match="cannot stay where they lie"):
        DatasetSpec(source=ScenesSourceSpec(), copy=False)
