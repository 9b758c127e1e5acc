"""Training images of one source, labelled test images of another: what is kept, refused, recorded and attacked."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_files import cats_and_dogs, picture, tree, write_folder, write_tar, write_zip

from ssl_backdoor.data.images import decode
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.data.sources import open_source, source_digest
from ssl_backdoor.data.stored import open_dataset, open_overlay
from ssl_backdoor.errors import DataError, SpecError, UserError
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.poison.targets import choose_targets
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, ScenesSourceSpec, TargetsSpec, TemplateCaptionsSpec
from ssl_backdoor.stages import IngestStage, PoisonStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactStore, open_store

TWO = DatasetSpec(test_source=FilesSourceSpec())
ANIMALS = ("cat/1.png", "dog/1.png", "dog/2.png")
NAMES = ("banana", "fire_truck", "goldfish")


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "samples.parquet").to_pylist()


def pairs(folder: Path, count: int = 12) -> str:
    """Shards of captioned images without a class, as CC3M comes."""
    captions = ("a ripe banana", "the fire truck", "one goldfish")
    files = {}
    for index in range(count):
        files |= {f"{index:05d}.png": picture(index), f"{index:05d}.txt": captions[index % 3].encode()}
    return str(write_tar(folder / "train-000.tar", files))


def labelled(folder: Path, per_class: int = 3, split: str = "val/") -> str:
    """Test images of three classes, without captions, as ImageNet's come."""
    names = [f"{split}{name}/{index}.png" for name in NAMES for index in range(per_class)]
    return str(write_folder(folder / "labelled", {name: picture(100 + at) for at, name in enumerate(names)}))


def test_pairs_without_labels_and_labelled_test_images(tmp_path: Path) -> None:
    data, test_data = pairs(tmp_path), labelled(tmp_path)
    summary = ingest(TWO, data, tmp_path / "out", test_data=test_data)
    assert summary | {"bytes": 0} == {
        "classes": list(NAMES),
        "num_train": 12,
        "num_test": 9,
        "num_rejected": 0,
        "bytes": 0,
        "num_train_unlabelled": 12,
        "num_test_unlabelled": 0,
        "num_own_test_left_out": 0,
    }
    found = rows(tmp_path / "out")
    assert [(row["key"], row["split"], row["label"]) for row in found[11:14]] == [
        ("train-000-00011", "train", -1),
        ("test--val-banana-0", "test", 0),
        ("test--val-banana-1", "test", 0),
    ]
    assert all(bool(row["caption"]) == (row["split"] == "train") for row in found)
    table = pq.read_table(tmp_path / "out/samples.parquet")
    stored = list(read_bytes(tmp_path / "out", table))
    assert stored == [picture(index) for index in (*range(12), *range(100, 109))]


def test_training_images_and_their_keys_are_those_of_one_source(tmp_path: Path) -> None:
    data, test_data = str(write_tar(tmp_path / "s.tar", cats_and_dogs(20, 5))), labelled(tmp_path)
    fields = {"keep_fraction": 0.5, "max_train_per_class": 8, "subset_seed": 3}
    ingest(DatasetSpec(**fields), data, tmp_path / "one")
    two = TWO.model_copy(update=fields | {"classes": ("cat", "dog", *NAMES)})
    summary = ingest(two, data, tmp_path / "two", test_data=test_data)
    one, both = ([row for row in rows(tmp_path / name) if row["split"] == "train"] for name in ("one", "two"))
    assert [row["key"] for row in both] == [row["key"] for row in one]
    assert len(one) == 8
    assert (summary["num_test"], summary["num_own_test_left_out"]) == (9, 10)  # the kept fraction spares them
    assert summary["classes"] == ["banana", "cat", "dog", "fire_truck", "goldfish"]


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        (("train/banana/1.png", "test/banana/2.png"), {"test--test-banana-2"}),
        (("train/banana/1.png", "val/banana/2.png"), {"test--val-banana-2"}),
        (("banana/1.png", "cat/2.png"), {"test--banana-1", "test--cat-2"}),
        (("train/banana/1.png", "train/cat/2.png"), {"test--train-banana-1", "test--train-cat-2"}),
    ],
)
def test_the_test_split_or_all_of_the_second_source(tmp_path: Path, files: tuple[str, ...], kept: set[str]) -> None:
    ingest(TWO, pairs(tmp_path), tmp_path / "out", test_data=str(write_zip(tmp_path / "t.zip", tree(*files))))
    assert {row["key"] for row in rows(tmp_path / "out") if row["split"] == "test"} == kept


def test_own_test_images_wherever_they_lie_are_left_out_and_the_rest_is_read_right(tmp_path: Path) -> None:
    files = tree(*(f"{split}/cat/{index}.png" for index in range(4) for split in ("train", "val")))  # alternating
    out = tmp_path / "out"
    summary = ingest(
        TWO, str(write_tar(tmp_path / "s.tar", files)), out, test_data=str(write_tar(tmp_path / "t.tar", files))
    )
    assert (summary["num_train"], summary["num_test"], summary["num_own_test_left_out"]) == (4, 4, 4)
    keys = [row["key"] for row in rows(out)]
    stored = dict(zip(keys, read_bytes(out, pq.read_table(out / "samples.parquet")), strict=True))
    expected = {f"train-cat-{index}": files[f"train/cat/{index}.png"] for index in range(4)}
    assert stored == expected | {f"test--val-cat-{index}": files[f"val/cat/{index}.png"] for index in range(4)}


def test_keys_stay_unique_whatever_the_first_source_calls_its_images(tmp_path: Path) -> None:
    names = ["test/a/1.png", "test--a/1.png", "test--a-1.png"]
    for name, data in tree(*names).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "t.csv").write_text("path,caption\n" + "".join(f"{name},a\n" for name in names))
    test_data = str(write_tar(tmp_path / "t.tar", tree("a/1.png", "b/1.png")))
    summary = ingest(TWO, str(tmp_path / "t.csv"), tmp_path / "out", test_data=test_data)
    assert (summary["num_train"], summary["num_test"]) == (3, 2)
    assert len({row["key"] for row in rows(tmp_path / "out")}) == 5


def test_classes_can_be_named_for_both(tmp_path: Path) -> None:
    spec = TWO.model_copy(update={"classes": ("goldfish", "dog"), "max_test_per_class": 2})
    data = tree("dog/1.png", "cat/1.png")
    summary = ingest(spec, str(write_folder(tmp_path / "s", data)), tmp_path / "a", test_data=labelled(tmp_path))
    assert (summary["classes"], summary["num_train"], summary["num_test"]) == (["dog", "goldfish"], 1, 2)
    summary = ingest(
        TWO.model_copy(update={"classes": ("banana",)}), pairs(tmp_path), tmp_path / "b", test_data=labelled(tmp_path)
    )
    assert (summary["num_train"], summary["num_test"]) == (12, 3)  # a pair without a class is no other class


def test_captions_are_as_each_source_has_them(tmp_path: Path) -> None:
    files = {"test.png": picture(7), "test.txt": b"a  banana", "test.cls": b"banana"}
    test_data = str(write_tar(tmp_path / "t.tar", files))
    spec = TWO.model_copy(update={"captions_required": True})
    ingest(spec, pairs(tmp_path), tmp_path / "a", test_data=test_data)
    assert [row["caption"] for row in rows(tmp_path / "a") if row["split"] == "test"] == ["a banana"]
    summary = ingest(spec, pairs(tmp_path), tmp_path / "b", test_data=labelled(tmp_path))
    assert (summary["num_test"], summary["num_rejected"]) == (9, 0)  # test images need no caption
    written = TWO.model_copy(update={"captions": TemplateCaptionsSpec()})
    with pytest.raises(DataError, match="but 12 of 21 images have none"):
        ingest(written, pairs(tmp_path), tmp_path / "c", test_data=labelled(tmp_path))


def test_one_source_has_the_key_it_had(tmp_path: Path) -> None:
    own = StageCall(IngestStage(dataset=DatasetSpec()), source="0" * 64).key
    assert StageCall(IngestStage(dataset=DatasetSpec()), source="0" * 64, test_data="where").key == own
    assert StageCall(IngestStage(dataset=TWO), source="0" * 64).key != own


def test_the_digest_covers_both(tmp_path: Path) -> None:
    data, test_data = pairs(tmp_path), str(write_tar(tmp_path / "t.tar", tree("a/1.png")))
    found = {source_digest(DatasetSpec(), data), source_digest(TWO, data, test_data), source_digest(TWO, data, data)}
    write_tar(tmp_path / "t.tar", tree("a/1.png", "a/2.png"))
    found.add(source_digest(TWO, data, test_data))
    found.add(source_digest(TWO, test_data, data))
    found.add(source_digest(TWO.model_copy(update={"source": ScenesSourceSpec()}), None, test_data))
    assert len(found) == 6
    assert all(len(digest) == 64 for digest in found)


# ------------------------------------------------------------------------------------------------ refusing


def test_what_is_asked_and_what_is_given_must_fit(tmp_path: Path) -> None:
    data = pairs(tmp_path)
    for function in (source_digest, open_source):
        with pytest.raises(SpecError, match="second, labelled source: give it with --test-data PATH") as caught:
            function(TWO, data)
        with pytest.raises(SpecError, match=r"but --test-data .*train-000\.tar was given: leave it out"):
            function(DatasetSpec(), data, data)
        with pytest.raises(DataError, match="there is nothing at"):
            function(TWO, data, str(tmp_path / "gone"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "test_data", "fields", "message"),
    [
        (("1.png",), ("1.png", "2.png"), {}, "none of the 2 test images of the second source has a class"),
        (("1.png",), ("a.txt",), {}, "none of the 0 test images of the second source has a class"),
        (ANIMALS, ("val/emu/1.png",), {"classes": ("cat",)}, "none of the 0 test images of the second source"),
        (ANIMALS, ("val/emu/1.png",), {"classes": ("cat",), "test_fraction": 0.5}, "none of the 0 test images"),
        (("test/cat/1.png",), ("val/emu/1.png",), {}, "1 test images but no training images"),
        (ANIMALS, ("val/emu/1.png",), {"classes": ("gnu",)}, r"no class 'gnu' \(3 classes found\): did you mean"),
    ],
)
def test_sources_that_cannot_be_used(
    tmp_path: Path, data: tuple[str, ...], test_data: tuple[str, ...], fields: Any, message: str
) -> None:
    places = [str(write_folder(tmp_path / name, tree(*files))) for name, files in (("a", data), ("b", test_data))]
    with pytest.raises(UserError, match=message) as caught:
        ingest(TWO.model_copy(update=fields), places[0], tmp_path / "out", test_data=places[1])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_class_of_the_first_source_still_needs_training_images(tmp_path: Path) -> None:
    files = tree("cat/1.png") | {"dog/1.png": b"x"}
    spec = TWO.model_copy(update={"max_rejected_frac": 1.0})
    with pytest.raises(DataError, match="class 'dog' has no training images left"):
        ingest(spec, str(write_folder(tmp_path / "s", files)), tmp_path / "out", test_data=labelled(tmp_path))


def test_a_second_source_that_is_damaged_or_unsafe_leaves_nothing_behind(tmp_path: Path) -> None:
    cut = write_tar(tmp_path / "cut.tar", cats_and_dogs(5, 5))
    cut.write_bytes(cut.read_bytes()[:5000])
    unsafe = write_tar(tmp_path / "unsafe.tar", tree("a/1.png") | {"../x.png": b"x"})
    for test_data, message in ((cut, "truncated or damaged"), (unsafe, "unsafe member")):
        with pytest.raises(DataError, match=message):
            ingest(TWO, pairs(tmp_path), tmp_path / "out", test_data=str(test_data))
        assert not list((tmp_path / "out").iterdir())


def test_a_second_source_that_changes_while_it_is_read(tmp_path: Path) -> None:
    test_data = Path(labelled(tmp_path))
    source = open_source(TWO, pairs(tmp_path), str(test_data))
    num_listed = len(list(source.listing()))
    (test_data / "val/banana/0.png").unlink()
    assert num_listed == 21
    assert len(list(source.read(iter([True] * num_listed)))) == 20  # Selection.name_items tells it


# ------------------------------------------------------------------------------------------------ attacks


@pytest.fixture
def ingested(tmp_path: Path) -> tuple[ArtifactStore, Any]:
    data, test_data = pairs(tmp_path), labelled(tmp_path)
    store = open_store(str(tmp_path / "store"))
    digest = source_digest(TWO, data, test_data)
    call = StageCall(IngestStage(dataset=TWO), source=digest, data=data, test_data=test_data)
    ref = run_stage(call, store).ref
    assert run_stage(call, store).reused
    return store, ref


def test_targets_are_images_of_the_second_source(ingested: tuple[ArtifactStore, Any]) -> None:
    store, ref = ingested
    dataset = open_dataset(store, ref)
    attack = Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=4), num_poisons=2)
    overlay = open_overlay(store, run_stage(poison_call(attack, ref), store).ref)
    chosen = choose_targets(dataset.samples, dataset.classes, attack.targets, 0).to_pylist()
    by_key = {row["key"]: row for row in dataset.samples.to_pylist()}
    assert Counter(overlay.rows["source_key"].to_pylist()) == {row["key"]: 2 for row in chosen}
    assert all(row["key"].startswith("test--val-") and by_key[row["key"]]["label"] == row["label"] for row in chosen)
    originals = dict(zip(by_key, read_bytes(dataset.folder, dataset.samples), strict=True))
    said = {0: "a ripe banana", 1: "the fire truck", 2: "one goldfish"}
    wanted = {row["key"]: row["target_label"] for row in chosen}
    for row, data in zip(overlay.rows.to_pylist(), read_bytes(overlay.folder, overlay.rows), strict=True):
        assert np.array_equal(decode(data, 1000), decode(originals[row["source_key"]], 1000))  # x' unaltered
        assert row["caption"] == said[wanted[row["source_key"]]]


def test_a_backdoor_may_aim_at_a_class_of_the_second_source_alone(ingested: tuple[ArtifactStore, Any]) -> None:
    store, ref = ingested
    attack = Carlini2022BackdoorSpec(trigger=GridTriggerSpec(size_px=4), target_class="fire_truck", num_poisons=12)
    overlay = open_overlay(store, run_stage(poison_call(attack, ref), store).ref)
    assert set(overlay.rows["caption"].to_pylist()) == {"the fire truck"}
    assert set(overlay.rows["source_key"].to_pylist()) == {f"train-000-{index:05d}" for index in range(12)}
    unknown = attack.model_copy(update={"target_class": "zebra"})
    with pytest.raises(SpecError, match="'zebra' is not one of the 3 classes"):
        run_stage(poison_call(unknown, ref), store)


def poison_call(attack: Any, ref: Any) -> StageCall:
    return StageCall(PoisonStage(attack=attack, seed=0), {"dataset": ref})
