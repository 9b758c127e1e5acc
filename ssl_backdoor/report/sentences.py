"""The answer in short sentences, a verdict first, by plain rules from the estimates.

A difference is *significant* where its p, corrected after Holm over everything that is told together, is under 0.05.
Below two independent trainings of each encoder there is no p: the answer is "cannot tell", whatever the numbers.
Two levels differ, and lines are ranked, only where their intervals do not overlap. Accuracy is *kept* where its
interval lies within 3 points of the control's. A negative or null result is said as such.
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
    interval_of,
    listing,
    number,
    plural,
    quantity_of,
    with_interval,
)
from ssl_backdoor.report.comparisons import Comparison, Verdict, verdicts
from ssl_backdoor.report.estimates import FEWEST_CONTROLS, Estimate, Results, axis_of, fewest_units, pair_means
from ssl_backdoor.report.frame import CONTROL, SUSPECT, Arm, Measure
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.sections.pairs import defended_arms, suspects_of
from ssl_backdoor.report.sections.sweep import AXIS_LABELS, amount, x_label
from ssl_backdoor.report.sections.table import needed_text
from ssl_backdoor.report.specificity import describe_specificity
from ssl_backdoor.report.swept import Curve, accuracy_measure, at, curves_of, points_of, x_of
from ssl_backdoor.specs import FigureSpec, TableSpec, attack_phrase

LEVELS = (0.5, 0.9)
MAX_APART = 4  # comparisons of two lines that the sentence names
KEPT = 0.03  # of clean accuracy


def punctuated(clauses: Iterable[str]) -> list[str]:
    """``clauses`` as sentences, without those that are empty."""
    return [f"{clause[0].upper()}{clause[1:]}." for clause in clauses if clause]


def why_untested(row: Estimate) -> str:
    """Why a difference has no verdict."""
    if row.num_units < 2:
        return f"cannot tell (n = {row.num_units})"
    if row.num_trainings < min(FEWEST_CONTROLS, row.num_units):
        return f"cannot tell ({plural(row.num_units, row.unit)}, {plural(row.num_trainings, 'clean-trained encoder')})"
    if row.num_units < (fewest := fewest_units(row.unit, row.statistic)):
        return f"cannot tell ({plural(row.num_units, row.unit)}, it takes {fewest})"
    return f"cannot tell ({plural(row.num_units, row.unit)} without any spread)"


def removed_text(row: Estimate, detail: str = "") -> str:
    """A share removed, never above all of the excess: 82 % (kNN, 59 to 97)."""
    low, high, value = row.low or 0.0, row.high or 0.0, row.value or 0.0
    part = "all" if value >= 1 else f"{100 * abs(value):.0f} %"
    ends = f"{100 * low:.0f} to {'all' if high >= 1 else f'{100 * high:.0f}'}".replace("-", "−")
    return f"{part} ({detail}{'to below the control' if low >= 1 else ends})"


# ----------------------------------------------------------------------------------------------------- pairs


def pairs_clauses(results: Results, note: str = "") -> list[str]:
    """On the main variant: does the attack work, is it the trigger's own, what do defences remove, at what cost."""
    effects = [q for q in effect_quantities(results.probes()) if results.get(q.measure, SUSPECT, statistic="excess")]
    if not suspects_of(results, "") or not effects:
        return ["There is no answer: the runs hold no poisoned encoder with a clean-trained one beside it"]
    main = [quantity for quantity in effects if quantity.kind == "count"][-1:]
    found = describe_specificity(results, [(quantity.measure, Point("", SUSPECT)) for quantity in main])
    specific = [f"with {q.detail} {text}" for q, text in zip(main, found, strict=True) if text]
    told = [*_effect(results, effects), *specific, *_defences(results, effects), *_accuracy_cost(results)]
    return [
        *told,
        _pair_spread(results, effects[0]),
        "for evidence see the note" if note and "n = 1" in told[0] else "",
    ]


def _title(quantity: Quantity) -> str:
    return quantity.title if quantity.kind == "score" else quantity.detail


def _excess_of(results: Results, quantity: Quantity, arm: Arm) -> Estimate:
    row = results.get(quantity.measure, arm, statistic="excess")
    return row or Estimate(measure=quantity.measure, statistic="excess", point=Point("", arm), num_units=0)


def _effect(results: Results, effects: Sequence[Quantity]) -> list[str]:
    rows = [_excess_of(results, quantity, SUSPECT) for quantity in effects]
    found = verdicts(rows)
    titles = [(_title(quantity), verdict) for quantity, verdict in zip(effects, found, strict=True)]
    if set(found) <= {"above"}:
        head = "yes"
    elif "above" in found:
        yes, no = ([title for title, verdict in titles if (verdict == "above") is is_yes] for is_yes in (True, False))
        head = f"in part: yes by {listing(yes)}, not shown by {listing(no)}"
    elif set(found) == {"untested"}:
        head = why_untested(rows[0])
    else:
        lower = [title for title, verdict in titles if verdict == "below"]
        head = f"no: it lowers {listing(lower)}" if lower else "no significant effect"
    over = (
        f", over {plural(rows[0].num_units, rows[0].unit)}" if rows[0].num_units > 1 and "untested" not in found else ""
    )
    return [
        f"attack works: {head}{over}",
        *(_change(results, quantity, SUSPECT, verdict) for quantity, verdict in zip(effects, found, strict=True)),
    ]


def _change(results: Results, quantity: Quantity, arm: Arm, verdict: Verdict) -> str:
    """From the control to ``arm``, by one measure: of counts the share that they are and of how many."""
    rate = quantity.measure._replace(metric="attack_success_rate")
    is_rate = quantity.kind == "count" and all(results.get(rate, one) for one in (CONTROL, arm))
    main = quantity_of(rate) if is_rate else quantity
    after, before = (results.get(main.measure, one) for one in (arm, CONTROL))
    if after is None or before is None:
        return ""
    text = f"{_title(quantity)}: {number(after.value, main.kind)} against {number(before.value, main.kind)}"
    if is_rate:
        counts = [number(row.value if (row := results.get(quantity.measure, one)) else None, "count")
                  for one in (arm, CONTROL)]  # fmt: skip
        of = int(results.groups[after.point][quantity.measure].n.min())
        text = f"attack success with {text} in the control ({' against '.join(counts)} of {of:,})"
    elif quantity.kind == "count":
        text = f"target false positives with {text} in the control"
    else:
        text += " in the control"
    excess = results.get(main.measure, arm, statistic="excess")
    if excess is not None and excess.low is not None:
        text += f", {with_interval(excess, main.kind)}"
    return text + ", not significant" * (verdict == "unclear")


def _defences(results: Results, effects: Sequence[Quantity]) -> list[str]:
    """What each defence took away and what it left."""
    arms = defended_arms(results)
    every = [(arm, quantity) for arm in arms for quantity in effects]
    left = dict(zip(every, verdicts([_excess_of(results, quantity, arm) for arm, quantity in every]), strict=True))
    clauses = []
    for arm in arms:
        rows = [(q, row) for q in effects if (row := results.get(q.measure, arm, statistic="removed_frac"))]
        if not rows:
            continue
        shown = [(q, row) for q, row in rows if row.value is not None]
        parts = [
            f"{verb} {listing([removed_text(row, f'{_title(q)}, ') for q, row in found])} {word} the excess"
            for verb, word, found in (
                ("removes", "of", [(q, row) for q, row in shown if (row.value or 0.0) >= 0]),
                ("adds", "to", [(q, row) for q, row in shown if (row.value or 0.0) < 0]),
            )
            if found
        ]
        none = [_title(q) for q, row in rows if row.value is None]
        one = rows[0][1]
        if one.num_trainings < min(FEWEST_CONTROLS, one.num_units) or one.num_units < fewest_units(one.unit, "excess"):
            parts = [why_untested(one)]
        elif none:
            parts.append(f"no share of it can be told with {listing(none)}, where the excess is not clear (p < 0.01)")
        still = [_title(q) for q in effects if left[arm, q] == "above"]
        clauses.append(f"defence {arm.words or arm.defence}: {'; '.join(parts)}")
        if still:
            clauses.append(f"what it leaves is still significantly above the control's with {listing(still)}")
        clauses += [_change(results, q, arm, "untested") for q in effects[:1] if not shown]
    return clauses


def _accuracy_cost(results: Results) -> list[str]:
    """Clean accuracy of the poisoned and the defended encoder against the control."""
    found: dict[str, list[str]] = {}
    for quantity in accuracy_quantities(results.probes())[:1]:
        for arm in (SUSPECT, *defended_arms(results)):
            row = results.get(quantity.measure, arm, statistic="excess")
            if row is None:
                continue
            if row.low is None or row.high is None:
                words = why_untested(row)
            elif row.low >= -KEPT and row.high <= KEPT:
                words = "kept within 3 points of the control's"
            elif row.high < -KEPT:
                words = "falls by more than 3 points"
            else:
                words = "cannot tell whether it is kept within 3 points of the control's"
            found.setdefault(words, []).append(f"{arm.label} {with_interval(row, 'percent')}")
    return [f"clean accuracy: {words} ({listing(parts)})" for words, parts in found.items()]


def _pair_spread(results: Results, quantity: Quantity) -> str:
    """What the range over pairs means: large when its standard deviation passes half of the mean's size."""
    row = results.get(quantity.measure, SUSPECT, statistic="excess")
    values = list(pair_means(row.values).values()) if row else []
    if len(values) < 2:
        return ""
    low, high = (number(value, quantity.kind, signed=True) for value in (min(values), max(values)))
    spread = f"{low} to {high} with {_title(quantity)}"
    if stdev(values) > 0.5 * abs(sum(values) / len(values)):
        return f"results vary widely across pairs ({spread}), so one pair is a poor predictor of the next"
    return f"results agree closely across pairs ({spread}), so one pair is a good predictor of the next"


# ---------------------------------------------------------------------------------------------------- tables

_VERDICTS: tuple[tuple[Verdict, str], ...] = (
    ("above", "{lie} significantly above the control's with"),
    ("below", "{lie} significantly below the control's with"),
    ("unclear", "{show} no significant difference from the control's with"),
    ("untested", "{show} a difference to the control that is not tested with"),
)


def table_clauses(
    tables: Sequence[tuple[TableSpec, Sequence[Comparison]]], results: Results, num_missing: int = 0
) -> list[str]:
    """Over all tables: the first in full, of the others which lines differ from the control."""
    measured = [(table, [line for line in lines if line.difference.num_units]) for table, lines in tables]
    measured = [(table, lines) for table, lines in measured if lines]
    if measured:
        table, first = measured[0]
        parts = [
            *_first(first),
            _specific(first, results),
            _apart(first),
            _power(first),
            _removed_shares(first, results),
            _cost(table, first, results),
        ]
        for _, lines in measured[1:]:
            if any(line.p is not None for line in lines):
                parts.append(f"{_compared(lines[0])} {', and '.join(_by_verdict(lines, False))}")
    else:
        parts = ["There is no answer: the tables hold no encoder with a clean-trained one beside it"]
    if num_missing:
        parts.append("1 run failed and is not in it" if num_missing == 1 else f"{num_missing} runs failed, not in it")
    return parts


def _is_plural(line: Comparison) -> bool:
    return line.difference.measure.metric == "target_false_positives"


def _compared(line: Comparison) -> str:
    quantity = in_table(line.difference.measure)
    if _is_plural(line):
        quantity = quantity._replace(title="target false positives")
    return f"{quantity.in_words} on triggered images"


def _name(line: Comparison) -> str:
    return f'"{line.label}"' if "," in line.label else line.label


def _difference(line: Comparison) -> str:
    return number(line.difference.value, in_table(line.difference.measure).kind, True)


def _first(lines: Sequence[Comparison]) -> list[str]:
    head = lines[0]
    if all(line.p is None for line in lines):
        changes = [f"{_difference(line)} with {_name(line)}" for line in lines]
        return [
            f"attack works: {why_untested(head.difference)}",
            f"{_compared(head)}, minus the control's: {listing(changes)}",
        ]
    first, *more = _by_verdict(lines, True)
    attacked = [line for line in lines if line.difference.point.arm == SUSPECT]
    works = [_name(line) for line in attacked if line.verdict == ("above" if _is_plural(head) else "below")]
    told = f"yes with {listing(works)}" if works else "no significant effect"
    over = f"{_over(lines)}, tested at 5 % after Holm's correction over the lines of all tables"
    pronoun = "they" if _is_plural(head) else "it"
    return [
        f"attack works: {told}" if attacked else "",
        f"{over}, {_compared(head)} {first}",
        *(f"{pronoun} {text}" for text in more),
    ]


def _over(lines: Sequence[Comparison]) -> str:
    """Over how many units, and how many are averaged in each."""
    counts, unit = [line.difference.num_units for line in lines], lines[0].difference.unit
    n = f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    inner = max(len({place[unit == "pair"] for place in line.difference.values}) for line in lines)
    if unit == "seed":
        return f"over {n} seeds of {plural(inner, 'trigger/target pair')}"
    return f"over {n} trigger/target pairs of {plural(inner, 'seed')}"


def _by_verdict(lines: Sequence[Comparison], amounts: bool) -> list[str]:
    parts = []
    for verdict, words in _VERDICTS:
        named = [_amount(line) if amounts else _name(line) for line in lines if line.verdict == verdict]
        if named:
            verbs = {"lie": "lie", "show": "show"} if _is_plural(lines[0]) else {"lie": "lies", "show": "shows"}
            parts.append(f"{words.format(**verbs)} {listing(named)}")
    return parts


def _amount(line: Comparison) -> str:
    interval = interval_of(line.difference, in_table(line.difference.measure).kind) or "no interval"
    return f"{_name(line)} ({_difference(line)}, {interval})"


def _specific(lines: Sequence[Comparison], results: Results) -> str:
    """What of each line's difference is the trigger's own."""
    found = describe_specificity(results, [(line.difference.measure, line.difference.point) for line in lines])
    return ", ".join(f"with {_name(line)} {text}" for line, text in zip(lines, found, strict=True) if text)


def _apart(lines: Sequence[Comparison]) -> str:
    """Which lines may be ranked."""
    couples = list(combinations([line for line in lines if line.difference.low is not None], 2))
    apart = [f"{_name(line)} and {_name(other)}" for line, other in couples if other.label in line.apart_from]
    if not couples:
        return ""
    if not apart:
        return "intervals that hold for all lines at once overlap, so the lines are not ranked"
    if len(apart) > MAX_APART:
        return f"set line against line, {len(apart)} of {len(couples)} comparisons have simultaneous intervals apart"
    return f"only the simultaneous intervals of {listing(apart)} do not overlap"


def _power(lines: Sequence[Comparison]) -> str:
    """What it would take to find the other effects; a defence where nothing was to repair is left out."""
    unsure = [
        f"{needed_text(line)} with {_name(line)}"
        for line in lines
        if line.verdict == "unclear" and line.units_needed is not None and not line.difference.point.arm.is_clean
    ]
    told = f"to find effects such as those that are not significant would take {listing(unsure)} (80 % power)"
    return told if unsure else ""


def _removed_shares(lines: Sequence[Comparison], results: Results) -> str:
    """Share of the undefended excess that each defended line lost."""
    shares = []
    for line in lines:
        point = line.difference.point
        row = results.get(line.difference.measure, point.arm, point.variant, "removed_frac")
        if row is not None and row.value is not None:
            shares.append(f"{removed_text(row)} with {_name(line)}")
    return f"of the poisoned encoder's excess the defence removes {listing(shares)}" if shares else ""


def _cost(table: TableSpec, lines: Sequence[Comparison], results: Results) -> str:
    """Clean accuracy against the control's, over the lines."""
    measure, points = Measure("accuracy", "clean", table.probe), [line.difference.point for line in lines]
    rows = [results.get(measure, point.arm, point.variant, "excess") for point in points]
    values = [row.value for row in rows if row is not None and row.value is not None]
    if not values:
        return ""
    low, high = (number(value, "percent", True) for value in (min(values), max(values)))
    return f"clean accuracy differs from the control's by {low}" + (f" to {high}" if low != high else "")


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
    """The clauses of one figure, in the order of importance; none where there is no poisoned encoder."""
    curves = [curve for curve in curves_of(figure, results) if curve.arm == SUSPECT]
    if not curves:
        return []
    main = curves[0]
    if figure.axis == "same_label":
        return []
    if figure.axis == "similarity":
        return [_similarity(figure, results)]
    if axis_of(figure) != "num_poisons":
        return [_trend(figure, results, curve) for curve in curves if curve.measure == main.measure]
    judged = _judged(figure, results, main)
    levels = (_targeted if main.measure.metric == "targeted_success" else _rise)(figure, results, main)
    last = main.points[-1]
    found = describe_specificity(results, [(main.measure, last.point)], axis_of(figure))
    specific = "".join(f"with {_poisons(last)} {text}" for text in found if text)
    cost = _swept_cost(figure, results, judged) if with_cost else ""
    works = _works(_excess(figure, results, main), judged)
    head = f"attack works, by {quantity_of(main.measure).in_words}: {works}" if works else ""
    return [head, levels, specific, cost, *_left(figure, results, judged, with_cost)]


def _judged(figure: FigureSpec, results: Results, curve: Curve) -> dict[str, Verdict]:
    """The verdict on each difference that is told of a figure, by its key, corrected over all of them."""
    told = (curve.measure, accuracy_measure(figure, results))
    rows = [row for row in results.rows if (row.axis, row.statistic) == (axis_of(figure), "excess")]
    rows = [row for row in rows if row.measure in told]
    return dict(zip([row.key for row in rows], verdicts(rows), strict=True))


def _works(excess: Sequence[Estimate], judged: Mapping[str, Verdict]) -> str:
    found = [judged[row.key] for row in excess]
    places = [_poisons(row) for row, verdict in zip(excess, found, strict=True) if verdict == "above"]
    is_above = [verdict == "above" for verdict in found]
    if places and is_above[-1] and is_above == sorted(is_above):  # once significant, significant from there on
        return f"yes, significantly above the control's from {places[0]} on"
    if places:
        return f"yes, but significantly above the control's only with {listing(places)}"
    if excess and set(found) == {"untested"}:
        return why_untested(excess[-1])
    return "at no point significantly above the control's" if excess else "cannot tell (no control)"


def _poisons(row: Estimate) -> str:
    return x_label("num_poisons", row.point.x)


def _control(figure: FigureSpec, results: Results, curve: Curve) -> Estimate | None:
    """The control's number at 0, of this series or of the first that has one."""
    points = [point for point in points_of(figure, results) if point.arm == CONTROL]
    points.sort(key=lambda point: point.variant != curve.variant)
    return at(results, figure, curve.measure, points[0]) if points else None


def _targeted(figure: FigureSpec, results: Results, curve: Curve) -> str:
    control = _control(figure, results, curve)
    before = "" if control is None else f"is {amount(control)} without poisons, "
    reached = []
    for level in LEVELS:
        first = next((row for row in curve.points if row.value is not None and row.value >= level), None)
        if first is None:
            best = max(curve.points, key=lambda row: row.value or 0.0)
            where = f"{amount(best)} with {_poisons(best)} a pair"
            reached.append(f"never reaches {100 * level:.0f} % (its highest is {where})")
            break
        reached.append(f"first reaches {100 * level:.0f} % with {_poisons(first)} a pair, {amount(first)}")
    n = listing([f"{n}" for n in sorted({row.n for row in curve.points})])
    return f"{quantity_of(curve.measure).in_words} {before}{listing(reached)} (n = {n} pairs a point)"


def _rise(figure: FigureSpec, results: Results, curve: Curve) -> str:
    control = _control(figure, results, curve)
    ends = curve.points if len(curve.points) < 2 else (curve.points[0], curve.points[-1])
    before = "" if control is None else f"{amount(control)} in the control, "
    levels = listing([f"{amount(row)} with {_poisons(row)}" for row in ends])
    text = f"{quantity_of(curve.measure).in_words} is {before}{levels}"
    values = [row.value or 0.0 for row in curve.points]
    if len(values) > 1:
        steady = all(a <= b for a, b in pairwise(values))
        text += f", {'rising' if steady else 'not rising at every step'} with the number of poisons"
    return text


def _excess(figure: FigureSpec, results: Results, curve: Curve) -> list[Estimate]:
    found = (at(results, figure, curve.measure, row.point, "excess") for row in curve.points)
    return [row for row in found if row is not None]


def _trend(figure: FigureSpec, results: Results, curve: Curve) -> str:
    """First point against last: of the excess over the control where there is one, for controls may differ as well."""
    excess, axis = _excess(figure, results, curve), axis_of(figure)
    points = excess or list(curve.points)
    first, last = points[0], points[-1]
    ends = points[:1] if first is last else [first, last]
    levels = listing([f"{amount(row)} at {x_label(axis, row.point.x)}" for row in ends])
    over = " over the control's" if excess else ""
    text = f"{arm_label(SUSPECT, curve.variant)}: {quantity_of(curve.measure).in_words}{over} is {levels}"
    if first is last:
        return text
    if first.low is None or first.high is None or last.low is None or last.high is None:
        return f"{text}: cannot tell (n = {min(first.num_units, last.num_units)})"
    if first.low <= last.high and last.low <= first.high:
        return f"{text}, where the intervals overlap: no significant change"
    verb = "rises" if first.high < last.low else "falls"
    return f"{text}, so it {verb} with the {AXIS_LABELS[axis].partition(',')[0]}"


def _similarity(figure: FigureSpec, results: Results) -> str:
    parts = []
    for point in points_of(figure, results):
        measures = map(Measure.of_figure, figure.measures)
        told = [
            f"{amount(row)} for {'clean' if measure.metric == 'similarity_clean' else 'triggered'} pairs"
            for measure in measures
            if (row := at(results, figure, measure, point)) is not None
        ]
        if not point.arm.defence:
            parts.append(f"{listing(told)} in the {point.arm.label} encoder ({x_label('num_poisons', point.x)})")
    return f"the mean cosine is {', '.join(parts)}"


def _swept_cost(figure: FigureSpec, results: Results, judged: Mapping[str, Verdict]) -> str:
    """Clean accuracy of the poisoned encoders against the control's, at the largest number of poisons."""
    accuracy = accuracy_measure(figure, results)
    points = [point for point in points_of(figure, results) if point.arm == SUSPECT]
    if accuracy is None:
        return ""
    rows = [row for point in points if (row := at(results, figure, accuracy, point, "excess")) is not None]
    if not rows:
        return ""
    most = max(rows, key=x_of)
    clear = [_poisons(row) for row in rows if judged[row.key] in ("above", "below")]
    told = f"{amount(most)} with {_poisons(most)}"
    text = f"{attack_phrase(figure.attack)}{quantity_of(accuracy).in_words} differs"
    if most.low is None:
        return f"{text} from the control's by {told}: {why_untested(most)}"
    where = "at no point" if not clear else "at every point" if len(clear) == len(rows) else f"with {listing(clear)}"
    return f"{text} significantly from the control's {where} ({told})"


def _left(figure: FigureSpec, results: Results, judged: Mapping[str, Verdict], with_cost: bool) -> list[str]:
    """What each defence leaves, at what cost."""
    clauses = []
    points = points_of(figure, results)
    measure, accuracy = Measure.of_figure(figure.measures[0]), accuracy_measure(figure, results)
    several = len({point.variant for point in points}) > 1
    suspects = {point.x: point for point in points if point.arm == SUSPECT}
    for point in (point for point in points if point.arm.defence and not point.arm.is_clean):
        after = at(results, figure, measure, point)
        before = at(results, figure, measure, suspects[point.x]) if point.x in suspects else None
        if after is None:
            continue
        name = f" ({point.variant})" if several and point.variant else ""
        was = "" if before is None else f" from {amount(before)}"
        excess = at(results, figure, measure, point, "excess")
        is_above = excess is not None and judged[excess.key] == "above"
        doubt = ", still significantly above the control's" if is_above else ""
        cost = at(results, figure, accuracy, point, "excess") if accuracy and with_cost else None
        paid = "" if cost is None else f", clean accuracy {with_interval(cost, 'percent')} against the control"
        clauses.append(
            f"the defence{name} takes {quantity_of(measure).in_words} with {_poisons(after)} to {amount(after)}{was}"
            f"{doubt}{paid}"
        )
    return clauses
