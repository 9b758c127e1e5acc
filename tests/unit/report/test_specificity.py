import pytest
from report_fakes import bare

from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.frame import SUSPECT, Measure
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.specificity import judge_specificity

RATE = Measure("attack_success_rate", "triggered", "knn")


def described(own, unseen, control=(0.1, 0.1)):
    """``own`` and ``unseen``: rates of the poisoned encoders, one a seed; ``control``: of the clean-trained ones."""
    models = []
    for seed, rates in enumerate(zip(own, unseen, strict=True)):
        for arm, (triggered, other) in (("control", control), ("suspect", rates)):
            shift = 0.004 * seed if arm == "control" else 0.0
            rows = [
                ("attack_success_rate", "triggered", "knn", triggered + shift, 900),
                ("attack_success_rate", "unseen_trigger", "knn", other + shift, 900),
            ]
            models.append(bare(arm, [(*row, None, None) for row in rows], seed=seed))
    results = paired(models, "seed")
    (found,) = judge_specificity(results, [(RATE, Point("", SUSPECT))])
    return results, found.text


SPREAD = (0.0, 0.01, -0.01, 0.005)


def around(value):
    return tuple(value + one for one in SPREAD)


def test_the_specific_excess_is_a_difference_of_paired_differences():
    results, _ = described((0.9, 0.8), (0.3, 0.5), control=(0.2, 0.1))
    row = results.get(RATE, SUSPECT, "", "specific_excess")
    assert row.value == pytest.approx(((0.9 - 0.2) - (0.3 - 0.1) + (0.8 - 0.2) - (0.5 - 0.1)) / 2)
    assert row.is_difference
    assert row.num_units == 2


@pytest.mark.parametrize(
    ("own", "unseen", "end"),
    [
        (around(0.8), SPREAD[::-1], ": the trigger's own"),
        (around(0.8), around(0.3)[::-1], ": the trigger's own, though other patches do some"),
        (around(0.9), around(0.9)[::-1], ": a backdoor that any patch of the trigger's style opens"),
        (around(0.1), around(0.1)[::-1], ": not shown to be the trigger's own"),
        ((0.9,), (0.85,), ": most of it comes with any patch of the trigger's style"),
        ((0.9,), (0.1,), "pt"),
    ],
)
def test_a_backdoor_that_any_patch_opens_is_called_so(own, unseen, end):
    own, unseen = (tuple(max(0.0, value) for value in values) for values in (own, unseen))
    _, text = described(own, unseen)
    assert text.startswith("specific excess ")
    assert text.endswith(end)


def test_nothing_is_said_where_it_was_not_measured():
    models = [
        bare(arm, [("attack_success_rate", "triggered", "knn", 0.5, 9, None, None)]) for arm in ("control", "suspect")
    ]
    assert [one.text for one in judge_specificity(paired(models), [(RATE, Point("", SUSPECT))])] == [""]
