"""Which encoders one number is about, and what each is compared with."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ssl_backdoor.errors import SpecError
from ssl_backdoor.report.frame import CONTROL, Arm, EvaluatedModel, Measure, Replicate, measured

FloatArray = npt.NDArray[np.float64]
_MEASURE = ["metric", "class", "condition", "probe"]
_COLUMNS = ("model", "value", "control_value", "undefended_value", "n", "low", "high", "definition")


class Point(NamedTuple):
    """The encoders that one number is about: an arm of a variant, along an axis those of one ``x``."""

    variant: str
    arm: Arm
    x: float | None = None


class Group(NamedTuple):
    """One measurement of the encoders of a point, an entry each."""

    models: npt.NDArray[np.int64]
    value: FloatArray
    control: FloatArray
    """The control's value; NaN where there is none."""
    undefended: FloatArray
    n: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray
    definition: Sequence[str]


def laid_out(models: Sequence[EvaluatedModel], here: Sequence[int], axis: str) -> dict[Point, list[int]]:
    """The models of each point: series in order of appearance (main first), then arm, then x.

    Along an axis an encoder that stands in several series (the control, a suspect before two defences) is kept in the
    first.
    """
    points: dict[Point, dict[Replicate, int]] = {}
    num_targets: dict[str, set[int]] = {}
    for position in here:
        model, run = models[position], models[position].run
        if axis and axis not in model.facts:
            raise SpecError(f"a figure over {axis} needs that number of every encoder; the {model.arm}'s run has none")
        point = Point(run.variant, model.made, model.facts[axis] if axis else None)
        first = points.setdefault(point, {}).setdefault(model.replicate, position)
        if first != position and not models[first].measurements.equals(model.measurements):
            raise SpecError(
                f"two results for {_place(axis, point)}, {model.replicate[0].label}, seed {run.seed}: give runs that "
                "differ otherwise distinct variant names"
            )
        if axis and run.attack.targets is not None:
            num_targets.setdefault(run.variant, set()).add(run.attack.targets.num_targets)
    for series, found in num_targets.items():
        if len(found) > 1:
            raise SpecError(
                f"series {series or 'main'!r} mixes models of {' and '.join(map(str, sorted(found)))} (x', y') pairs: "
                "one figure holds one number of pairs a model"
            )
    series_order = sorted(dict.fromkeys(point.variant for point in points), key=bool)
    kept: dict[Point, list[int]] = {}
    seen: set[tuple[Arm, str, Replicate]] = set()
    for point in sorted(points, key=lambda p: (series_order.index(p.variant), p.arm.order, p.x or 0.0)):
        encoders = {(point.arm, models[at].setting(point.arm), key) for key, at in points[point].items() if axis}
        if len({setting for _, setting, _ in encoders}) > 1:
            raise SpecError(
                f"{_place(axis, point)} mixes runs that differ in more than seed, trigger and target: give them "
                "distinct variant names"
            )
        if not axis or not encoders <= seen:
            kept[point] = list(points[point].values())
        seen |= encoders
    return kept


def _place(axis: str, point: Point) -> str:
    return f"{point.arm.name} at {axis} = {point.x:.10g}" if axis else f"{point.arm.name}, variant {point.variant!r}"


def linked(models: Sequence[EvaluatedModel], points: Mapping[Point, Sequence[int]]) -> pd.DataFrame:
    """What was measured of ``points``, with the value of each encoder's control and of what it was before its defence.

    Both are encoders of the same setting, pair and seed: the variant's own, else the main one's, else along an axis
    that of any series.
    """
    held: dict[tuple[Arm, str, Replicate], dict[str, int]] = {}
    for point, positions in points.items():
        for at in positions:
            held.setdefault((point.arm, models[at].setting(point.arm), models[at].replicate), {})[point.variant] = at

    def partner(model: EvaluatedModel, arm: Arm, is_wanted: bool) -> int:
        found = held.get((arm, model.setting(arm), model.replicate), {}) if is_wanted else {}
        anywhere = next(iter(found.values()), -1) if any(point.x is not None for point in points) else -1
        return found.get(model.run.variant, found.get("", anywhere))

    table = measured(models)
    known = {at for positions in points.values() for at in positions}
    table = table[table.model.isin(known)]
    arms = [model.made for model in models]
    partners = {
        "control": [partner(m, CONTROL, arm != CONTROL) for m, arm in zip(models, arms, strict=True)],
        "undefended": [
            partner(m, Arm(arm.trained_on), bool(arm.defence) and not arm.is_clean)
            for m, arm in zip(models, arms, strict=True)
        ],
    }
    for name, positions in partners.items():
        table = table.assign(**{name: np.array(positions, np.int64)[table.model]})
        other = table[["model", *_MEASURE, "value"]].rename(columns={"model": name, "value": f"{name}_value"})
        table = table.merge(other, on=[name, *_MEASURE], how="left")
    return table


def grouped(table: pd.DataFrame, points: Mapping[Point, Sequence[int]]) -> dict[Point, dict[Measure, Group]]:
    """The rows of each point's encoders by what is measured, both in order of appearance."""
    groups: dict[Point, dict[Measure, Group]] = {point: {} for point in points}
    if table.empty:
        return groups
    point_of = {model: point for point, models in points.items() for model in models}
    code = {point: position for position, point in enumerate(points)}
    keys = table.assign(point=[code[point_of[model]] for model in table.model])[["point", *_MEASURE]]
    number = keys.groupby(list(keys), sort=False).ngroup().to_numpy()
    order, names = np.argsort(number, kind="stable"), keys.to_numpy()
    columns = [table[name].to_numpy() for name in _COLUMNS]
    for rows in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        _, metric, class_name, condition, probe = names[rows[0]]
        point = point_of[columns[0][rows[0]]]
        groups[point][Measure(metric, condition, probe, class_name)] = Group(*(column[rows] for column in columns))
    return groups
