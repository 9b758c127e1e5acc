"""What a figure says, as clauses by plain rules from the rows.

A difference is *clear* when its 95 % interval over models lies on one side of 0; two levels are told apart when
their intervals do not meet. One model illustrates and is no evidence.
"""

from collections.abc import Sequence
from itertools import pairwise

from ssl_backdoor.report.aggregate import Row
from ssl_backdoor.report.answer import direction
from ssl_backdoor.report.sweep import Curve, Place, Point, at, axis_of, curves_of, places_of
from ssl_backdoor.report.sweep_view import AXIS_LABELS, accuracy_measure, x_label
from ssl_backdoor.report.text import arm_label, listing, measure_quantity, number, span
from ssl_backdoor.specs import FigureSpec, attack_phrase

LEVELS = (0.5, 0.9)


def figure_answer(figure: FigureSpec, rows: Sequence[Row], with_cost: bool = True) -> list[str]:
    """The clauses of one figure, in the order of importance; none where there is no suspect.

    ``with_cost`` tells clean accuracy as well, which is the same in every figure of one attack.
    """
    curves = [curve for curve in curves_of(figure, rows) if curve.arm == "suspect"]
    if not curves:
        return []
    main = curves[0]
    if figure.axis == "similarity":
        return [_similarity(figure, rows)]
    if axis_of(figure) != "num_poisons":
        return [_trend(figure, rows, curve) for curve in curves if curve.measure == main.measure]
    head = _targeted(figure, rows, main) if main.measure.startswith("targeted_success") else _rise(figure, rows, main)
    cost = _cost(figure, rows) if with_cost else ""
    return [head, *(clause for clause in (cost, *_left(figure, rows, with_cost)) if clause)]


def _told(row: Row, measure: str) -> str:
    """A value with its interval: 84 % (77 to 90)."""
    kind = measure_quantity(measure).kind
    interval = span(row, kind, "_excess/" in measure)
    return f"{number(row.value, kind, '_excess/' in measure)}{f' ({interval})' if interval else ''}"


def _named(measure: str) -> str:
    quantity = measure_quantity(measure)
    return f"{quantity.title[0].lower()}{quantity.title[1:]} ({quantity.detail})"


def _models(curve: Curve) -> str:
    definitions = " ".join(point.row.definition for point in curve.points)
    return "one model a point illustrates and is no evidence: " if "One model" in definitions else ""


def _control(figure: FigureSpec, rows: Sequence[Row], curve: Curve) -> Row | None:
    """The control's row at 0, of this series or of the first that has one."""
    places = [place for place in places_of(figure, rows) if place.arm == "control"]
    places.sort(key=lambda place: place.series != curve.series)
    return at(rows, figure, curve.measure, places[0]) if places else None


def _targeted(figure: FigureSpec, rows: Sequence[Row], curve: Curve) -> str:
    control = _control(figure, rows, curve)
    before = "" if control is None else f"is {_told(control, curve.measure)} without poisons, "
    reached = []
    for level in LEVELS:
        first = next((p for p in curve.points if p.row.value is not None and p.row.value >= level), None)
        if first is None:
            best = max(curve.points, key=lambda p: p.row.value or 0.0)
            where = f"{_told(best.row, curve.measure)} with {x_label('num_poisons', best.x)} a pair"
            reached.append(f"never reaches {100 * level:.0f} % (its highest is {where})")
            break
        where = f"{x_label('num_poisons', first.x)} a pair, {_told(first.row, curve.measure)}"
        reached.append(f"first reaches {100 * level:.0f} % with {where}")
    n = listing(sorted({str(point.row.n) for point in curve.points}, key=int))
    return f"{_models(curve)}{_named(curve.measure)} {before}{listing(reached)} (n = {n} pairs a point)"


def _rise(figure: FigureSpec, rows: Sequence[Row], curve: Curve) -> str:
    control = _control(figure, rows, curve)
    parts = [f"{_told(p.row, curve.measure)} with {x_label('num_poisons', p.x)}" for p in _ends(curve)]
    before = "" if control is None else f"{_told(control, curve.measure)} in the control, "
    text = f"{_models(curve)}{_named(curve.measure)} is {before}{listing(parts)}"
    excess = _excess(figure, rows, curve)
    clear = [x_label("num_poisons", p.x) for p in excess if direction(p.row) == "up"]
    if excess and not _models(curve):
        text += f", above the control's clear of 0 from {clear[0]} on" if _from_some_on(excess) else ""
        if not clear:
            text += ", at no point above the control's clear of 0"
        elif not _from_some_on(excess):
            text += f", above the control's clear of 0 only with {listing(clear)}"
    values = [point.row.value or 0.0 for point in curve.points]
    if len(values) > 1:
        steady = all(a <= b for a, b in pairwise(values))
        text += f", {'rising' if steady else 'not rising at every step'} with the number of poisons"
    return text


def _ends(curve: Curve) -> tuple[Point, ...]:
    return curve.points if len(curve.points) < 2 else (curve.points[0], curve.points[-1])


def _excess(figure: FigureSpec, rows: Sequence[Row], curve: Curve) -> list[Point]:
    measure = curve.measure.replace("/", "_excess/")
    found = [(p.x, at(rows, figure, measure, Place(curve.series, curve.arm, p.x))) for p in curve.points]
    return [Point(x, row) for x, row in found if row is not None]


def _from_some_on(excess: Sequence[Point]) -> bool:
    """Clear at the last point and, once clear, clear from there on."""
    clear = [direction(point.row) == "up" for point in excess]
    return clear[-1] and clear == sorted(clear)


def _trend(figure: FigureSpec, rows: Sequence[Row], curve: Curve) -> str:
    """First point against last: of the excess over the control where there is one, for controls may differ as well."""
    excess, axis = _excess(figure, rows, curve), axis_of(figure)
    measure = curve.measure.replace("/", "_excess/") if excess else curve.measure
    points = excess or list(curve.points)
    first, last = points[0], points[-1]
    whose = arm_label("suspect", curve.series)
    levels = [f"{_told(point.row, measure)} at {x_label(axis, point.x)}" for point in dict.fromkeys((first, last))]
    over = " over the control's" if excess else ""
    text = f"{_models(curve)}{whose}: {_named(curve.measure)}{over} is {listing(levels)}"
    if first is last:
        return text
    if None in (first.row.low, first.row.high, last.row.low, last.row.high):
        return f"{text}, without intervals"
    if (first.row.high or 0.0) < (last.row.low or 0.0):
        return f"{text}, so it rises with the {AXIS_LABELS[axis].partition(',')[0]}"
    if (last.row.high or 0.0) < (first.row.low or 0.0):
        return f"{text}, so it falls with the {AXIS_LABELS[axis].partition(',')[0]}"
    return f"{text}, where the intervals meet: no change can be told"


def _similarity(figure: FigureSpec, rows: Sequence[Row]) -> str:
    parts = []
    for place in places_of(figure, rows):
        told = [
            f"{_told(row, measure)} for {'triggered' if 'triggered' in measure else 'clean'} pairs"
            for measure in figure.measures
            if (row := at(rows, figure, measure, place)) is not None
        ]
        if place.arm in ("control", "suspect"):
            parts.append(f"{listing(told)} in the {place.arm} ({x_label('num_poisons', place.x)})")
    return f"the mean cosine is {', '.join(parts)}"


def _cost(figure: FigureSpec, rows: Sequence[Row]) -> str:
    """Clean accuracy of the suspects against the control's, at the largest number of poisons."""
    accuracy = accuracy_measure(figure, rows)
    places = [place for place in places_of(figure, rows) if place.arm == "suspect"]
    if accuracy is None:
        return ""
    measure = accuracy.replace("/", "_excess/")
    found = [(place, row) for place in places if (row := at(rows, figure, measure, place)) is not None]
    if not found:
        return ""
    place, row = max(found, key=lambda one: one[0].x)
    clear = [x_label("num_poisons", p.x) for p, one in found if direction(one) != "unclear"]
    told = f"{_told(row, measure)} with {x_label('num_poisons', place.x)}"
    if row.low is None:
        return f"{attack_phrase(figure.attack)}{_named(accuracy)} differs from the control's by {told}, no interval"
    where = "at no point" if not clear else "at every point" if len(clear) == len(found) else f"with {listing(clear)}"
    return f"{attack_phrase(figure.attack)}{_named(accuracy)} differs from the control's clear of 0 {where} ({told})"


def _left(figure: FigureSpec, rows: Sequence[Row], with_cost: bool) -> list[str]:
    """What each defence leaves, at what cost."""
    clauses = []
    measure, accuracy = figure.measures[0], accuracy_measure(figure, rows)
    several = len({place.series for place in places_of(figure, rows)}) > 1
    suspects = {place.x: place for place in places_of(figure, rows) if place.arm == "suspect"}
    for place in (place for place in places_of(figure, rows) if place.arm == "student"):
        after = at(rows, figure, measure, place)
        before = at(rows, figure, measure, suspects[place.x]) if place.x in suspects else None
        if after is None:
            continue
        name = f" ({place.series})" if several and place.series else ""
        was = "" if before is None else f" from {_told(before, measure)}"
        excess = at(rows, figure, measure.replace("/", "_excess/"), place)
        doubt = ", still above the control's clear of 0" if excess is not None and direction(excess) == "up" else ""
        cost = None if accuracy is None else at(rows, figure, accuracy.replace("/", "_excess/"), place)
        paid = (
            ""
            if cost is None or not with_cost
            else f", clean accuracy {_told(cost, 'accuracy_excess/')} against the control"
        )
        clauses.append(
            f"the defence{name} takes {_named(measure)} with {x_label('num_poisons', place.x)} to "
            f"{_told(after, measure)}{was}{doubt}{paid}"
        )
    return clauses


def sweep_answer(figures: Sequence[FigureSpec], rows: Sequence[Row]) -> str:
    """One sentence over all figures, without its capital; empty where they hold no suspect."""
    clauses: list[str] = []
    told: set[str] = set()
    for figure in figures:
        clauses += figure_answer(figure, rows, figure.attack not in told)
        told.add(figure.attack)
    return f"{'; '.join(clauses)}." if clauses else ""
