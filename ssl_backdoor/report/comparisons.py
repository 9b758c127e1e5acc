"""Differences to the clean-trained control that a sentence or a table makes something of: which are significant.

A difference is arm minus control of the same dataset, trigger, target and seed, on triggered images; a unit is a seed
or a pair (see ``estimates.units_of``). p-values are corrected after Holm over everything that is told together: all
lines of all tables, all measures of an answer, all points of a figure. Without two independent trainings of each
encoder there is no p, and so no verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from statsmodels.stats.power import TTestPower

from ssl_backdoor.report.estimates import Estimate, Results, Unit, estimate_difference, units_of
from ssl_backdoor.report.frame import SUSPECT, Arm, Measure
from ssl_backdoor.report.intervals import ALPHA
from ssl_backdoor.report.layout import Point
from ssl_backdoor.specs import TableRow, TableSpec

POWER = 0.8
MOST_UNITS = 10_000  # beyond this many no number of units is named
FEWEST_UNITS = 5  # below this many an effect is too badly known to say how many it would take
Verdict = Literal["above", "below", "unclear", "untested", "unmeasured"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of a table against its control. What cannot be computed is None."""

    label: str
    difference: Estimate
    """Mean over units; ``num_units`` of them, 0 where it was not measured."""
    specific: Estimate | None = None
    """The difference less the same one under unseen triggers."""
    p_holm: float | None = None
    """The difference's p corrected after Holm over all lines of all tables."""
    effect_size: float | None = None
    """Cohen's d of the paired differences: their mean over their standard deviation."""
    units_needed: tuple[int, int] | None = None
    """Units for 80 % power (two-sided, 5 %, uncorrected) at the ends of the effect's 80 % interval; 0: more than
    ``MOST_UNITS``."""
    verdict: Verdict = "unmeasured"
    apart_from: tuple[str, ...] = ()
    """Labels of the lines of its table whose simultaneous intervals do not overlap with this one's."""

    @property
    def p(self) -> float | None:
        """Uncorrected."""
        return self.difference.p


def arm_of(row: TableRow, results: Results) -> Arm:
    """The encoder that a line sets against the control: the one that it names, else the poisoned one."""
    name = row.arm or SUSPECT.name
    here = (model.made for model in results.models if model.run.variant == row.variant)
    return next((arm for arm in here if arm.name == name), Arm.named(name, "none"))


def holm(rows: Sequence[Estimate | None]) -> list[float | None]:
    """The p of each of ``rows`` corrected after Holm over all that have one."""
    tested = sorted((row.p, position) for position, row in enumerate(rows) if row is not None and row.p is not None)
    corrected: list[float | None] = [None] * len(rows)
    highest = 0.0
    for rank, (p, position) in enumerate(tested):
        corrected[position] = highest = max(highest, min(1.0, p * (len(tested) - rank)))
    return corrected


def verdict_of(row: Estimate, p_holm: float | None) -> Verdict:
    """Where ``row``, a difference, lies by its corrected p; untested where it has none."""
    if not row.num_units:
        return "unmeasured"
    if p_holm is None:
        return "untested"
    return "unclear" if p_holm >= ALPHA else "above" if (row.value or 0.0) > 0 else "below"


def verdicts(rows: Sequence[Estimate]) -> list[Verdict]:
    """Of differences that are told together."""
    return [verdict_of(row, p) for row, p in zip(rows, holm(rows), strict=True)]


def compare(tables: Sequence[TableSpec], results: Results) -> tuple[tuple[Comparison, ...], ...]:
    """The lines of each of ``tables``, but those of the control itself, by its last measure on triggered images.

    Tests, and the intervals that rank lines, are corrected over all lines of all tables.
    """
    found = [_lines(table, results) for table in tables]
    every = [line for lines in found for line in lines]
    corrected = iter(holm([line.difference for line in every]))
    ranked: list[tuple[Comparison, ...]] = []
    for lines in found:
        wide = [_estimated(line.difference, results, ALPHA / len(every)) for line in lines]
        ranked.append(
            tuple(
                replace(
                    line, p_holm=(p := next(corrected)), verdict=verdict_of(line.difference, p),
                    apart_from=tuple(
                        there.label for there, theirs in zip(lines, wide, strict=True) if is_apart(own, theirs)
                    ),
                )
                for line, own in zip(lines, wide, strict=True)
            )
        )  # fmt: skip
    return tuple(ranked)


def _lines(table: TableSpec, results: Results) -> list[Comparison]:
    measure = Measure.of_table(table.measures[-1], "triggered", table.probe)
    lines = []
    for row in table.rows:
        point = Point(row.variant, arm_of(row, results))
        if point.arm.is_clean and not point.arm.defence:
            continue
        values = results.differences(point, measure)
        difference = Estimate(measure=measure, statistic="excess", point=point, num_units=0, values=values)
        specific = results.get(measure, point.arm, point.variant, "specific_excess")
        line = Comparison(label=row.label, difference=replace(difference, unit=results.unit), specific=specific)
        lines.append(_measured(line, results) if values else line)
    return lines


def _estimated(row: Estimate, results: Results, alpha: float) -> Estimate:
    if not row.values:
        return row
    group = results.groups[row.point][row.measure]
    return estimate_difference(row, results.unit, int(group.n.min()), alpha)


def _measured(line: Comparison, results: Results) -> Comparison:
    difference = _estimated(line.difference, results, ALPHA)
    if difference.p is None:
        return replace(line, difference=difference)
    each = units_of({replicate: (value,) for replicate, value in difference.values.items()}, results.unit).values[:, 0]
    effect = float(each.mean() / each.std(ddof=1))
    return replace(line, difference=difference, effect_size=effect, units_needed=range_needed(effect, len(each)))


def is_apart(row: Estimate, other: Estimate) -> bool:
    """Whether both have intervals that do not overlap."""
    if row.low is None or row.high is None or other.low is None or other.high is None:
        return False
    return row.low > other.high or other.low > row.high


def range_needed(effect_size: float, num_units: int) -> tuple[int, int] | None:
    """``units_needed`` at the ends of the 80 % interval of an effect seen over ``num_units``; None below five.

    Hedges's correction of Cohen's d and its large-sample variance.
    """
    if num_units < FEWEST_UNITS:
        return None
    size = abs(effect_size) * (1 - 3 / (4 * (num_units - 1) - 1))
    half = 1.2816 * math.sqrt(1 / num_units + size**2 / (2 * (num_units - 1)))
    return units_needed(size + half), units_needed(max(0.0, size - half))


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
