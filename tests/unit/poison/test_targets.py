from collections import Counter

import pyarrow as pa
import pytest

from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.targets import CHOSEN, choose_targets
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import TargetsSpec
from ssl_backdoor.tables import SAMPLES

CLASSES = ("bird", "cat", "dog", "emu")


def samples(train: list[int], test: list[int]) -> pa.Table:
    rows = [{"key": f"a{index}", "split": "train", "label": label} for index, label in enumerate(train)]
    rows += [{"key": f"b{index:04d}", "split": "test", "label": label} for index, label in enumerate(test)]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def test_targets_are_labelled_test_images_aimed_at_another_class_that_is_trained_on() -> None:
    table = samples([0, 1, 1, 2, -1], [0, 1, 2, 3, -1] * 20)
    chosen = choose_targets(table, CLASSES, TargetsSpec(num_targets=80), 0)
    assert chosen.schema == CHOSEN
    expected = [(row["key"], row["label"]) for row in table.to_pylist() if row["split"] == "test" and row["label"] >= 0]
    assert list(zip(*(chosen[name].to_pylist() for name in ("key", "label")), strict=True)) == expected
    for row in chosen.to_pylist():
        assert row["target_label"] in {0, 1, 2} - {row["label"]}


def test_the_target_class_is_uniform_over_the_others() -> None:
    table = samples([0, 1, 2, 3], [1] * 3000)
    counts = Counter(choose_targets(table, CLASSES, TargetsSpec(num_targets=3000), 5)["target_label"].to_pylist())
    assert set(counts) == {0, 2, 3}
    assert all(abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for count in counts.values())  # four standard deviations


def test_fewer_targets_are_a_subset_and_another_seed_is_another_draw() -> None:
    table = samples([0, 1, 2, 3], [0, 1, 2, 3] * 10)
    few, many, other = (
        choose_targets(table, CLASSES, TargetsSpec(num_targets=count), seed).to_pylist()
        for count, seed in ((3, 1), (12, 1), (12, 2))
    )
    assert len(few) == 3
    assert all(row in many for row in few)
    assert many != other
    assert [row["key"] for row in many] == sorted(row["key"] for row in many)


def test_the_order_of_the_rows_does_not_matter() -> None:
    table = samples([0, 1, 2, 3], [0, 1, 2, 3] * 10)
    expected = choose_targets(table, CLASSES, TargetsSpec(num_targets=7), 1)
    shuffled = table.take(stream(0, "order").permutation(table.num_rows))
    assert choose_targets(shuffled, CLASSES, TargetsSpec(num_targets=7), 1).equals(expected)
    in_pieces = pa.concat_tables([table.slice(0, 9), table.slice(9)])
    assert choose_targets(in_pieces, CLASSES, TargetsSpec(num_targets=7), 1).equals(expected)


def test_without_training_labels_every_other_class_may_be_aimed_at() -> None:
    chosen = choose_targets(samples([-1, -1], [0] * 60), CLASSES, TargetsSpec(num_targets=60), 0)
    assert set(chosen["target_label"].to_pylist()) == {1, 2, 3}


def test_more_targets_than_labelled_test_images_are_refused() -> None:
    with pytest.raises(SpecError, match="num_targets asks for 3 test images, but there are 2 labelled ones"):
        choose_targets(samples([0, 1], [0, 1, -1]), CLASSES, TargetsSpec(num_targets=3), 0)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(SpecError, match="'bird' is the only one"):
        choose_targets(samples([0, 0], [0]), CLASSES, TargetsSpec(), 0)
