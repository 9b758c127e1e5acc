"""95 % intervals and tests of means over few units; tests/unit/report/test_coverage.py simulates their coverage.

A mean without limits has Student's t. A mean of values within limits (shares, counts, cosines, their differences) has
the profile likelihood of the mean of a beta distribution there, with Student's t in the place of chi squared: far from
both ends that is the t interval, near an end it is skewed, and it never leaves the limits. Few values tell little of a
long tail: where the spread is skewed the level is raised, up to 98.3 %
with ten units or more (beta likelihood alone would cover 87 to 90 % of means of skewed logit-normal shares).
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit, gammaln, logit

Array = npt.NDArray[np.float64]
ALPHA = 0.05
RATIO_ALPHA = 0.01
_STEPS = np.sinh(np.linspace(-7.0, 7.0, 71))  # of the grid over the mean, in standard errors on the logit scale
_NUM_SPREADS = 44  # of the grid over the beta distribution's a + b
_MAX_LOGIT = 36.0


@cache
def _quantile(alpha: float, df: float) -> float:
    """Of Student's t, two-sided."""
    return float(stats.t.ppf(1 - alpha / 2, df))


class Limits(NamedTuple):
    """The least and largest value that is possible, and the steps between them (such as test images)."""

    low: float
    high: float
    steps: float = 1e6


UNLIMITED = Limits(-math.inf, math.inf)


class Inference(NamedTuple):
    """A 95 % interval and the two-sided p of the mean being the null value, (rows,) each."""

    low: Array
    high: Array
    p: Array


def infer_mean(
    values: Array,
    limits: Limits = UNLIMITED,
    null: float = 0.0,
    *,
    stretch: Array | float = 1.0,
    df: Array | float | None = None,
    alpha: float = ALPHA,
) -> Inference:
    """Of the means of ``values`` (rows, n), n >= 2; where all are equal, one is moved by a step.

    Args:
        values: independent units, one experiment a row.
        limits: of one value, which stands half a step off a limit that it reaches.
        null: the mean that is tested.
        stretch: variance of the mean over that of independent units, (rows,).
        df: degrees of freedom of that variance, (rows,); n - 1 by default.
        alpha: one minus the level.
    """
    num_units = values.shape[1]
    df = num_units - 1.0 if df is None else df
    longer = np.sqrt(np.broadcast_to(np.asarray(stretch, np.float64), len(values)))
    if limits == UNLIMITED:
        mean, error = values.mean(1), longer * values.std(1, ddof=1) / np.sqrt(num_units)
        half = stats.t.ppf(1 - alpha / 2, df) * error
        return Inference(mean - half, mean + half, 2 * stats.t.sf(np.abs(mean - null) / error, df))
    low, width = limits.low, limits.high - limits.low
    shares = (np.clip((values - low) / width, 0.0, 1.0) * limits.steps + 0.5) / (limits.steps + 1.0)
    flat = np.ptp(shares, axis=1, keepdims=True) == 0  # the least spread that steps can show, instead of none
    shares = np.where(flat & (np.arange(num_units) == 0), shares * (1 - 1 / limits.steps), shares)
    mean = shares.mean(1)
    skew = np.minimum(1.0, np.abs(1 - 2 * mean) * shares.std(1, ddof=1) / (mean * (1 - mean)))
    raised = 1.0 + skew * min(num_units, 10) / 5
    where, t = _profile(shares)
    t /= longer[:, None]
    found = 2 * stats.t.sf(_interpolate(np.full(len(t), logit((null - low) / width)), where, t), df)
    limit = stats.t.ppf(1 - alpha / 2 / raised, df)
    least, most = (_crossing(where[:, ::step], t[:, ::step], limit) for step in (1, -1))
    return Inference(low + width * expit(least), low + width * expit(most), np.minimum(1.0, found * raised))


def infer_share(hits: Array, trials: Array) -> tuple[float, float]:
    """The 95 % interval of the share of ``hits`` among ``trials``, (models,) each, two models or more.

    Trials of one model are not independent. Wilson's interval by Student's t over models, of as many independent trials
    as the spread between models is worth; where all or none hit, the exact interval of one trial a model. Of one trial
    a model: Clopper and Pearson's.
    """
    num_models, n = len(hits), float(trials.sum())
    share = float(hits.sum()) / n
    if trials.max() == 1:
        count, tail = float(hits.sum()), ALPHA / 2
        low = float(stats.beta.ppf(tail, count, n - count + 1)) if count else 0.0
        return low, float(stats.beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    if share in (0.0, 1.0):
        reach = float(ALPHA ** (1 / num_models))
        return (reach, 1.0) if share else (0.0, 1.0 - reach)
    variance = max(float((hits / trials).var(ddof=1)) / num_models, share * (1 - share) / n)
    worth, t = share * (1 - share) / variance, _quantile(ALPHA, num_models - 1)
    centre = share + t * t / (2 * worth)
    half = t * math.sqrt(share * (1 - share) / worth + t * t / (4 * worth * worth))
    low, high = ((centre + sign * half) / (1 + t * t / worth) for sign in (-1, 1))
    return low, high


def infer_ratio(above: Array, below: Array, stretch: float, df: float) -> tuple[float, float] | None:
    """Fieller's interval of mean ``above`` over mean ``below``, (n,) each; None where the latter is not above 0.

    Both at 1 %: a ratio is shown only where its denominator is significant, and that choice costs coverage. So its
    interval covers 95 % of those that are shown.
    """
    n = len(above)
    t2 = _quantile(RATIO_ALPHA, df) ** 2 * stretch / n
    (top, mixed), (_, bottom) = np.cov(above, below) * t2
    a, b, c = below.mean() ** 2 - bottom, above.mean() * below.mean() - mixed, above.mean() ** 2 - top
    if a <= 0 or below.mean() <= 0:
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a


def _profile(shares: Array) -> tuple[Array, Array]:
    """Means on the logit scale and, of each, what Student's t would be of as much likelihood lost, (rows, G)."""
    num_units = shares.shape[1]
    mean, variance = shares.mean(1), shares.var(1, ddof=1)
    error = np.sqrt(variance / num_units) / (mean * (1 - mean))
    where = np.clip(logit(mean)[:, None] + _STEPS * error[:, None], -_MAX_LOGIT, _MAX_LOGIT)
    most = np.log(np.maximum(mean * (1 - mean) / variance, 1.0)) + 4.0
    total = np.exp(np.linspace(np.full(len(mean), -3.5), most, _NUM_SPREADS, axis=-1))[:, None, :]
    a, b = expit(where)[:, :, None] * total, expit(-where)[:, :, None] * total
    known, unknown = np.log(shares).mean(1)[:, None, None], np.log1p(-shares).mean(1)[:, None, None]
    likelihood = _peak(gammaln(total) - gammaln(a) - gammaln(b) + (a - 1) * known + (b - 1) * unknown)
    lost = np.clip(_peak(likelihood)[:, None] - likelihood, 0.0, 300.0)
    return where, np.sqrt((num_units - 1) * np.expm1(2 * lost))


def _peak(values: Array) -> Array:
    """The largest along the last axis, by a parabola through the three around it."""
    top = np.clip(values.argmax(-1), 1, values.shape[-1] - 2)[..., None]
    left, middle, right = (np.take_along_axis(values, top + step, -1)[..., 0] for step in (-1, 0, 1))
    bend = 2 * middle - left - right
    peak = middle + np.where(bend > 0, (right - left) ** 2 / np.where(bend > 0, 8 * bend, 1.0), 0.0)
    highest: Array = np.maximum(np.minimum(peak, middle + 0.5 * np.abs(bend)), values.max(-1))
    return highest


def _interpolate(at: Array, where: Array, t: Array) -> Array:
    return np.array([np.interp(one, x, y) for one, x, y in zip(at, where, t, strict=True)])


def _crossing(where: Array, t: Array, limit: Array) -> Array:
    """Where each row falls below ``limit`` on the way to its least t; infinite where it starts below."""
    before = np.arange(t.shape[1]) < t.argmin(1)[:, None]
    outside = before & (t > limit[:, None])
    last = t.shape[1] - 1 - outside[:, ::-1].argmax(1)
    rows, found = np.arange(len(t)), outside.any(1)
    last = np.where(found, last, 0)
    x0, x1, t0, t1 = where[rows, last], where[rows, last + 1], t[rows, last], t[rows, last + 1]
    part = np.clip((t0 - limit) / np.where(t0 > t1, t0 - t1, 1.0), 0.0, 1.0)
    return np.where(found, x0 + part * (x1 - x0), where[:, 0] * np.inf)
