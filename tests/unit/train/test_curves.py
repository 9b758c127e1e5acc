import itertools

import pytest
import torch

from ssl_backdoor.tables import CURVES
from ssl_backdoor.train.curves import MAX_ROWS, Curves
from ssl_backdoor.train.fit import StepLog


def curves_of(num_steps: int, names: tuple[str, ...] = ()) -> Curves:
    curves = Curves(num_steps, 10)
    for step in range(num_steps):
        curves.record(StepLog(step, step / 2, {name: torch.tensor(float(step)) for name in names}))
    return curves


def test_a_short_training_keeps_every_step() -> None:
    table = curves_of(20).table()
    assert table.schema == CURVES
    assert table["step"].to_pylist() == list(range(20))
    assert table["value"].to_pylist() == [step / 2 for step in range(20)]
    assert table["epoch"].to_pylist()[:11:5] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b")])
@pytest.mark.parametrize("num_steps", [1, 1999, 2000, 2001, 98_901])
def test_a_long_one_is_thinned_evenly_with_both_ends(num_steps: int, names: tuple[str, ...]) -> None:
    table = curves_of(num_steps, names).table()
    assert table.num_rows <= MAX_ROWS
    assert set(table["name"].to_pylist()) == {"loss", *names}
    steps = table["step"].to_pylist()[: table.num_rows // (1 + len(names))]
    assert steps[0] == 0
    assert steps[-1] == num_steps - 1
    assert len({b - a for a, b in itertools.pairwise(steps[:-1])}) <= 1


def test_the_record_survives_a_restart() -> None:
    curves, again = curves_of(20, ("a",)), Curves(20, 10)
    again.restore(dict(reversed(curves.tensors().items())))  # a file gives its tensors back in any order
    assert again.table() == curves.table()
