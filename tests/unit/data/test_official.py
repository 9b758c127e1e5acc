"""STL-10, GTSRB, Flowers-102 and Oxford-IIIT Pets: tiny sets in torchvision's layouts, whole, packed and broken."""

import io
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from picture_files import facts, files_spec, picture, read_source, tree, write_folder, write_tar, write_zip
from scipy.io import savemat
from torchvision import datasets

from ssl_backdoor.data.images import UInt8Image, decode
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.data.sources import open_source, source_digest
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec

Facts = list[tuple[str, str, str | None]]


def pixels(seed: int, height: int = 96, width: int = 96) -> UInt8Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ppm(seed: int, height: int = 5, width: int = 7) -> bytes:
    return b"P6\n%d %d\n255\n" % (width, height) + pixels(seed, height, width).tobytes()


def stl10() -> dict[str, bytes]:
    files = {"class_names.txt": b"airplane\nbird\ncar\n", "unlabeled_X.bin": bytes(27_648)}
    for split, seeds, labels in (("train", (0, 1, 2), (3, 1, 2)), ("test", (3, 4), (1, 1))):
        # the files hold a channel after the other, each by columns
        files[f"{split}_X.bin"] = b"".join(pixels(seed).transpose(2, 1, 0).tobytes() for seed in seeds)
        files[f"{split}_y.bin"] = bytes(labels)
    return {f"stl10_binary/{name}": data for name, data in files.items()}


def gtsrb() -> dict[str, bytes]:
    return {
        "gtsrb/GTSRB/Training/00000/00000_00000.ppm": ppm(0),
        "gtsrb/GTSRB/Training/00014/00000_00000.ppm": ppm(1),
        "gtsrb/GTSRB/Training/00014/GT-00014.csv": b"Filename;Width\n",
        "gtsrb/GTSRB/Final_Test/Images/00000.ppm": ppm(2),
        "gtsrb/GT-final_test.csv": b"Filename;Width;ClassId\n00000.ppm;7;13\n",
    }


def matlab(**values: object) -> bytes:
    file = io.BytesIO()
    savemat(file, values)
    return file.getvalue()


def flowers102() -> dict[str, bytes]:
    files = {f"jpg/image_{number:05d}.jpg": picture(number, kind="JPEG") for number in (1, 2, 3, 4, 5)}
    files["imagelabels.mat"] = matlab(labels=[[77, 77, 1, 102, 77]])
    files["setid.mat"] = matlab(trnid=[[4, 1]], valid=[[2, 3]], tstid=[[5, 4]])
    return {f"flowers-102/{name}": data for name, data in files.items()}


def pets() -> dict[str, bytes]:
    files = {
        f"images/{name}.jpg": picture(at, kind="JPEG") for at, name in enumerate(("great_pyrenees_12", "Bombay_3"))
    }
    files["images/great_pyrenees_7.jpg"] = picture(9, kind="JPEG")
    files["annotations/trainval.txt"] = b"great_pyrenees_12 16 2 10\n"  # two classes missing before and after it
    files["annotations/test.txt"] = b"great_pyrenees_7 16 2 10\nBombay_3 7 1 3\n"
    return {f"oxford-iiit-pet/{name}": data for name, data in files.items()}


STL10 = [("train/00000", "train", "car"), ("train/00001", "train", "airplane"), ("train/00002", "train", "bird")]
STL10 += [("test/00003", "test", "airplane"), ("test/00004", "test", "airplane")]
GTSRB = [("GTSRB/Training/00000/00000_00000.ppm", "train", "speed limit 20")]
GTSRB += [
    ("GTSRB/Training/00014/00000_00000.ppm", "train", "stop"),
    ("GTSRB/Final_Test/Images/00000.ppm", "test", "yield"),
]
FLOWERS = [("jpg/image_00004.jpg", "train", "blackberry lily"), ("jpg/image_00001.jpg", "train", "passion flower")]
FLOWERS += [("jpg/image_00002.jpg", "train", "passion flower"), ("jpg/image_00003.jpg", "train", "pink primrose")]
FLOWERS += [("jpg/image_00005.jpg", "test", "passion flower"), ("jpg/image_00004.jpg", "test", "blackberry lily")]
PETS = [
    ("images/great_pyrenees_12.jpg", "train", "Great Pyrenees"),
    ("images/great_pyrenees_7.jpg", "test", "Great Pyrenees"),
]
PETS += [("images/Bombay_3.jpg", "test", "Bombay")]
EVERY = [(stl10, STL10), (gtsrb, GTSRB), (flowers102, FLOWERS), (pets, PETS)]


@pytest.fixture(autouse=True)
def any_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares checksums of the true files; tiny ones have others."""
    monkeypatch.setattr(datasets.STL10, "train_list", [[name, None] for name, _ in datasets.STL10.train_list])
    monkeypatch.setattr(datasets.STL10, "test_list", [[name, None] for name, _ in datasets.STL10.test_list])
    files = {what: (name, None) for what, (name, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


@pytest.mark.parametrize(("files", "expected"), EVERY)
@pytest.mark.parametrize("layout", ["auto", "official"])
def test_images_splits_and_names(
    tmp_path: Path, files: Callable[[], dict[str, bytes]], expected: Facts, layout: str
) -> None:
    root = write_folder(tmp_path, files())
    folder = root / next(iter(files())).split("/")[0]
    found = read_source(root, layout)
    assert facts(found) == expected
    assert facts(read_source(folder, layout)) == expected
    spec = files_spec(layout)
    assert source_digest(spec, str(root)) == source_digest(spec, str(folder))
    for item in found:
        if isinstance(item.image, bytes):
            assert item.image == (folder / item.name).read_bytes()
        else:
            assert item.image is not None
            assert item.image.dtype == np.uint8
            seed = (
                int(item.name[-5:])
                if folder.name == "stl10_binary"
                else [name for name, *_ in expected].index(item.name)
            )
            assert np.array_equal(item.image, pixels(seed, *item.image.shape[:2]))


@pytest.mark.parametrize(("files", "expected"), EVERY)
def test_only_what_is_kept_is_read(tmp_path: Path, files: Callable[[], dict[str, bytes]], expected: Facts) -> None:
    source = open_source(files_spec(), str(write_folder(tmp_path, files())))
    num = len(list(source.listing()))
    assert facts(list(source.read(iter([index % 2 == 1 for index in range(num)])))) == expected[1::2]


def test_sets_are_ingested(tmp_path: Path) -> None:
    summary = ingest(DatasetSpec(), str(write_folder(tmp_path / "stl", stl10())), tmp_path / "out")
    assert (summary["classes"], summary["num_train"], summary["num_test"]) == (["airplane", "bird", "car"], 3, 2)
    stored = [
        decode(data, 10_000) for data in read_bytes(tmp_path / "out", pq.read_table(tmp_path / "out/samples.parquet"))
    ]
    assert np.array_equal(stored, [pixels(seed) for seed in range(5)])
    signs = str(write_folder(tmp_path / "signs", gtsrb()))
    summary = ingest(DatasetSpec(classes=("stop", "speed limit 20")), signs, tmp_path / "signs-out")
    assert (summary["classes"], summary["num_train"], summary["num_test"]) == (["speed limit 20", "stop"], 2, 0)
    with pytest.raises(DataError, match="7 x 5 px is over the limit of 30 pixels"):
        ingest(DatasetSpec(max_image_pixels=30), signs, tmp_path / "none")


def test_a_set_may_be_the_second_source(tmp_path: Path) -> None:
    spec = DatasetSpec(test_source=FilesSourceSpec(layout="official"))
    data = str(write_folder(tmp_path / "pairs", tree("1.png", "2.png")))
    summary = ingest(spec, data, tmp_path / "out", test_data=str(write_folder(tmp_path / "pets", pets())))
    assert (summary["classes"], summary["num_train"], summary["num_test"]) == (["Bombay", "Great Pyrenees"], 2, 2)
    keys = [row["key"] for row in pq.read_table(tmp_path / "out/samples.parquet").to_pylist()]
    assert keys[2:] == ["test--images-great_pyrenees_7", "test--images-Bombay_3"]


# ------------------------------------------------------------------------------------------------ packed


def packed(where: Path, files: dict[str, bytes]) -> None:
    """The official archives as downloaded."""
    inner = {name.partition("/")[2]: data for name, data in files.items()}
    match next(iter(files)).partition("/")[0]:
        case "stl10_binary":
            write_tar(where / "stl10_binary.tar.gz", files, "w:gz")
        case "gtsrb":
            for archive, begins in (
                ("GTSRB-Training_fixed.zip", "GTSRB/Training"),
                ("GTSRB_Final_Test_Images.zip", "GTSRB/Final_Test"),
                ("GTSRB_Final_Test_GT.zip", "GT-"),
            ):
                write_zip(where / archive, {name: data for name, data in inner.items() if name.startswith(begins)})
        case "flowers-102":
            write_tar(where / "102flowers.tgz", {n: data for n, data in inner.items() if n.startswith("jpg")}, "w:gz")
            write_folder(where, {name: data for name, data in inner.items() if name.endswith(".mat")})
        case "oxford-iiit-pet":
            for part in ("images", "annotations"):
                chosen = {name: data for name, data in inner.items() if name.startswith(part)}
                write_tar(where / f"{part}.tar.gz", chosen, "w:gz")


@pytest.mark.parametrize(("files", "expected"), EVERY)
@pytest.mark.parametrize("inside", [False, True])
def test_packed_sets_are_refused_with_the_command_that_unpacks_them(
    tmp_path: Path, files: Callable[[], dict[str, bytes]], expected: Facts, inside: bool
) -> None:
    name = next(iter(files())).split("/")[0]
    where = tmp_path / "my downloads" / (name if inside else "")
    where.mkdir(parents=True)
    packed(where, files())
    with pytest.raises(DataError, match="is still packed: unpack it with `") as caught:
        open_source(files_spec(), str(where))
    with pytest.raises(DataError, match="is still packed"):
        source_digest(files_spec("official"), str(tmp_path / "my downloads"))
    with pytest.raises(DataError, match="is still packed"):
        open_source(files_spec("official"), str(next(path for path in where.iterdir() if path.suffix != ".mat")))
    _, command, rest = str(caught.value).split("`")
    if name == "gtsrb":  # Python's own stands in for unzip
        script = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])"
        command = command.replace("unzip -q", f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}").replace(
            " -d ", " "
        )
    subprocess.run(["sh", "-c", command], check=True)
    assert facts(read_source(rest.removeprefix(" and give "))) == expected


def test_other_folders_are_as_before(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "a", tree("train/cat/1.png", "train/dog/1.png") | {"images.tar.gz": b"x"})
    (images / "annotations.tar.gz").write_bytes(b"x")
    assert len(read_source(images)) == 2
    words = write_folder(tmp_path / "b", tree("gtsrb/1.png", "flowers-102/1.png", "images/1.png", "annotations/2.png"))
    assert len(read_source(words)) == 4
    assert len(read_source(write_folder(tmp_path / "c", stl10() | tree("train/cat/1.png")), "folder")) == 1


# ------------------------------------------------------------------------------------------------ refusing


def test_several_sets_in_one_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path, gtsrb() | pets())
    with pytest.raises(DataError, match=r"holds GTSRB and Oxford-IIIT Pets: give the folder of one, such as .*gtsrb"):
        open_source(files_spec(), str(root))
    assert facts(read_source(root / "gtsrb")) == GTSRB


def test_a_set_can_be_demanded(tmp_path: Path) -> None:
    write_tar(tmp_path / "set.tar", tree("a/1.png"))
    for path in (tmp_path, tmp_path / "set.tar"):
        with pytest.raises(DataError, match=r"expected one of the folders stl10_binary \(STL-10\), .*but found"):
            open_source(files_spec("official"), str(path))


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (stl10, {"test_y.bin": None}, "not the whole STL-10"),
        (stl10, {"train_X.bin": b"x" * 27_647}, "not the whole STL-10"),
        (stl10, {"train_y.bin": bytes([1])}, "not the whole STL-10"),
        (stl10, {"train_y.bin": bytes([1, 2, 9])}, "class 8 of 3"),
        (stl10, {"class_names.txt": None}, "not the whole STL-10"),
        (gtsrb, {"GT-final_test.csv": None}, "not the whole GTSRB"),
        (gtsrb, {"GT-final_test.csv": b"Filename;ClassId\n0.ppm;43\n"}, "class 43 of 43"),
        (gtsrb, {"GT-final_test.csv": b"Filename;ClassId\n0.ppm;-1\n"}, "class -1 of 43"),
        (gtsrb, {"GT-final_test.csv": b"x\n0.ppm\n"}, "not the whole GTSRB"),
        (gtsrb, {"GTSRB/Training/stop/1.ppm": ppm(0)}, "not the whole GTSRB .*'stop'"),
        (gtsrb, {"GT-final_test.csv": b"Filename;ClassId\n../../../../secret.ppm;1\n"}, "lies outside of it"),
        (gtsrb, {"GT-final_test.csv": b"Filename;ClassId\n/etc/secret.ppm;1\n"}, "lies outside of it"),
        (flowers102, {"setid.mat": b"not matlab"}, "not the whole Flowers-102"),
        (flowers102, {"imagelabels.mat": matlab(labels=[[1, 1, 1, 103, 1]])}, "class 102 of 102"),
        (pets, {"annotations/test.txt": b"Bombay_3 7 1\n"}, "not the whole Oxford-IIIT Pets"),
        (pets, {"annotations/test.txt": b"../../../secret_1 7 1 3\n"}, "lies outside of it"),
    ],
)
def test_broken_and_hostile_sets(
    tmp_path: Path, files: Callable[[], dict[str, bytes]], changes: dict[str, bytes | None], message: str
) -> None:
    root = write_folder(tmp_path / "set", files())
    folder = next(root.iterdir())
    for name, data in changes.items():
        if data is None:
            (folder / name).unlink()
        else:
            write_folder(folder, {name: data})
    with pytest.raises(DataError, match=message) as caught:
        ingest(DatasetSpec(), str(root), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_files_that_are_missing_or_torn_are_listed(tmp_path: Path) -> None:
    root = write_folder(tmp_path, gtsrb() | pets())
    (root / "oxford-iiit-pet/images/Bombay_3.jpg").unlink()
    problems = [item.problem for item in read_source(root / "oxford-iiit-pet")]
    assert problems == ["", "", "cannot be read: No such file or directory"]
    training = root / "gtsrb/GTSRB/Training"
    for torn in (ppm(0)[:-1], ppm(0) + b"x", b"P5" + ppm(0)[2:], b"P6 0 7 255 ", b"P6 99999 99999 255 ", b""):
        (training / "00000/00000_00000.ppm").write_bytes(torn)
        item = read_source(root / "gtsrb")[0]
        assert (item.image, item.problem) == (None, f"not a whole 8-bit PPM image ({len(torn)} bytes)")


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path, pets())
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SpecError, match=r"needs torchvision.*pip install 'ssl-backdoor\[vision\]'"):
        list(open_source(files_spec(), str(root)).listing())
    assert len(source_digest(files_spec(), str(root))) == 64  # nothing but reading needs it


def test_the_sources_leave_torch_alone() -> None:
    code = "import ssl_backdoor.data.sources, sys; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
