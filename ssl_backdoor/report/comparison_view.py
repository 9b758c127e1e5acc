"""Comparisons with the control, and what a matrix cost, as text, CSV and JSON data."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from ssl_backdoor.report.aggregate import SHARED
from ssl_backdoor.report.comparisons import MOST_UNITS, Comparison, kind_of
from ssl_backdoor.report.runs import ARMS, CLEAN_ARMS, Scored, variants_of
from ssl_backdoor.report.table_view import PaperTable, pairs_text, quantity_of, title_of
from ssl_backdoor.report.text import MISSING, arm_label, fixed_width, number
from ssl_backdoor.specs import TableSpec

_NUMBERS = (
    "label", "variant", "arm", "unit", "n", "mean", "low", "high", "p", "p_holm", "effect_size", "units_needed",
    "verdict",
)  # fmt: skip
COMPARED = (
    "difference", "95 % interval", "range over pairs", "n", "p", "p (Holm)", "Cohen's d", "for 80 % power",
    "against the control", "interval apart from",
)  # fmt: skip


def comparison_lines(comparisons: Sequence[Comparison]) -> tuple[tuple[Comparison, tuple[str, ...]], ...]:
    """Each comparison with its cells under ``COMPARED``."""
    return tuple((one, _compared(one)) for one in comparisons)


def _compared(one: Comparison) -> tuple[str, ...]:
    kind = quantity_of(one.key).kind
    interval = MISSING
    if one.low is not None and one.high is not None:
        interval = f"{number(one.low, kind, True)} to {number(one.high, kind, True)}"
    return (
        number(one.mean, kind, True),
        interval,
        pairs_text(one.pair_range, kind, True).removeprefix("pairs ") or MISSING,
        f"{one.n} {one.unit}{'s' * (one.n != 1)}",
        p_text(one.p),
        p_text(one.p_holm),
        number(one.effect_size, "score", True),
        needed_text(one),
        one.verdict,
        ", ".join(one.apart_from) or MISSING,
    )


def p_text(p: float | None) -> str:
    """A p-value to two digits, never 0."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def needed_text(one: Comparison) -> str:
    """Units that the observed effect needs, in words."""
    if one.units_needed is None:
        return "cannot be told"
    return f"{one.units_needed:,} {one.unit}s" if one.units_needed else f"more than {MOST_UNITS:,} {one.unit}s"


def comparison_csv(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as numbers; ``units_needed`` 0 is more than 10,000."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("name", "condition", "probe", *_NUMBERS, "pair_low", "pair_high", "apart_from"))
    for one in comparisons:
        values = (getattr(one, name) for name in _NUMBERS)
        writer.writerow((*one.key, *values, *(one.pair_range or ("", "")), "; ".join(one.apart_from)))
    return out.getvalue()


def comparison_title(comparisons: Sequence[Comparison]) -> str:
    """What is compared: Target FP (linear 100 %) on triggered images, arm − control."""
    quantity = quantity_of(comparisons[0].key)
    arms = list(dict.fromkeys(arm_label(one.arm) for one in comparisons))
    return f"{quantity.title} ({quantity.detail}) on triggered images, {arms[0] if len(arms) == 1 else 'arm'} − control"


def table_text(table: TableSpec, shown: PaperTable, comparisons: Sequence[Comparison]) -> str:
    """Table and comparisons for the end of a run in a terminal."""
    over = [title.removesuffix(" images").split(", ") for title, _ in shown.heads]
    heads = [("", *column) for column in zip(*over, strict=True)]
    heads.append(("", *(quantity.title for quantity in shown.columns)))
    body = [(line.label, *(cell.value for cell in line.cells)) for line in shown.lines]
    text = f"{title_of(table)}\n{fixed_width([*heads, *body], len(heads))}" if shown.columns else title_of(table)
    if not comparisons:
        return text
    picked = [COMPARED.index(name) for name in ("difference", "95 % interval", "n", "p (Holm)", "for 80 % power")]
    lines = [("", *(COMPARED[i] for i in picked), "against the control")]
    lines += [(one.label, *(cells[i] for i in picked), one.verdict) for one, cells in comparison_lines(comparisons)]
    return f"{text}\n\n{comparison_title(comparisons)}\n{fixed_width(lines, 1)}"


COSTS = ("trainings", "seconds of one", "evaluations", "seconds of one", "device-hours")


class _Cost(NamedTuple):
    trainings: list[float]  # seconds of each distinct encoder
    evaluations: list[float]
    device_s: float


def cost_lines(scored: Sequence[Scored]) -> tuple[tuple[str, ...], ...]:
    """What each cell took: variant, encoder, then ``COSTS``.

    A clean-trained encoder that the pairs of a seed share is counted once; variants may share encoders among them.
    """
    found = []
    for variant in variants_of(scored):
        for arm in ARMS:
            if cell := [one for one in scored if (one.run.variant, one.arm) == (variant, arm)]:
                cost = _cost(cell)
                made, judged = cost.trainings, cost.evaluations
                counts = (f"{len(made)}", _mean(made), f"{len(judged)}", _mean(judged))
                found.append((variant or "main", arm_label(arm), *counts, f"{cost.device_s / 3600:,.3f}"))
    return tuple(found)


def _mean(seconds: Sequence[float]) -> str:
    return f"{sum(seconds) / len(seconds):,.1f}"


def _cost(scored: Sequence[Scored]) -> _Cost:
    made: dict[object, tuple[float, float]] = {}
    judged = []
    for position, one in enumerate(scored):
        training = one.facts.get("seconds", one.seconds)
        encoder = (one.run.seed, one.run.dataset) if one.arm in CLEAN_ARMS else position
        made.setdefault(encoder, (training, training * one.facts.get("num_replicas", 1.0)))
        judged.append(max(one.seconds - training, 0.0))
    return _Cost([s for s, _ in made.values()], judged, sum(device_s for _, device_s in made.values()) + sum(judged))


def comparisons_json(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """The comparisons as JSON data; ``units_needed`` 0 is more than 10,000."""
    return [
        {name: getattr(one, name) for name in _NUMBERS}
        | {"measure": one.key[0], "probe": one.key[2], "apart_from": list(one.apart_from)}
        for one in comparisons
    ]


def unit_note(comparisons: Sequence[Comparison]) -> str:
    """What the intervals below are over."""
    kind = kind_of(comparisons)
    other = "pairs within a seed" if kind == "seed" else "seeds within a pair"
    note = f"Intervals and tests are over {kind}s, {other} averaged first."
    shared = kind == "pair" and any(len({seed for _, seed in one.differences}) < one.n for one in comparisons)
    return f"{note} {SHARED}" if shared else note
