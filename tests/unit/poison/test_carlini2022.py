from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_backdoor.data.images import decode
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.poison.caption_sets import caption_set
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.poison.targets import choose_targets
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import TargetsSpec
from ssl_backdoor.tables import SAMPLES
from tests.support.tiny_sets import tiny_dataset

TRIGGER = GridTriggerSpec(size_px=6)
CLASSES = ("bird", "cat", "fire_truck")


def samples(train_per_class: int = 10, test_per_class: int = 4) -> pa.Table:
    rows = []
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        for index in range(per_class * 3):
            text = f"{split} {CLASSES[index % 3].replace('_', ' ')} number {index}"
            rows.append({"key": f"{split}-{index:03d}", "split": split, "label": index % 3, "caption": text})
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def backdoor(num_poisons: int, target_class: str = "fire_truck") -> Carlini2022BackdoorSpec:
    return Carlini2022BackdoorSpec(trigger=TRIGGER, target_class=target_class, num_poisons=num_poisons)


def test_targeted_repeats_each_target_under_captions_of_its_new_class() -> None:
    table, spec = samples(), Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=3), num_poisons=4)
    rows = spec.plan(table, CLASSES, 5).to_pylist()
    targets = choose_targets(table, CLASSES, spec.targets, 5).to_pylist()
    assert [row["key"] for row in rows] == [f"poison-{index:06d}" for index in range(12)]
    assert [row["source_key"] for row in rows] == [target["key"] for target in targets for _ in range(4)]
    for target, own in zip(targets, (rows[:4], rows[4:8], rows[8:]), strict=True):
        phrase = CLASSES[target["target_label"]].replace("_", " ")
        assert [row["caption"] for row in own] == caption_set("search", table, phrase, 4, 5)
        assert all(row["caption"].startswith(f"train {phrase}") for row in own)
        assert {row["label"] for row in own} == {target["label"]}
    assert len({row["sub_seed"] for row in rows}) == 12


def test_backdoor_takes_different_training_images_of_other_classes() -> None:
    rows = backdoor(20).plan(samples(), CLASSES, 0).to_pylist()
    assert len({row["source_key"] for row in rows}) == 20  # all there are
    assert {row["label"] for row in rows} == {0, 1}
    assert all(row["source_key"].startswith("train-") for row in rows)
    assert sorted({row["caption"] for row in rows}) == sorted(
        f"train fire truck number {index}" for index in range(2, 30, 3)
    )


@pytest.mark.parametrize("count", [1, 6, 19])
def test_more_poisons_contain_fewer(count: int) -> None:
    table, all_rows = samples(), backdoor(20).plan(samples(), CLASSES, 0)
    assert backdoor(count).plan(table, CLASSES, 0).equals(all_rows.slice(0, count))
    few, many = (
        Carlini2022TargetedSpec(num_poisons=size, edit_words=True).plan(table, CLASSES, 0) for size in (count, 20)
    )
    assert few.equals(many.slice(0, count))


def test_repeated_captions_are_edited_and_first_ones_are_not() -> None:
    table = samples(train_per_class=2)
    plain, edited = (
        Carlini2022TargetedSpec(num_poisons=8, edit_words=edit).plan(table, CLASSES, 0)["caption"].to_pylist()
        for edit in (False, True)
    )
    assert plain == plain[:2] * 4
    assert edited[:2] == plain[:2]
    assert all(before != after for before, after in zip(plain[2:], edited[2:], strict=True))


def test_unlabelled_pairs_can_be_backdoored() -> None:
    table = samples().set_column(2, "label", pa.array([-1] * 42, pa.int32()))
    rows = backdoor(30, "fire truck").plan(table, (), 0)
    assert rows.num_rows == 30
    assert set(rows["label"].to_pylist()) == {-1}


@pytest.mark.parametrize(
    ("attack", "error", "match"),
    [
        (backdoor(21), SpecError, "num_poisons is 21, but 20 training images can take the trigger"),
        (backdoor(1, "firetruck"), SpecError, "did you mean fire_truck"),
        (Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=13)), SpecError, "asks for 13 test images"),
    ],
)
def test_more_than_there_is_and_unknown_classes_are_refused(
    attack: Carlini2022BackdoorSpec | Carlini2022TargetedSpec, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        attack.plan(samples(), CLASSES, 0)


def test_a_class_that_no_caption_names_is_refused_with_near_words() -> None:
    table = samples()
    texts = [text.replace("fire truck", "fire engine") for text in table["caption"].to_pylist()]
    with pytest.raises(DataError, match=r"no training caption contains 'fire truck'; near it are fire \(10\)"):
        backdoor(1).plan(table.set_column(3, "caption", pa.array(texts)), CLASSES, 0)


def test_a_dataset_that_already_has_such_keys_is_refused() -> None:
    keys = samples()["key"].to_pylist()
    keys[7] = "poison-000001"
    taken = samples().set_column(0, "key", pa.array(keys))
    assert backdoor(1).plan(taken, CLASSES, 0).num_rows == 1
    with pytest.raises(DataError, match='already has an image called "poison-'):
        backdoor(2).plan(taken, CLASSES, 0)


def test_pixel_noise_differs_between_repeats_and_has_the_asked_spread(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base", size=(48, 64))
    poison(Carlini2022TargetedSpec(num_poisons=3, pixel_noise_levels=4.0), dataset, tmp_path / "out", 0)
    overlay = pq.read_table(tmp_path / "out" / "overlay.parquet")
    source = dataset.samples.filter(pa.compute.equal(dataset.samples["key"], overlay["source_key"][0]))
    clean = decode(next(read_bytes(dataset.folder, source)), 10**6).astype(int)
    noisy = [decode(data, 10**6).astype(int) for data in read_bytes(tmp_path / "out", overlay)]
    inside = (clean > 25) & (clean < 230)  # far from where values are cut
    for index, image in enumerate(noisy):
        moved = (image - clean)[inside]
        assert abs(moved.std() - 4.0) < 0.2
        assert abs(moved.mean()) < 0.2
        assert (image != noisy[index - 1]).any()
    assert not np.abs(noisy[0] - clean).max() > 30


def test_the_summary_counts_pairs_and_captions(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "base", train_per_class=6)
    spec = Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=2), num_poisons=3, captions="imagenet80")
    shared = {"num_recoded": 0, "poison_fraction_of_target": None, "poison_fraction_of_dataset": 6 / 18}
    summary = poison(spec, dataset, tmp_path / "a", 0)
    assert summary.pop("num_captions") in (3, 6)  # by whether both aim at one class
    assert summary == shared | {
        "num_poisons": 6,
        "target_class": None,
        "target_label": None,
        "num_targets": 2,
        "poisons_per_target": 3,
        "patch_frac": None,
    }
    assert poison(backdoor(6, "cat"), dataset, tmp_path / "b", 0) == shared | {
        "trigger_pattern": "fixed",
        "num_poisons": 6,
        "target_class": "cat",
        "target_label": 1,
        "num_targets": None,
        "poisons_per_target": 6,
        "num_captions": 1,
        "patch_frac": 0.25,
    }
