"""WebDataset shards as people hold them: sidecars, splits, missing and hostile members."""

import json
import tarfile
from pathlib import Path

import pytest
from picture_files import everything, facts, files_spec, picture, read_source, write_tar

from ssl_backdoor.data.items import Ignored, Item
from ssl_backdoor.data.sources import open_source
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import DatasetSpec


def about(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_shards_as_img2dataset_writes_them(tmp_path: Path) -> None:
    first, second = picture(1, kind="JPEG"), picture(2, kind="JPEG")
    write_tar(
        tmp_path / "00000.tar",
        {
            "000000000.jpg": first,
            "000000000.json": about(caption="not this one", key="000000000", width=12),
            "000000000.txt": " a caf\u00e9 \n".encode(),
            "000000001.jpg": second,
            "000000001.json": about(caption="from the json", label=7),
        },
    )
    write_tar(tmp_path / "00001.tar", {"000010000.webp": picture(3, kind="WEBP"), "000010000.cls": b"3\n"})
    expected = [
        Item("00000/000000000.jpg", "train", None, " a caf\u00e9 ", first),
        Item("00000/000000001.jpg", "train", "7", "from the json", second),
        Item("00001/000010000.webp", "train", "3", None, picture(3, kind="WEBP")),
    ]
    assert read_source(tmp_path) == expected
    assert read_source(tmp_path / "{00000..00001}.tar") == expected
    assert read_source(tmp_path / "{00001,00000}.tar") == [expected[2], *expected[:2]]
    assert read_source(tmp_path / "00000.tar") == expected[:2]
    assert read_source(tmp_path / "00001.tar", "webdataset") == expected[2:]


def test_splits_and_labels_of_shards_that_name_them(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "val-000.tar", {"a.png": b"", "a.json": about(label=-1), "b.png": b"", "b.json": about(cls="x")}
    )
    write_tar(tmp_path / "shard-0.tar", {"a.png": b"", "a.json": about(split="test"), "b.seg.png": b"", "b.png": b""})
    assert facts(read_source(tmp_path)) == [
        ("shard-0/a.png", "test", None),
        ("shard-0/b.png", "train", None),
        ("val-000/a.png", "val", None),
        ("val-000/b.png", "val", "x"),
    ]


@pytest.mark.parametrize(
    "sidecar",
    [b"{", b"[1]", b"null", b"[" * 100_000, b"\xff\xfe", about(caption=3, label=True), about(label=[1]), b"1" * 5000],
)
def test_malformed_sidecars_cost_the_caption_only(tmp_path: Path, sidecar: bytes) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.png": b"x", "a.json": sidecar})
    assert read_source(path) == [Item("0/a.png", "train", None, None, b"x")]
    source = open_source(DatasetSpec(), str(path))
    list(source.listing())
    is_object = sidecar.startswith(b'{"')
    assert source.found.ignored == ({} if is_object else {"json that holds no object": Ignored(1, ("a.json",))})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.txt": b"one\ntwo\n"}, "one two"),  # a .txt of several lines is one caption
        ({"a.txt": "\ufeffcaf\xe9".encode()}, "caf\xe9"),
        ({"a.txt": "caf\xe9 \u732b".encode("utf-16")}, "caf\xe9 \u732b"),
        ({"a.json": about(caption="one\nline")}, "one line"),
        ({"a.json": about(captions=["one", 2, None, "two"])}, "one\ntwo"),
        ({"a.json": about(caption=["one"], captions="two")}, "one\ntwo"),
        ({"a.txt": b"text", "a.json": about(captions=["json"])}, "text"),
        ({"a.txt": b""}, None),
        ({"a.json": about(captions={"en": "one"})}, None),
    ],
)
def test_captions_of_a_sample(tmp_path: Path, files: dict[str, bytes], expected: str | None) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.png": b"x"} | files)
    assert [item.caption for item in read_source(path, "webdataset")] == [expected]


@pytest.mark.parametrize(("txt_captions", "expected"), [("whole", "one two"), ("lines", "one\ntwo\n")])
def test_lines_of_a_txt_may_be_captions_of_their_own(tmp_path: Path, txt_captions: str, expected: str) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.png": b"x", "a.txt": b"one\ntwo\n"})
    source = open_source(DatasetSpec(txt_captions=txt_captions), str(path))
    assert [item.caption for item in source.read(everything())] == [expected]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.txt": "caf\xe9".encode("latin-1")}, "its .txt or .cls is not UTF-8 text (byte 3): save it as UTF-8"),
        ({"a.txt": b"ok", "a.cls": b"\xff"}, "its .txt or .cls is not UTF-8 text (byte 0): save it as UTF-8"),
        (
            {"a.txt": "cat".encode("utf-16-le")},
            "its .txt or .cls holds zero bytes, which no text has: save it as UTF-8",
        ),
        ({"a.txt": b"\xff\xfea"}, "its .txt or .cls is not UTF-8 text (byte 2): save it as UTF-8"),
    ],
)
def test_text_that_does_not_decode_is_refused_with_its_reason(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.png": b"x"} | files)
    assert [(item.caption, item.problem) for item in read_source(path)] == [(None, reason)]


@pytest.mark.parametrize("names", [["a.png", "a.png"], ["a.png", "a.PNG"], ["a.png", "a.txt", "a.TXT"]])
def test_a_member_that_comes_twice_in_a_sample_stops_the_shard(tmp_path: Path, names: list[str]) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=r"shard 0 holds the \.(png|txt) of sample 'a' twice"):
        read_source(tmp_path / "0.tar", "webdataset")


def test_members_that_are_missing_or_too_large_are_named(tmp_path: Path) -> None:
    files = {
        "a.txt": b"no image",
        "b.png": b"b",
        "b.txt": b"x" * 2**20 + b"y",
        "c.png": b"c",
        "c.json": about(caption="c", more="x" * 2**21),
        "d.json": b"{}",
        "d.cls": b"3",
        "._e.txt": b"left behind by a system",
        "f.png": b"f",
        "g.txt": b"no image",
    }
    source = open_source(files_spec(), str(write_tar(tmp_path / "0.tar", files)))
    lone, large = "has a caption or a label but no image beside it", "is larger than the 1048576 bytes"
    listed = [(item.name, item.problem) for item in source.listing()]
    assert listed == [
        ("0/a", lone),
        ("0/b.png", f"its .txt {large} that a sidecar may have"),
        ("0/c.png", f"its .json {large} that a sidecar may have"),
        ("0/d", lone),
        ("0/f.png", ""),
        ("0/g", lone),
    ]
    # keep's answers fall to the items of the listing, one each
    for name in ("b.png", "c.png", "f.png"):
        keep = iter([item == f"0/{name}" for item, _ in listed])
        assert [(item.name, item.image) for item in source.read(keep)] == [(f"0/{name}", name[:1].encode())]
        assert next(keep, None) is None


def test_a_tree_with_notes_beside_its_images_stays_a_tree(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"train/cat/1.png": b"x", "train/cat/1.txt": b"a cat"})
    assert facts(read_source(path)) == [("train/cat/1.png", "train", "cat")]
