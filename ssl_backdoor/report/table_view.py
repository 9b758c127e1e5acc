"""A paper's table, ours beside the paper's, as text and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ssl_backdoor.report.aggregate import Row, Unit, find, pair_means, units_of
from ssl_backdoor.report.comparisons import control_variant, key_of
from ssl_backdoor.report.runs import Index, Key, Replicate, of_arm
from ssl_backdoor.report.text import (
    MISSING,
    Kind,
    Quantity,
    arm_label,
    measure_quantity,
    number,
    paper_label,
    probe_label,
    span,
)
from ssl_backdoor.specs import PaperCell, TableRow, TableSpec

CONDITIONS = ("clean", "triggered")
_OVER_PAIRS = (
    "95 %. Two pairs or more: Student's t over pairs, seeds within a pair averaged first. One pair: t over its seeds."
)
_OVER_SEEDS = (
    "95 %. Two seeds or more: Student's t over seeds, pairs within a seed averaged first. One seed: t over its pairs."
)
_ONE_RUN = "One run: Wilson over its test images, which holds no spread between pairs and seeds."
GLOSSARY = (
    (
        "pairs A to B",
        "Least and largest mean of a (trigger, target) pair, seeds averaged. It is no interval: it says how far one "
        "pair foretells the next.",
    ),
    (
        "difference",
        "Arm minus the control of the same dataset, trigger, target and seed, on triggered images; averaged within "
        "each unit (seed or pair), then over units.",
    ),
    (
        "p, p (Holm)",
        "Two-sided t-test of the units' differences against 0 (scipy), and the same corrected after Holm over the "
        "lines of the table (statsmodels). Above or below the control is said where p (Holm) < 0.05; that it "
        "cannot be told does not mean that there is no difference.",
    ),
    ("Cohen's d", "Mean of the units' differences over their standard deviation."),
    (
        "for 80 % power",
        "How many units a paired t-test (two-sided, 5 %, one test) would need to find the observed effect four times "
        "out of five. It takes the observed effect for the true one.",
    ),
    ("interval apart from", "Lines whose 95 % interval does not overlap with this one's; no other lines are ranked."),
    (
        "paper (unverified)",
        "Recalled, not read in the paper, and of the paper's own data, encoder and test set; never a bar to pass.",
    ),
    ("device-hours", "Wall-clock hours times the devices that one training ran on."),
)


class Evidence(NamedTuple):
    """What the cells are read from."""

    encoders: Index
    rows: Sequence[Row]
    unit: Unit


class TableCell(NamedTuple):
    """A number as text: value, 95 % interval, n, range over pairs."""

    value: str
    interval: str = ""
    n: str = ""
    spread: str = ""


class TableLine(NamedTuple):
    """One line of a table; ``arm`` picks its colour."""

    label: str
    arm: str
    cells: tuple[TableCell, ...]


class PaperTable(NamedTuple):
    """A table in the paper's layout: ``groups`` of columns, each (title, number of columns), over the columns."""

    groups: tuple[tuple[str, int], ...]
    columns: tuple[Quantity, ...]
    lines: tuple[TableLine, ...]

    @property
    def heads(self) -> tuple[tuple[str, Quantity], ...]:
        """Each column under the title of its group."""
        titles = (title for title, count in self.groups for _ in range(count))
        return tuple(zip(titles, self.columns, strict=True))


class _Column(NamedTuple):
    arm: str  # empty: the line's own
    condition: str
    name: str


def interval_definition(unit: Unit) -> tuple[str, str]:
    """The glossary's word on intervals over units of the kind ``unit``."""
    return "interval", f"{_OVER_SEEDS if unit == 'seed' else _OVER_PAIRS} {_ONE_RUN}"


def title_of(table: TableSpec) -> str:
    """The table's title with the probe that it is read by."""
    return f"{table.title}, {probe_label(table.probe)}"


def quantity_of(key: Key) -> Quantity:
    """How a measurement is titled and spelled; its condition stands in the head above."""
    name, condition, probe = key
    quantity = measure_quantity(f"{name}/{probe}")
    return quantity._replace(condition=condition, title="Accuracy" if name == "accuracy" else quantity.title)


def _is_by_arm(table: TableSpec) -> bool:
    """Whether each line is about one encoder; else control and suspect stand side by side."""
    return any(row.arm for row in table.rows)


def _columns(table: TableSpec, evidence: Evidence) -> tuple[_Column, ...]:
    """The columns that hold a number of ours or of the paper's."""
    arms = ("",) if _is_by_arm(table) else ("control", "suspect")
    columns = (_Column(arm, condition, name) for arm in arms for condition in CONDITIONS for name in table.measures)
    lines = _lines(table)
    return tuple(
        column
        for column in columns
        if any(
            row_of(evidence, table, row, column.arm or arm, column.condition, column.name)
            or _said(table, row, column.arm or arm, column)
            for row, arm in lines
        )
    )


def _lines(table: TableSpec) -> tuple[tuple[TableRow, str], ...]:
    """Each line and the arm it is about; where lines are about one arm, those about two become two lines."""
    if not _is_by_arm(table):
        return tuple((row, "suspect") for row in table.rows)
    return tuple((row, arm) for row in table.rows for arm in ((row.arm,) if row.arm else ("control", "suspect")))


def _label(table: TableSpec, row: TableRow, arm: str) -> str:
    return f"{row.label}, {arm_label(arm)}" if _is_by_arm(table) and not row.arm else row.label


def _variant(evidence: Evidence, row: TableRow, arm: str) -> str:
    return control_variant(evidence.encoders, row.variant) if arm == "control" else row.variant


def row_of(evidence: Evidence, table: TableSpec, row: TableRow, arm: str, condition: str, name: str) -> Row | None:
    """Our number in one cell, or None."""
    _, _, probe = key_of(table, name, condition)
    return find(evidence.rows, name, arm, condition, probe, _variant(evidence, row, arm))


def values_of(evidence: Evidence, row: TableRow, arm: str, key: Key) -> dict[Replicate, float]:
    """The measurement ``key`` of every encoder of one arm of a line, by pair and seed."""
    found = of_arm(evidence.encoders, _variant(evidence, row, arm), arm)
    return {replicate: run[key].value for replicate, (_, run) in found.items() if key in run}


def _cell(evidence: Evidence, table: TableSpec, row: TableRow, arm: str, column: _Column) -> TableCell:
    found = row_of(evidence, table, row, arm, column.condition, column.name)
    if found is None or found.value is None:
        return TableCell(MISSING)
    key = key_of(table, column.name, column.condition)
    kind, values = quantity_of(key).kind, values_of(evidence, row, arm, key)
    units = units_of({replicate: (value,) for replicate, value in values.items()}, evidence.unit)
    n = f"n = {len(units.values)} {units.kind}s" if len(units.values) >= 2 else "1 run"
    return TableCell(number(found.value, kind), span(found, kind), n, pairs_text(_spread(values), kind))


def _spread(values: Mapping[Replicate, float]) -> tuple[float, float] | None:
    means = pair_means(values).values()
    return (min(means), max(means)) if len(means) >= 2 and min(means) < max(means) else None


def pairs_text(spread: tuple[float, float] | None, kind: Kind, signed: bool = False) -> str:
    """The range over pairs: pairs 12 to 3,400."""
    if spread is None:
        return ""
    low, high = (number(value, kind, signed).removesuffix(" %").removesuffix(" pt") for value in spread)
    return f"pairs {low} to {high}"


def _said(table: TableSpec, row: TableRow, arm: str, column: _Column) -> PaperCell | None:
    wanted = (row.label, arm, column.condition, column.name)
    return next((cell for cell in table.paper if (cell.row, cell.arm, cell.condition, cell.name) == wanted), None)


def paper_table(table: TableSpec, evidence: Evidence) -> PaperTable:
    """Ours in the paper's layout, and below each line what the paper says of it."""
    columns = _columns(table, evidence)
    groups: dict[str, int] = {}
    for column in columns:
        title = f"{arm_label(column.arm)}, {column.condition} images" if column.arm else f"{column.condition} images"
        groups[title] = groups.get(title, 0) + 1
    lines = []
    by_arm = _is_by_arm(table)
    for row, arm in _lines(table):
        cells = tuple(_cell(evidence, table, row, column.arm or arm, column) for column in columns)
        colour = arm if by_arm else ""
        lines.append(TableLine(_label(table, row, arm), colour, cells))
        said = [_said(table, row, column.arm or arm, column) for column in columns]
        for verified in sorted({one.is_verified for one in said if one}, reverse=True):
            texts = tuple(
                TableCell(number(one.value, quantity_of(key_of(table, one.name, one.condition)).kind))
                if one and one.is_verified == verified
                else TableCell(MISSING)
                for one in said
            )
            lines.append(TableLine(paper_label(verified), "paper", texts))
    quantities = tuple(quantity_of(key_of(table, column.name, column.condition)) for column in columns)
    return PaperTable(tuple(groups.items()), quantities, tuple(lines))


def paper_csv(table: TableSpec, evidence: Evidence) -> str:
    """The numbers of the table, one line a cell, the paper's beside ours."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ("source", "row", "arm", "condition", "name", "probe", "value", "low", "high", "n", "interval")
    writer.writerow((*heads, "pair_low", "pair_high"))
    columns = _columns(table, evidence)
    for row, line_arm in _lines(table):
        for column in columns:
            arm = column.arm or line_arm
            key = key_of(table, column.name, column.condition)
            place = (row.label, arm, column.condition, column.name, key[2])
            ours = row_of(evidence, table, row, arm, column.condition, column.name)
            if ours is not None:
                spread = _spread(values_of(evidence, row, arm, key)) or ("", "")
                writer.writerow(("ours", *place, ours.value, ours.low, ours.high, ours.n, ours.interval, *spread))
            if (said := _said(table, row, arm, column)) is not None:
                writer.writerow((paper_label(said.is_verified), *place, said.value, "", "", "", "", "", ""))
    return out.getvalue()
