from typing import Any

import pyarrow.compute as pc
import pytest

from ssl_backdoor.defences.trusted import num_trusted, open_trusted, select
from ssl_backdoor.errors import SpecError
from ssl_backdoor.seeds import stream
from ssl_backdoor.tables import TRUSTED
from tests.support.tiny_sets import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_dataset(tmp_path_factory.mktemp("data"), train_per_class=14, size=(12, 12))


@pytest.mark.parametrize(("fraction", "per_class"), [(1.0, 14), (0.5, 7), (0.25, 4), (0.1, 1), (0.001, 1)])
def test_select_takes_a_share_of_each_label(dataset: Any, fraction: float, per_class: int) -> None:
    table = select(dataset.samples, fraction, 0)
    assert table.schema == TRUSTED
    keys = table["key"].to_pylist()
    assert len(keys) == len(set(keys)) == 3 * per_class == 3 * num_trusted(14, fraction)
    chosen = dataset.samples.filter(pc.is_in(dataset.samples["key"], table["key"]))
    assert set(chosen["split"].to_pylist()) == {"train"}
    assert sorted(chosen["label"].to_pylist()) == sorted([0, 1, 2] * per_class)


def test_select_is_pure_order_free_nested_and_seeded(dataset: Any) -> None:
    whole = select(dataset.samples, 0.5, 3)
    order = stream(0, "order").permutation(dataset.samples.num_rows)
    assert select(dataset.samples.take(order), 0.5, 3) == whole
    fewer = set(select(dataset.samples, 0.25, 3)["key"].to_pylist())
    assert fewer < set(whole["key"].to_pylist())
    assert select(dataset.samples, 0.5, 4) != whole


def test_open_trusted_keeps_the_trusted_samples_alone(dataset: Any) -> None:
    trusted = open_trusted(dataset, 0.5, 3, 21)
    assert trusted.table == select(dataset.samples, 0.5, 3)
    assert sorted(trusted.dataset.samples["key"].to_pylist()) == trusted.table["key"].to_pylist()
    with pytest.raises(SpecError, match=r"needs 22 trusted images, but trusted_fraction 0\.5 gives 21"):
        open_trusted(dataset, 0.5, 3, 22)
