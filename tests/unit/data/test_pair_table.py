"""Tables of image paths and captions: layouts, grouping, hostile rows, digests."""

import csv
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_files import cats_and_dogs, files_spec, picture, read_source, write_folder

from ssl_backdoor.data import pair_table
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.sources import open_source, source_digest
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec

Rows = list[dict[str, object]]


def write_table(path: Path, rows: Rows, images: int = 3) -> Path:
    """A table by ``path``'s suffix beside the pictures i/0.png, i/1.png, ...."""
    write_folder(path.parent, {f"i/{index}.png": picture(index) for index in range(images)})
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def pairs(*names_and_captions: tuple[str, object]) -> Rows:
    return [{"filepath": name, "title": caption} for name, caption in names_and_captions]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".CSV"])
def test_one_table_in_every_format(tmp_path: Path, suffix: str) -> None:
    rows: Rows = [
        {"key": "x", "path": "i/0.png", "caption": 'a "cat",\nin\ttwo lines', "label": "cat", "split": "train"},
        {"key": "y", "path": "./i//1.png", "caption": "café 猫", "label": "dog", "split": "val"},
        {"key": "z", "path": str(tmp_path / "i/2.png"), "caption": "", "label": "-1", "split": "restval"},
    ]
    items = read_source(write_table(tmp_path / f"t{suffix}", rows))
    assert [item[:4] for item in items] == [
        ("i/0.png", "train", "cat", 'a "cat", in\ttwo lines'),
        ("i/1.png", "val", "dog", "café 猫"),
        ("i/2.png", "train", None, None),
    ]
    assert [item.image for item in items] == [picture(index) for index in range(3)]


def test_several_rows_of_an_image_are_its_captions(tmp_path: Path) -> None:
    rows = pairs(("i/0.png", "a"), ("i/1.png", "b"), ("i/0.png", "c"), ("./i/0.png", ""), ("i/2.png", "d"))
    source = open_source(files_spec(), str(write_table(tmp_path / "t.csv", [*rows, *pairs(("i/1.png", "e"))])))
    assert [item.name for item in source.listing()] == ["i/0.png", "i/2.png", "i/1.png"]
    assert [(item.name, item.caption) for item in source.read(iter([True, False, True]))] == [
        ("i/0.png", "a\nc"),
        ("i/1.png", "b\ne"),
    ]


def test_cells_of_a_parquet_table_may_be_lists_and_numbers(tmp_path: Path) -> None:
    rows: Rows = [
        {"image": "i/0.png", "captions": ["a\nb", "c"], "class": 3.0},
        {"image": "i/1.png", "captions": None, "class": float("nan")},
        {"image": None, "captions": [None], "class": None},
    ]
    items = list(open_source(files_spec(), str(write_table(tmp_path / "t.parquet", rows))).read(iter([])))
    assert items == []
    source = open_source(files_spec(), str(tmp_path / "t.parquet"))
    assert [(item.name, item.class_name, item.problem) for item in source.listing()] == [
        ("i/0.png", "3", ""),
        ("i/1.png", None, ""),
        ("row 3, 'None'", None, "has no path"),
    ]
    assert [item.caption for item in source.read(iter([True, True, False]))] == ["a b\nc", None]


def test_the_delimiter_is_the_headers_and_columns_can_be_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a, b.png": picture(0), "t.csv": b"file\tcaption\talt\na, b.png\tone\ttwo\n"})
    assert [(item.name, item.caption) for item in read_source(tmp_path / "t.csv")] == [("a, b.png", "one")]
    spec = DatasetSpec(source=FilesSourceSpec(path_column="file", caption_column="alt"))
    source = open_source(spec, str(tmp_path / "t.csv"))
    list(source.listing())
    assert [item.caption for item in source.read(iter([True]))] == ["two"]


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (
            b"a,caption\n",
            {},
            r"no column filepath or path or .* for the image's path: found a, caption; name the right",
        ),
        (b"path,words\n", {}, r"no column caption or .* for the image's caption: found path, words; .*caption_column"),
        (b"path,caption\n", {"path_column": "src"}, r"no column src for the image's path: found path, caption"),
        (b"", {}, "is empty"),
        (b"path,caption,caption\na,b,c\n", {}, "has 2 columns called caption: rename or remove all but one"),
        (b"path," + b"x" * 2**16, {}, "its first line has 65536 bytes or more"),
        (b'path,caption\na.png,"b" c\nd.png,"e,f"\n', {}, "has a quote in line 2 that neither .* as line 3 has not 2"),
        (b'path,caption\na.png,"b\nc\n', {}, "has a quote in line 2 that neither .* as line 3 has not 2 cells"),
        (b'path,caption\n"a,b.png\nc,d"\n', {}, "can be read in two ways: the quote that line 2 opens"),
        (b"path,caption\na.png,b,c\n", {}, "cannot be read as a CSV, TSV or Parquet table .*Expected 2 columns, got 3"),
        (b"PAR1 and no more", {}, "cannot be read as a CSV, TSV or Parquet table"),
        (b"\xff\xfep\x00a\x00", {}, "t.csv"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, content: bytes, fields: dict[str, str], message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    spec = DatasetSpec(source=FilesSourceSpec(**fields))
    with pytest.raises(DataError, match=message) as caught:
        ingest(spec, str(tmp_path / "t.csv"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_table_is_demanded(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes(b"path,caption\nx.png,x\n")
    assert isinstance(open_source(files_spec("pairs"), str(tmp_path / "pairs.txt")), pair_table.PairTable)
    with pytest.raises(DataError, match="expected one CSV, TSV or Parquet table"):
        open_source(files_spec("pairs"), str(tmp_path))


def test_paths_that_lead_out_are_refused_with_their_row(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(9))
    outside = ["../secret.png", "i/../../secret.png", str(tmp_path / "secret.png"), "/etc/passwd", "i/\0.png"]
    outside += [f"{tmp_path}/set/../secret.png", f"{tmp_path}/set//secret.png"]
    rows = pairs(("i/0.png", "a"), *((name, "b") for name in outside), ("", "c"), ("i/9.png", "d"))
    path = write_table(tmp_path / "set/t.parquet", rows)
    summary = ingest(DatasetSpec(max_rejected_frac=1.0), str(path), tmp_path / "out")
    assert (summary["num_train"], summary["num_rejected"]) == (1, 9)
    found = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert all("leads out of the table's folder" in row["reason"] for row in found[:6])
    assert found[0]["source"] == "row 2, '../secret.png'"
    reasons = [row["reason"] for row in found[6:]]
    assert reasons[-2:] == ["has no path", "the table lists it, but there is no such file"]


def test_a_caption_of_a_megabyte_costs_its_image_only(tmp_path: Path) -> None:
    rows = pairs(("i/0.png", "a"), ("i/1.png", "x" * 2**20), ("i/2.png", "c"))
    for suffix in (".csv", ".parquet"):
        path = write_table(tmp_path / f"t{suffix}", rows)
        with pytest.raises(DataError, match=r"i/1\.png: its caption has 1048576 characters"):
            ingest(DatasetSpec(), str(path), tmp_path / "out")
        assert ingest(DatasetSpec(max_rejected_frac=0.5), str(path), tmp_path / "out")["num_train"] == 2


def test_text_is_taken_as_it_comes(tmp_path: Path) -> None:
    name = os.fsencode("i/") + b"\xff.png"
    (tmp_path / "i").mkdir()
    (tmp_path / os.fsdecode(name)).write_bytes(picture(0))
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,caption,split\n" + name + b",caf\xe9,TEST\n")
    spec = DatasetSpec(source=FilesSourceSpec(), test_fraction=0.5, keep_fraction=0.9)
    source = open_source(spec, str(tmp_path / "t.csv"))
    (item,) = source.listing()
    assert (item.name, item.split) == ("row 1, 'i/\\udcff.png'", "test")
    assert item.problem == "its caption is not UTF-8 text (byte 3): save it as UTF-8"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "u.tsv").write_bytes("path\tcaption\ni/0.png\tcaf\xe9\n".encode(encoding))
        assert [(item.name, item.caption) for item in read_source(tmp_path / "u.tsv")] == [("i/0.png", "caf\xe9")]
    pq.write_table(pa.table({"path": [name, b"i/0.png"], "caption": [b"caf\xe9", b"b"]}), tmp_path / "t.parquet")


CAPTIONS_WITH_QUOTES = {  # what is in the table, and its captions
    "one that opens and does not close": (b'a "b\t0\n', ['a "b']),
    "the review's": (
        b'"hello world\t1.jpg\na dog\t2.jpg\nthe "big" house\t3.jpg\n',
        ['"hello world', "a dog", 'the "big" house'],
    ),
    "whole cells": (b'"a ""b"" c"\t1\n"d\te"\t2\n', ['a "b" c', "d\te"]),
    "several lines": (b'"a\nb\n\nc"\t1\nd\t2\n', ["a b  c", "d"]),
    "one that closes amid its cell": (b'"best day" ever\t1\n"whole"\t2\n', ['"best day" ever', '"whole"']),
    "windows": (b'"a"\t1\r\nb "c"\t2\r\n', ["a", 'b "c"']),
    "doubled alone": (b'""\t1\n""""\t2\n', [None, '"']),
}


@pytest.mark.parametrize("kind", CAPTIONS_WITH_QUOTES)
def test_quotes_hold_cells_together_or_are_text(tmp_path: Path, kind: str) -> None:
    rows, captions = CAPTIONS_WITH_QUOTES[kind]
    (tmp_path / "t.tsv").write_bytes(b"caption\tpath\n" + rows)
    source = open_source(files_spec(), str(tmp_path / "t.tsv"))
    assert len(list(source.listing())) == len(captions)
    assert [item.caption for item in source.read(iter([True] * 9))] == captions


def test_a_quote_that_may_be_either_stops_the_table(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(b'caption\tpath\nx\t0\n"a\t1\nb\t2\nc"\t3\n')
    with pytest.raises(DataError, match="can be read in two ways: the quote that line 3 opens"):
        open_source(files_spec(), str(tmp_path / "t.tsv"))


def test_blocks_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pairs(*((f"i/{index % 7}.png", f"caption {index}") for index in range(200)))
    path = write_table(tmp_path / "t.csv", rows, images=7)
    whole = read_source(path)
    assert [(item.caption or "").count("\n") + 1 for item in whole] == [28, 28, 28, 29, 29, 29, 29]
    monkeypatch.setattr(pair_table, "_BLOCK_BYTES", 256)
    monkeypatch.setattr(pair_table, "_BATCH_ROWS", 3)
    assert read_source(path) == whole


def test_the_digest_sees_the_table_and_the_images_it_lists(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", pairs(("i/0.png", "a"), ("../x.png", "b"), ("i/8.png", "c")))
    digests = [source_digest(files_spec(), str(path))]
    (tmp_path / "i/1.png").unlink()  # not listed
    assert source_digest(files_spec(), str(path)) == digests[0]
    os.utime(tmp_path / "i/0.png", ns=(0, 12345))
    digests.append(source_digest(files_spec(), str(path)))
    (tmp_path / "i/8.png").write_bytes(picture(8))
    digests.append(source_digest(files_spec(), str(path)))
    write_table(path, pairs(("i/0.png", "A"), ("../x.png", "b"), ("i/8.png", "c")), images=0)
    digests.append(source_digest(files_spec(), str(path)))
    assert len(set(digests)) == 4


def test_a_folder_with_a_table_in_it_stays_a_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", cats_and_dogs() | {"labels.csv": b"path,caption\n"})
    assert len(read_source(root)) == len(cats_and_dogs())
