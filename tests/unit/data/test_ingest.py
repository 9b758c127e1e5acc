import hashlib
import io
import json
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_files import cats_and_dogs, picture, tree, write_folder, write_tar, write_zip
from PIL import Image

from ssl_backdoor.data import ingest as ingest_module
from ssl_backdoor.data.dataset import CLASS_LISTS, class_list
from ssl_backdoor.data.images import decode
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.selection import plain_key, select
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.errors import DataError, SpecError, StoreError, UserError
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec
from ssl_backdoor.tables import REJECTED, SAMPLES

SHARED = Path(__file__).parents[3] / "../shared/data"


def samples(out: Path) -> list[dict[str, Any]]:
    table = pq.read_table(out / "samples.parquet")
    assert table.schema.equals(SAMPLES)
    return table.to_pylist()


def rejected(out: Path) -> list[dict[str, str]]:
    table = pq.read_table(out / "rejected.parquet")
    assert table.schema.equals(REJECTED)
    return table.to_pylist()


def keys(out: Path, split: str = "train") -> set[str]:
    return {row["key"] for row in samples(out) if row["split"] == split}


def all_bytes(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------ what comes out


def test_rows_shards_and_bytes_agree(tmp_path: Path) -> None:
    files = cats_and_dogs(3, 2) | {"train/cat/jpeg.png": picture(50, kind="JPEG")}
    path, out = write_tar(tmp_path / "set.tar.gz", files, "w:gz"), tmp_path / "out"
    summary = ingest(DatasetSpec(samples_per_shard=3), str(path), out)
    assert summary == {
        "classes": ["cat", "dog"],
        "num_train": 7,
        "num_test": 4,
        "num_rejected": 0,
        "bytes": sum(len(data) for data in files.values()),
    }
    assert rejected(out) == []
    by_key = {plain_key(name): data for name, data in files.items()}
    table = pq.read_table(out / "samples.parquet")
    for row, data in zip(samples(out), read_bytes(out, table), strict=True):
        assert data == by_key.pop(row["key"])  # the bytes as they were
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["key"].startswith(f"{row['split']}-{('cat', 'dog')[row['label']]}-")
        assert (row["width"], row["height"], row["caption"]) == (12, 12, None)
        suffix = "jpg" if row["key"] == "train-cat-jpeg" else "png"  # by content, not by name
        with tarfile.open(out / row["shard"]) as tar:
            meta = json.load(tar.extractfile(f"{row['key']}.json"))
            assert f"{row['key']}.{suffix}" in tar.getnames()
        assert meta == {name: row[name] for name in ("label", "caption", "split", "width", "height", "sha256")}
    assert not by_key
    assert sorted(path.name for path in (out / "shards").iterdir()) == [
        "test-000000.tar",
        "test-000001.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]


def test_a_second_run_is_byte_identical(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", cats_and_dogs(20, 10))
    spec = DatasetSpec(keep_fraction=0.7, samples_per_shard=8)
    for run in ("one", "two"):
        ingest(spec, str(path), tmp_path / run)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_the_same_images_are_chosen_wherever_and_however_they_lie(tmp_path: Path) -> None:
    files = cats_and_dogs(20, 10)
    spec = DatasetSpec(keep_fraction=0.5, max_test_per_class=4, subset_seed=3)
    sources = [
        write_folder(tmp_path / "folder", files),
        write_tar(tmp_path / "a.tar", dict(reversed(files.items()))),
        write_tar(tmp_path / "b.tgz", {f"wrapped/{name}": data for name, data in files.items()}, "w:gz"),
        write_zip(tmp_path / "c.zip", files),
    ]
    chosen = []
    for number, source in enumerate(sources):
        out = tmp_path / f"out{number}"
        ingest(spec, str(source), out)
        chosen.append({(row["key"], row["split"], row["label"], row["sha256"]) for row in samples(out)})
    assert all(one == chosen[0] for one in chosen)
    assert Counter(row[1:3] for row in chosen[0]) == {
        ("train", 0): 10,
        ("train", 1): 10,
        ("test", 0): 2,
        ("test", 1): 2,
    }


def test_folder_and_zip_rows_are_in_the_order_of_names(tmp_path: Path) -> None:
    files = dict(reversed(cats_and_dogs().items()))
    for number, source in enumerate([write_folder(tmp_path / "f", files), write_zip(tmp_path / "z", files)]):
        ingest(DatasetSpec(), str(source), tmp_path / f"{number}")
        found = [row["key"] for row in samples(tmp_path / f"{number}")]
        assert found == sorted(found)


def test_scenes_are_stored_losslessly(tmp_path: Path) -> None:
    source = ScenesSourceSpec(num_classes=3, train_per_class=4, test_per_class=2, side_px=16)
    out = tmp_path / "out"
    summary = ingest(DatasetSpec(source=source), None, out)
    assert (summary["classes"], summary["num_train"], summary["num_test"]) == (["disc", "square", "triangle"], 12, 6)
    from ssl_backdoor.data.scenes import Scenes

    drawn = [item.image for item in Scenes(source).read(iter([True] * 18))]
    stored = [decode(data, 1000) for data in read_bytes(out, pq.read_table(out / "samples.parquet"))]
    assert np.array_equal(np.stack(drawn), np.stack(stored))
    assert all(row["caption"] for row in samples(out))


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    heard: list[Progress] = []
    ingest(DatasetSpec(), str(write_folder(tmp_path / "s", cats_and_dogs(80, 10))), tmp_path / "out", heard.append)
    assert heard == [Progress(128, 180, "images"), Progress(180, 180, "images")]


def test_numbered_classes_keep_their_numbers(tmp_path: Path) -> None:
    files = tree(*(f"{name}/1.png" for name in ("10", "9", "0")))
    assert ingest(DatasetSpec(), str(write_folder(tmp_path / "s", files)), tmp_path / "out")["classes"] == [
        "0",
        "9",
        "10",
    ]


# ------------------------------------------------------------------------------------------------ keys


def test_keys_are_safe_unique_and_stable(tmp_path: Path) -> None:
    names = ["a/1.png", "a/1.jpg", "a 1.png", "a_1.png", "猫/1.png", "犬/1.png", f"{'x' * 200}.png", f"{'x' * 201}.png"]
    root = write_folder(tmp_path / "set", tree(*(f"c/{name}" for name in names), "d/1.png"))
    ingest(DatasetSpec(), str(root), tmp_path / "one")
    found = keys(tmp_path / "one")
    assert len(found) == 9
    assert all(len(key) <= 95 and key.isascii() and not set(key) & set("./\\ ") for key in found)
    ingest(
        DatasetSpec(),
        str(write_zip(tmp_path / "z", dict(tree("c/a/2.png", *(f"c/{n}" for n in names), "d/1.png")))),
        tmp_path / "two",
    )
    assert keys(tmp_path / "two") == found | {"c-a-2"}


def test_one_name_twice_is_an_error(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("a/1.png", "b/1.png", "a/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(0))
            tar.addfile(info, io.BytesIO(picture(0)))
    (tmp_path / "s.tar").write_bytes(data.getvalue())
    with pytest.raises(DataError, match=r"two images are named 'a/1\.png'"):
        ingest(DatasetSpec(), str(tmp_path / "s.tar"), tmp_path / "out")


# ------------------------------------------------------------------------------------------------ choosing


def test_classes_are_a_subset_in_sorted_order(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path / "s", tree(*(f"{split}/{name}/1.png" for split in ("train", "test") for name in "dcba"))
    )
    summary = ingest(DatasetSpec(classes=("d", "b")), str(root), tmp_path / "out")
    assert (summary["classes"], summary["num_train"], summary["num_rejected"]) == (["b", "d"], 2, 0)
    assert {(row["key"], row["label"]) for row in samples(tmp_path / "out")} == {
        ("train-b-1", 0),
        ("train-d-1", 1),
        ("test-b-1", 0),
        ("test-d-1", 1),
    }


def test_an_unknown_class_is_named_with_its_neighbours(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "s", cats_and_dogs())
    with pytest.raises(SpecError, match=r"no class 'dgo' \(2 classes found\): did you mean dog\?"):
        ingest(DatasetSpec(classes=("cat", "dgo")), str(root), tmp_path / "out")
    flat = write_folder(tmp_path / "f", tree("1.png"))
    with pytest.raises(SpecError, match="no classes at all"):
        ingest(DatasetSpec(classes=("cat",)), str(flat), tmp_path / "out")


def test_caps_and_fractions_count_per_class_and_split(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "s", cats_and_dogs(20, 10))
    spec = DatasetSpec(max_train_per_class=8, max_test_per_class=3, keep_fraction=0.5)
    summary = ingest(spec, str(root), tmp_path / "a")
    assert (summary["num_train"], summary["num_test"]) == (8, 4)
    more = spec.model_copy(update={"keep_fraction": 1.0})
    ingest(more, str(root), tmp_path / "b")
    assert keys(tmp_path / "a") < keys(tmp_path / "b")  # a smaller choice is part of a larger one
    ingest(more.model_copy(update={"subset_seed": 1}), str(root), tmp_path / "c")
    assert keys(tmp_path / "b") != keys(tmp_path / "c")


def test_a_test_split_is_held_out_only_where_there_is_none(tmp_path: Path) -> None:
    spec = DatasetSpec(test_fraction=0.25)
    root = write_folder(tmp_path / "s", tree(*(f"{name}/{index}.png" for name in "ab" for index in range(8))))
    summary = ingest(spec, str(root), tmp_path / "a")
    assert (summary["num_train"], summary["num_test"]) == (12, 4)
    assert Counter(row["label"] for row in samples(tmp_path / "a") if row["split"] == "test") == {0: 2, 1: 2}
    both = write_folder(tmp_path / "both", cats_and_dogs(8, 1))
    assert ingest(spec, str(both), tmp_path / "b")["num_test"] == 2


@pytest.mark.parametrize(("name", "some"), [(CLASS_LISTS[0], "n02093859"), (CLASS_LISTS[1], "n01558993")])
def test_imagenet100_is_a_list_of_wnids(name: str, some: str) -> None:
    wnids = class_list(name)
    assert len(wnids) == 100
    assert list(wnids) == sorted(set(wnids))
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in wnids)
    assert some in wnids
    assert not set(class_list(CLASS_LISTS[0])) & set(class_list(CLASS_LISTS[1]))
    assert class_list("imagenet100_b").index("n02106550") == 26  # the Rottweiler's number in Saha et al.'s code


# ------------------------------------------------------------------------------------------------ refusing


def huge_png() -> bytes:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    return file.getvalue()


def test_bad_images_are_listed_with_their_reasons(tmp_path: Path) -> None:
    files = cats_and_dogs(200, 0) | {
        "train/cat/short.jpg": b"\xff",
        "train/dog/huge.png": huge_png(),
        "train/dog/torn.png": picture(7)[:-60],
    }
    out = tmp_path / "out"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        summary = ingest(DatasetSpec(), str(write_folder(tmp_path / "s", files)), out)
    assert not caught
    assert (summary["num_train"], summary["num_rejected"]) == (400, 3)
    reasons = {row["source"]: row["reason"] for row in rejected(out)}
    assert reasons["train/cat/short.jpg"] == "not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image (1 bytes)"
    assert reasons["train/dog/huge.png"] == "30000 x 30000 px is over the limit of 50000000 pixels"
    assert "cannot be decoded" in reasons["train/dog/torn.png"]


def test_too_many_bad_images_stop_with_counts_and_examples(tmp_path: Path) -> None:
    files = cats_and_dogs(10, 0) | {f"train/cat/bad{index}.jpg": b"x" for index in range(5)}
    with pytest.raises(DataError) as caught:
        ingest(DatasetSpec(), str(write_folder(tmp_path / "s", files)), tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("5 of 25 images cannot be used, more than max_rejected_frac 0.01 allows: ")
    assert message.count("not a JPEG") == 3
    assert "train/cat/bad0.jpg" in message
    summary = ingest(DatasetSpec(max_rejected_frac=0.2), str(tmp_path / "s"), tmp_path / "out")
    assert summary["num_rejected"] == 5


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {}, "no images found"),
        ({"train/cat/notes.txt": b"x"}, {}, "no images found"),
        (tree("test/a/1.png"), {}, "no training images"),
        (tree("test/a/1.png", "train/b/1.png"), {}, "class 'a' has no training images left"),
        (tree("a/1.png") | {"b/1.png": b"x"}, {"max_rejected_frac": 1.0}, "class 'b' has no training images left"),
        (tree("a/1.png", "b/1.png", "b/2.png"), {"test_fraction": 0.6}, "class 'a' has no training images left"),
    ],
)
def test_a_set_that_cannot_be_used(tmp_path: Path, files: dict[str, bytes], fields: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingest(DatasetSpec(**fields), str(write_folder(tmp_path / "s", files)), tmp_path / "out")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = cats_and_dogs(100, 0)
    cut = write_tar(tmp_path / "cut.tar", good)
    cut.write_bytes(cut.read_bytes()[:150_000])
    outside = write_tar(tmp_path / "outside.tar", good | {"../../x": b"x"})
    many_bad = write_folder(tmp_path / "bad", good | {f"train/cat/{index}.jpg": b"x" for index in range(40)})
    for source in (cut, outside, many_bad, tmp_path / "gone", write_folder(tmp_path / "empty", {})):
        with pytest.raises(UserError):
            ingest(DatasetSpec(), str(source), out)
        assert not out.exists() or not list(out.iterdir())
    assert not (tmp_path.parent / "x").exists()


def test_data_that_change_while_they_are_read_are_noticed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "s", cats_and_dogs(4, 0))
    source = ingest_module.open_source(DatasetSpec(), str(root))
    selection = select(source.listing(), DatasetSpec())
    (root / "train/cat/0000.png").write_bytes(picture(99))
    with pytest.raises(DataError, match="changed while they were read"):
        list(selection.name_items(source.read(iter(selection.keep.tolist()))))
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="changed while they were read"):
        list(selection.name_items(source.read(iter(selection.keep.tolist()))))


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "s", cats_and_dogs(1, 0))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        ingest(DatasetSpec(), str(root), tmp_path / "file")


def test_a_full_disk_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingest_module.ShardWriter, "write", full)
    out = tmp_path / "out"
    with pytest.raises(StoreError, match="disk full; free some space"):
        ingest(DatasetSpec(), str(write_folder(tmp_path / "s", cats_and_dogs(1, 0))), out)
    assert not list(out.iterdir())


# ------------------------------------------------------------------------------------------------ real data


def test_imagenet_photographs(tmp_path: Path) -> None:
    path = SHARED / "imagenet-sample-250.tar"
    if not path.exists():
        pytest.skip("the shared sample is not here")
    summary = ingest(DatasetSpec(keep_fraction=0.1), str(path), tmp_path / "out")
    assert (summary["num_train"], summary["num_rejected"], summary["classes"]) == (25, 0, [])
