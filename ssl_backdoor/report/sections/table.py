"""A paper's table, ours beside the paper's, its comparisons with the control, and what its encoders cost."""

from collections.abc import Sequence
from typing import NamedTuple

from ssl_backdoor.evaluate.metrics import UNSEEN
from ssl_backdoor.report.cells import (
    MISSING,
    Cell,
    Head,
    Kind,
    Line,
    Table,
    count_of,
    csv_text,
    dense_table,
    fixed_width,
    in_table,
    interval_of,
    number,
    paper_label,
    plural,
    span,
    value_of,
)
from ssl_backdoor.report.comparisons import FEWEST_UNITS, MOST_UNITS, Comparison, Verdict, arm_of, unit_of
from ssl_backdoor.report.estimates import FEW_CONTROLS, FEWEST_CONTROLS, Estimate, Results
from ssl_backdoor.report.frame import ARMS, CONTROL, SUSPECT, Arm, EvaluatedModel, Measure, arm_name, probe_label
from ssl_backdoor.specs import PaperCell, TableRow, TableSpec

VERDICTS: dict[Verdict, str] = {
    "above": "significantly above the control",
    "below": "significantly below the control",
    "unclear": "no significant difference",
    "untested": "not tested",
    "unmeasured": "not measured",
}
_TONES: dict[Verdict, str] = {
    "above": SUSPECT.name,
    "below": ARMS[2],
    "unclear": CONTROL.name,
    "untested": CONTROL.name,
    "unmeasured": CONTROL.name,
}
_COMPARED = (
    "difference", "95 % interval", "range over pairs", "n", "p", "p (Holm)", "Cohen's d", "for 80 % power",
    "against the control", "specific excess", "its 95 % interval", "interval apart from",
)  # fmt: skip
_IN_WORDS = ("against the control", "interval apart from")
_IN_TERMINAL = (
    "difference", "95 % interval", "n", "p (Holm)", "against the control", "specific excess", "its 95 % interval",
)  # fmt: skip


def title_of(table: TableSpec) -> str:
    """The table's title with the probe that it is read by."""
    return f"{table.title}, {probe_label(table.probe)}"


CONDITIONS = {"clean": "clean images", "triggered": "triggered images", UNSEEN: "unseen triggers"}
"""Under which the measures of a table are shown, and how a group of columns is headed."""


class _Place(NamedTuple):
    """One cell: a line of the table, the encoder, the measure."""

    row: TableRow
    arm: Arm
    measure: Measure


class PaperTable:
    """The cells of one table, as ours and as the paper's."""

    def __init__(self, table: TableSpec, results: Results) -> None:
        self.table, self.results = table, results
        self.is_by_arm = any(row.arm for row in table.rows)
        """Whether each line is about one encoder; else control and suspect stand side by side."""
        both = (CONTROL, SUSPECT)
        self._lines = [
            (row, arm)
            for row in table.rows
            for arm in ([SUSPECT] if not self.is_by_arm else [arm_of(row, results)] if row.arm else both)
        ]
        columns = [
            (arm, Measure.of_table(metric, condition, table.probe))
            for arm in ((None,) if self.is_by_arm else both)
            for condition in CONDITIONS
            for metric in (table.measures if condition != UNSEEN else table.measures[-1:])
        ]
        self._columns = [
            (arm, measure)
            for arm, measure in columns
            if any(
                self.ours(place) or self.said(place)
                for place in (_Place(row, arm or own, measure) for row, own in self._lines)
            )
        ]

    def ours(self, place: _Place) -> Estimate | None:
        """Our number in one cell, or None."""
        variant = place.row.variant
        if place.arm == CONTROL:
            variant = self.results.control_variant(variant)
        return self.results.get(place.measure, place.arm, variant)

    def said(self, place: _Place) -> PaperCell | None:
        """The paper's number in one cell, or None."""
        measure = place.measure
        wanted = (place.row.label, place.arm.name, measure.condition, measure.metric)
        cells = self.table.paper
        return next((one for one in cells if (one.row, one.arm, one.condition, one.name) == wanted), None)

    def _places(self, row: TableRow, own: Arm) -> list[_Place]:
        return [_Place(row, arm or own, measure) for arm, measure in self._columns]

    def shown(self) -> Table:
        """Ours in the paper's layout, and below each line what the paper says of it."""
        groups: dict[str, int] = {}
        for arm, measure in self._columns:
            images = CONDITIONS[measure.condition]
            title = f"{arm.label}, {images}" if arm else images
            groups[title] = groups.get(title, 0) + 1
        heads = [in_table(measure) for _, measure in self._columns]
        lines = []
        for row, own in self._lines:
            is_split = self.is_by_arm and not row.arm
            places = self._places(row, own)
            cells = tuple(self._cell(place) for place in places)
            lines.append(
                Line(f"{row.label}, {own.label}" if is_split else row.label, own.name if self.is_by_arm else "", cells)
            )
            said = [self.said(place) for place in places]
            for verified in sorted({one.is_verified for one in said if one}, reverse=True):
                texts = tuple(
                    Cell(_said(one, q.kind) if one and one.is_verified == verified else MISSING)
                    for one, q in zip(said, heads, strict=True)
                )
                lines.append(Line(paper_label(verified), "paper", texts))
        above = (
            Head("", rows=2),
            *(Head(title, span=count, tone="group") for title, count in groups.items()),
        )
        return Table((above, tuple(Head(q.title, q.detail) for q in heads)), tuple(lines), "numbers matrix")

    def _cell(self, place: _Place) -> Cell:
        row = self.ours(place)
        if row is None or row.value is None:
            return Cell(MISSING)
        kind = in_table(place.measure).kind
        low, high = row.pair_range or (0.0, 0.0)
        spread = f"pairs {span(low, high, kind)}" if low < high else ""
        return Cell(value_of(row, kind), interval_of(row, kind), count_of(row), spread)

    def csv(self) -> str:
        """The numbers of the table, one line a cell, the paper's beside ours."""
        heads = ("source", "row", "arm", "condition", "name", "probe", "value", "low", "high", "n", "interval")
        lines: list[tuple[object, ...]] = []
        for place in (place for line in self._lines for place in self._places(*line)):
            measure = place.measure
            named = (place.row.label, place.arm.name, measure.condition, measure.metric, measure.probe)
            if (row := self.ours(place)) is not None:
                low, high = row.pair_range or (0.0, 0.0)
                spread = (low, high) if low < high else ("", "")
                lines.append(("ours", *named, row.value, row.low, row.high, row.n, row.interval, *spread))
            if (said := self.said(place)) is not None:
                lines.append((paper_label(said.is_verified), *named, said.value, *[""] * 6))
        return csv_text((*heads, "pair_low", "pair_high"), lines)

    def text(self, comparisons: Sequence[Comparison]) -> str:
        """Table and comparisons for the end of a run in a terminal."""
        text, shown = title_of(self.table), self.shown()
        if self._columns:
            heads = [("", *(arm.label if arm else "" for arm, _ in self._columns))]
            heads.append(("", *(measure.condition.replace("_trigger", "") for _, measure in self._columns)))
            heads.append(("", *(in_table(measure).title for _, measure in self._columns)))
            heads = heads[1:] if self.is_by_arm else heads
            body = [(line.label, *(cell.value for cell in line.cells)) for line in shown.lines]
            text = f"{text}\n{fixed_width([*heads, *body], len(heads))}"
        if not comparisons:
            return text
        cells = [(line.label, _compared(line)) for line in comparisons]
        body = [(label, *(found[head].value for head in _IN_TERMINAL)) for label, found in cells]
        return f"{text}\n\n{comparison_title(comparisons)}\n{fixed_width([('', *_IN_TERMINAL), *body], 1)}"


def _said(one: PaperCell, kind: Kind) -> str:
    """A paper's number; a count as the share of its own images, so that it compares."""
    return (
        f"{number(one.value / one.num_images, 'percent')} of {one.num_images:,}"
        if one.num_images
        else number(one.value, kind)
    )


# ------------------------------------------------------------------------------------------------- comparisons


def _compared(line: Comparison) -> dict[str, Cell]:
    """The cells of a comparison by their heads."""
    row = line.difference
    kind = in_table(row.measure).kind
    texts = (
        number(row.value, kind, True),
        interval_of(row, kind) and f"{number(row.low, kind, True)} to {number(row.high, kind, True)}",
        span(row.pair_range and row.pair_range[0], row.pair_range and row.pair_range[1], kind, True),
        plural(row.num_units, row.unit),
        p_text(line.p),
        p_text(line.p_holm),
        number(line.effect_size, "score", True),
        needed_text(line),
        VERDICTS[line.verdict],
        number(line.specific.value, kind, True) if line.specific else "",
        interval_of(line.specific, kind) if line.specific else "",
        ", ".join(line.apart_from),
    )
    tones = {"against the control": f"text {_TONES[line.verdict]}", "interval apart from": "text wrap"}
    return {head: Cell(text or MISSING, tone=tones.get(head, "")) for head, text in zip(_COMPARED, texts, strict=True)}


def comparison_table(lines: Sequence[Comparison]) -> Table:
    """The comparisons as text."""
    heads = tuple(Head(head, tone="text" if head in _IN_WORDS else "") for head in _COMPARED)
    body = tuple(Line(line.label, "", tuple(_compared(line).values())) for line in lines)
    return Table(((Head(""), *heads),), body, "dense compared")


def p_text(p: float | None) -> str:
    """A p-value to two digits, never 0."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def needed_text(line: Comparison) -> str:
    """Units that an effect such as the observed one needs, in words."""
    unit = line.difference.unit
    if line.units_needed is None:
        return f"not told below {FEWEST_UNITS} {unit}s"
    few, many = line.units_needed
    if not few:
        return f"more than {MOST_UNITS:,} {unit}s"
    return f"{few:,} to {many:,} {unit}s" if many else f"at least {few:,} {unit}s"


def _numbers(line: Comparison) -> dict[str, object]:
    row, specific = line.difference, line.specific
    return {
        "label": line.label, "variant": row.point.variant, "arm": row.point.arm.name, "unit": row.unit,
        "n": row.num_units, "mean": row.value, "low": row.low, "high": row.high, "p": line.p, "p_holm": line.p_holm,
        "effect_size": line.effect_size, "units_needed": needed_text(line), "verdict": VERDICTS[line.verdict],
        "specific_mean": specific and specific.value, "specific_low": specific and specific.low,
        "specific_high": specific and specific.high,
    }  # fmt: skip


def comparison_csv(lines: Sequence[Comparison]) -> str:
    """The comparisons as numbers."""
    heads = (
        "name", "condition", "probe", "label", "variant", "arm", "unit", "n", "mean", "low", "high", "p", "p_holm",
        "effect_size", "units_needed", "verdict", "specific_mean", "specific_low", "specific_high", "pair_low",
        "pair_high", "apart_from",
    )  # fmt: skip
    return csv_text(
        heads,
        [
            (
                *line.difference.measure[:3], *_numbers(line).values(), *(line.difference.pair_range or ("", "")),
                "; ".join(line.apart_from),
            )
            for line in lines
        ],
    )  # fmt: skip


def comparisons_json(lines: Sequence[Comparison]) -> list[dict[str, object]]:
    """The comparisons as JSON data."""
    return [
        _numbers(line)
        | {
            "measure": line.difference.measure.metric,
            "probe": line.difference.measure.probe,
            "apart_from": list(line.apart_from),
        }
        for line in lines
    ]


def comparison_title(lines: Sequence[Comparison]) -> str:
    """What is compared: Target FP (linear 100 %) on triggered images, arm − control."""
    quantity = in_table(lines[0].difference.measure)
    arms = list(dict.fromkeys(line.difference.point.arm.label for line in lines))
    return f"{quantity.title} ({quantity.detail}) on triggered images, {arms[0] if len(arms) == 1 else 'arm'} − control"


def unit_note(lines: Sequence[Comparison]) -> str:
    """What the intervals below are over."""
    kind = unit_of(lines)
    other = "pairs within a seed" if kind == "seed" else "seeds within a pair"
    note = f"Intervals and tests are over {kind}s, {other} averaged first."
    rows = [line.difference for line in lines]
    has_few = any(row.num_trainings < min(FEWEST_CONTROLS, row.num_units) for row in rows)
    return f"{note} {FEW_CONTROLS}" if has_few else note


def headline_numbers(table: TableSpec, results: Results, lines: Sequence[Comparison]) -> dict[str, float]:
    """Cells, differences and Holm's p by ``name/arm[variant]/condition/probe``."""
    variants = {row.variant for row in table.rows}
    measures = {
        Measure.of_table(metric, condition, table.probe) for metric in table.measures for condition in CONDITIONS
    }
    numbers = {
        row.key: row.value
        for row in results.rows
        if (row.point.variant in variants and row.measure in measures)
        and row.statistic in ("value", "specific_excess") and row.value is not None
    }  # fmt: skip
    for line in lines:
        row = line.difference
        place = f"{arm_name(row.point.arm, row.point.variant)}/{row.measure.condition}/{row.measure.probe}"
        for name, value in ((row.name, row.value), (f"{row.name}_p_holm", line.p_holm)):
            if value is not None:
                numbers.setdefault(f"{name}/{place}", value)
    return numbers


def cost_table(results: Results) -> Table:
    """What each cell took.

    A clean-trained encoder that the pairs of a seed share is counted once; variants may share encoders among them.
    """
    heads = ("variant", "encoder", "trainings", "seconds of one", "evaluations", "seconds of one", "device-hours")
    lines = []
    for variant in results.variants:
        for arm in results.arms:
            models = [model for model in results.models if (model.run.variant, model.made) == (variant, arm)]
            if models:
                lines.append((variant or "main", arm.label, *_cost(models)))
    return dense_table(heads, lines, text=(1,))


def _cost(models: Sequence[EvaluatedModel]) -> tuple[str, ...]:
    made: dict[object, tuple[float, float]] = {}
    judged = []
    for position, model in enumerate(models):
        training = model.facts.get("seconds", model.seconds)
        encoder = (model.run.seed, model.run.dataset) if model.made.is_clean else position
        made.setdefault(encoder, (training, training * model.facts.get("num_replicas", 1.0)))
        judged.append(max(model.seconds - training, 0.0))
    trained = [seconds for seconds, _ in made.values()]
    device_s = sum(device_s for _, device_s in made.values()) + sum(judged)
    each = (f"{sum(seconds) / len(seconds):,.1f}" for seconds in (trained, judged))
    return f"{len(made)}", next(each), f"{len(judged)}", next(each), f"{device_s / 3600:,.3f}"
