import gzip
import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from picture_files import (
    cats_and_dogs,
    facts,
    files_spec,
    picture,
    read_source,
    tree,
    write_folder,
    write_tar,
    write_zip,
)

from ssl_backdoor.data import archives
from ssl_backdoor.data.archives import open_files
from ssl_backdoor.data.sources import expand_braces, open_source, source_digest
from ssl_backdoor.data.splits import SplitWords
from ssl_backdoor.data.trees import Rule, find_rule
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import DatasetSpec, ScenesSourceSpec

# ------------------------------------------------------------------------------------------------ trees


@pytest.mark.parametrize("mode", ["folder", "w", "w:gz", "zip"])
def test_one_tree_four_ways(tmp_path: Path, mode: str) -> None:
    files = cats_and_dogs() | {"README.txt": b"x", "train/cat/.hidden.png": b"x", "__MACOSX/train/cat/a.png": b"x"}
    if mode == "folder":
        path = write_folder(tmp_path / "set", files)
    elif mode == "zip":
        path = write_zip(tmp_path / "set.zip", files)
    else:
        path = write_tar(tmp_path / "set.bin", files, mode)
    items = sorted(read_source(path))
    assert [item.name for item in items] == sorted(cats_and_dogs())
    for item in items:
        split, name, _ = item.name.split("/")
        assert (item.split, item.class_name, item.image) == (split, name, files[item.name])


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["val/a/1.png", "train/a/1.png"], [("val/a/1.png", "val", "a"), ("train/a/1.png", "train", "a")]),
        (["Valid/a/1.png", "TRAIN/a/1.png"], [("Valid/a/1.png", "val", "a"), ("TRAIN/a/1.png", "train", "a")]),
        (["top/train/a/1.png", "top/test/b/1.jpeg"], [("train/a/1.png", "train", "a"), ("test/b/1.jpeg", "test", "b")]),
        (["a/1.png", "b/1.png"], [("a/1.png", "train", "a"), ("b/1.png", "train", "b")]),
        (["top/a/1.png", "top/b/1.png"], [("a/1.png", "train", "a"), ("b/1.png", "train", "b")]),
        (["1.png", "2.JPG"], [("1.png", "train", None), ("2.JPG", "train", None)]),
        (["top/1.png", "top/2.png"], [("1.png", "train", None), ("2.png", "train", None)]),
        (["train/1.png", "test/2.png"], [("train/1.png", "train", None), ("test/2.png", "test", None)]),
        (["train/a/images/1.png"], [("train/a/images/1.png", "train", "a")]),
        (["./train/a/1.png"], [("train/a/1.png", "train", "a")]),
        (  # a class of trains
            ["boat/1.png", "car/1.png", "train/1.png"],
            [(f"{name}/1.png", "train", name) for name in ("boat", "car", "train")],
        ),
    ],
)
def test_layouts_are_told_by_looking(tmp_path: Path, paths: list[str], expected: object) -> None:
    assert facts(read_source(write_tar(tmp_path / "set.tar", tree(*paths)))) == expected


def test_stray_images_are_named_and_not_guessed_at(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", tree("logo.png", "train/a/1.png", "test/a/1.png"))
    problems = {item.name: item.problem for item in read_source(path)}
    assert problems == {
        "logo.png": "lies outside the train and test folders",
        "train/a/1.png": "",
        "test/a/1.png": "",
    }
    assert find_rule({("a",): 1, ("b",): 1, (): 1}, SplitWords()) == Rule((), "class")


def test_a_folder_is_read_in_the_order_of_its_names_and_through_links(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"b/2.png": b"4", "b/1.png": b"3", "a/x.png": b"1"})
    (root / "a/y.png").symlink_to(root / "b/2.png")
    (root / "c").symlink_to(root / "b")
    (root / "b/loop").symlink_to(root)
    (root / "a/gone.png").symlink_to(root / "nothing")
    items = read_source(root)
    assert (items[0].name, items[0].problem) == ("a/gone.png", "is a link to nothing")
    assert [(item.name, item.image) for item in items[1:]] == [
        ("a/x.png", b"1"),
        ("a/y.png", b"4"),
        ("b/1.png", b"3"),
        ("b/2.png", b"4"),
        ("c/1.png", b"3"),
        ("c/2.png", b"4"),
    ]


def test_only_what_is_kept_is_read(tmp_path: Path) -> None:
    paths = ["a/1.png", "a/2.png", "b/1.png"]
    source = open_source(files_spec(), str(write_tar(tmp_path / "set.tar", tree(*paths))))
    list(source.listing())
    assert [item.name for item in source.read(iter([False, True, True]))] == paths[1:]


def test_a_file_over_the_limit_is_a_problem_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a/1.png": b"x" * 2001, "a/2.png": b"y" * 2000}
    paths = [
        write_folder(tmp_path / "set", files),
        write_tar(tmp_path / "set.tar", files),
        write_tar(tmp_path / "set.tar.gz", files, "w:gz"),
        write_zip(tmp_path / "set.zip", files),
    ]
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 2000)
    for path in paths:
        large, fits = read_source(path)
        assert (large.image, large.problem) == (None, "is over the limit of 2000 bytes a file")
        assert (fits.image, fits.problem) == (b"y" * 2000, "")


# ------------------------------------------------------------------------------------------------ hostile archives


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


@pytest.mark.parametrize("name", ["../../x", "/etc/x.png", "a/../../x.png", "C:\\x.png", "..\\x.png"])
@pytest.mark.parametrize("packed", ["tar", "zip"])
def test_members_that_point_outside_stop_everything(tmp_path: Path, name: str, packed: str) -> None:
    write = write_tar if packed == "tar" else write_zip
    path = write(tmp_path / "set", {"a/1.png": picture(0), name: b"x"})
    with pytest.raises(DataError, match="unsafe member") as caught:
        read_source(path)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_stop_everything(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "set.tar", {"a/1.png": picture(0)}, extra=(link("a/2.png", kind),))
    with pytest.raises(DataError, match=r"(link|special file) 'a/2\.png'"):
        read_source(path)


def test_a_link_in_a_zip_stops_everything(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a/1.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"link or special file 'a/1\.png'"):
        read_source(path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "zip"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.97])
def test_truncated_archives_are_said_to_be_so(tmp_path: Path, mode: str, share: float) -> None:
    path, files = tmp_path / "set.tar", cats_and_dogs(30, 30)
    if mode == "zip":
        write_zip(path, files)
    else:
        write_tar(path, files, mode)
    whole = path.read_bytes()
    if mode == "w":
        whole = whole.rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_source(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", tree("a/1.png", "a/2.png", "a/3.png"))
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    data[second + 10] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match="truncated or damaged"):
        read_source(path)


def test_headers_that_claim_absurd_sizes_are_refused(tmp_path: Path) -> None:
    negative = tarfile.TarInfo("a/1.png").tobuf(tarfile.GNU_FORMAT)
    negative = negative[:124] + b"\xff" * 9 + b"\xf0\x00\x00" + negative[136:]  # base 256: below zero
    endless = link("a/1.png", tarfile.GNUTYPE_LONGNAME)
    endless.size = 2**40
    for number, head in enumerate((negative, endless.tobuf(tarfile.GNU_FORMAT))):
        block = bytearray(head)
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(bytes(block) + bytes(4096))
        with pytest.raises(DataError, match="truncated or damaged"):
            read_source(path)


def test_a_zip_whose_member_lies_about_its_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"a/1.png": bytes(100_000)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    with pytest.raises(DataError, match="truncated or damaged"):
        read_source(path)


@pytest.mark.parametrize("content", [b"", b"hello", gzip.compress(b"hello", mtime=0), b"PK\x03\x04"])
def test_what_is_no_archive_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.tar"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_source(path)
    other = tmp_path / "set.txt"
    other.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"neither a folder nor a tar, tar\.gz or zip"):
        open_files(other)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing at"):
        open_source(files_spec(), str(tmp_path / "gone"))
    with pytest.raises(DataError, match="--data"):
        open_source(files_spec(), None)


# ------------------------------------------------------------------------------------------------ demands


def test_a_layout_can_be_demanded(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", cats_and_dogs())
    with pytest.raises(DataError, match="expected WebDataset shards"):
        open_source(files_spec("webdataset"), str(root))
    with pytest.raises(DataError, match="no class names"):
        list(open_source(files_spec("cifar"), str(root)).listing())


def test_braces() -> None:
    assert expand_braces("a{08..11}b") == ["a08b", "a09b", "a10b", "a11b"]
    assert expand_braces("{x,y}-{9..10}") == ["x-9", "x-10", "y-9", "y-10"]
    assert expand_braces("plain") == ["plain"]
    assert expand_braces("{a,{b,c}}") == ["a", "b", "a", "c"]
    assert expand_braces("{a}" * 1000) == ["a" * 1000]
    with pytest.raises(DataError, match=r"counts down from 5 to 3: give the smaller number first"):
        expand_braces("x-{5..3}.tar")
    for pattern in ("{0..250000}", "{a,b}" * 1000, "{0..9}" * 6, "x" * 4000 + "{0..99999}", "{0..99999}" + "{a,b,c}"):
        with pytest.raises(DataError, match="names more than 250000 shards"):
            expand_braces(pattern)


# ------------------------------------------------------------------------------------------------ digests


def test_the_digest_of_an_archive_is_that_of_its_content(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one.tar", cats_and_dogs())
    two = tmp_path / "two.tar"
    two.write_bytes(one.read_bytes())
    assert source_digest(files_spec(), str(one)) == source_digest(files_spec(), str(two))
    two.write_bytes(one.read_bytes() + bytes(512))
    assert source_digest(files_spec(), str(one)) != source_digest(files_spec(), str(two))
    assert source_digest(DatasetSpec(source=ScenesSourceSpec()), None) == "scenes"


def test_the_digest_of_a_folder_sees_names_sizes_and_times(tmp_path: Path) -> None:
    import os

    root = write_folder(tmp_path / "set", cats_and_dogs())
    digests = [source_digest(files_spec(), str(root))]
    assert source_digest(files_spec(), str(root)) == digests[0]
    os.utime(root / "train/cat/000.png", ns=(0, 12345))
    digests.append(source_digest(files_spec(), str(root)))
    (root / "train/cat/000.png").rename(root / "train/cat/00x.png")
    digests.append(source_digest(files_spec(), str(root)))
    (root / "train/dog/001.png").write_bytes(b"longer than it was" * 100)
    digests.append(source_digest(files_spec(), str(root)))
    assert len(set(digests)) == 4


def test_the_digest_of_several_shards_covers_each(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{number}.png": picture(number)})
    two = source_digest(files_spec(), str(tmp_path / "{0..1}.tar"))
    assert two != source_digest(files_spec(), str(tmp_path / "{0..2}.tar"))
    write_tar(tmp_path / "1.tar", {"1.png": picture(9)})
    assert two != source_digest(files_spec(), str(tmp_path / "{0..1}.tar"))


def test_reading_needs_no_seeking(tmp_path: Path) -> None:
    """A tar.gz of large members is streamed: no read is larger than a member."""
    path = write_tar(tmp_path / "s.tar.gz", {f"a/{index}.png": bytes(300_000) for index in range(3)}, "w:gz")
    sizes = []
    real_read = archives._Forward.read

    def noted(self: Any, size: int = -1) -> bytes:
        sizes.append(size)
        return real_read(self, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives._Forward, "read", noted)
        assert len(read_source(path)) == 3
    assert max(sizes) <= 300_000
    assert isinstance(archives.TarFiles(path)._open(), io.BufferedReader)
