"""The answer in one sentence, by plain rules from the estimates.

A difference is *significant* where its 95 % interval lies on one side of 0; a line of a table where Holm's p is under
0.05. Two levels differ, and lines are ranked, only where their intervals do not overlap. One
pair or one model alone illustrates and is no evidence, whatever its numbers. A negative or null result is said as such.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from statistics import stdev

from ssl_backdoor.report.cells import (
    Quantity,
    accuracy_quantities,
    arm_label,
    bare_number,
    effect_quantities,
    in_table,
    interval_of,
    listing,
    number,
    plural,
    quantity_of,
    with_interval,
)
from ssl_backdoor.report.comparisons import Comparison, Verdict
from ssl_backdoor.report.estimates import Estimate, Results, axis_of, pair_means
from ssl_backdoor.report.frame import CONTROL, SUSPECT, Measure
from ssl_backdoor.report.sections.pairs import defended_arms, suspects_of
from ssl_backdoor.report.sections.sweep import AXIS_LABELS, amount, x_label
from ssl_backdoor.report.sections.table import needed_text
from ssl_backdoor.report.swept import Curve, accuracy_measure, at, curves_of, points_of, x_of
from ssl_backdoor.specs import FigureSpec, TableSpec, attack_phrase

LEVELS = (0.5, 0.9)
MAX_APART = 4  # comparisons of two lines that the sentence names
_ONE_MODEL = "one model a point illustrates and is no evidence: "


def punctuated(clauses: Iterable[str]) -> list[str]:
    """``clauses`` as the parts of one sentence, without those that are empty."""
    parts = [f"{clause};" for clause in clauses if clause]
    if parts:
        parts[0] = f"{parts[0][0].upper()}{parts[0][1:]}"
        parts[-1] = f"{parts[-1][:-1]}."
    return parts


# ----------------------------------------------------------------------------------------------------- pairs


def pairs_clauses(results: Results, note: str = "") -> list[str]:
    """On the main variant: is there an effect, how large, what the defence removes, at what cost."""
    pairs = {model.replicate[0] for model in suspects_of(results, "")}
    effects = [q for q in effect_quantities(results.probes()) if results.get(q.measure, SUSPECT, statistic="excess")]
    if not pairs or not effects:
        return ["There is no answer: the runs hold no poisoned encoder with a clean-trained one beside it"]
    if len(pairs) == 1:
        head, tail = _illustration(results, effects, note), ""
    else:
        head, tail = _effect(results, effects, len(pairs)), _pair_spread(results, effects[0])
    return [head, _removed(results, effects), _accuracy_cost(results), tail]


def _title(quantity: Quantity) -> str:
    return quantity.title if quantity.kind == "score" else quantity.detail


def _by_kind(changes: Sequence[tuple[Quantity, str]], verb: str) -> str:
    """From the clean-trained to the poisoned encoder: the target's false positives by each probe, then the z-score."""
    counts = listing([f"{verb} {text}" for quantity, text in changes if quantity.kind == "count"])
    joined = [f"target false positives on triggered images change {counts}"] if counts else []
    scores = [f"the z-score {verb} {text}" for quantity, text in changes if quantity.kind == "score"]
    return f"from the clean-trained to the poisoned encoder, {', '.join([*joined, *scores])}"


def _effect(results: Results, effects: Sequence[Quantity], num_pairs: int) -> str:
    amounts: list[tuple[Quantity, str]] = []
    directions: list[str] = []
    for quantity in effects:
        row = results.get(quantity.measure, SUSPECT, statistic="excess")
        if row is None:
            continue
        probe = f" with {quantity.detail}" if quantity.kind == "count" else ""
        label, doubt = "" if amounts else "95 % interval ", ", not significant" if row.direction == "unclear" else ""
        interval = f"{label}{interval_of(row, quantity.kind)}{doubt}" if row.low is not None else "no interval"
        amounts.append((quantity, f"{number(row.value, quantity.kind, True)}{probe} ({interval})"))
        directions.append(row.direction)
    if all(direction == "up" for direction in directions):
        verdict = "The backdoor takes hold"
    elif "up" in directions:
        verdict = "The backdoor takes hold by some measures and not by others"
    else:
        verdict = "The effect runs the other way" if "down" in directions else "No significant backdoor effect"
    return f"{verdict} over {num_pairs} trigger/target pairs: {_by_kind(amounts, 'by')}"


def _illustration(results: Results, effects: Sequence[Quantity], note: str) -> str:
    changes = []
    for quantity in effects:
        before, after = (row.value if row else None for row in
                         (results.get(quantity.measure, arm) for arm in (CONTROL, SUSPECT)))  # fmt: skip
        if before is None or after is None:
            continue
        text = f"{number(before, quantity.kind)} to {number(after, quantity.kind)}"
        if quantity.kind == "count":
            text += f" with {quantity.detail}{f' ({after / before:.1f} times)' if before > 0 else ''}"
        changes.append((quantity, text))
    num_suspects = len(suspects_of(results, ""))
    seeds = f" over {num_suspects} seeds" if num_suspects > 1 else ""
    pointer = " (for evidence see the note)" if note else ""
    return f"One trigger/target pair{seeds} illustrates and is no evidence{pointer}: {_by_kind(changes, 'from')}"


def _removed(results: Results, effects: Sequence[Quantity]) -> str:
    """What each defence took away and what it left."""
    parts = []
    for arm in defended_arms(results):
        shares: dict[str, list[str]] = {"removes": [], "adds": []}
        none, left = [], []
        for quantity in effects:
            row = results.get(quantity.measure, arm, statistic="removed_frac")
            after = results.get(quantity.measure, arm, statistic="excess")
            if row is None:
                continue
            if row.value is None:
                none.append(_title(quantity))
                continue
            interval = ""
            if row.value >= 0 and row.low is not None and row.high is not None:
                interval = f", {100 * row.low:.0f} to {100 * row.high:.0f}".replace("-", "−")
            verb = "removes" if row.value >= 0 else "adds"
            shares[verb].append(f"{100 * abs(row.value):.0f} % ({_title(quantity)}{interval})")
            left += [_title(quantity)] if after is not None and after.direction == "up" else []
        for verb, word in (("removes", "of"), ("adds", "to")):
            if shares[verb]:
                parts.append(f"the defence {verb} {listing(shares[verb])} {word} the excess")
        parts += [f"with {listing(none)} there is no significant excess to remove"] if none else []
        parts += [f"what it leaves is still significantly above the control's with {listing(left)}"] if left else []
    return ", ".join(parts)


def _accuracy_cost(results: Results) -> str:
    """Clean accuracy of the poisoned and the defended encoder against the control."""
    changes = [
        (arm, row.value)
        for quantity in accuracy_quantities(results.probes())[:1]
        for arm in (SUSPECT, *defended_arms(results))
        if (row := results.get(quantity.measure, arm, statistic="excess")) is not None and row.value is not None
    ]
    is_near = all(abs(value) <= 0.03 for _, value in changes)
    where = "stays within 3 points of" if is_near else "moves more than 3 points from"
    told = listing(
        [f"{bare_number(value, 'percent', True)} points in the {arm.label} encoder" for arm, value in changes]
    )
    return f"clean accuracy {where} the control's ({told})" if changes else ""


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
            _apart(first),
            _power(first),
            _removed_shares(first, results),
            _cost(table, first, results),
        ]
        for _, lines in measured[1:]:
            if any(line.difference.num_units >= 2 for line in lines):
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


def _change(line: Comparison) -> str:
    return number(line.difference.value, in_table(line.difference.measure).kind, True)


def _first(lines: Sequence[Comparison]) -> list[str]:
    head = lines[0]
    if all(line.difference.num_units < 2 for line in lines):
        changes = [f"{_change(line)} with {_name(line)}" for line in lines]
        return [
            "one trigger/target pair and one seed illustrate and are no evidence: "
            f"{_compared(head)}, minus the control's: {listing(changes)}"
        ]
    tested = sum(line.p is not None for line in lines)
    first, *more = _by_verdict(lines, True)
    over = f"{_over(lines)}, tested at 5 % after Holm's correction over {plural(tested, 'line')}"
    pronoun = "they" if _is_plural(head) else "it"
    return [f"{over}, {_compared(head)} {first}", *(f"{pronoun} {text}" for text in more)]


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
    return f"{_name(line)} ({_change(line)}, {interval})"


def _apart(lines: Sequence[Comparison]) -> str:
    """Which lines may be ranked."""
    couples = list(combinations([line for line in lines if line.difference.low is not None], 2))
    apart = [f"{_name(line)} and {_name(other)}" for line, other in couples if other.label in line.apart_from]
    if not couples:
        return ""
    if not apart:
        return "all these intervals overlap, so the lines are not ranked"
    if len(apart) > MAX_APART:
        return f"set line against line, {len(apart)} of {len(couples)} comparisons have intervals that do not overlap"
    return f"only the intervals of {listing(apart)} do not overlap"


def _power(lines: Sequence[Comparison]) -> str:
    """What it would take to find the other effects; a defence where nothing was to repair is left out."""
    unsure = [
        f"{needed_text(line)} with {_name(line)}"
        for line in lines
        if line.verdict == "unclear" and line.units_needed is not None and not line.difference.point.arm.is_clean
    ]
    told = f"to find the effects that are not significant would take {listing(unsure)} (80 % power)"
    return told if unsure else ""


def _removed_shares(lines: Sequence[Comparison], results: Results) -> str:
    """Share of the undefended excess that each defended line lost."""
    shares = []
    for line in lines:
        point = line.difference.point
        row = results.get(line.difference.measure, point.arm, point.variant, "removed_frac")
        if row is not None and row.value is not None:
            interval = interval_of(row, "percent")
            shares.append(f"{number(row.value, 'percent')} with {_name(line)}{f' ({interval})' if interval else ''}")
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
    head = (_targeted if main.measure.metric == "targeted_success" else _rise)(figure, results, main)
    return [head, _swept_cost(figure, results) if with_cost else "", *_left(figure, results, with_cost)]


def _poisons(row: Estimate) -> str:
    return x_label("num_poisons", row.point.x)


def _head(curve: Curve) -> str:
    return f"{_ONE_MODEL if curve.is_one_model else ''}{quantity_of(curve.measure).in_words}"


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
    return f"{_head(curve)} {before}{listing(reached)} (n = {n} pairs a point)"


def _rise(figure: FigureSpec, results: Results, curve: Curve) -> str:
    control = _control(figure, results, curve)
    ends = curve.points if len(curve.points) < 2 else (curve.points[0], curve.points[-1])
    before = "" if control is None else f"{amount(control)} in the control, "
    text = f"{_head(curve)} is {before}{listing([f'{amount(row)} with {_poisons(row)}' for row in ends])}"
    excess = _excess(figure, results, curve)
    clear = [row.direction == "up" for row in excess]
    if excess and not curve.is_one_model:
        places = [_poisons(row) for row in excess if row.direction == "up"]
        if not places:
            text += ", at no point significantly above the control's"
        elif clear[-1] and clear == sorted(clear):  # once clear, clear from there on
            text += f", significantly above the control's from {places[0]} on"
        else:
            text += f", significantly above the control's only with {listing(places)}"
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
    intro = _ONE_MODEL if curve.is_one_model else ""
    text = f"{intro}{arm_label(SUSPECT, curve.variant)}: {quantity_of(curve.measure).in_words}{over} is {levels}"
    if first is last:
        return text
    if first.low is None or first.high is None or last.low is None or last.high is None:
        return f"{text}, without intervals"
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


def _swept_cost(figure: FigureSpec, results: Results) -> str:
    """Clean accuracy of the poisoned encoders against the control's, at the largest number of poisons."""
    accuracy = accuracy_measure(figure, results)
    points = [point for point in points_of(figure, results) if point.arm == SUSPECT]
    if accuracy is None:
        return ""
    rows = [row for point in points if (row := at(results, figure, accuracy, point, "excess")) is not None]
    if not rows:
        return ""
    most = max(rows, key=x_of)
    clear = [_poisons(row) for row in rows if row.direction != "unclear"]
    told = f"{amount(most)} with {_poisons(most)}"
    text = f"{attack_phrase(figure.attack)}{quantity_of(accuracy).in_words} differs"
    if most.low is None:
        return f"{text} from the control's by {told}, no interval"
    where = "at no point" if not clear else "at every point" if len(clear) == len(rows) else f"with {listing(clear)}"
    return f"{text} significantly from the control's {where} ({told})"


def _left(figure: FigureSpec, results: Results, with_cost: bool) -> list[str]:
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
        doubt = ", still significantly above the control's" if excess is not None and excess.direction == "up" else ""
        cost = at(results, figure, accuracy, point, "excess") if accuracy and with_cost else None
        paid = "" if cost is None else f", clean accuracy {with_interval(cost, 'percent')} against the control"
        clauses.append(
            f"the defence{name} takes {quantity_of(measure).in_words} with {_poisons(after)} to {amount(after)}{was}"
            f"{doubt}{paid}"
        )
    return clauses
