"""Layouts, splits and labels as people have them: what is read, what is counted, and what stops with both readings."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_files import picture, tree, write_folder, write_tar, write_zip
from PIL import Image

from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.splits import SplitWords, class_name_of
from ssl_backdoor.data.survey import Listing, survey
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec

CATS = ("cat/1.png", "dog/2.png")


def below(*folders: str, names: tuple[str, ...] = CATS) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in names]


def counts(listing: Listing) -> dict[str, tuple[int, int]]:
    """(training, test) images by class, "" for none."""
    found = {name: tuple(count) for name, count in listing.classes.items()}
    return found | ({"": tuple(listing.num_unlabelled)} if any(listing.num_unlabelled) else {})


BOTH = {"cat": (1, 1), "dog": (1, 1)}
TRAIN = {"cat": (1, 0), "dog": (1, 0)}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (below("train", "test"), BOTH),
        (below("Training", "Testing"), BOTH),
        (below("TRAIN_SPLIT", "TEST_SPLIT"), BOTH),
        (below("train_images", "test_images"), BOTH),
        (below("seg_train/seg_train", "seg_test/seg_test"), BOTH),
        (below("train2017", "val2017"), BOTH),
        (below("trainset", "holdout"), BOTH),
        (below("train", "dev"), BOTH),
        (below("trn", "hold-out"), BOTH),
        (below("train/images", "valid/images"), BOTH),
        (["cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"], BOTH),
        (["x/cat/train/1.png", "x/cat/val/2.png", "x/dog/train/3.png", "x/dog/val/4.png"], BOTH),
        (below("a/b/c/train", "a/b/c/test"), BOTH),
        (below("archive/ds/train", "archive/ds/test"), BOTH),
        (below("test_data/train", "test_data/test"), BOTH),
        (below("a/b/c"), TRAIN),
        (["test_tube/1.png", "bullet_train/2.png"], {"bullet_train": (1, 0), "test_tube": (1, 0)}),
        (["steam_train/1.png", "bullet_train/2.png"], {"bullet_train": (1, 0), "steam_train": (1, 0)}),
        (["0/1.png", "1/2.png", "10/3.png"], {"0": (1, 0), "1": (1, 0), "10": (1, 0)}),
        (["train/images/1.png", "valid/images/2.png"], {"": (1, 1)}),
        (["train/cat/images/1.png", "train/dog/images/1.png", "val/images/2.png"], {**TRAIN, "": (0, 1)}),
        (["cafe\u0301/1.png", "caf\u00e9/2.png", "dog/3.png"], {"caf\u00e9": (2, 0), "dog": (1, 0)}),
    ],
)
@pytest.mark.parametrize("packed", ["folder", "tar", "zip"])
def test_trees(tmp_path: Path, paths: list[str], expected: object, packed: str) -> None:
    write = {"folder": write_folder, "tar": write_tar, "zip": write_zip}[packed]
    listing = survey(DatasetSpec(), str(write(tmp_path / "set", tree(*paths))))
    assert counts(listing) == expected
    assert (listing.num_rejected, listing.ignored) == (0, {})


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            below("train", "test", "seg_pred"),
            r"the folder 'seg_pred' .* beside 'test', 'train'.*dataset.splits=.\"seg_pred",
        ),
        (below("train", "pruebas"), "the folder 'pruebas'"),
        (below("Entrenamiento", "Prueba"), r"classes are 'Entrenamiento', 'Prueba', or .* 'cat', 'dog'"),
        (["a/abbey/1.png", "a/arch/2.png", "b/barn/3.png"], r"two readings fit: the classes are 'a', 'b', or"),
        (["cat/1.png", "dog/2.png", "test/3.png"], "the folder 'cat'"),
        (["preview/1.png", *below("ds/train", "ds/test")], "two readings fit: class/split.*or class/file"),
        (["cat/train/1.png", "cat/test/2.png", "dog/3.png"], "two readings fit: class/split.*or class/file"),
        (below("one/train", "one/test", "two/train", "two/test"), "two readings fit: class/split.*or sets that each"),
        (["train/x/one/1.png", "train/y/two/2.png", "test/x/one/3.png"], "two readings fit: the classes are 'x', 'y'"),
    ],
)
def test_what_can_be_read_in_two_ways_stops(tmp_path: Path, paths: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        survey(DatasetSpec(), str(write_folder(tmp_path / "set", tree(*paths))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "splits", "expected", "left_out"),
    [
        (below("train", "val", "test"), {}, BOTH, {"val": 2}),
        (below("train", "val", "test"), {"val": "train"}, {"cat": (2, 1), "dog": (2, 1)}, {}),
        (below("train", "VAL", "test"), {"val": "test"}, {"cat": (1, 2), "dog": (1, 2)}, {}),
        (below("train", "dev", "eval"), {}, BOTH, {"val": 2}),
        (below("train", "eval", "test"), {}, BOTH, {"eval": 2}),
        (below("Entrenamiento", "Prueba"), {"entrenamiento": "train", "prueba": "test"}, BOTH, {}),
        (below("train", "test", "seg_pred"), {"seg_pred": "ignore"}, BOTH, {"ignore": 2}),
        (["cat/1.png", "dog/2.png", "test/3.png"], {"test": "ignore"}, TRAIN, {"ignore": 1}),
        (["cat/train/1.png", "cat/val/1.png", "cat/test/1.png"] * 1, {}, {"": (1, 1)}, {"val": 1}),
    ],
)
def test_val_is_left_out_beside_test_and_words_can_be_mapped(
    tmp_path: Path, paths: list[str], splits: Any, expected: object, left_out: object
) -> None:
    data = str(write_folder(tmp_path / "set", tree(*paths)))
    listing = survey(DatasetSpec(splits=splits), data)
    assert (counts(listing), listing.left_out) == (expected, left_out)
    summary = ingest(DatasetSpec(splits=splits), data, tmp_path / "out")
    assert summary.get("left_out", {}) == left_out
    assert summary["num_test"] == sum(test for _, test in counts(listing).values())


def test_a_mapping_is_the_same_in_any_order_and_checked(tmp_path: Path) -> None:
    spec = DatasetSpec(splits={"b": "train", "a": "test"})
    assert spec == DatasetSpec(splits={"a": "test", "b": "train"})
    assert hash(spec) == hash(DatasetSpec(splits=(("a", "test"), ("b", "train"))))
    assert DatasetSpec.model_validate_json(spec.model_dump_json()) == spec
    data = str(write_folder(tmp_path / "set", tree(*below("train", "test"))))
    with pytest.raises(SpecError, match=r"maps 'vla', but the data have no such split: they name test, train"):
        survey(DatasetSpec(splits={"vla": "train"}), data)


def test_demanding_folders_takes_the_outer_ones_as_classes(tmp_path: Path) -> None:
    data = str(write_folder(tmp_path / "set", tree("a/abbey/1.png", "a/arch/2.png", "b/barn/3.png")))
    assert counts(survey(DatasetSpec(source=FilesSourceSpec(layout="folder")), data)) == {"a": (2, 0), "b": (1, 0)}


# ------------------------------------------------------------------------------------------------ counted


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 12), (9, 99, 199)).save(file, kind)
    return file.getvalue()


LEFTOVERS: Mapping[str, tuple[bytes, str]] = {
    "README.md": (b"x", ".md"),
    "train/LICENSE": (b"MIT", "no suffix"),
    "train/cat/Thumbs.db": (b"x", ".db"),
    "train/cat/.DS_Store": (b"x", "hidden"),
    "__MACOSX/train/cat/._1.png": (b"x", "hidden"),
    "train/cat/._1.png": (b"x", "hidden"),
    ".cache/huggingface/download/1.png.metadata": (b"x", "hidden"),
    ".ipynb_checkpoints/1.png": (b"x", "hidden"),
    "train/cat/1.xml": (b"<annotation/>", ".xml"),
    "train/cat/notes.txt": (b"x", ".txt"),
    "train/cat/vector.weird": (b"x", ".weird"),
    "labels.csv": (b"a,b", ".csv"),
}


@pytest.mark.parametrize("name", LEFTOVERS)
@pytest.mark.parametrize("packed", ["folder", "tar", "zip"])
def test_what_is_no_image_is_counted_by_kind(tmp_path: Path, name: str, packed: str) -> None:
    write = {"folder": write_folder, "tar": write_tar, "zip": write_zip}[packed]
    data, kind = LEFTOVERS[name]
    path = str(write(tmp_path / "set", {name: data} | tree(*below("train", "test"))))
    listing = survey(DatasetSpec(), path)
    assert counts(listing) == BOTH
    assert {kind: (one.num, one.examples) for kind, one in listing.ignored.items()} == {kind: (1, (name,))}
    assert ingest(DatasetSpec(), path, tmp_path / "out")["ignored"] == {kind: 1}


@pytest.mark.parametrize(
    "name", ["a.jfif", "a.JPE", "noext", "f.jpg?w=640", "a.jpg:large", "a.unheard", "22.05.png", "a"]
)
@pytest.mark.parametrize("packed", ["folder", "tar", "zip"])
def test_images_are_known_by_their_bytes(tmp_path: Path, name: str, packed: str) -> None:
    write = {"folder": write_folder, "tar": write_tar, "zip": write_zip}[packed]
    files = tree(*below("train", "test")) | {f"train/cat/{name}": encoded("JPEG"), "train/dog/noext2": b"no image"}
    path = str(write(tmp_path / "set", files))
    summary = ingest(DatasetSpec(), path, tmp_path / "out")
    assert (summary["num_train"], summary["num_rejected"], summary["ignored"]) == (3, 0, {"no suffix": 1})


@pytest.mark.parametrize("name", ["a.tif", "a.ppm", "a.avif", "a.heic", "a.jxl"])
def test_an_image_that_cannot_be_read_is_rejected_and_not_passed_over(tmp_path: Path, name: str) -> None:
    files = tree(*below("train", "test")) | {f"train/cat/{name}": b"what it is"}
    with pytest.raises(DataError, match=f"1 of 5 images cannot be used.*train/cat/{name}: "):
        ingest(DatasetSpec(), str(write_folder(tmp_path / "set", files)), tmp_path / "out")
    summary = ingest(DatasetSpec(max_rejected_frac=0.5), str(tmp_path / "set"), tmp_path / "out")
    assert sum(summary["rejected_by_reason"].values()) == summary["num_rejected"] == 1


def test_dangling_links_and_strays_are_rejected_with_their_reason(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", tree(*below("ds/train", "ds/test"), "preview.png"))
    (root / "ds/train/cat/gone.png").symlink_to("missing")
    (root / "ds/train/cat/gone.txt").symlink_to("missing")
    listing = survey(DatasetSpec(), str(root))
    assert counts(listing) == BOTH
    assert listing.rejected == (
        ("train/cat/gone.png", "is a link to nothing"),
        ("preview.png", "lies outside the train and test folders"),
    )
    assert listing.ignored[".txt"].num == 1
    with pytest.raises(DataError, match="2 of 6 images cannot be used, more than max_rejected_frac"):
        ingest(DatasetSpec(), str(root), tmp_path / "out")


@pytest.mark.parametrize("files", [{"a.xyz": b"x", "b.xyz": b"y"}, {"data.zip": b"PK"}, {"a.mp4": b"x"}])
def test_no_images_at_all_says_what_was_found(tmp_path: Path, files: dict[str, bytes]) -> None:
    suffix = Path(next(iter(files))).suffix
    with pytest.raises(DataError, match=rf"no images found.*{len(files)} \{suffix}"):
        survey(DatasetSpec(), str(write_folder(tmp_path / "set", files)))


# ------------------------------------------------------------------------------------------------ shards


def sample(key: str, caption: str = "a cat", suffix: str = "png", **about: object) -> dict[str, bytes]:
    return {f"{key}.{suffix}": picture(1), f"{key}.txt": caption.encode(), f"{key}.json": json.dumps(about).encode()}


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        ({"imagenet-train-000000": "train", "imagenet-val-000000": "val"}, (1, 1)),
        ({"cc3m-train-0000": "train", "cc3m-validation-0000": "val"}, (1, 1)),
        ({"train/00000": "train", "val/00000": "val"}, (1, 1)),
        ({"00000": "", "00001": ""}, (2, 0)),
        ({"part/0/00000": "", "part/1/00000": ""}, (2, 0)),
        ({"shard-000": "", "test-000": "test"}, (1, 1)),
        ({"train-00000-of-00002": "", "testing-00000-of-00001": ""}, (1, 1)),
    ],
)
def test_shards_say_their_split_wherever_the_word_stands(tmp_path: Path, shards: dict[str, str], expected: Any) -> None:
    for name in shards:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / "set" / f"{name}.tar", sample("0"))
    write_folder(tmp_path / "set", {f".cache/huggingface/download/{index}.metadata": b"x" for index in range(212)})
    listing = survey(DatasetSpec(), str(tmp_path / "set"))
    assert listing.num_unlabelled == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-000", "extra-000"], r"'extra-000' names no known split, .* say what 'extra' is"),
        (["train/val-000", "test/test-001"], "'train/val-000' says two splits"),
        (["val-from-train-000", "train-000"], "'val-from-train-000' holds the words of two splits"),
    ],
)
def test_shards_of_unknown_splits_stop(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / f"{name}.tar", sample("0"))
    with pytest.raises(DataError, match=message):
        survey(DatasetSpec(), str(tmp_path))


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"split": "Test", "label": 1.0}, ({"1": (0, 1)})),
        ({"split": "seg_test", "label": "x"}, ({"x": (0, 1)})),
        ({"split": "", "label": True}, ({"": (1, 0)})),
        ({"partition": "holdout", "cls": "-1"}, ({"": (0, 1)})),
        ({"subset": "Testing", "label": "x"}, ({"x": (0, 1)})),
        ({"data_split": "test", "label": "x"}, ({"x": (0, 1)})),
        ({"split": "train", "subset": "laion", "label": "x"}, ({"x": (1, 0)})),
    ],
)
def test_a_json_is_read_like_a_table(tmp_path: Path, about: dict[str, Any], expected: object) -> None:
    write_tar(tmp_path / "0.tar", sample("0", **about))
    assert counts(survey(DatasetSpec(), str(tmp_path / "0.tar"))) == expected
    rows = {"path": ["0.png"], "caption": ["x"]} | {name: [value] for name, value in about.items()}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    assert counts(survey(DatasetSpec(), str(tmp_path / "t.parquet"))) == expected


@pytest.mark.parametrize("word", ["tset", "0", "unknown", "val/train"])
def test_an_unknown_word_never_means_train(tmp_path: Path, word: str) -> None:
    write_tar(tmp_path / "0.tar", sample("0", split=word))
    (tmp_path / "t.csv").write_text(f'path,caption,split\n0.png,x,"{word}"\n')
    for name in ("0.tar", "t.csv"):
        with pytest.raises(DataError, match=r"names the split .* which is not known .*dataset\.splits"):
            survey(DatasetSpec(), str(tmp_path / name))
        listing = survey(DatasetSpec(splits={word: "test"}), str(tmp_path / name))
        assert listing.num_unlabelled == (0, 1)


def test_keys_with_a_dot_and_further_fields(tmp_path: Path) -> None:
    files = sample("a") | sample("22.05", "b") | sample("22.06", "c") | {"d.seg.png": b"x"} | sample("d", "d")
    path = str(write_tar(tmp_path / "0.tar", files))
    listing = survey(DatasetSpec(captions_required=True), path)
    assert listing.num_unlabelled == (4, 0)
    assert {kind: one.num for kind, one in listing.ignored.items()} == {"further image of a sample": 1}
    ingest(DatasetSpec(captions_required=True), path, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/samples.parquet").to_pylist()
    assert [(row["key"], row["caption"]) for row in rows] == [
        ("0-a", "a cat"),
        ("0-22_05", "b"),
        ("0-22_06", "c"),
        ("0-d", "d"),
    ]


def test_twins_of_macos_part_no_sample(tmp_path: Path) -> None:
    files = {}
    for name, data in sample("0").items():
        files |= {f"._{name}": b"twin", name: data}
    path = str(write_tar(tmp_path / "0.tar", files))
    listing = survey(DatasetSpec(), path)
    assert (listing.num_rejected, listing.num_unlabelled, listing.ignored["hidden"].num) == (0, (1, 0), 3)
    ingest(DatasetSpec(captions_required=True), path, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/samples.parquet")["caption"].to_pylist() == ["a cat"]


@pytest.mark.parametrize("packed", ["folder", "tar", "zip"])
def test_the_files_output_of_img2dataset_is_read_with_its_captions(tmp_path: Path, packed: str) -> None:
    files = {"00000_stats.json": b"{}"}
    for shard in range(2):
        for index in range(3):
            files |= sample(f"{shard:05d}/{shard:05d}{index:04d}", f"caption {shard} {index}", "jpg")
    write = {"folder": write_folder, "tar": write_tar, "zip": write_zip}[packed]
    path = str(write(tmp_path / "set", files))
    summary = ingest(DatasetSpec(captions_required=True, max_rejected_frac=0.2), path, tmp_path / "out")
    assert (summary["classes"], summary["num_train"]) == ([], 6)
    rows = pq.read_table(tmp_path / "out/samples.parquet").to_pylist()
    assert [row["caption"] for row in rows] == [f"caption {shard} {index}" for shard in range(2) for index in range(3)]


def test_a_shard_whose_images_come_first_loses_no_caption_silently(tmp_path: Path) -> None:
    files = {f"{index:05d}.png": picture(index) for index in range(250)}
    files |= {f"{index:05d}.txt": b"a cat" for index in range(250)}
    with pytest.raises(DataError, match="has a caption or a label but no image beside it"):
        ingest(DatasetSpec(), str(write_tar(tmp_path / "0.tar", files)), tmp_path / "out")


def test_sidecars_in_a_tree_of_classes_are_read_where_captions_are_asked_for(tmp_path: Path) -> None:
    path = str(write_folder(tmp_path / "set", sample("cat/1", "a cat") | sample("dog/2", "a dog")))
    for required, captions in ((False, [None, None]), (True, ["a cat", "a dog"])):
        summary = ingest(DatasetSpec(captions_required=required), path, tmp_path / f"{required}")
        assert summary["classes"] == ["cat", "dog"]
        assert pq.read_table(tmp_path / f"{required}/samples.parquet")["caption"].to_pylist() == captions
    assert summary.get("ignored", {}) == {}


def test_sidecars_in_a_tree_are_read_as_in_a_shard(tmp_path: Path) -> None:
    files = sample("cat/1", "a cat\nand more") | sample("cat/2") | sample("cat/3", "a dog") | {"cat/3.TXT": b"another"}
    path = str(write_folder(tmp_path / "set", files | {"cat/2.txt": "caf\xe9".encode("latin-1")}))
    for txt_captions, caption in (("whole", "a cat and more"), ("lines", "a cat\nand more")):
        spec = DatasetSpec(captions_required=True, max_rejected_frac=0.9, txt_captions=txt_captions)
        summary = ingest(spec, path, tmp_path / txt_captions)
        assert pq.read_table(tmp_path / f"{txt_captions}/samples.parquet")["caption"].to_pylist() == [caption]
        assert set(summary["rejected_by_reason"]) == {
            "its .txt or .cls is not UTF-N text (byte N): save it as UTF-N",
            "has two .txt files",
        }


def test_a_mixture_stops_with_both_readings(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", tree(*below("train", "test")))
    write_tar(root / "00000.tar", sample("0"))
    with pytest.raises(DataError, match=r"4 images in folders and 1 tar files.*layout=folder or webdataset"):
        survey(DatasetSpec(), str(root))
    assert counts(survey(DatasetSpec(source=FilesSourceSpec(layout="folder")), str(root))) == BOTH
    assert counts(survey(DatasetSpec(source=FilesSourceSpec(layout="webdataset")), str(root))) == {"": (1, 0)}


def test_an_archive_that_goes_on_behind_its_end_mark(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / name, tree(*CATS)).read_bytes() for name in ("a.tar", "b.tar"))
    (tmp_path / "ab.tar").write_bytes(one + two)
    with pytest.raises(DataError, match="goes on behind its end mark"):
        survey(DatasetSpec(), str(tmp_path / "ab.tar"))
    (tmp_path / "a.tar").write_bytes(one + bytes(2**20))
    assert counts(survey(DatasetSpec(), str(tmp_path / "a.tar"))) == TRAIN


# ------------------------------------------------------------------------------------------------ parquet with images


def hugging_face(path: Path, labels: list[int], **columns: list[Any]) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    images = [{"bytes": picture(index), "path": f"{index}.png"} for index in range(len(labels))]
    table = pa.table({"image": images, "label": labels, **columns})
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(meta), path)


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    hugging_face(tmp_path / "set/data/train-00000-of-00001.parquet", [0, 1])
    hugging_face(tmp_path / "set/data/test-00000-of-00001.parquet", [1, 0, -1])
    write_folder(tmp_path / "set", {"README.md": b"x", ".gitattributes": b"x"})
    listing = survey(DatasetSpec(), str(tmp_path / "set"))
    assert counts(listing) == {**BOTH, "": (0, 1)}
    summary = ingest(DatasetSpec(), str(tmp_path / "set"), tmp_path / "out")
    assert (summary["num_train"], summary["num_test"], summary["num_rejected"]) == (2, 3, 0)
    one = str(tmp_path / "set/data/train-00000-of-00001.parquet")
    assert counts(survey(DatasetSpec(), one)) == TRAIN


def test_parquet_of_img2dataset(tmp_path: Path) -> None:
    table = {
        "jpg": [picture(0), None, picture(2), None],
        "caption": ["a", "b", "c", "d"],
        "key": ["000000000", "000000001", "000000002", "000000003"],
        "status": ["success", "failed_to_download", "success", "success"],
    }
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(table), tmp_path / "set/00000.parquet")
    summary = ingest(
        DatasetSpec(captions_required=True, max_rejected_frac=0.5), str(tmp_path / "set"), tmp_path / "out"
    )
    assert (summary["num_train"], summary["ignored"]) == (2, {"download that failed": 1})
    assert summary["rejected_by_reason"] == {"the row holds no image": 1}
    assert pq.read_table(tmp_path / "out/samples.parquet")["caption"].to_pylist() == ["a", "c"]


def test_cells_of_parquet_that_cannot_be_used_cost_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(0), picture(1), picture(2) + bytes(10_000)]
    captions = pa.array([[b"caf\xe9"], [b"a", b"two\nlines"], [b"c"]], pa.large_list(pa.binary()))
    data = pa.table({"image": images, "caption": captions.cast(pa.large_list(pa.string()), safe=False)})
    monkeypatch.setattr("ssl_backdoor.data.parquet_images.MAX_MEMBER_BYTES", 10_000)
    pq.write_table(data, tmp_path / "0.parquet")
    summary = ingest(DatasetSpec(max_rejected_frac=0.9), str(tmp_path / "0.parquet"), tmp_path / "out")
    assert summary["rejected_by_reason"] == {
        "its caption is not UTF-N text (byte N): save it as UTF-N": 1,
        "is over the limit of N bytes a file": 1,
    }
    assert pq.read_table(tmp_path / "out/samples.parquet")["caption"].to_pylist() == ["a\ntwo lines"]
    pq.write_table(pa.table([images, [0, 1, 2], [0, 1, 2]], ["image", "label", "label"]), tmp_path / "1.parquet")
    with pytest.raises(DataError, match="several columns called label: rename or remove all but one"):
        survey(DatasetSpec(), str(tmp_path / "1.parquet"))


def test_the_tables_beside_img2datasets_shards_are_no_second_reading(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", sample("0"))
    pq.write_table(pa.table({"url": ["x"], "caption": ["a cat"]}), tmp_path / "00000.parquet")
    assert survey(DatasetSpec(), str(tmp_path)).num_unlabelled == (1, 0)


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"), (1.0, "1"), ("1", "1"), (b"1\n", "1"), (" cat ", "cat"), ("cafe\u0301", "caf\u00e9"),
        (-1, None), (-1.0, None), ("", None), (1.5, None), (float("nan"), None), (True, None), ("x" * 201, None),
    ],
)  # fmt: skip
def test_labels(value: object, expected: str | None) -> None:
    assert class_name_of(value) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet-val-000000", "val"),
        ("cc3m-validation-0000", "val"),
        ("trainval", "train"),
        ("train_val", "train"),
        ("restval", "train"),
        ("TestImages", "test"),
        ("testA", "test"),
        ("held-out", "test"),
        ("evaluation", "eval"),
        ("latest-000", None),
        ("contest", None),
        ("00000", None),
    ],
)
def test_words_in_names(name: str, expected: str | None) -> None:
    assert SplitWords().of_name(name) == expected


def test_a_single_class_is_questioned(tmp_path: Path) -> None:
    listing = survey(DatasetSpec(), str(write_folder(tmp_path / "set", tree("train/cat/1.png", "test/cat/2.png"))))
    assert [question for question in listing.questions if "all images are of one class" in question]
    assert any("read as folders split/class" in sentence for sentence in listing.sentences())
    assert not survey(DatasetSpec(), str(write_folder(tmp_path / "other", tree(*below("train"))))).questions
