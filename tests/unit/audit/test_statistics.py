"""Ranks, false discovery rates, power, and the words that are made of them."""

import math

import numpy as np
import pytest

from ssl_backdoor.audit import verdict
from ssl_backdoor.audit.statistics import (
    Planted,
    Power,
    benjamini_hochberg,
    is_decidable,
    leave_one_out,
    powers,
    seen_from,
)


def test_q_values_are_those_of_a_published_example():
    # Benjamini & Hochberg 1995, section 3.2: fifteen p-values, of which the first four are rejected at q = 0.05.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    p = np.array(p)
    q = benjamini_hochberg(p)
    assert (q <= 0.05).sum() == 4
    assert q[3] == pytest.approx(0.0095 * 15 / 4)
    assert (np.diff(q) >= 0).all()


def test_q_values_hold_the_rate_they_promise_and_leave_out_what_has_no_p():
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        p = np.concatenate([generator.uniform(size=190), generator.uniform(high=1e-4, size=10)])
        reported = benjamini_hochberg(p) <= 0.1
        shares.append(reported[:190].sum() / max(1, reported.sum()))
    assert 0.07 < np.mean(shares) < 0.12  # 0.1 * 190 / 200
    assert np.isnan(benjamini_hochberg(np.array([np.nan, 0.5])))[0]
    assert benjamini_hochberg(np.array([np.nan, 0.5]))[1] == 0.5


def test_power_counts_what_siblings_would_call_evidence():
    null = [-0.3 - 0.01 * n for n in range(19)]
    planted = [
        Planted(0.1, -0.05), Planted(0.1, -0.04), Planted(0.02, -0.4), Planted(0.02, math.nan),
        Planted(0.02, -0.01, "not planted"), Planted(0.05, None, "not judged"),
    ]  # fmt: skip
    found = powers(planted, null, 0.05)
    assert [(one.area, one.num_found, one.num_planted) for one in found] == [(0.02, 0, 2), (0.1, 2, 2)]
    assert powers(planted, [], 0.05) == ()


@pytest.mark.parametrize(
    ("shares", "area"),
    [
        ({0.02: 3, 0.06: 3, 0.1: 3}, 0.02),
        ({0.02: 3, 0.06: 2, 0.1: 3}, 0.1),
        ({0.02: 3, 0.06: 3, 0.1: 0}, None),
        ({}, None),
    ],
)
def test_an_area_counts_as_seen_where_all_larger_ones_are(shares, area):
    assert seen_from([Power(one, hits, 3, 0.0, 1.0) for one, hits in shares.items()]) == area


def test_few_siblings_allow_no_small_rate():
    assert [is_decidable(num, 0.05) for num in (0, 18, 19, 99)] == [False, False, True, True]
    assert is_decidable(3, 0.25)
    assert powers([Planted(0.1, -0.01)], [-0.3] * 18, 0.05) == ()


def test_p_values_of_exchangeable_encoders_are_uniform():
    assert sorted(leave_one_out([5.0, 1.0, 3.0, 2.0, 4.0])) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert leave_one_out([1.0, 1.0]) == [1.0, 1.0]


FULL = [Power(0.0156, 1, 3, 0.06, 0.79), Power(0.0625, 3, 3, 0.44, 1.0), Power(0.0977, 3, 3, 0.44, 1.0)]
VERDICTS = {
    "no evidence": verdict.of_encoder(-0.3, 0.35, 19, 0.05, FULL),
    "no power": verdict.of_encoder(-0.3, 0.35, 19, 0.05, FULL[:1]),
    "unknown power": verdict.of_encoder(-0.3, 0.35, 19, 0.05, []),
    "not found": verdict.of_encoder(math.nan, 1.0, 19, 0.05, FULL),
    "evidence": verdict.of_encoder(-0.03, 0.05, 19, 0.05, FULL, "it pulls 97 % of held-out images towards cat.png"),
    "few": verdict.of_encoder(-0.03, 0.25, 3, 0.05, FULL),
    "none": verdict.of_encoder(-0.03, None, 0, 1.0, []),
    "refused": verdict.refused("w.pt is a pickle"),
    "unfinished": verdict.unfinished(60.0),
}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("no evidence", ("no evidence at 80 % power or more for patches of >= 6.25 % of the area", "p = 0.35, 19 sib")),
        ("no power", ("little would have been found", "1 of 3 at 1.56 %")),
        ("unknown power", ("how much would have been found is unknown",)),
        ("evidence", ("evidence of a planted trigger (p = 0.05, 19 siblings, the smallest possible)", "it pulls 97 %")),
        ("few", ("undecided (p = 0.25, 3 siblings, the smallest possible)", "rate of 0.05, which takes 19")),
        ("none", ("no p-value possible", "give --siblings")),
        ("refused", ("not audited",)),
        ("unfinished", ("nothing can be said", "1 minutes")),
    ],
)  # fmt: skip
def test_verdicts_state_the_odds(name, parts):
    for part in parts:
        assert part in VERDICTS[name].sentence


def test_no_verdict_says_that_an_encoder_is_clean_or_backdoored():
    for one in VERDICTS.values():
        assert not {"clean", "backdoored", "safe"} & set(one.sentence.replace(",", "").split())
