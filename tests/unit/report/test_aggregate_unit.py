import numpy as np
import pytest
from matrix_fakes import KEY, cell, grid
from report_fakes import find

from ssl_backdoor.report.estimates import FEW_CONTROLS, pair_means, paired, units_of
from ssl_backdoor.report.frame import pair_of
from ssl_backdoor.report.intervals import Limits, infer_mean

EXCESS = {"": [[100, 300], [500, 900], [0, 60]]}  # three pairs, two seeds


def excess_row(unit, values=EXCESS):
    found = find(paired(grid(values), unit), f"{KEY[0]}_excess", "suspect", *KEY[1:])
    assert found is not None
    return found


def test_over_seeds_pairs_are_averaged_first():
    got = excess_row("seed")
    seeds = np.array([(100 + 500 + 0) / 3, (300 + 900 + 60) / 3])
    expected = infer_mean(seeds[None], Limits(-4000, 4000, 8000))
    assert (got.value, got.n, got.interval, got.num_trainings) == (pytest.approx(310.0), 2, "beta", 2)
    assert (got.low, got.high, got.p) == pytest.approx((expected.low[0], expected.high[0], expected.p[0]))
    assert "Mean over 2 seeds, the 3 (trigger, target) pairs of each averaged first" in got.definition
    assert "beta distribution over seeds" in got.definition


def test_over_pairs_seeds_are_averaged_first_and_the_mean_is_the_same():
    got = excess_row("pair")
    assert (got.value, got.n, got.low) == (pytest.approx(310.0), 3, None)


def test_seeds_have_controls_of_their_own_and_pairs_share_them():
    assert FEW_CONTROLS in excess_row("pair").definition
    assert FEW_CONTROLS not in excess_row("seed").definition


@pytest.mark.parametrize(
    ("unit", "values", "n", "words"),
    [
        ("seed", [[100], [500], [0]], 3, FEW_CONTROLS),
        ("pair", [[100, 300, 200]], 3, "beta distribution over seeds"),
    ],
    ids=["one seed", "one pair"],
)
def test_where_there_is_one_unit_the_other_kind_is_taken(unit, values, n, words):
    got = excess_row(unit, {"": values})
    assert got.n == n
    assert words in got.definition


def test_uneven_seeds_say_how_many_pairs_stand_behind_them():
    runs = [*grid({"": [[100, 300], [500, 900]]}), *cell("", 13, 0, 100, 160)]
    got = find(paired(runs, "seed"), f"{KEY[0]}_excess", "suspect", *KEY[1:])
    assert got is not None
    assert "the 2 to 3 (trigger, target) pairs of each" in got.definition
    assert got.value == pytest.approx(((100 + 500 + 60) / 3 + 600) / 2)


def test_units_count_what_is_behind_each():
    pair = pair_of(cell("", 11, 0, 0, 0)[0].run)
    other = pair_of(cell("", 12, 0, 0, 0)[0].run)
    values = {(pair, 0): (1.0, 10.0), (pair, 1): (3.0, 30.0), (other, 0): (5.0, 50.0)}
    over_pairs, over_seeds = units_of(values), units_of(values, "seed")
    assert over_pairs.values.tolist() == [[2.0, 20.0], [5.0, 50.0]]
    assert over_seeds.values.tolist() == [[3.0, 30.0], [3.0, 30.0]]
    assert [(u.kind, u.fewest, u.most, u.shares_control) for u in (over_pairs, over_seeds)] == [
        ("pair", 1, 2, True), ("seed", 1, 2, False)
    ]  # fmt: skip
    assert pair_means({place: one for place, (one, _) in values.items()}) == {pair: 2.0, other: 5.0}
