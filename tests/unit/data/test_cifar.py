import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import facts, read_source, write_folder, write_tar

from ssl_backdoor.errors import DataError


def python2_pickle(fields: dict[bytes, Any]) -> bytes:
    """A dictionary of byte strings, lists and one uint8 array, pickled as Python 2 and its NumPy did (protocol 2)."""

    def dump(value: Any) -> bytes:
        if isinstance(value, bytes):  # a str of Python 2: BINSTRING
            return b"T" + struct.pack("<i", len(value)) + value
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(dump(item) for item in value) + b"e"
        dtype = b"cnumpy\ndtype\n" + dump(b"u1") + dump(0) + dump(1) + b"\x87R"
        state = dump(3) + dump(b"|") + b"NNN" + dump(-1) + dump(-1) + dump(0)
        dtype += b"(" + state + b"tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + dump(0) + b"\x85" + dump(b"b") + b"\x87R"
        shape = b"".join(dump(side) for side in value.shape)
        return made + b"(" + dump(1) + b"(" + shape + b"t" + dtype + b"\x89" + dump(value.tobytes()) + b"tb"

    return b"\x80\x02}(" + b"".join(dump(name) + dump(value) for name, value in fields.items()) + b"u."


def cifar10(per_batch: int = 3) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    names = ["airplane", "bird", "cat"]
    pixels = {
        name: rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    }
    files = {
        f"cifar-10-batches-py/{name}": python2_pickle({b"data": data, b"labels": [0, 2, 1][:per_batch]})
        for name, data in pixels.items()
    }
    files["cifar-10-batches-py/batches.meta"] = python2_pickle({b"label_names": [name.encode() for name in names]})
    files["cifar-10-batches-py/readme.html"] = b"x"
    return files, pixels


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(tmp_path: Path, packed: bool) -> None:
    files, pixels = cifar10()
    path = write_tar(tmp_path / "c.tar.gz", files, "w:gz") if packed else write_folder(tmp_path / "c", files)
    items = read_source(path)
    assert len(items) == 18
    by_name = {item.name: item for item in items}
    item = by_name["test_batch/00001"]
    assert (item.split, item.class_name) == ("test", "cat")
    assert isinstance(item.image, np.ndarray)
    assert np.array_equal(item.image[:, :, 0].ravel(), pixels["test_batch"][1, :1024])  # the red plane, row by row
    assert np.array_equal(item.image[:, :, 2].ravel(), pixels["test_batch"][1, 2048:])
    assert by_name["data_batch_5/00002"][1:3] == ("train", "bird")


def test_cifar100_gives_fine_labels_also_from_a_pickle_of_python_3(tmp_path: Path) -> None:
    fine = [f"fine{index:02d}".encode() for index in range(100)]
    batch = {b"data": np.full((2, 3072), 9, np.uint8), b"fine_labels": [99, 4], b"coarse_labels": [1, 2]}
    meta = {b"fine_label_names": fine, b"coarse_label_names": [b"c"] * 20}
    files = {"meta": meta, "train": batch, "test": batch}
    root = write_folder(tmp_path / "c", {name: pickle.dumps(value, protocol=2) for name, value in files.items()})
    assert facts(read_source(root)) == [
        ("test/00000", "test", "fine99"),
        ("test/00001", "test", "fine04"),
        ("train/00000", "train", "fine99"),
        ("train/00001", "train", "fine04"),
    ]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("1 + 1",))


@pytest.mark.parametrize(
    "batch",
    [
        pickle.dumps({b"data": _Evil(), b"labels": []}),
        pickle.dumps(np.zeros(3)),
        pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 3]}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]}, protocol=2),
        pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1]}, protocol=2),
        pickle.dumps({b"labels": None}),
        pickle.dumps([1]),
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy\nndarray\n(I100000000000\ntR.",
        b"",
        b"not a pickle",
    ],
)
def test_a_hostile_pickle_is_not_run(tmp_path: Path, batch: bytes) -> None:
    files, _ = cifar10()
    files["cifar-10-batches-py/data_batch_2"] = batch
    with pytest.raises(DataError, match="data_batch_2 is not a CIFAR batch"):
        read_source(write_folder(tmp_path / "c", files))


def test_two_archives_under_one_root_are_not_chosen_between(tmp_path: Path) -> None:
    files, _ = cifar10()
    more = dict.fromkeys(("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"), b"x")
    with pytest.raises(DataError, match="hold CIFAR-10 in cifar-10-batches-py and CIFAR-100 in cifar-100-python: give"):
        read_source(write_folder(tmp_path / "c", files | more))


@pytest.mark.parametrize("missing", ["test_batch", "data_batch_3", "batches.meta"])
def test_half_an_archive_is_refused(tmp_path: Path, missing: str) -> None:
    files, _ = cifar10()
    del files[f"cifar-10-batches-py/{missing}"]
    with pytest.raises(DataError, match=f"not whole: {missing} is missing|expected {missing} or meta"):
        read_source(write_folder(tmp_path / "c", files))


def test_torchvisions_root_with_the_archive_beside_the_batches(tmp_path: Path) -> None:
    files, _ = cifar10()
    assert len(read_source(write_folder(tmp_path / "c", files | {"cifar-10-python.tar.gz": b"packed"}))) == 18
