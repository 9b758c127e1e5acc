import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from ssl_backdoor.data.dataset import Overlay
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.poison.export import export
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import Codec
from tests.support.tiny_sets import CLASSES, tiny_dataset


def poisoned(dataset: object, out: Path, codec: Codec) -> Overlay:
    attack = Saha2022TargetedSpec(trigger=GridTriggerSpec(size_px=6), target_class="cat", codec=codec)
    poison(attack, dataset, out, 0)
    return Overlay(out, pq.read_table(out / "overlay.parquet"))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_webdataset_reads_what_was_exported(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base", jpeg=True)
    overlay = poisoned(dataset, tmp_path / "poison", "jpeg75")
    counts = export(dataset, overlay, tmp_path / "out")
    assert counts == {"num_train": 18, "num_test": 12, "num_replaced": 6, "num_added": 0}

    replaced = dict(zip(overlay.rows["key"].to_pylist(), read_bytes(overlay.folder, overlay.rows), strict=True))
    original = dict(zip(dataset.samples["key"].to_pylist(), read_bytes(dataset.folder, dataset.samples), strict=True))
    for split in ("train", "test"):
        files = sorted(str(path) for path in (tmp_path / "out").glob(f"{split}-*.tar"))
        read = list(wds.WebDataset(files, shardshuffle=False, empty_check=False).decode("rgb8"))
        raw = list(wds.WebDataset(files, shardshuffle=False, empty_check=False))
        expected = [row for row in dataset.samples.to_pylist() if row["split"] == split]
        assert [sample["__key__"] for sample in read] == [row["key"] for row in expected]
        for sample, kept, row in zip(read, raw, expected, strict=True):
            data = replaced.get(row["key"], original[row["key"]])
            assert kept["jpg"] == data
            with Image.open(io.BytesIO(data)) as image:
                np.testing.assert_array_equal(sample["jpg"], np.asarray(image))
            meta = {"label": row["label"], "class": CLASSES[row["label"]], "caption": row["caption"]}
            assert sample["json"] == meta
            assert kept["txt"].decode() == row["caption"]


def test_a_lossless_poison_in_a_jpeg_set_keeps_its_place(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base", jpeg=True)
    overlay = poisoned(dataset, tmp_path / "poison", "lossless")
    assert export(dataset, overlay, tmp_path / "out")["num_replaced"] == 3
    names = []
    for path in sorted((tmp_path / "out").glob("train-*.tar")):
        with tarfile.open(path) as archive:
            names += [name for name in archive.getnames() if not name.endswith((".json", ".txt"))]
    poisons = set(overlay.rows["key"].to_pylist())
    keys = [row["key"] for row in dataset.samples.to_pylist() if row["split"] == "train"]
    assert names == [f"{key}.{'png' if key in poisons else 'jpg'}" for key in keys]


def test_without_an_overlay_the_base_is_copied_and_runs_are_identical(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base")
    for name in ("a", "b"):
        assert export(dataset, None, tmp_path / name)["num_replaced"] == 0
    first, second = ([p.read_bytes() for p in sorted((tmp_path / name).glob("*.tar"))] for name in ("a", "b"))
    assert first == second
    assert len(first) == 4 + 3  # shards of five samples


def test_added_pairs_follow_in_the_train_shards_with_their_captions(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base")
    attack = Carlini2022BackdoorSpec(trigger=GridTriggerSpec(size_px=6), target_class="cat", num_poisons=4)
    poison(attack, dataset, tmp_path / "poison", 0)
    overlay = Overlay(tmp_path / "poison", pq.read_table(tmp_path / "poison" / "overlay.parquet"))
    counts = export(dataset, overlay, tmp_path / "out")
    assert counts == {"num_train": 22, "num_test": 12, "num_replaced": 0, "num_added": 4}
    members: dict[str, bytes] = {}
    for path in sorted((tmp_path / "out").glob("train-*.tar")):
        with tarfile.open(path) as archive:
            members |= {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
    images = [name for name in members if name.endswith(".png")]
    assert images[-4:] == [f"poison-00000{index}.png" for index in range(4)]
    crafted = zip(overlay.rows.to_pylist(), read_bytes(overlay.folder, overlay.rows), strict=True)
    for row, data in crafted:
        assert members[f"{row['key']}.png"] == data
        assert members[f"{row['key']}.txt"] == b"a cat"
        about = {"label": row["label"], "class": CLASSES[row["label"]], "caption": "a cat"}
        assert json.loads(members[f"{row['key']}.json"]) == about
