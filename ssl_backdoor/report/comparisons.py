"""Each line of a table against the clean-trained control: how far apart, how sure, how many units it would take.

A difference is arm minus control of the same dataset, trigger, target and seed, on triggered images; a unit is a seed
or a pair (see ``aggregate.units_of``). p-values are corrected over the lines of one table.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from ssl_backdoor.report.aggregate import FloatArray, Unit, differences, pair_means, t_interval, units_of
from ssl_backdoor.report.runs import Index, Key, Replicate, control_of, of_arm
from ssl_backdoor.specs import TableRow, TableSpec

ALPHA, POWER = 0.05, 0.8
MOST_UNITS = 10_000  # beyond this many no number of units is named
Verdict = Literal["above the control", "below the control", "cannot be told", "not measured"]


class Comparison(NamedTuple):
    """One line of a table against its control. What cannot be computed is None."""

    label: str
    variant: str
    arm: str
    key: Key
    """Name, condition and probe of what is compared."""
    differences: dict[Replicate, float]
    """Arm minus control by pair and seed."""
    unit: Unit
    n: int
    """Units of the kind ``unit``."""
    mean: float | None
    low: float | None
    high: float | None
    """95 % t interval over units."""
    p: float | None
    """Two-sided t-test of the units' differences against 0."""
    p_holm: float | None
    """``p`` corrected after Holm over the lines of the table."""
    effect_size: float | None
    """Cohen's d of the paired differences: their mean over their standard deviation."""
    units_needed: int | None
    """Units for 80 % power at that effect (two-sided, 5 %, uncorrected); 0: more than ``MOST_UNITS``."""
    verdict: Verdict
    apart_from: tuple[str, ...] = ()
    """Labels of the lines whose intervals do not overlap with this one's."""

    @property
    def pair_range(self) -> tuple[float, float] | None:
        """Least and largest difference of a pair, seeds averaged; None below two pairs."""
        means = pair_means(self.differences).values()
        return (min(means), max(means)) if len(means) >= 2 else None


def arm_of(row: TableRow) -> str:
    """The encoder that a line sets against the control."""
    return row.arm or "suspect"


def key_of(table: TableSpec, name: str, condition: str) -> Key:
    """The measurement ``name`` of ``table``; what is measured on the features alone has no probe of its own."""
    on_features = name.startswith(("z_score_", "similarity_"))
    return name, condition, "features" if on_features else table.probe


def control_variant(index: Index, variant: str) -> str:
    """The variant that holds the controls of ``variant``: its own, else the main one where they are lent."""
    if of_arm(index, variant, "control"):
        return variant
    lent = any(control_of(index, one) for one, _ in of_arm(index, variant, "suspect").values())
    return "" if lent else variant


def compare(table: TableSpec, index: Index, unit: Unit) -> tuple[Comparison, ...]:
    """Every line of ``table`` whose encoder is not the control itself, in the order of the table."""
    key = key_of(table, table.measures[-1], "triggered")
    rows = [row for row in table.rows if arm_of(row) != "control"]
    plain = [_one(row, differences(index, row.variant, arm_of(row), key), key, unit) for row in rows]
    tested = [position for position, one in enumerate(plain) if one.p is not None]
    if tested:
        corrected = multipletests([plain[position].p for position in tested], alpha=ALPHA, method="holm")[1]
        for position, p_holm in zip(tested, corrected, strict=True):
            one = plain[position]
            plain[position] = one._replace(p_holm=float(p_holm), verdict=_verdict(one.mean, float(p_holm)))
    return tuple(
        one._replace(apart_from=tuple(other.label for other in plain if other is not one and _apart(one, other)))
        for one in plain
    )


def _one(row: TableRow, found: dict[Replicate, float], key: Key, unit: Unit) -> Comparison:
    bare = Comparison(
        row.label,
        row.variant,
        arm_of(row),
        key,
        found,
        unit,
        0,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        "not measured",
    )
    if not found:
        return bare
    units = units_of({replicate: (value,) for replicate, value in found.items()}, unit)
    values = units.values[:, 0]
    bare = bare._replace(unit=units.kind, n=len(values), mean=float(values.mean()), verdict="cannot be told")
    if len(values) < 2 or _constant(values):
        return bare
    mean, low, high = t_interval(values)
    effect = mean / float(values.std(ddof=1))
    p = float(stats.ttest_1samp(values, 0.0).pvalue)
    return bare._replace(mean=mean, low=low, high=high, p=p, effect_size=effect, units_needed=units_needed(effect))


def _constant(values: FloatArray) -> bool:
    """Whether there is no spread to test against (up to rounding)."""
    return float(np.ptp(values)) <= 1e-9 * float(np.abs(values).max())


def _verdict(mean: float | None, p_holm: float) -> Verdict:
    if mean is None or not p_holm < ALPHA:
        return "cannot be told"
    return "above the control" if mean > 0 else "below the control"


def _apart(one: Comparison, other: Comparison) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high


def units_needed(effect_size: float) -> int:
    """Least number of units (at least 3) whose paired t-test finds ``effect_size`` with 80 % power; 0: beyond 10,000.

    Two-sided at 5 %, one test. The observed effect is taken for the true one, which flatters what turned out large.
    """
    size = min(abs(effect_size), 3.5)  # three units find that; scipy's noncentral t is not dependable beyond it
    power = TTestPower()
    for few in range(3, 12):  # the root finder does not settle where a handful is enough
        if power.power(size, few, ALPHA) >= POWER:
            return few
    if power.power(size, MOST_UNITS, ALPHA) < POWER:
        return 0
    return math.ceil(float(power.solve_power(effect_size=size, alpha=ALPHA, power=POWER, alternative="two-sided")))


def kind_of(comparisons: Sequence[Comparison]) -> Unit:
    """What the intervals of these lines are over: the first measured one's unit."""
    return next((one.unit for one in comparisons if one.n), "pair")
