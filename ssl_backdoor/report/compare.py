"""Several reports on one page: their results frames joined, each encoder's numbers over its own pairs or seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ssl_backdoor.errors import SpecError
from ssl_backdoor.report.cells import (
    Cell,
    Line,
    Picture,
    Quantity,
    Table,
    cell_of,
    csv_text,
    fixed_width,
    latex,
    number_table,
    quantity_of,
)
from ssl_backdoor.report.estimates import Estimate, Unit, limits_of, over_units, units_of
from ssl_backdoor.report.figures import drawing
from ssl_backdoor.report.frame import FRAME, Arm, Measure, Pair, Replicate, Statistic, headline_probes
from ssl_backdoor.report.layout import Point
from ssl_backdoor.report.page import Section, render_page
from ssl_backdoor.report.setting import MADE, data_label
from ssl_backdoor.specs import DatasetSpec, attack_words
from ssl_backdoor.words import method_label

GROUPS = ("report", "recipe", "dataset", "method", "attack", "defence", "variant")
"""What lines can be grouped by."""
_METRICS: tuple[tuple[str, str, Statistic], ...] = (
    ("accuracy", "clean", "value"),
    ("attack_success_rate", "triggered", "value"),
    ("attack_success_rate", "unseen_trigger", "value"),
    ("attack_success_rate", "triggered", "excess"),
    ("targeted_success", "target", "value"),
    ("z_score_sd", "triggered", "value"),
)
_LINE = [
    "report",
    "recipe",
    "dataset",
    "method",
    "backbone",
    "attack",
    "variant",
    "num_poisons",
    "trained_on",
    "defence",
]
_CAPTION = (
    "A line an encoder of a report: mean, 95 % interval, n, as in its report. "
    "Differences (− control) are paired within their report. Intervals of different reports are not tested against "
    "each other: they may share encoders, and no correction covers several comparisons."
)


class Compared(NamedTuple):
    """One report of several."""

    name: str
    """report/KEY, short."""
    recipe: str
    answer: str
    frame: pd.DataFrame
    """``FRAME``, as in its measurements.parquet."""
    unit: Unit = "pair"
    """``ReportSpec.unit``."""
    swept: frozenset[str] = frozenset()
    """Kinds of attack whose runs are models along an axis, each with pairs of its own."""
    setting: Mapping[str, str] = MappingProxyType({})
    """What was run, part by part, as its page has it."""
    defences: Mapping[str, str] = MappingProxyType({})
    """Each defence for people, by its kind."""


def join(reports: Sequence[Compared]) -> pd.DataFrame:
    """The rows of all, with the column ``report``.

    Raises:
        SpecError: a frame lacks columns, as one of an older version may.
    """
    for one in reports:
        if missing := [name for name in FRAME.names if name not in one.frame]:
            raise SpecError(
                f"expected the columns of a results frame in {one.name}, found none called {', '.join(missing[:3])}: "
                "run that recipe again, with this version"
            )
    return pd.concat([one.frame.assign(report=one.name) for one in reports], ignore_index=True)


def compare(reports: Sequence[Compared], by: str, out: Path) -> dict[str, Any]:
    """Writes compare.html, compare.csv, compare.tex and measurements.parquet (all frames, joined) into ``out``.

    Args:
        reports: two or more, each once.
        by: one of ``GROUPS``; lines stand below each other by it.
        out: an existing folder.

    Raises:
        SpecError: see ``join``; or nothing to compare.
    """
    frame = join(reports)
    frame = frame[frame["class"].isna() | (frame["class"] == "")]
    probe = _probe(frame)
    quantities = [
        quantity_of(Measure.of_table(metric, condition, probe), statistic) for metric, condition, statistic in _METRICS
    ]
    lines = _lines(frame, quantities, by, {one.name: one for one in reports})
    quantities = [q for q in quantities if any(q in found for _, found in lines)]
    if not quantities:
        raise SpecError("expected reports with encoders that were measured, found no number to compare")
    table = _table(lines, quantities, by)
    answers = {f"{one.recipe}, {one.name}": one.answer for one in reports}
    sections = [
        Section("Answers", "answers", nav="Answers", words=answers),
        Section("What differs", "differs", nav="What differs", words=_differences(reports)),
        Section("Comparison", "comparison", nav="Comparison", caption=_CAPTION, tables=(table,)),
        Section("Figure", "figure", nav="Figure", pictures=tuple(_pictures(lines, quantities)), has_titles=False),
    ]
    sections = [one for one in sections if one.is_filled]
    context = {"title": f"{len(reports)} reports compared by {by}", "sections": sections}
    (out / "compare.html").write_text(render_page("compare.html", context), encoding="utf-8")
    (out / "compare.csv").write_text(_csv(lines, quantities), encoding="utf-8")
    (out / "compare.tex").write_text(latex(table, str(context["title"])), encoding="utf-8")
    frame.to_parquet(out / "measurements.parquet")
    rows = [("", *(q.title for q in quantities)), ("", *(q.detail for q in quantities))]
    rows += [
        (line.label, *(cell.value for cell in line.cells or (Cell(""),) * len(quantities))) for line in table.lines
    ]
    return {"by": by, "reports": [one.name for one in reports], "text": fixed_width(rows, 2)}


def _differences(reports: Sequence[Compared]) -> dict[str, str]:
    """Each part of the setting that is not the same in all, report by report; when and by what it was made is none."""
    parts = [part for part in dict.fromkeys(part for one in reports for part in one.setting) if part not in MADE]
    return {
        f"{part}, {one.name}": one.setting.get(part, "none")
        for part in parts
        if len({other.setting.get(part) for other in reports}) > 1
        for one in reports
    }


_Line = tuple[Mapping[str, Any], Mapping[Quantity, Estimate]]


def _probe(frame: pd.DataFrame) -> str:
    """The one that most reports share: kNN or the linear one with the most labels, or CLIP's own."""
    probes = frame[frame.metric.isin(["attack_success_rate", "targeted_success"])]
    counts = probes.groupby("probe").report.nunique()
    headline = headline_probes(counts.index)[-1:]
    order = sorted(counts.index, key=lambda name: (-int(counts[name]), name not in headline, name))
    return str(order[0]) if order else "linear_100"


def _lines(
    frame: pd.DataFrame, quantities: Sequence[Quantity], by: str, reports: Mapping[str, Compared]
) -> list[_Line]:
    filled = frame.assign(**{name: frame[name].astype("string").fillna("") for name in _LINE if name != "num_poisons"})
    found: list[_Line] = []
    for key, rows in filled.groupby(_LINE, sort=False, dropna=False):
        report, attack = reports[key[_LINE.index("report")]], key[_LINE.index("attack")]
        unit: Unit = "model" if attack in report.swept else report.unit
        numbers = {q: row for q in quantities if (row := _estimate(rows, q, unit))}
        if numbers:
            line = dict(zip(_LINE, key, strict=True))
            arm = Arm.made(line["trained_on"], line["defence"], report.defences.get(line["defence"], ""))
            found.append((line | {"arm": arm}, numbers))
    places = {name: list(dict.fromkeys(line[name] for line, _ in found)) for name in (by, "report")}
    return sorted(found, key=lambda one: (places[by].index(one[0][by]), places["report"].index(one[0]["report"])))


def _estimate(rows: pd.DataFrame, quantity: Quantity, unit: Unit) -> Estimate | None:
    """Over the pairs, seeds or models of ``rows``, an encoder that stands in several runs once."""
    measure, statistic = quantity.measure, quantity.statistic
    here = rows[(rows.metric == measure.metric) & (rows.condition == measure.condition)]
    here = here[(here.probe == measure.probe) & (here.statistic == statistic)]
    values: dict[Replicate, tuple[float, ...]] = {
        (Pair(one.dataset, one.trigger or "", one.target or "", one.pair), int(one.seed)): (float(one.value),)
        for one in here.itertuples()
    }
    if not values:
        return None
    first = here.iloc[0]
    arm = Arm.made(first.trained_on, first.defence)
    num_images = int(here.n.min()) if statistic == "value" else 0
    limits = limits_of(measure, statistic, num_images)
    base = Estimate(measure=measure, statistic=statistic, point=Point(first.variant, arm), num_images=num_images)
    return over_units(base, units_of(values, unit), limits, arm.is_clean or statistic != "value")


def _label(line: Mapping[str, Any], by: str) -> str:
    count = "" if np.isnan(line["num_poisons"]) or not line["num_poisons"] else f"{line['num_poisons']:,.0f} poisons"
    parts = {
        "report": line["report"], "method": method_label(line["method"]), "attack": attack_words(line["attack"]),
        "arm": line["arm"].label, "count": count, "variant": line["variant"],
    }  # fmt: skip
    return ", ".join(part for name, part in parts.items() if part and name != by)


def _table(lines: Sequence[_Line], quantities: Sequence[Quantity], by: str) -> Table:
    shown: list[Line] = []
    group: object = None
    for line, numbers in lines:
        if line[by] != group:
            group = line[by]
            shown.append(Line(f"{by}: {_group(line, by) or 'none'}", "variant"))
        cells = (cell_of(numbers.get(q), q.kind) for q in quantities)
        shown.append(Line(_label(line, by), line["arm"].name, tuple(cells)))
    return number_table(quantities, shown)


def _group(line: Mapping[str, Any], by: str) -> str:
    """For people."""
    match by:
        case "dataset":
            return data_label(DatasetSpec.model_validate_json(line[by]), {})
        case "defence":
            return str(line["arm"].words or line[by])
        case "method":
            return method_label(line[by])
        case "attack":
            return str(line[by]).replace("_", " ")
        case _:
            return str(line[by])


def _pictures(lines: Sequence[_Line], quantities: Sequence[Quantity]) -> list[Picture]:
    """Each line's success under its own and under unseen triggers."""
    own = next((q for q in quantities if q.measure.condition in ("triggered", "target") and q.kind == "percent"), None)
    shown = [(line, numbers) for line, numbers in lines if own in numbers]
    if own is None or not shown:
        return []
    figure = Figure(figsize=(10.0, 1.4 + 0.36 * len(shown)), layout="constrained")
    (axes,) = drawing.panels(figure, 1)
    for place, (line, numbers) in enumerate(shown):
        row, colour = numbers[own], drawing.colour_of(line["arm"])
        unseen = next((one for q, one in numbers.items() if q.measure == own.measure.under_unseen), None)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.2)
        axes.plot([row.value or 0.0], [place], "o", color=colour, markersize=7, zorder=3)
        if unseen is not None:
            axes.plot(
                [unseen.value or 0.0], [place], "D", color=colour, markerfacecolor="white", markersize=5.5, zorder=4
            )
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([drawing.plain(_label(line, ""), 90) for line, _ in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(lambda x, _: drawing.short_number(x, "percent"))
    drawing.headed(axes, own.in_words)
    caption = f"{own.title} ({own.detail}). Bars: 95 % intervals; hollow: under unseen triggers."
    return [drawing.picture("compare", figure, "Success", caption)]


def _csv(lines: Sequence[_Line], quantities: Sequence[Quantity]) -> str:
    heads = (*_LINE, "name", "condition", "probe", "value", "low", "high", "n", "unit")
    body = [
        (*(line[name] for name in _LINE), q.measure.name(q.statistic), q.measure.condition, q.measure.probe,
         row.value, row.low, row.high, row.num_units, row.unit)
        for line, numbers in lines
        for q in quantities
        if (row := numbers.get(q)) is not None
    ]  # fmt: skip
    return csv_text(heads, body)
