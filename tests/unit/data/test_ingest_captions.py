"""What becomes of captions between the source and the samples table."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from picture_files import picture, tree, write_folder, write_tar

from ssl_backdoor.data.captioner import SYNONYMS, write_captions
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import DatasetSpec, TemplateCaptionsSpec


def samples(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "samples.parquet").to_pylist()


def rejected(out: Path) -> list[dict[str, str]]:
    return pq.read_table(out / "rejected.parquet").to_pylist()


def test_captions_arrive(tmp_path: Path) -> None:
    files = {"a.png": picture(0), "a.txt": b"a cat", "b.png": picture(1), "b.json": b"{"}
    ingest(DatasetSpec(), str(write_tar(tmp_path / "0.tar", files)), tmp_path / "out")
    assert [(row["key"], row["label"], row["caption"]) for row in samples(tmp_path / "out")] == [
        ("0-a", -1, "a cat"),
        ("0-b", -1, None),
    ]


def test_captions_are_cleaned_and_an_empty_one_is_none(tmp_path: Path) -> None:
    texts = {"a": b"<b>a &amp; b</b>", "b": b"one\r\n\r\n two \none", "c": b"<br> \xe2\x80\x8f\n", "d": b"dog"}
    files = {f"{key}.{name}": data for key in texts for name, data in (("png", picture(ord(key))), ("txt", texts[key]))}
    path, out = str(write_tar(tmp_path / "0.tar", files)), tmp_path / "out"
    ingest(DatasetSpec(), path, out)
    assert [row["caption"] for row in samples(out)] == ["a & b", "one two one", None, "dog"]
    ingest(DatasetSpec(txt_captions="lines"), path, tmp_path / "lines")
    assert [row["caption"] for row in samples(tmp_path / "lines")] == ["a & b", "one\ntwo", None, "dog"]
    summary = ingest(DatasetSpec(captions_required=True, max_rejected_frac=0.5), path, tmp_path / "required")
    assert (summary["num_train"], summary["num_rejected"]) == (3, 1)
    assert rejected(tmp_path / "required") == [{"source": "0/c.png", "reason": "has no caption left after cleaning"}]
    root = write_folder(tmp_path / "f", tree("train/a/1.png"))
    with pytest.raises(DataError, match=r"cannot be used.*a/1\.png: has no caption"):
        ingest(DatasetSpec(captions_required=True), str(root), tmp_path / "none")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"a.txt": b"x" * 2**20},
            r"a\.png: its caption has 1048576 characters, more than max_caption_chars 1000 allows",
        ),
        ({"a.txt": b"x" * 2**20 + b"y"}, r"a\.png: its \.txt is larger than the 1048576 bytes"),
        ({"a.json": json.dumps({"captions": ["ok", "y" * 1001]}).encode()}, r"a\.png: its caption has 1001 characters"),
        (
            {"a.json": json.dumps({"captions": [*map(str, range(101))]}).encode()},
            r"a\.png: has more than the 100 captions",
        ),
        ({"a.txt": b"a", "z.txt": b"alone"}, r"0/z: has a caption or a label but no image beside it"),
    ],
)
def test_captions_that_cannot_be_used_stop_with_one_sentence(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    path, out = write_tar(tmp_path / "0.tar", {"a.png": picture(0)} | files | {"b.png": picture(1)}), tmp_path / "out"
    with pytest.raises(DataError, match=rf"cannot be used.*{reason}") as caught:
        ingest(DatasetSpec(), str(path), out)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not list(out.iterdir())
    summary = ingest(DatasetSpec(max_rejected_frac=0.5), str(path), out)
    assert summary["num_rejected"] == 1


def test_captions_are_written_from_the_class(tmp_path: Path) -> None:
    files = {f"{split}/fire_truck/{index}.png": picture(index) for split in ("train", "test") for index in range(4)}
    files |= {f"train/dog/{index}.png": picture(index) for index in range(4)}
    root, spec = str(write_folder(tmp_path / "s", files)), TemplateCaptionsSpec(per_image=2, seed=5)
    summary = ingest(DatasetSpec(captions=spec), root, tmp_path / "out")
    assert summary["captioner"]["names"] == {"dog": ["dog", *SYNONYMS["dog"]], "fire_truck": ["fire truck"]}
    for row in samples(tmp_path / "out"):
        name = summary["classes"][row["label"]]
        assert row["caption"].split("\n") == list(write_captions(name, row["key"], spec))
    ingest(DatasetSpec(captions=spec, classes=("dog",)), root, tmp_path / "dogs")
    assert [row["caption"] for row in samples(tmp_path / "dogs")] == [
        row["caption"] for row in samples(tmp_path / "out") if row["label"] == 0
    ]
    flat = write_folder(tmp_path / "flat", tree("1.png", "2.png"))
    with pytest.raises(DataError, match="written from an image's class, but 2 of 2 images have none"):
        ingest(DatasetSpec(captions=spec), str(flat), tmp_path / "none")
