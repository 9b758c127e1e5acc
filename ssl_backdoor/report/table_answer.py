"""The answer of tables in one sentence, by plain rules from the comparisons with the control.

A line is above or below its control where Holm's p is under 0.05; else it cannot be told from it, which is said as such
and is no proof of equality. Lines are ranked only where their intervals do not overlap.
"""

from collections.abc import Sequence
from itertools import combinations

from ssl_backdoor.report.aggregate import Row, find
from ssl_backdoor.report.comparison_view import needed_text
from ssl_backdoor.report.comparisons import Comparison, Verdict, key_of
from ssl_backdoor.report.table_view import quantity_of
from ssl_backdoor.report.text import listing, number, span
from ssl_backdoor.specs import TableSpec

MAX_APART = 4  # comparisons of two lines that the sentence names
_VERDICTS: tuple[tuple[Verdict, str], ...] = (
    ("above the control", "{lie} above the control's with"),
    ("below the control", "{lie} below the control's with"),
    ("cannot be told", "cannot be told from the control's with"),
)


def table_answer(
    tables: Sequence[tuple[TableSpec, Sequence[Comparison]]], rows: Sequence[Row], num_missing: int = 0
) -> str:
    """One sentence over all tables: the first in full, of the others which lines differ from the control."""
    measured = [(table, [one for one in lines if one.n]) for table, lines in tables]
    measured = [(table, lines) for table, lines in measured if lines]
    if measured:
        table, first = measured[0]
        parts = [*_first(first), _apart(first), _power(first), _removed(first, rows), _cost(table, first, rows)]
        for _, lines in measured[1:]:
            if any(one.n >= 2 for one in lines):
                parts.append(f"{_measure(lines[0])} {', and '.join(_verdicts(lines, False))}")
    else:
        parts = ["There is no answer: the tables hold no encoder with a clean-trained control beside it"]
    if num_missing:
        parts.append("1 run failed and is not in it" if num_missing == 1 else f"{num_missing} runs failed, not in it")
    text = "; ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}."


def _is_plural(one: Comparison) -> bool:
    return one.key[0] == "target_false_positives"


def _measure(one: Comparison) -> str:
    quantity = quantity_of(one.key)
    title = "target false positives" if _is_plural(one) else quantity.title
    return f"{title[0].lower()}{title[1:]} ({quantity.detail}) on triggered images"


def _name(one: Comparison) -> str:
    return f'"{one.label}"' if "," in one.label else one.label


def _first(lines: Sequence[Comparison]) -> list[str]:
    if all(one.n < 2 for one in lines):
        kind = quantity_of(lines[0].key).kind
        changes = [f"{number(one.mean, kind, True)} with {_name(one)}" for one in lines]
        return [
            "one trigger/target pair and one seed illustrate and are no evidence: "
            f"{_measure(lines[0])}, minus the control's: {listing(changes)}"
        ]
    tested = sum(one.p is not None for one in lines)
    head, *more = _verdicts(lines, True)
    over = f"{_over(lines)}, tested at 5 % after Holm's correction over {tested} line{'s' * (tested != 1)}"
    pronoun = "they" if _is_plural(lines[0]) else "it"
    return [f"{over}, {_measure(lines[0])} {head}", *(f"{pronoun} {text}" for text in more)]


def _over(lines: Sequence[Comparison]) -> str:
    """Over how many units, and how many are averaged in each."""
    least, most = min(one.n for one in lines), max(one.n for one in lines)
    n = f"{most}" if least == most else f"{least} to {most}"
    inner = max(len({place[lines[0].unit == "pair"] for place in one.differences}) for one in lines)
    if lines[0].unit == "seed":
        return f"over {n} seeds of {inner} trigger/target pair{'s' * (inner != 1)}"
    return f"over {n} trigger/target pairs of {inner} seed{'s' * (inner != 1)}"


def _verdicts(lines: Sequence[Comparison], amounts: bool) -> list[str]:
    parts = []
    for verdict, words in _VERDICTS:
        named = [_amount(one) if amounts else _name(one) for one in lines if one.verdict == verdict]
        if named:
            parts.append(f"{words.format(lie='lie' if _is_plural(lines[0]) else 'lies')} {listing(named)}")
    return parts


def _amount(one: Comparison) -> str:
    kind = quantity_of(one.key).kind
    if one.low is None or one.high is None:
        return f"{_name(one)} ({number(one.mean, kind, True)}, no interval)"
    low, high = (number(value, kind, True).removesuffix(" pt") for value in (one.low, one.high))
    return f"{_name(one)} ({number(one.mean, kind, True)}, {low} to {high})"


def _apart(lines: Sequence[Comparison]) -> str:
    """Which lines may be ranked."""
    couples = list(combinations([one for one in lines if one.low is not None], 2))
    apart = [f"{_name(one)} and {_name(other)}" for one, other in couples if other.label in one.apart_from]
    if not couples:
        return ""
    if not apart:
        return "all these intervals overlap, so the lines are not ranked"
    if len(apart) > MAX_APART:
        return f"set line against line, {len(apart)} of {len(couples)} comparisons have intervals that do not overlap"
    return f"only the intervals of {listing(apart)} do not overlap"


def _power(lines: Sequence[Comparison]) -> str:
    """What it would take to tell those that cannot be told; a defence where nothing was to repair is left out."""
    unsure = [one for one in lines if one.verdict == "cannot be told" and one.units_needed is not None]
    unsure = [one for one in unsure if one.arm != "distilled_control"]
    if not unsure:
        return ""
    needed = [f"{needed_text(one)} with {_name(one)}" for one in unsure]
    return f"to find the effects seen where it cannot be told would take {listing(needed)} (80 % power)"


def _removed(lines: Sequence[Comparison], rows: Sequence[Row]) -> str:
    """Share of the suspect's excess that each defended line lost."""
    shares = []
    for one in lines:
        name, condition, probe = one.key
        row = find(rows, f"{name}_removed_frac", one.arm, condition, probe, one.variant)
        if one.arm == "student" and row is not None and row.value is not None:
            interval = span(row, "percent")
            shares.append(f"{number(row.value, 'percent')} with {_name(one)}{f' ({interval})' if interval else ''}")
    return f"of the suspect's excess the student removes {listing(shares)}" if shares else ""


def _cost(table: TableSpec, lines: Sequence[Comparison], rows: Sequence[Row]) -> str:
    """Clean accuracy against the control's, over the lines."""
    _, _, probe = key_of(table, "accuracy", "clean")
    found = [find(rows, "accuracy_excess", one.arm, "clean", probe, one.variant) for one in lines]
    values = [row.value for row in found if row is not None and row.value is not None]
    if not values:
        return ""
    low, high = (number(value, "percent", True) for value in (min(values), max(values)))
    return f"clean accuracy differs from the control's by {low}" + (f" to {high}" if low != high else "")
