"""The tables of figures over an axis: a line a point, then what the paper says where it is shown."""

from collections.abc import Sequence

from ssl_backdoor.evaluate.metrics import UNSEEN
from ssl_backdoor.report.cells import (
    MISSING,
    OF_THE_PAPER,
    Cell,
    Line,
    Table,
    arm_label,
    count_of,
    csv_text,
    fixed_width,
    interval_of,
    number,
    number_table,
    paper_label,
    plural,
    quantity_of,
    with_interval,
)
from ssl_backdoor.report.estimates import SECONDS, Estimate, Results, axis_of
from ssl_backdoor.report.frame import Measure, Statistic
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.swept import accuracy_measure, at, curves_of, points_of, x_of
from ssl_backdoor.specs import FigureSpec

_CAPTION = (
    "One line a point: value, 95 % interval over models, n. Differences to the control are paired by model; seconds "
    "are of the stage that made the encoder."
)
AXIS_LABELS = {
    "num_poisons": "poisoned pairs",
    "num_train": "clean training images",
    "num_parameters": "parameters of the image tower",
    "patch_frac": "side of the patch, % of the image's",
}


def x_label(axis: str, x: float | None) -> str:
    """A place of the axis for people: 8 poisons."""
    match axis, x or 0.0:
        case "num_poisons", 0:
            return "no poisons"
        case "num_poisons", count:
            return plural(count, "poison")
        case "num_train", count:
            return f"{count:,.0f} images"
        case "num_parameters", count:
            return f"{count:,.0f} parameters"
        case _, side:
            return f"a patch of {100 * side:.3g} % of the side"


def point_label(figure: FigureSpec, point: Point, points: Sequence[Point]) -> str:
    """Arm, series where there are several, and place."""
    several = len({other.variant for other in points}) > 1
    return f"{arm_label(point.arm, point.variant if several else '')}, {x_label(axis_of(figure), point.x)}"


def columns_of(figure: FigureSpec, results: Results) -> tuple[tuple[Measure, Statistic], ...]:
    """Measures of the figure's table, differences to the control and what the defence costs among them."""
    measures, accuracy = [Measure.of_figure(measure) for measure in figure.measures], accuracy_measure(figure, results)
    wanted: list[tuple[Measure, Statistic]] = [
        *((one, "value") for m in measures for one in (m, *[m.under_unseen] * (m.condition == "triggered"))),
        *((measures[0], statistic) for statistic in ("excess", "specific_excess")),
    ]
    if accuracy is not None:
        wanted += [(accuracy, "value"), (accuracy, "excess")]
    wanted.append((SECONDS, "value"))
    points = points_of(figure, results)
    return tuple(c for c in dict.fromkeys(wanted) if any(at(results, figure, c[0], p, c[1]) for p in points))


def figure_table(figure: FigureSpec, results: Results) -> Table:
    """One line a point, then what the paper says."""
    quantities = [quantity_of(*column) for column in columns_of(figure, results)]
    points = points_of(figure, results)
    lines = [
        Line(
            point_label(figure, point, points),
            point.arm.name,
            tuple(_cell(at(results, figure, q.measure, point, q.statistic)) for q in quantities),
        )
        for point in points
    ]
    for value in figure.paper:
        said = (Measure.of_figure(value.measure), "value")
        cells = tuple(
            Cell(number(value.value, q.kind) if (q.measure, q.statistic) == said else MISSING) for q in quantities
        )
        lines.append(Line(f"{paper_label(value.is_verified)}, {x_label(axis_of(figure), value.x)}", "paper", cells))
    return number_table(quantities, lines, _CAPTION + OF_THE_PAPER * bool(figure.paper))


def _cell(row: Estimate | None) -> Cell:
    if row is None or row.value is None:
        return Cell(MISSING)
    kind = quantity_of(row.measure).kind
    is_pooled = row.interval == "wilson"
    n = f"n = {row.n:,} in {row.num_units} models" if is_pooled else count_of(row)
    return Cell(number(row.value, kind, row.is_difference), interval_of(row, kind), n)


def figure_text(figure: FigureSpec, results: Results) -> str:
    """The table for the end of a run in a terminal: its measures and clean accuracy, each with its interval."""
    columns = columns_of(figure, results)
    first = Measure.of_figure(figure.measures[0])
    main = [(first, "value"), (first.under_unseen, "value"), (first, "specific_excess")]
    levels = [column for column in columns if column[1] == "value" and column[0].condition != UNSEEN]
    chosen = [column for column in dict.fromkeys([*main, *levels]) if column in columns][:4]
    shown = [columns.index(column) for column in chosen]
    quantities = [quantity_of(*columns[index]) for index in shown]
    head = [("", *(q.title for q in quantities)), ("", *(q.detail for q in quantities))]
    body = [(line.label, *(_short(line.cells[i]) for i in shown)) for line in figure_table(figure, results).lines]
    return f"{figure.title}\n{fixed_width([*head, *body], 2)}"


def _short(cell: Cell) -> str:
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value


def amount(row: Estimate) -> str:
    """A number with its interval, for a sentence."""
    return with_interval(row, quantity_of(row.measure).kind)


def figure_csv(figure: FigureSpec, results: Results) -> str:
    """The numbers behind the figure, one line a marker, the paper's at the end."""
    heads = (
        "source", "name", "probe", "series", "arm", axis_of(figure), "value", "low", "high", "n", "interval",
        "condition",
    )  # fmt: skip
    ours = [
        ("ours", row.name, row.measure.probe, curve.variant, curve.arm.name, f"{x_of(row):.10g}", row.value, row.low,
         row.high, row.n, row.interval, row.measure.condition)
        for is_unseen in (False, True)
        for curve in curves_of(figure, results, under_unseen=is_unseen)
        for row in curve.points
    ]  # fmt: skip
    said = [
        (
            paper_label(value.is_verified),
            measure.metric,
            measure.probe,
            "",
            "",
            f"{value.x:.10g}",
            value.value,
            *[""] * 4,
            measure.condition,
        )
        for value in figure.paper
        for measure in (Measure.of_figure(value.measure),)
    ]
    return csv_text(heads, [*ours, *said])


def headline_numbers(figures: Sequence[FigureSpec], results: Results) -> dict[str, float]:
    """What the figures draw, by ``name/arm/condition/probe``."""
    rows = (row for figure in figures for curve in curves_of(figure, results) for row in curve.points)
    return {row.key: row.value for row in rows if row.value is not None}
