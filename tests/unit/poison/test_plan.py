import numpy as np
import pyarrow as pa
import pytest

from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec, Saha2022UntargetedSpec
from ssl_backdoor.poison.plan import choose, chosen_rows, key_seeds, label_of
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.tables import SAMPLES

TRIGGER = GridTriggerSpec(size_px=6)


def samples(labels: list[int], split: str = "train") -> pa.Table:
    rows = [{"key": f"k{index}", "split": split, "label": label} for index, label in enumerate(labels)]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def targeted(fraction: float, target: str = "cat") -> Saha2022TargetedSpec:
    return Saha2022TargetedSpec(trigger=TRIGGER, target_class=target, poison_fraction_of_target=fraction)


def test_key_seeds_are_the_named_streams() -> None:
    keys = ["a", "b/ä", "", *(f"k{index}" for index in range(70_000))]
    seeds = key_seeds(pa.chunked_array([keys[:2], keys[2:]]), 3, "poison", 5)
    for index in (0, 1, 2, 65_536, 70_002):
        assert seeds[index] == sub_seed(3, "poison", 5, keys[index])


def test_choose_takes_the_exact_count_and_grows_by_nesting() -> None:
    keys = pa.chunked_array([[f"k{index}" for index in range(100)]])
    masks = [choose(keys, count, 0, "x") for count in (0, 1, 30, 100)]
    assert [mask.sum() for mask in masks] == [0, 1, 30, 100]
    assert (masks[1] <= masks[2]).all()
    assert (choose(keys, 30, 1, "x") != masks[2]).any()


@pytest.mark.parametrize("count", [1, 3, 40, 200])
def test_rows_are_chosen_out_of_blocks_as_out_of_the_whole(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_backdoor.poison.plan.BLOCK_ROWS", 4)
    table = pa.table({"number": range(200), "key": [f"k{index}" for index in range(200)]})
    expected = table.filter(pa.array(choose(table["key"], count, 0, "x")))
    assert chosen_rows(table.to_batches(max_chunksize=7), count, 0, "x").equals(expected)


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 5), (0.59, 5), (1.0, 10), (0.01, 1)])
def test_the_count_is_the_papers_and_at_least_one(fraction: float, count: int) -> None:
    decided = targeted(fraction).plan(samples([0] * 20 + [1] * 10), ("bird", "cat"), 0)
    assert decided.num_rows == count
    assert set(decided["label"].to_pylist()) == {1}


def test_test_images_are_never_poisoned() -> None:
    table = pa.concat_tables(
        [samples([0, 1]), samples([1] * 50, "test").set_column(0, "key", [[*map(str, range(50))]])]
    )
    assert targeted(1.0).plan(table, ("bird", "cat"), 0)["key"].to_pylist() == ["k1"]
    everything = Saha2022UntargetedSpec(trigger=TRIGGER, poison_fraction_of_dataset=1.0)
    assert everything.plan(table, ("bird", "cat"), 0)["key"].to_pylist() == ["k0", "k1"]


def test_an_unknown_class_lists_near_names() -> None:
    with pytest.raises(SpecError, match="'trucks' is not one of the 3 classes: did you mean truck"):
        targeted(0.5, "trucks").plan(samples([0, 1, 2]), ("car", "truck", "ship"), 0)
    with pytest.raises(SpecError, match="did you mean car, truck, ship"):
        label_of("zzz", ("car", "truck", "ship"))


def test_a_class_without_images_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no training images of the target class 'cat'"):
        targeted(0.5).plan(samples([0, 0]), ("bird", "cat"), 0)


def test_places_have_seeds_of_their_own() -> None:
    decided = targeted(1.0).plan(samples([1] * 200), ("bird", "cat"), 0)
    seeds = np.array(decided["sub_seed"].to_pylist())
    assert len(set(seeds)) == 200
    assert targeted(1.0).plan(samples([1] * 200), ("bird", "cat"), 1)["sub_seed"].to_pylist() != seeds.tolist()
