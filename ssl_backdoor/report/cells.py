"""How a number, an interval and a name are spelled, and the tables that hold them: the same on page and terminal."""

import base64
import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, assert_never

from ssl_backdoor.evaluate.metrics import UNSEEN
from ssl_backdoor.report.estimates import Estimate
from ssl_backdoor.report.frame import Arm, Measure, Statistic, headline_probes, probe_label
from ssl_backdoor.words import listing as listing
from ssl_backdoor.words import plural as plural

Kind = Literal["count", "percent", "score"]
MISSING = "–"
OF_THE_PAPER = " The paper's numbers are of its own data, encoder and test set."
_METRICS: dict[str, tuple[str, Kind]] = {
    "targeted_success": ("Targeted success", "percent"),
    "target_rank": ("Rank of y'", "score"),
    "attack_success_rate": ("Attack success", "percent"),
    "attack_success_rate_all": ("Attack success, all images", "percent"),
    "target_false_positives": ("Target FP", "count"),
    "top_class_share": ("Top-class share", "percent"),
    "accuracy": ("Clean accuracy", "percent"),
    "z_score_sd": ("z-score (sd)", "score"),
    "z_score_variance": ("z-score (variance)", "score"),
    "similarity_triggered": ("Cosine, triggered pairs", "score"),
    "similarity_clean": ("Cosine, clean pairs", "score"),
    "image_to_text_recall_1": ("Image to text, R@1", "percent"),
    "image_to_text_recall_5": ("Image to text, R@5", "percent"),
    "text_to_image_recall_1": ("Text to image, R@1", "percent"),
    "text_to_image_recall_5": ("Text to image, R@5", "percent"),
    "seconds": ("Seconds", "count"),
}


class Quantity(NamedTuple):
    """A measure, or its difference to the control, as the page shows it."""

    measure: Measure
    title: str
    detail: str
    kind: Kind
    statistic: Statistic = "value"

    @property
    def in_words(self) -> str:
        """Inside a sentence: attack success (kNN)."""
        return f"{self.title[0].lower()}{self.title[1:]} ({self.detail})"


def quantity_of(measure: Measure, statistic: Statistic = "value") -> Quantity:
    """How ``measure`` is titled and spelled in figures and their tables."""
    title, kind = _METRICS.get(measure.metric, (measure.metric, "score"))
    detail = probe_label(measure.probe) if measure.probe else "to make it"
    if measure.condition == UNSEEN:
        detail = f"{detail}, unseen triggers"
    title += {"excess": ", − control", "specific_excess": ", specific excess"}.get(statistic, "")
    return Quantity(measure, title, detail, kind, statistic)


def in_table(measure: Measure) -> Quantity:
    """How ``measure`` is titled in a table, where the condition stands in the head above."""
    quantity = quantity_of(measure)
    return quantity._replace(title="Accuracy") if measure.metric == "accuracy" else quantity


def effect_quantities(probes: Iterable[str]) -> tuple[Quantity, ...]:
    """What judges the attack, on triggered images: target false positives by each shown probe, and the z-score."""
    shown = [Measure("target_false_positives", "triggered", probe) for probe in headline_probes(probes)]
    z_score = Quantity(Measure("z_score_sd", "triggered", "features"), "z-score", "features", "score")
    return (*map(quantity_of, shown), z_score)


def accuracy_quantities(probes: Iterable[str]) -> tuple[Quantity, ...]:
    """Clean and triggered accuracy by the last shown probe."""
    shown = headline_probes(probes)[-1:]
    return tuple(
        Quantity(Measure("accuracy", condition, p), f"{condition.capitalize()} accuracy", probe_label(p), "percent")
        for condition in ("clean", "triggered")
        for p in shown
    )


def share_quantities(probes: Iterable[str]) -> tuple[Quantity, ...]:
    """Share of triggered images in their most frequent class, by the first shown probe."""
    return tuple(quantity_of(Measure("top_class_share", "triggered", p)) for p in headline_probes(probes)[:1])


def headline_quantities(probes: Iterable[str]) -> tuple[Quantity, ...]:
    """The columns of the headline table."""
    probes = tuple(probes)
    *effect, z_score = effect_quantities(probes)
    unseen = [quantity_of(q.measure.under_unseen) for q in effect]
    return (*accuracy_quantities(probes), *effect, *unseen, z_score, *share_quantities(probes))


def number(value: float | None, kind: Kind, signed: bool = False) -> str:
    """``value`` with its unit: whole counts, fractions in percent (in points when signed), scores to 0.01."""
    if value is None or not math.isfinite(value):
        return MISSING
    sign = "+" if signed else ""
    match kind:
        case "count":
            text = f"{value:{sign},.0f}"
        case "percent":
            text = f"{100 * value:{sign}.1f}" + (" pt" if signed else " %")
        case "score":
            text = f"{value:{sign}.2f}"
        case _:
            assert_never(kind)
    return text.replace("-", "−")


def bare_number(value: float | None, kind: Kind, signed: bool = False) -> str:
    """``number`` without its unit."""
    return number(value, kind, signed).removesuffix(" %").removesuffix(" pt")


def span(low: float | None, high: float | None, kind: Kind, signed: bool = False) -> str:
    """An interval or range as "low to high", empty where there is none; the unit is that of the value."""
    if low is None or high is None:
        return ""
    return f"{bare_number(low, kind, signed)} to {bare_number(high, kind, signed)}"


def interval_of(row: Estimate, kind: Kind) -> str:
    """The interval of ``row``; differences have a sign."""
    return span(row.low, row.high, kind, row.is_difference)


def with_interval(row: Estimate, kind: Kind) -> str:
    """A number with its interval, for a sentence: 84 % (77 to 90)."""
    interval = interval_of(row, kind)
    return f"{number(row.value, kind, row.is_difference)}{f' ({interval})' if interval else ''}"


def plain_number(value: float | None) -> str:
    """To four digits after the point, large ones to one."""
    if value is None or not math.isfinite(value):
        return MISSING
    return (f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}").replace("-", "−")


def paper_label(is_verified: bool) -> str:
    """Whether a paper's value was read or recalled."""
    return "paper" if is_verified else "paper (unverified)"


def arm_label(arm: Arm, variant: str = "") -> str:
    """Name of an arm for people, with its side variant."""
    return f"{arm.label} [{variant}]" if variant else arm.label


# ---------------------------------------------------------------------------------------------- tables and figures


class Cell(NamedTuple):
    """A number as text: value, 95 % interval, n, range over pairs; ``tone`` picks colour and side."""

    value: str
    interval: str = ""
    n: str = ""
    spread: str = ""
    tone: str = ""


class Head(NamedTuple):
    """The head of a column, or of a group of ``span`` columns; one of ``rows`` 2 has no group above it."""

    title: str
    detail: str = ""
    span: int = 1
    rows: int = 1
    tone: str = ""
    hint: str = ""


class Line(NamedTuple):
    """One line of a table; ``tone`` picks its colour. One without cells is a heading of those below."""

    label: str
    tone: str
    cells: tuple[Cell, ...] = ()


class Table(NamedTuple):
    """Lines under one or two rows of heads, of which the first is that of the labels."""

    heads: tuple[tuple[Head, ...], ...]
    lines: tuple[Line, ...]
    style: str = "numbers"
    caption: str = ""
    is_long: bool = False
    """Shown on the page alone."""

    @property
    def columns(self) -> tuple[tuple[str, Head], ...]:
        """The title of its group (or nothing) and the head of each column, the labels' included."""
        if len(self.heads) == 1:
            return tuple(("", head) for head in self.heads[0])
        below = iter(self.heads[1])
        return tuple(
            pair
            for head in self.heads[0]
            for pair in ([("", head)] if head.rows > 1 else [(head.title, next(below)) for _ in range(head.span)])
        )


def dense_table(heads: Sequence[str], lines: Iterable[Sequence[str]], text: Sequence[int] = ()) -> Table:
    """``lines`` of plain cells, the first their label; ``text``: columns that are read from the left."""
    tones = ["text" if column in text else "" for column in range(len(heads))]
    return Table(
        (tuple(Head(head, tone=tone) for head, tone in zip(heads, tones, strict=True)),),
        tuple(
            Line(label, "", tuple(Cell(cell, tone=tone) for cell, tone in zip(cells, tones[1:], strict=True)))
            for label, *cells in lines
        ),
        "dense",
    )


class Picture(NamedTuple):
    """A figure as PNG and as SVG, what it shows, and the numbers behind it."""

    name: str
    """Of its files, without suffix."""
    png: bytes
    title: str
    caption: str
    data: str = ""
    """CSV."""
    svg: bytes = b""

    @property
    def base64(self) -> str:
        """The picture, to stand in a page."""
        return base64.b64encode(self.png).decode()


class Example(NamedTuple):
    """A training image before and after poisoning."""

    original: Any
    poisoned: Any
    box: tuple[int, int, int, int] | None
    """x, y, width, height in px of that image; None or width 0: no box."""
    caption: str
    """Above the image: what it is."""
    text: str = ""
    """Of an added pair: the caption it was given."""
    attack: str = ""
    """Kind of attack; each has a picture of its own."""


def count_of(row: Estimate) -> str:
    """Over how many pairs, seeds or models it is."""
    return f"n = {row.num_units} {row.unit}s" if row.num_units > 1 else "1 model"


def cell_of(row: Estimate | None, kind: Kind) -> Cell:
    """``row`` as a cell: the interval is over pairs, seeds or models, never over the images of one model."""
    if row is None or row.value is None:
        return Cell(MISSING)
    return Cell(value_of(row, kind), interval_of(row, kind), count_of(row))


def value_of(row: Estimate, kind: Kind) -> str:
    """The number, of a count also the share that it is: 1,759 (44 %)."""
    text = number(row.value, kind, row.is_difference)
    has_share = kind == "count" and row.statistic == "value" and row.num_images and row.value is not None
    return f"{text} ({100 * (row.value or 0.0) / row.num_images:.0f} %)" if has_share else text


def removed_cell(row: Estimate | None) -> Cell:
    """A share removed as a cell."""
    if row is None:
        return Cell(MISSING)
    if row.value is None:
        return Cell("not defined", "no clear excess", count_of(row))
    return Cell(number(row.value, "percent"), interval_of(row, "percent"), count_of(row))


def number_table(quantities: Sequence[Quantity], lines: Iterable[Line], caption: str = "") -> Table:
    """``lines`` under ``quantities``."""
    return Table(((Head(""), *(Head(q.title, q.detail) for q in quantities)),), tuple(lines), caption=caption)


def fixed_width(lines: Sequence[Sequence[str]], num_heads: int) -> str:
    """``lines`` as columns for a terminal, the first to the left, a rule below the heads; blank lines are left out."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    body = [line.rstrip() for line in text if line.strip()]
    return "\n".join([*body[:num_heads], "─" * (sum(widths) + 2 * (len(widths) - 1)), *body[num_heads:]])


def csv_text(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """``lines`` under ``heads`` as CSV; None is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return out.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--",
          "\u00a0": "~", **{one: f"\\{one}" for one in "&%$#_{}"}}  # fmt: skip


def latex(table: Table, title: str) -> str:
    """``table`` as a tabular environment; what has a meaning in LaTeX is escaped."""

    def cell(*parts: str) -> str:
        text = " ".join(" ".join(part.split()) for part in parts if part)
        return "".join(_LATEX.get(one, one) for one in text if one.isprintable())

    columns = table.columns
    heads = " & ".join(cell(group, head.title, f"({head.detail})" if head.detail else "") for group, head in columns)
    sides = "".join("l" if not place or "text" in head.tone else "r" for place, (_, head) in enumerate(columns))
    lines = [f"% {cell(title)}", f"\\begin{{tabular}}{{{sides}}}", "\\hline", f"{heads} \\\\", "\\hline"]
    for line in table.lines:
        cells = line.cells or (Cell(""),) * (len(columns) - 1)
        values = (cell(one.value, f"({one.interval})" if one.interval else "") for one in cells)
        lines.append(f"{' & '.join([cell(line.label), *values])} \\\\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}", ""])
