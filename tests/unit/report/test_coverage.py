"""How often the intervals that a report prints hold the truth: nominal 95 %, simulated on data like ours.

Every kind of interval: the mean of something bounded, of a difference, of something unbounded, a share pooled over
models, a share removed, means over pairs that share clean-trained encoders. The area under the ROC curve is simulated
in tests/unit/detection/test_measure.py. ``python -m tests.unit.report.test_coverage`` prints the table.
"""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from ssl_backdoor.report.comparisons import range_needed, units_needed
from ssl_backdoor.report.estimates import FEWEST, FEWEST_PAIRS_COMPARED, Units
from ssl_backdoor.report.intervals import UNLIMITED, Limits, infer_mean, infer_ratio, infer_share

RUNS, IMAGES, LEAST = 500, 4000, 0.93
# False positives of 4,000 of ten pairs (BYOL, 2026-11-20): control, poisoned, defended; kNN, then linear.
PAIRS = np.array([
    [[257, 79, 133], [569, 3957, 1910], [571, 2310, 87], [466, 38, 136], [654, 645, 1335],
     [577, 498, 389], [371, 3924, 1510], [586, 1948, 331], [380, 761, 241], [739, 3427, 1283]],
    [[234, 1406, 267], [626, 2087, 2288], [627, 2507, 211], [253, 33, 26], [776, 253, 1376],
     [508, 3125, 619], [400, 2095, 1337], [806, 2210, 466], [158, 29, 64], [923, 3367, 1505]],
])  # fmt: skip


def like_pairs(which, columns, sd=0.4):
    """Draws pairs like those measured: one of the ten, moved on the logit scale."""
    centre = logit((PAIRS[which][:, columns] + 0.5) / (IMAGES + 1))
    return lambda rng, shape: expit(centre[rng.integers(0, 10, shape)] + rng.normal(0, sd, (*shape, len(columns))))


def one(draw):
    return lambda rng, shape: draw(rng, shape)[..., 0]


def difference(draw):
    return lambda rng, shape: np.subtract(*np.moveaxis(draw(rng, shape)[..., :2], -1, 0)[::-1])


SHARES = {
    "two-humped FP, beta(0.4, 0.6)": lambda rng, shape: rng.beta(0.4, 0.6, shape),
    "ASR near 1, beta(30, 0.6)": lambda rng, shape: rng.beta(30, 0.6, shape),
    "ASR near 1, logit-normal(3, 1.5)": lambda rng, shape: expit(rng.normal(3, 1.5, shape)),
    "small skewed FP, beta(0.5, 20)": lambda rng, shape: rng.beta(0.5, 20, shape),
    "small skewed FP, log-normal": lambda rng, shape: np.minimum(np.exp(rng.normal(-4.5, 1, shape)), 1),
    "accuracy, normal(0.62, 0.01)": lambda rng, shape: rng.normal(0.62, 0.01, shape),
}
PAIRED = {
    "FP of pairs like ours, kNN": one(like_pairs(0, [1])),
    "FP of pairs like ours, linear": one(like_pairs(1, [1])),
}
DIFFERENCES = {
    "excess near 1": lambda rng, shape: rng.beta(30, 0.6, shape) - rng.beta(2, 40, shape),
    "excess over seeds, normal": lambda rng, shape: rng.normal(0.3, 0.1, shape),
}
COMPARED = {
    "excess of pairs like ours, kNN": difference(like_pairs(0, [0, 1])),
    "excess of pairs like ours, linear": difference(like_pairs(1, [0, 1])),
}
UNBOUNDED = {
    "z-score, normal": lambda rng, shape: rng.normal(0.9, 0.15, shape),
    "z-score, skewed (gamma 20)": lambda rng, shape: rng.gamma(20, 0.05, shape),
}
KINDS = {
    "share": (SHARES, Limits(0.0, 1.0, IMAGES), (2, 3, 4, 10)),
    "share over pairs": (PAIRED, Limits(0.0, 1.0, IMAGES), (FEWEST["pair"], 4, 10)),
    "difference": (DIFFERENCES, Limits(-1.0, 1.0, 2 * IMAGES), (2, 3, 4, 10)),
    "difference over pairs": (COMPARED, Limits(-1.0, 1.0, 2 * IMAGES), (FEWEST_PAIRS_COMPARED, 10)),
    "cosine": (
        {"cosine, beta(8, 3)": lambda rng, shape: 2 * rng.beta(8, 3, shape) - 1},
        Limits(-1.0, 1.0),
        (2, 3, 4, 10),
    ),
    "unbounded": (UNBOUNDED, UNLIMITED, (2, 3, 4, 10)),
}
CASES = [(kind, name, n) for kind, (cases, _, counts) in KINDS.items() for name in cases for n in counts]


def seen(values, limits):
    """As test images show them."""
    if limits.steps != IMAGES:
        return values
    return np.round(values * IMAGES) / IMAGES


def covered(draw, limits, n, seed=0):
    """How often the interval holds the mean, and the median width."""
    rng = np.random.default_rng(seed)
    truth = float(draw(rng, (100_000,)).mean())
    found = infer_mean(seen(draw(rng, (RUNS, n)), limits), limits, truth)
    inside = (found.low <= truth) & (truth <= found.high)
    assert np.mean(inside == (found.p >= 0.05)) > 0.995  # the test and the interval are one
    if limits != UNLIMITED:
        assert found.low.min() >= limits.low
        assert found.high.max() <= limits.high
    return float(inside.mean()), float(np.median(found.high - found.low))


@pytest.mark.parametrize(("kind", "name", "n"), CASES)
def test_the_interval_of_a_mean_covers(kind, name, n):
    cases, limits, _ = KINDS[kind]
    assert covered(cases[name], limits, n)[0] >= LEAST


def test_all_or_nothing_is_the_exception_that_the_page_names():
    def draw(rng, shape):
        return np.where(rng.random(shape) < 0.6, rng.beta(20, 3, shape), rng.beta(1.5, 40, shape))

    found = {n: covered(draw, Limits(0.0, 1.0, IMAGES), n)[0] for n in (2, 3, 4, 10)}
    assert all(0.76 <= found[n] <= 0.88 for n in (2, 3, 4))
    assert found[10] >= LEAST


@pytest.mark.parametrize(("models", "targets"), [(3, 1), (3, 4), (4, 6), (10, 6), (10, 1), (32, 1)])
def test_a_share_pooled_over_models_covers_though_its_targets_are_not_independent(models, targets):
    for share in (0.05, 0.3, 0.9):
        for alike in (0.0, 0.1, 0.3, 0.6) if targets > 1 else (0.0,):
            rng = np.random.default_rng(1)
            each = np.full((RUNS, models), share)
            if alike:
                each = rng.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), (RUNS, models))
            hits = rng.binomial(targets, each).astype(float)
            ends = np.array([infer_share(row, np.full(models, float(targets))) for row in hits])
            assert ends.min() >= 0.0
            assert ends.max() <= 1.0
            assert np.mean((ends[:, 0] <= share) & (share <= ends[:, 1])) >= LEAST, (share, alike)


def removals():
    near_1 = (lambda rng, shape: rng.beta(3, 30, shape), lambda rng, shape: rng.beta(30, 0.6, shape),
              lambda rng, shape: rng.beta(0.7, 6, shape))  # fmt: skip
    return {
        "like ours, kNN": like_pairs(0, [0, 1, 2]),
        "like ours, linear": like_pairs(1, [0, 1, 2]),
        "near 1": lambda rng, shape: np.stack([draw(rng, shape) for draw in near_1], -1),
    }


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(("near 1", n) for n in (2, 3, 4, 10)),
        *((f"like ours, {name}", n) for name in ("kNN", "linear") for n in (8, 10)),
    ],
)
def test_the_interval_of_a_share_removed_covers_among_those_that_are_shown(name, n):
    draw, rng = removals()[name], np.random.default_rng(2)
    control, before, after = draw(rng, (100_000,)).mean(0)
    truth = (before - after) / (before - control)
    inside = []
    for values in draw(rng, (4 * RUNS, n)):
        found = infer_ratio(values[:, 1] - values[:, 2], values[:, 1] - values[:, 0], 1.0, n - 1.0)
        if found is not None:
            inside.append(found[0] <= truth <= found[1])
    assert len(inside) >= 50
    assert np.mean(inside) >= LEAST


def shared_controls(rng, pairs, seeds, sd_control):
    """Differences without effect (pairs, seeds): pair, clean-trained encoder of the seed, rest."""
    return rng.normal(0, 1, (pairs, 1)) + rng.normal(0, sd_control, (1, seeds)) + rng.normal(0, 0.5, (pairs, seeds))


@pytest.mark.parametrize("sd_control", [0.3, 1.0])
@pytest.mark.parametrize(("pairs", "seeds"), [(8, 3), (8, 4), (10, 3), (10, 10)])
def test_pairs_that_share_clean_trained_encoders_cover(pairs, seeds, sd_control):
    rng, inside = np.random.default_rng(3), []
    for _ in range(2 * RUNS):
        drawn = shared_controls(rng, pairs, seeds, sd_control)
        units = Units("pair", drawn.mean(1)[:, None], seeds, seeds, drawn.mean(0)[:, None], True)
        stretch, df = units.noise_of(units.values[:, 0], units.by_control[:, 0])
        found = infer_mean(units.values.T, stretch=stretch, df=df)
        inside.append(found.low[0] <= 0 <= found.high[0])
    assert np.mean(inside) >= LEAST


def test_one_family_has_one_error_in_twenty():
    values = np.random.default_rng(4).normal(0, 0.03, (RUNS * 8, 4))
    p = infer_mean(values, Limits(-1.0, 1.0)).p.reshape(RUNS, 8)
    assert np.mean(p.min(1) * 8 < 0.05) <= 0.07  # Holm's test of a family finds something where Bonferroni's does
    wide = infer_mean(values, Limits(-1.0, 1.0), alpha=0.05 / 8)
    assert np.mean(wide.low.reshape(RUNS, 8).max(1) > wide.high.reshape(RUNS, 8).min(1)) <= 0.05


def test_the_range_of_units_needed_holds_four_times_out_of_five():
    rng, inside = np.random.default_rng(5), []
    for effect, n in ((0.5, 5), (1.0, 5), (1.0, 10)):
        for values in rng.normal(effect, 1, (RUNS // 4, n)):
            few, many = range_needed(values.mean() / values.std(ddof=1), n)
            inside.append((few or 10_001) <= units_needed(effect) <= (many or 10_001))
    assert np.mean(inside) >= 0.78
    assert range_needed(1.0, 4) is None


def before(values):
    """Student's t interval, cut to nothing: what was printed before."""
    mean, half = values.mean(1), values.std(1, ddof=1) / np.sqrt(values.shape[1])
    half = half * stats.t.ppf(0.975, values.shape[1] - 1)
    return mean - half, mean + half


if __name__ == "__main__":
    for kind, name, n in CASES:
        draw, limits = KINDS[kind][0][name], KINDS[kind][1]
        rng = np.random.default_rng(0)
        truth = float(draw(rng, (100_000,)).mean())
        low, high = before(seen(draw(rng, (RUNS, n)), limits))
        inside = np.mean((low <= truth) & (truth <= high))
        print(f"{kind:22}| {name:36}| {n:2} | {inside:.3f} | {covered(draw, limits, n)[0]:.3f}")
