"""The report's tables as rows of finished text, the same for HTML, Markdown and the terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ssl_backdoor.report.aggregate import NO_EXCESS, PairRow, Row, find
from ssl_backdoor.report.runs import ARMS, Scored
from ssl_backdoor.report.text import (
    MISSING,
    Quantity,
    accuracy_quantities,
    arm_label,
    effect_quantities,
    fixed_width,
    headline_quantities,
    number,
    share_quantities,
    span,
)

GLOSSARY = (
    ("control", "The clean-trained encoder, tested under the same trigger. Every claim is a difference to it."),
    ("suspect", "The encoder trained on the poisoned data."),
    (
        "student",
        "The suspect after the defence, distilled into a fresh encoder or fine-tuned on a trusted, clean share of the "
        "data.",
    ),
    ("distilled control", "The control after the same defence: what that does where there is nothing to repair."),
    (
        "clean / triggered / unseen trigger",
        "A test image as it is / with the attack's trigger / with one never seen.",
    ),
    ("target FP", "Test images not of the target class predicted as it (column sum minus diagonal)."),
    ("attack_success_rate", "Target FP over the number of test images not of the target class; _all: over all images."),
    (
        "z-score",
        "(Mean cosine of distinct triggered pairs − mean cosine of distinct clean pairs) / spread of the clean pairs; "
        "_sd divides by their standard deviation, _variance (as printed in the paper) by their variance.",
    ),
    ("top-class share", "Share of the triggered test images in the class that most of them are given."),
    ("excess", "The arm minus the control of the same dataset, trigger, target and seed."),
    (
        "share removed",
        "(Mean suspect − mean student) / (mean suspect − mean control), where that excess is clear of 0.",
    ),
    (
        "poison_fraction_of_target, poison_fraction_of_dataset, num_poisons",
        "Poisoned images over the images of the target class, over all training images, and their count.",
    ),
    (
        "interval",
        "95 %. Two pairs or more: Student's t over pairs, seeds within a pair averaged first. One pair: t over its "
        "seeds. One run: Wilson over its test images, which holds no spread between pairs and seeds. Pairs of one seed "
        "share the clean-trained encoder, whose training noise is then in no interval.",
    ),
)


class Cell(NamedTuple):
    """A number as text: value, interval, n."""

    value: str
    interval: str = ""
    n: str = ""


class Line(NamedTuple):
    """One line of a table; ``arm`` picks its colour."""

    label: str
    arm: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """Lines under the quantities that are their columns; ``title`` is empty for the main variant."""

    title: str
    columns: tuple[Quantity, ...]
    lines: tuple[Line, ...]


def headline_table(rows: Sequence[Row], variant: str = "") -> Table:
    """One line an arm, one column a headline quantity."""
    columns = tuple(
        q for q in headline_quantities(rows) if any(find(rows, q.name, arm, q.condition, q.probe) for arm in ARMS)
    )
    lines = []
    for arm in ARMS:
        cells = tuple(cell_of(find(rows, q.name, arm, q.condition, q.probe, variant), q) for q in columns)
        if any(cell.value != MISSING for cell in cells):
            lines.append(Line(arm_label(arm), arm, cells))
    return Table(variant, columns, tuple(lines))


def excess_table(rows: Sequence[Row], variant: str = "") -> Table:
    """Differences to the control, and the share of the suspect's that the student removed."""
    columns = tuple(
        q
        for q in (*effect_quantities(rows), *share_quantities(rows), *reversed(accuracy_quantities(rows)))
        if find(rows, f"{q.name}_excess", "suspect", q.condition, q.probe)
    )
    lines = []
    for arm in ARMS[1:]:
        found = [find(rows, f"{q.name}_excess", arm, q.condition, q.probe, variant) for q in columns]
        if any(found):
            cells = tuple(cell_of(row, q, signed=True) for row, q in zip(found, columns, strict=True))
            lines.append(Line(f"{arm_label(arm)} − control", arm, cells))
    removed = [find(rows, f"{q.name}_removed_frac", "student", q.condition, q.probe, variant) for q in columns]
    if any(removed):
        cells = tuple(_removed(row, q) for row, q in zip(removed, columns, strict=True))
        lines.append(Line("share removed by the student", "removed", cells))
    return Table(variant, columns, tuple(lines))


def cell_of(row: Row | None, quantity: Quantity, signed: bool = False) -> Cell:
    """``row`` as a cell of the tables of pairs."""
    if row is None or row.value is None:
        return Cell(MISSING)
    n = f"n = {row.n:,}" if row.interval == "t" else "1 run"
    return Cell(number(row.value, quantity.kind, signed), span(row, quantity.kind, signed), n)


def _removed(row: Row | None, quantity: Quantity) -> Cell:
    if row is None:
        return Cell(MISSING)
    if row.value is None:
        return Cell("not defined", NO_EXCESS.partition(": ")[2], f"n = {row.n:,}")
    share = quantity._replace(kind="percent")
    return Cell(number(row.value, "percent"), span(row, share.kind), f"n = {row.n:,}" if row.n > 1 else "1 run")


class PairTable(NamedTuple):
    """Every pair: groups of three columns (control, suspect, student), then the top class and shares removed."""

    groups: tuple[Quantity, ...]
    removed: tuple[Quantity, ...]
    lines: tuple[tuple[str, ...], ...]
    """Pair, seed, variant, three values a group, top class, one share a removed column."""


def pair_table(rows: Sequence[Row], pairs: Sequence[PairRow]) -> PairTable:
    """``pairs`` as text, none left out."""
    effects = effect_quantities(rows)
    groups = tuple(
        q
        for q in (*effects, *share_quantities(rows))
        if any((q.name, q.probe, "suspect") in pair.values for pair in pairs)
    )
    removed = tuple(q for q in effects if any((q.name, q.probe, "student") in pair.values for pair in pairs))
    lines = []
    for pair in pairs:
        values = [
            number(pair.values.get((q.name, q.probe, arm)), q.kind).removesuffix(" %")
            for q in groups
            for arm in ARMS[:3]
        ]
        shares = [_share(pair.removed(q.name, q.probe)) for q in removed]
        lines.append(
            (pair.pair.label, str(pair.seed), pair.variant or "main", *values, pair.top_class or MISSING, *shares)
        )
    return PairTable(groups, removed, tuple(lines))


def _share(value: float | None) -> str:
    if value is None:
        return MISSING
    return "> 999 %" if value > 9.99 else "< −999 %" if value < -9.99 else f"{100 * value:.0f} %".replace("-", "−")


class FullRow(NamedTuple):
    """A row of everything; ``definition`` numbers the list beside it."""

    arm: str
    name: str
    condition: str
    probe: str
    value: str
    low: str
    high: str
    n: str
    interval: str
    definition: int


def full_table(rows: Sequence[Row]) -> tuple[tuple[FullRow, ...], tuple[str, ...]]:
    """All rows, and the distinct definitions that they number from 1."""
    definitions = {text: position for position, text in enumerate(dict.fromkeys(row.definition for row in rows), 1)}
    full = tuple(
        FullRow(
            arm_label(row.arm, row.variant),
            row.name,
            row.condition,
            row.probe,
            _plain(row.value),
            _plain(row.low),
            _plain(row.high),
            f"{row.n:,}",
            row.interval,
            definitions[row.definition],
        )
        for row in rows
    )
    return full, tuple(definitions)


def _plain(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    return (f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}").replace("-", "−")


POISON_COLUMNS = ("num_poisons", "poison_fraction_of_target", "poison_fraction_of_dataset", "num_recoded")


def poison_table(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Name, target class and ``POISON_COLUMNS`` of each poisoning."""
    table = []
    for name, summary in summaries.items():
        values = [summary.get(column) for column in POISON_COLUMNS]
        text = [MISSING if v is None else f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" for v in values]
        table.append((name, str(summary.get("target_class") or MISSING), *text))
    return tuple(table)


def cost_table(scored: Iterable[Scored], seconds: Mapping[str, float]) -> tuple[tuple[str, str, str], ...]:
    """What took how long: stages as given, then the mean encoder of each arm; columns what, seconds, of how many."""
    table = [(f"stage {stage}", f"{value:,.1f}", "") for stage, value in seconds.items()]
    by_arm: dict[str, list[float]] = {}
    for one in scored:
        by_arm.setdefault(one.arm, []).append(one.seconds)
    for arm in (arm for arm in ARMS if arm in by_arm):
        values = by_arm[arm]
        table.append((f"one {arm_label(arm)}, mean", f"{sum(values) / len(values):,.1f}", f"{len(values)}"))
    return tuple(table)


def headline_text(rows: Sequence[Row]) -> str:
    """The table for the end of a run in a terminal: each number above its interval, fixed width, < 100 columns."""
    quantities = (*accuracy_quantities(rows)[:1], *effect_quantities(rows), *share_quantities(rows))
    head = [("", ""), *((q.title, q.detail) for q in quantities)]
    lines = [tuple(column[0] for column in head), tuple(column[1] for column in head)]
    for arm in ARMS:
        cells = [cell_of(find(rows, q.name, arm, q.condition, q.probe), q) for q in quantities]
        if any(cell.value != MISSING for cell in cells):
            lines.append((arm_label(arm), *(cell.value for cell in cells)))
            lines.append(("", *(cell.interval for cell in cells)))
    removed = [find(rows, f"{q.name}_removed_frac", "student", q.condition, q.probe) for q in quantities]
    if any(removed):
        cells = [_removed(row, q) if row else Cell("") for row, q in zip(removed, quantities, strict=True)]
        lines.append(("removed by student", *(cell.value for cell in cells)))
        lines.append(("", *("" if cell.value == "not defined" else cell.interval for cell in cells)))
    return fixed_width(lines, 2)
