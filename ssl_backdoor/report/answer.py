"""The answer in one sentence, by plain rules from the rows.

An effect is *clear* when its 95 % interval over units lies on one side of 0. One pair alone illustrates and is no
evidence, whatever its numbers. A negative or null result is said as such.
"""

from collections.abc import Sequence
from typing import Literal

from ssl_backdoor.report.aggregate import PairRow, Row, find
from ssl_backdoor.report.runs import Pair
from ssl_backdoor.report.text import (
    Quantity,
    accuracy_quantities,
    effect_quantities,
    listing,
    number,
    span,
)

Direction = Literal["up", "down", "unclear"]

VERDICTS = {
    "all": "The backdoor takes hold",
    "some": "The backdoor takes hold by some measures and not by others",
    "none": "No backdoor effect can be told from zero",
    "reverse": "The effect runs the other way",
}


def answer(rows: Sequence[Row], pairs: Sequence[PairRow], note: str = "") -> str:
    """One sentence on the main variant: is there an effect, how large, what the defence removes, at what cost."""
    main = [pair for pair in pairs if not pair.variant]
    effects = [q for q in effect_quantities(rows) if find(rows, f"{q.name}_excess", "suspect", q.condition, q.probe)]
    if not main or not effects:
        return "There is no answer: the runs hold no suspect with a clean-trained control beside it."
    if len({pair.pair for pair in main}) == 1:
        parts = [_illustration(rows, main, effects, note), _removed(rows, effects), _cost(rows)]
    else:
        parts = [_effect(rows, main, effects), _removed(rows, effects), _cost(rows), _spread(main, effects)]
    return "; ".join(part for part in parts if part) + "."


def direction(row: Row) -> Direction:
    """Where the interval of a difference lies; one without an interval is not clear of 0."""
    if row.low is not None and row.low > 0:
        return "up"
    if row.high is not None and row.high < 0:
        return "down"
    return "unclear"


def verdict(directions: Sequence[Direction]) -> str:
    """Which of ``VERDICTS`` the effects amount to."""
    if all(one == "up" for one in directions):
        return "all"
    if "up" in directions:
        return "some"
    return "reverse" if "down" in directions else "none"


def _excess(rows: Sequence[Row], quantity: Quantity, arm: str) -> Row | None:
    return find(rows, f"{quantity.name}_excess", arm, quantity.condition, quantity.probe)


def _title(quantity: Quantity) -> str:
    return "z-score" if quantity.name == "z_score_sd" else quantity.detail


def _by_kind(effects: Sequence[tuple[Quantity, str]], verb: str) -> str:
    """Joins the amounts: the target's false positives by each probe, then the z-score."""
    counts = [f"{verb} {text}" for quantity, text in effects if quantity.kind == "count"]
    scores = [f"the z-score {verb} {text}" for quantity, text in effects if quantity.kind == "score"]
    joined = f"target false positives on triggered images change {listing(counts)}" if counts else ""
    return ", ".join(part for part in (joined, *scores) if part)


def _effect(rows: Sequence[Row], main: Sequence[PairRow], effects: Sequence[Quantity]) -> str:
    found = [(q, row) for q in effects if (row := _excess(rows, q, "suspect")) is not None]
    which = verdict([direction(row) for _, row in found])
    amounts = []
    for position, (quantity, row) in enumerate(found):
        probe = f" with {quantity.detail}" if quantity.kind == "count" else ""
        label = "95 % interval " if position == 0 else ""
        doubt = ", not clear of 0" if direction(row) == "unclear" else ""
        interval = f"{label}{span(row, quantity.kind, signed=True)}{doubt}" if row.low is not None else "no interval"
        amounts.append((quantity, f"{number(row.value, quantity.kind, True)}{probe} ({interval})"))
    count = len({pair.pair for pair in main})
    return f"{VERDICTS[which]} over {count} trigger/target pairs: from control to suspect, {_by_kind(amounts, 'by')}"


def _illustration(rows: Sequence[Row], main: Sequence[PairRow], effects: Sequence[Quantity], note: str) -> str:
    changes = []
    for quantity in effects:
        before, after = (
            find(rows, quantity.name, arm, quantity.condition, quantity.probe) for arm in ("control", "suspect")
        )
        if before is None or after is None or before.value is None or after.value is None:
            continue
        text = f"{number(before.value, quantity.kind)} to {number(after.value, quantity.kind)}"
        if quantity.kind == "count":
            text += f" with {quantity.detail}"
            text += f" ({after.value / before.value:.1f} times)" if before.value > 0 else ""
        changes.append((quantity, text))
    seeds = f" over {len(main)} seeds" if len(main) > 1 else ""
    pointer = " (for evidence see the note)" if note else ""
    return (
        f"One trigger/target pair{seeds} illustrates and is no evidence{pointer}: "
        f"from control to suspect, {_by_kind(changes, 'from')}"
    )


def _removed(rows: Sequence[Row], effects: Sequence[Quantity]) -> str:
    """What the student took away and what it left."""
    found = [
        (q, row) for q in effects if (row := find(rows, f"{q.name}_removed_frac", "student", q.condition, q.probe))
    ]
    if not found:
        return ""
    shares: dict[str, list[str]] = {"removes": [], "adds": []}
    for quantity, row in found:
        if row.value is None:
            continue
        text = f"{100 * abs(row.value):.0f} % ({_title(quantity)}"
        interval = ""
        if row.value >= 0 and row.low is not None and row.high is not None:
            interval = f", {100 * row.low:.0f} to {100 * row.high:.0f}".replace("-", "−")
        shares["removes" if row.value >= 0 else "adds"].append(f"{text}{interval})")
    parts = []
    if shares["removes"]:
        parts.append(f"the distilled student removes {listing(shares['removes'])} of the excess")
    if shares["adds"]:
        parts.append(f"the distilled student adds {listing(shares['adds'])} to the excess")
    if none := [_title(quantity) for quantity, row in found if row.value is None]:
        parts.append(f"with {listing(none)} there is no clear excess to remove")
    left = [_title(q) for q, row in found if row.value is not None and _still_there(rows, q)]
    if left:
        parts.append(f"what it leaves is still clear of 0 with {listing(left)}")
    return ", ".join(parts)


def _still_there(rows: Sequence[Row], quantity: Quantity) -> bool:
    row = _excess(rows, quantity, "student")
    return row is not None and direction(row) == "up"


def _cost(rows: Sequence[Row]) -> str:
    """Clean accuracy of suspect and student against the control."""
    changes, worst = [], 0.0
    for quantity in accuracy_quantities(rows):
        for arm in ("suspect", "student"):
            row = _excess(rows, quantity, arm)
            if quantity.condition == "clean" and row is not None and row.value is not None:
                change = f"{100 * row.value:+.1f}".replace("-", "−")
                changes.append(f"{change} points in the {arm}")
                worst = max(worst, abs(row.value))
    if not changes:
        return ""
    where = "stays within 3 points of" if worst <= 0.03 else "moves more than 3 points from"
    return f"clean accuracy {where} the control's ({listing(changes)})"


def _spread(main: Sequence[PairRow], effects: Sequence[Quantity]) -> str:
    """What the range over pairs means: large when its standard deviation passes half of the mean's size."""
    quantity = effects[0]
    by_pair: dict[Pair, list[float]] = {}
    for pair in main:
        if (excess := pair.excess(quantity.name, quantity.probe)) is not None:
            by_pair.setdefault(pair.pair, []).append(excess)
    values = [sum(one) / len(one) for one in by_pair.values()]
    if len(values) < 2:
        return ""
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    low, high = (number(value, quantity.kind, signed=True) for value in (min(values), max(values)))
    spread = f"{low} to {high} with {_title(quantity)}"
    if deviation > 0.5 * abs(mean):
        return f"pairs differ widely ({spread}): the mean speaks for the recipe, one pair foretells little of the next"
    return f"pairs agree closely ({spread}), so one pair foretells much of the next"
