"""The details of the answer, in sentences of at most 24 words, by plain rules from the estimates.

A difference is *significant* where its p, corrected after Holm over everything that is told together, is under 0.05.
Two levels differ, and lines are ranked, only where their intervals do not overlap. A null result is said as such.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import stdev

from ssl_backdoor.report.cells import (
    Quantity,
    accuracy_quantities,
    arm_label,
    effect_quantities,
    in_table,
    listing,
    number,
    plural,
    quantity_of,
    with_interval,
)
from ssl_backdoor.report.comparisons import Comparison, Verdict, verdicts
from ssl_backdoor.report.estimates import Estimate, Results, axis_of, pair_means
from ssl_backdoor.report.frame import CONTROL, SUSPECT, Arm, Measure
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.sections.pairs import defended_arms
from ssl_backdoor.report.sections.sweep import AXIS_LABELS, amount, x_label
from ssl_backdoor.report.specificity import judge_specificity
from ssl_backdoor.report.swept import Curve, accuracy_measure, at, curves_of, points_of
from ssl_backdoor.report.verdicts import Encoder, is_short, judge_figure, main_effect, removed_text, told_in
from ssl_backdoor.specs import FigureSpec, TableSpec

LEVELS = (0.5, 0.9)
MOST_WORDS = 24
_BY_VERDICT: tuple[tuple[Verdict, str], ...] = (
    ("above", "significantly above the control's"),
    ("below", "significantly below the control's"),
    ("unclear", "no significant difference"),
    ("untested", "not tested"),
)


def punctuated(clauses: Iterable[str]) -> list[str]:
    """``clauses`` as sentences, without those that are empty."""
    return [f"{clause[0].upper()}{clause[1:]}." for clause in clauses if clause]


def _named(names: Sequence[str], total: int) -> str:
    """A row of names, or where that is long how many of how many."""
    text = listing([f'"{name}"' if "," in name else name for name in names])
    return text if is_short(text, 8) else f"{len(names)} of {total}"


# ----------------------------------------------------------------------------------------------------- pairs


def pairs_clauses(results: Results) -> list[str]:
    """On the main variant: each measure, what is the trigger's own, what defences remove and leave, the spread."""
    variant, main = told_in(results), main_effect(results)
    effects = [q for q in effect_quantities(results.probes()) if results.get(q.measure, SUSPECT, variant, "excess")]
    if main is None or not effects:
        return []
    arms = [arm for arm in defended_arms(results) if results.get(main, arm, variant)]
    every = [(arm, quantity) for arm in (SUSPECT, *arms) for quantity in effects]
    rows = [results.get(quantity.measure, arm, variant, "excess") for arm, quantity in every]
    of_suspect = verdicts([row for row in rows[: len(effects)] if row])
    clauses = [_change(results, q, SUSPECT, v) for q, v in zip(effects, of_suspect, strict=True)]
    (specific,) = judge_specificity(results, [(main, Point(variant, SUSPECT))])
    clauses.append(f"by {quantity_of(main).detail}, {specific.text}" if specific.text else "")
    for arm in arms:
        name = arm.words or arm.defence
        shares = [(q, results.get(q.measure, arm, variant, "removed_frac")) for q in effects]
        clauses += [
            f"{name} {'removes' if row.value >= 0 else 'adds'} {removed_text(row)}, by {_title(q)}".replace(
                "adds −", "adds "
            )
            for q, row in shares
            if row is not None and row.value is not None
        ]
        left = [row for (one, _), row in zip(every, rows, strict=True) if one == arm and row]
        still = [_title(q) for q, v in zip(effects, verdicts(left), strict=False) if v == "above"]
        clauses.append(
            f"what {name} leaves is still significantly above the control's by {listing(still)}" if still else ""
        )
        clauses.append(_change(results, quantity_of(main), arm, "untested"))
    for quantity in accuracy_quantities(results.probes())[:1]:
        for arm in (SUSPECT, *arms):
            if row := results.get(quantity.measure, arm, variant, "excess"):
                clauses.append(f"clean accuracy of {arm.label}: {with_interval(row, 'percent')} against the control")
    return [*clauses, _pair_spread(results, effects[0], variant)]


def _title(quantity: Quantity) -> str:
    return quantity.title if quantity.kind == "score" else quantity.detail


def _change(results: Results, quantity: Quantity, arm: Arm, verdict: Verdict) -> str:
    """From the control to ``arm``, by one measure: of counts the share that they are."""
    here = Encoder(results, quantity.measure, Point(told_in(results), arm)).as_rate
    after, excess = here.get(), here.get("excess")
    before = here.get(point=here.control) if here.control else None
    if after is None or before is None:
        return ""
    kind = quantity_of(here.measure).kind
    what = "z-score" if quantity.kind == "score" else f"attack success by {quantity.detail}"
    text = f"{what}, {arm.label}: {number(after.value, kind)} against {number(before.value, kind)} in the control"
    if excess is not None and excess.low is not None:
        text += f", {with_interval(excess, kind)}"
    return text + ", not significant" * (verdict == "unclear")


def _pair_spread(results: Results, quantity: Quantity, variant: str) -> str:
    """What the range over pairs means: large when its standard deviation passes half of the mean's size."""
    row = results.get(quantity.measure, SUSPECT, variant, "excess")
    values = list(pair_means(row.values).values()) if row else []
    if len(values) < 2:
        return ""
    low, high = (number(value, quantity.kind, signed=True) for value in (min(values), max(values)))
    is_wide = stdev(values) > 0.5 * abs(sum(values) / len(values))
    how = "vary widely" if is_wide else "agree closely"
    then = "poor" if is_wide else "good"
    return (
        f"results {how} across pairs ({low} to {high}, {_title(quantity)}): one pair is a {then} predictor of the next"
    )


# ---------------------------------------------------------------------------------------------------- tables


def table_clauses(tables: Sequence[tuple[TableSpec, Sequence[Comparison]]]) -> list[str]:
    """How the tables were tested, which of their lines differ from the control, and which may be ranked."""
    measured = [[line for line in lines if line.difference.num_units] for _, lines in tables]
    measured = [lines for lines in measured if any(line.p is not None for line in lines)]
    clauses = []
    for lines in measured:
        quantity = in_table(lines[0].difference.measure)
        for verdict, words in _BY_VERDICT:
            if named := [line.label for line in lines if line.verdict == verdict]:
                clauses.append(f"{quantity.in_words} under the trigger, {words}: {_named(named, len(lines))}")
    if measured:
        clauses.insert(0, f"{_over(measured[0])}, tested at 5 % after Holm's correction over the lines of all tables")
        clauses.append(_apart(measured[0]))
    return clauses


def _over(lines: Sequence[Comparison]) -> str:
    """Over how many units, and how many are averaged in each."""
    counts, unit = [line.difference.num_units for line in lines], lines[0].difference.unit
    n = f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    inner = max(len({place[unit == "pair"] for place in line.difference.values}) for line in lines)
    if unit == "seed":
        return f"over {n} seeds of {plural(inner, 'trigger/target pair')}"
    return f"over {n} trigger/target pairs of {plural(inner, 'seed')}"


def _apart(lines: Sequence[Comparison]) -> str:
    """Which lines may be ranked."""
    couples = list(combinations([line for line in lines if line.difference.low is not None], 2))
    apart = [f"{line.label} and {other.label}" for line, other in couples if other.label in line.apart_from]
    if not couples:
        return ""
    if not apart:
        return "intervals that hold for all lines at once overlap, so the lines are not ranked"
    return f"simultaneous intervals that do not overlap: {_named(apart, len(couples))}"


# --------------------------------------------------------------------------------------------------- figures


def sweep_clauses(figures: Sequence[FigureSpec], results: Results) -> list[str]:
    """Over all figures; none where they hold no poisoned encoder.

    Clean accuracy is told once for the figures of one attack, which share it.
    """
    clauses: list[str] = []
    told: set[str] = set()
    for figure in figures:
        clauses += _figure_clauses(figure, results, figure.attack not in told)
        told.add(figure.attack)
    return clauses


def _figure_clauses(figure: FigureSpec, results: Results, with_cost: bool) -> list[str]:
    """Of one figure, in the order of importance."""
    curves = [curve for curve in curves_of(figure, results) if curve.arm == SUSPECT]
    if not curves or figure.axis == "same_label":
        return []
    if figure.axis == "similarity":
        return _similarity(figure, results)
    main = curves[0]
    if axis_of(figure) != "num_poisons":
        shown = (curve for curve in curves if curve.measure == main.measure)
        return [clause for curve in shown for clause in _trend(figure, results, curve)]
    last = main.points[-1]
    judged = judge_figure(figure, results, main)
    levels = (_targeted if main.measure.metric == "targeted_success" else _rise)(figure, results, main)
    (found,) = judge_specificity(results, [(main.measure, last.point)], axis_of(figure))
    specific = f"with {_poisons(last)}, {found.text}" if found.text else ""
    return [*levels, specific, *_costs(figure, results, judged, with_cost)]


def _poisons(row: Estimate) -> str:
    return x_label("num_poisons", row.point.x)


def _control(figure: FigureSpec, results: Results, curve: Curve) -> str:
    """The control's number at 0, of this series or of the first that has one."""
    points = [point for point in points_of(figure, results) if point.arm == CONTROL]
    points.sort(key=lambda point: point.variant != curve.variant)
    row = at(results, figure, curve.measure, points[0]) if points else None
    return f"{quantity_of(curve.measure).in_words} is {amount(row)} without poisons" if row else ""


def _targeted(figure: FigureSpec, results: Results, curve: Curve) -> list[str]:
    told = [_control(figure, results, curve)]
    for level in LEVELS:
        first = next((row for row in curve.points if row.value is not None and row.value >= level), None)
        if first is None:
            best = max(curve.points, key=lambda row: row.value or 0.0)
            told.append(f"it never reaches {100 * level:.0f} %: its highest is {amount(best)}, {_poisons(best)} a pair")
            break
        told.append(f"it first reaches {100 * level:.0f} % with {_poisons(first)} a pair, {amount(first)}")
    n = listing([f"{n}" for n in sorted({row.n for row in curve.points})])
    return [*told, f"each point is of {n} image/class pairs"]


def _rise(figure: FigureSpec, results: Results, curve: Curve) -> list[str]:
    ends = curve.points if len(curve.points) < 2 else (curve.points[0], curve.points[-1])
    levels = [f"{quantity_of(curve.measure).in_words} is {amount(row)} with {_poisons(row)}" for row in ends]
    values = [row.value or 0.0 for row in curve.points]
    if len(values) > 1:
        steady = all(a <= b for a, b in pairwise(values))
        levels[-1] += f", {'rising' if steady else 'not rising at every step'}"
    return [_control(figure, results, curve), *levels]


def _trend(figure: FigureSpec, results: Results, curve: Curve) -> list[str]:
    """First point against last: of the excess over the control where there is one, for controls may differ as well."""
    axis = axis_of(figure)
    found = (at(results, figure, curve.measure, row.point, "excess") for row in curve.points)
    excess = [row for row in found if row is not None]
    points = excess or list(curve.points)
    first, last = points[0], points[-1]
    ends = points[:1] if first is last else [first, last]
    over = ", minus the control's" if excess else ""
    head = f"{arm_label(SUSPECT, curve.variant)}, {quantity_of(curve.measure).in_words}"
    told = [f"{head}{over}, {x_label(axis, row.point.x)}: {amount(row)}" for row in ends]
    if first is last:
        return told
    if first.low is None or first.high is None or last.low is None or last.high is None:
        return [*told, f"{head}: cannot tell whether it changes"]
    if first.low <= last.high and last.low <= first.high:
        return [*told, f"{head}: no significant change"]
    verb = "rises" if first.high < last.low else "falls"
    return [*told, f"{head}: {verb} with {AXIS_LABELS[axis].partition(',')[0]}"]


def _similarity(figure: FigureSpec, results: Results) -> list[str]:
    clauses = []
    for point in points_of(figure, results):
        told = [
            f"{amount(row)} for {'clean' if measure.metric == 'similarity_clean' else 'triggered'} pairs"
            for measure in map(Measure.of_figure, figure.measures)
            if (row := at(results, figure, measure, point)) is not None
        ]
        if not point.arm.defence:
            clauses.append(f"mean cosine, {point.arm.label} ({x_label('num_poisons', point.x)}): {listing(told)}")
    return clauses


def _costs(figure: FigureSpec, results: Results, judged: Mapping[str, Verdict], with_cost: bool) -> list[str]:
    """What each defence leaves, and clean accuracy against the control's at the largest number of poisons."""
    clauses = []
    points = points_of(figure, results)
    measure, accuracy = Measure.of_figure(figure.measures[0]), accuracy_measure(figure, results)
    suspects = {point.x: point for point in points if point.arm == SUSPECT}
    for point in (point for point in points if point.arm.defence and not point.arm.is_clean):
        after, excess = at(results, figure, measure, point), at(results, figure, measure, point, "excess")
        before = at(results, figure, measure, suspects[point.x]) if point.x in suspects else None
        if after is not None:
            was = "" if before is None else f" from {amount(before)}"
            name, doubt = point.arm.words or point.arm.defence, ""
            if excess is not None and judged[excess.key] == "above":
                doubt = ", still significantly above the control's"
            clauses.append(
                f"{name} takes {quantity_of(measure).in_words} with {_poisons(after)} to {amount(after)}{was}{doubt}"
            )
    if accuracy is None or not with_cost:
        return clauses
    most = max((point.x or 0.0 for point in suspects.values()), default=0.0)
    for point in (point for point in points if point.x == most and not point.arm.is_clean):
        if row := at(results, figure, accuracy, point, "excess"):
            told = f"{quantity_of(accuracy).in_words} of {point.arm.label} with {_poisons(row)}"
            clauses.append(f"{told}: {with_interval(row, 'percent')} against the control")
    return clauses
