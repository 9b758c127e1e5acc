"""Tables of the figures: a line a point, ours beside the paper's, as text and as CSV."""

import csv
import io
from collections.abc import Sequence

from ssl_backdoor.report.aggregate import Row
from ssl_backdoor.report.sweep import ONE_MODEL, POOLED, at, axis_of, curves_of, places_of
from ssl_backdoor.report.text import (
    MISSING,
    Quantity,
    arm_label,
    fixed_width,
    measure_quantity,
    number,
    paper_label,
    span,
)
from ssl_backdoor.report.view import Cell, Line, Table
from ssl_backdoor.specs import FigureSpec

AXIS_LABELS = {
    "num_poisons": "poisoned pairs",
    "num_train": "clean training images",
    "num_parameters": "parameters of the image tower",
    "patch_frac": "side of the patch, % of the image's",
}
GLOSSARY = (
    (
        "model, point",
        "Each point is several models, trained alike under different seeds. A series is a side condition.",
    ),
    (
        "targeted success",
        "Share of the (x', y') pairs, over all models of a point, where the unaltered held-out image x' is given the "
        "attacker's class y'. Poisons of a targeted attack are counted for each pair.",
    ),
    ("rank of y'", "Mean place of y' among all classes by the probe's scores for x'; 1 is first."),
    ("attack success", "Share of the triggered test images not of the target class that are given it."),
    ("zero-shot", "The nearest class by the text tower: each class is the mean of its prompts."),
    ("R@k", "Share of images (or captions) with their own caption (or image) among the k nearest."),
    (
        "paper",
        "What Carlini & Terzis 2022 report for their own data and model. Unverified: recalled, not read in the paper; "
        "never a bar to pass.",
    ),
    (
        "interval of a point",
        "95 %. Targeted success: Wilson over all pairs of all models. All else: Student's t over models.",
    ),
)


def x_label(axis: str, x: float) -> str:
    """A place of the axis for people: 8 poisons."""
    match axis:
        case "num_poisons":
            return "no poisons" if x == 0 else f"{x:,.0f} poison{'s' * (x != 1)}"
        case "num_train":
            return f"{x:,.0f} images"
        case "num_parameters":
            return f"{x:,.0f} parameters"
        case _:
            return f"a patch of {100 * x:.3g} % of the side"


def accuracy_measure(figure: FigureSpec, rows: Sequence[Row]) -> str | None:
    """Clean accuracy by the probe of the figure's first measure, or by zero_shot, or by any other."""
    probes = list(dict.fromkeys(row.probe for row in rows if row.name == "accuracy"))
    wanted = [measure.partition("/")[2] for measure in figure.measures] + ["zero_shot"]
    found = next((probe for probe in (*wanted, *probes) if probe in probes), None)
    return None if found is None else f"accuracy/{found}"


def columns_of(figure: FigureSpec, rows: Sequence[Row]) -> tuple[str, ...]:
    """Measures of the figure's table, differences to the control and what the defence costs among them."""
    accuracy = accuracy_measure(figure, rows)
    clean = () if accuracy is None else (accuracy, accuracy.replace("/", "_excess/"))
    wanted = (*figure.measures, figure.measures[0].replace("/", "_excess/"), *clean, "seconds/")
    places = places_of(figure, rows)
    return tuple(m for m in dict.fromkeys(wanted) if any(at(rows, figure, m, place) for place in places))


def figure_table(figure: FigureSpec, rows: Sequence[Row]) -> Table:
    """One line a point, then what the paper says."""
    axis, measures = axis_of(figure), columns_of(figure, rows)
    columns = tuple(measure_quantity(measure) for measure in measures)
    places = places_of(figure, rows)
    several = len({place.series for place in places}) > 1
    lines = [
        Line(
            f"{arm_label(place.arm, place.series if several else '')}, {x_label(axis, place.x)}",
            place.arm,
            tuple(_cell(at(rows, figure, m, place), q, m) for m, q in zip(measures, columns, strict=True)),
        )
        for place in places
    ]
    for value in figure.paper:
        cells = tuple(
            Cell(number(value.value, q.kind) if m == value.measure else MISSING)
            for m, q in zip(measures, columns, strict=True)
        )
        lines.append(Line(f"{paper_label(value.is_verified)}, {x_label(axis, value.x)}", "paper", cells))
    return Table(figure.title, columns, tuple(lines))


def _cell(row: Row | None, quantity: Quantity, measure: str) -> Cell:
    if row is None or row.value is None:
        return Cell(MISSING)
    signed = "_excess/" in measure
    n = "1 model" if ONE_MODEL in row.definition and row.name not in POOLED else f"n = {row.n:,}"
    return Cell(number(row.value, quantity.kind, signed), span(row, quantity.kind, signed), n)


def figure_text(figure: FigureSpec, rows: Sequence[Row]) -> str:
    """The table for the end of a run in a terminal: its measures and clean accuracy, each with its interval."""
    table = figure_table(figure, rows)
    shown = [index for index, quantity in enumerate(table.columns) if "−" not in quantity.title][:4]
    head = [("", *(table.columns[i].title for i in shown)), ("", *(table.columns[i].detail for i in shown))]
    body = [(line.label, *(_short(line.cells[i]) for i in shown)) for line in table.lines]
    return f"{table.title}\n{fixed_width([*head, *body], 2)}"


def _short(cell: Cell) -> str:
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value


def figure_csv(figure: FigureSpec, rows: Sequence[Row]) -> str:
    """The numbers behind the figure, one line a marker, the paper's at the end."""
    axis = axis_of(figure)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("source", "name", "probe", "series", "arm", axis, "value", "low", "high", "n", "interval"))
    for curve in curves_of(figure, rows):
        for x, row in curve.points:
            writer.writerow(
                ("ours", row.name, row.probe, row.variant, row.arm, f"{x:.10g}", row.value, row.low, row.high, row.n,
                 row.interval)
            )  # fmt: skip
    for value in figure.paper:
        name, _, probe = value.measure.partition("/")
        writer.writerow(
            (paper_label(value.is_verified), name, probe, "", "", f"{value.x:.10g}", value.value, "", "", "", "")
        )
    return out.getvalue()
