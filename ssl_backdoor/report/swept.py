"""Reading the estimates along an axis: curves, points, and how similar test images are."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ssl_backdoor.report.estimates import Estimate, Results, axis_of
from ssl_backdoor.report.frame import Arm, EvaluatedModel, Measure, Statistic
from ssl_backdoor.report.layout import FloatArray, Point
from ssl_backdoor.specs import FigureSpec

CONDITIONS = ("clean", "triggered")


class Curve(NamedTuple):
    """One measure of one arm of one series along the axis, x rising."""

    measure: Measure
    variant: str
    arm: Arm
    points: tuple[Estimate, ...]


def curves_of(figure: FigureSpec, results: Results, *, under_unseen: bool = False) -> tuple[Curve, ...]:
    """The figure's curves, or the same under triggers that no encoder was trained on."""
    found: dict[tuple[Measure, str, Arm], list[Estimate]] = {}
    for measure in map(Measure.of_figure, figure.measures):
        if under_unseen:
            measure = measure.under_unseen
        for row in results.rows:
            if (row.axis, row.measure, row.statistic) == (axis_of(figure), measure, "value"):
                found.setdefault((measure, row.point.variant, row.point.arm), []).append(row)
    return tuple(Curve(*key, tuple(sorted(rows, key=x_of))) for key, rows in found.items())


def x_of(row: Estimate) -> float:
    """Its place on the axis."""
    return row.point.x or 0.0


def points_of(figure: FigureSpec, results: Results) -> tuple[Point, ...]:
    """Every point that holds one of the figure's measures, by curve."""
    return tuple(dict.fromkeys(row.point for curve in curves_of(figure, results) for row in curve.points))


def at(
    results: Results, figure: FigureSpec, measure: Measure, point: Point, statistic: Statistic = "value"
) -> Estimate | None:
    """The number of ``measure`` at ``point`` of the figure, or None."""
    return results.get(measure, point.arm, point.variant, statistic, axis=axis_of(figure), x=point.x)


def accuracy_measure(figure: FigureSpec, results: Results) -> Measure | None:
    """Clean accuracy by the probe of the figure's first measure, or by zero_shot, or by any other."""
    probes = list(dict.fromkeys(row.measure.probe for row in results.rows if row.measure.metric == "accuracy"))
    wanted = [Measure.of_figure(measure).probe for measure in figure.measures] + ["zero_shot"]
    found = next((probe for probe in (*wanted, *probes) if probe in probes), None)
    return None if found is None else Measure("accuracy", "clean", found)


def pooled_histograms(
    models: Sequence[EvaluatedModel], conditions: Sequence[str] = CONDITIONS
) -> dict[tuple[Point, str], "Histogram"]:
    """Pairs by cosine over all encoders of each point, by one of ``conditions``.

    An encoder of several points counts in the first. x is the number of poisons.
    """
    found: dict[tuple[Point, str], Histogram] = {}
    seen: dict[Arm, list[object]] = {}
    for model in models:
        table = model.similarity
        if table is None or any(table.equals(known) for known in seen.setdefault(model.made, [])):
            continue
        seen[model.made].append(table)
        for condition, rows in table.to_pandas().groupby("condition", sort=False):
            if condition not in conditions:
                continue
            key = (Point(model.run.variant, model.made, model.facts.get("num_poisons", 0.0)), str(condition))
            counts = rows.num_pairs.to_numpy() + (found[key].counts if key in found else 0)
            found[key] = Histogram(np.append(rows.low, rows.high.iloc[-1]), counts)
    return found


class Histogram(NamedTuple):
    """Pairs by cosine."""

    edges: FloatArray
    """(bins + 1,)."""
    counts: npt.NDArray[np.int64]
    """(bins,)."""


def by_point(found: Mapping[tuple[Point, str], Histogram]) -> tuple[Point, ...]:
    """The points of histograms, by arm, series and x."""
    return tuple(sorted(dict.fromkeys(p for p, _ in found), key=lambda p: (p.arm.order, p.variant, p.x)))
