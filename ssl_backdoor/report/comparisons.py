"""Each line of a table against the clean-trained control: how far apart, how sure, how many units it would take.

A difference is arm minus control of the same dataset, trigger, target and seed, on triggered images; a unit is a seed
or a pair (see ``estimates.units_of``). p-values are corrected over the lines of one table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from ssl_backdoor.report.estimates import Estimate, Results, Unit, t_interval, units_of
from ssl_backdoor.report.frame import SUSPECT, Arm, Measure
from ssl_backdoor.report.layout import Point
from ssl_backdoor.specs import TableRow, TableSpec

ALPHA, POWER = 0.05, 0.8
MOST_UNITS = 10_000  # beyond this many no number of units is named
Verdict = Literal["above", "below", "unclear", "unmeasured"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of a table against its control. What cannot be computed is None."""

    label: str
    difference: Estimate
    """Mean over units; ``num_units`` of them, 0 where it was not measured."""
    p: float | None = None
    """Two-sided t-test of the units' differences against 0."""
    p_holm: float | None = None
    """``p`` corrected after Holm over the lines of the table."""
    effect_size: float | None = None
    """Cohen's d of the paired differences: their mean over their standard deviation."""
    units_needed: int | None = None
    """Units for 80 % power at that effect (two-sided, 5 %, uncorrected); 0: more than ``MOST_UNITS``."""
    verdict: Verdict = "unmeasured"
    apart_from: tuple[str, ...] = ()
    """Labels of the lines whose intervals do not overlap with this one's."""


def arm_of(row: TableRow, results: Results) -> Arm:
    """The encoder that a line sets against the control: the one that it names, else the poisoned one."""
    name = row.arm or SUSPECT.name
    here = (model.made for model in results.models if model.run.variant == row.variant)
    return next((arm for arm in here if arm.name == name), Arm.named(name, "none"))


def compare(table: TableSpec, results: Results) -> tuple[Comparison, ...]:
    """Every line of ``table`` whose encoder is not the control itself, in the order of the table."""
    measure = Measure.of_table(table.measures[-1], "triggered", table.probe)
    points = [(row.label, Point(row.variant, arm_of(row, results))) for row in table.rows]
    lines = [
        _compared(label, results, point, measure)
        for label, point in points
        if point.arm.defence or not point.arm.is_clean
    ]
    tested = [position for position, line in enumerate(lines) if line.p is not None]
    if tested:
        corrected = multipletests([lines[position].p for position in tested], alpha=ALPHA, method="holm")[1]
        for position, p_holm in zip(tested, map(float, corrected), strict=True):
            verdict = _verdict(lines[position].difference.value or 0.0, p_holm)
            lines[position] = replace(lines[position], p_holm=p_holm, verdict=verdict)
    return tuple(
        replace(line, apart_from=tuple(other.label for other in lines if other is not line and _apart(line, other)))
        for line in lines
    )


def _compared(label: str, results: Results, point: Point, measure: Measure) -> Comparison:
    values = results.differences(point, measure)
    difference = Estimate(
        measure=measure, statistic="excess", point=point, unit=results.unit, num_units=0, values=values
    )
    if not values:
        return Comparison(label=label, difference=difference)
    units = units_of({replicate: (value,) for replicate, value in values.items()}, results.unit)
    each = units.values[:, 0]
    n = len(each)
    difference = replace(difference, value=float(each.mean()), n=n, num_units=n, unit=units.kind)
    is_constant = float(np.ptp(each)) <= 1e-9 * float(np.abs(each).max())  # up to rounding: no spread to test against
    if n < 2 or is_constant:
        return Comparison(label=label, difference=difference, verdict="unclear")
    mean, low, high = t_interval(each)
    effect = mean / float(each.std(ddof=1))
    return Comparison(
        label=label,
        difference=replace(difference, value=mean, low=low, high=high, interval="t"),
        p=float(stats.ttest_1samp(each, 0.0).pvalue),
        effect_size=effect,
        units_needed=units_needed(effect),
        verdict="unclear",
    )


def _verdict(mean: float, p_holm: float) -> Verdict:
    if not p_holm < ALPHA:
        return "unclear"
    return "above" if mean > 0 else "below"


def _apart(line: Comparison, other: Comparison) -> bool:
    a, b = line.difference, other.difference
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high or b.low > a.high


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


def unit_of(comparisons: Sequence[Comparison]) -> Unit:
    """What the intervals of these lines are over: the first measured one's unit."""
    return next((line.difference.unit for line in comparisons if line.difference.num_units), "pair")
