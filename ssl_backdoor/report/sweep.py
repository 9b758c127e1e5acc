"""Many models along an axis, as in the figures of Carlini & Terzis 2022, as rows with an interval and an n.

A *point* is (series, arm, x): the models trained under different seeds at one place of the axis; a run's variant names
its series. Rows carry x in their condition: ``num_poisons=8`` (under the trigger, or for the targets), ``num_poisons=8,
clean``. What is asked of one image a pair is pooled over all pairs (Wilson); all else is a mean over models (t).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.metrics import measure_share
from ssl_backdoor.identity import canonical_json
from ssl_backdoor.report.aggregate import Row, base_definition, t_interval
from ssl_backdoor.report.runs import ARMS, CLEAN_ARMS, Measured, Pair, RunValues, Scored, finite, pair_of
from ssl_backdoor.specs import (
    FigureSpec,
)

BARE_CONDITIONS = ("triggered", "target")
POOLED = ("targeted_success",)
EXCESS_NAMES = ("accuracy", "attack_success_rate", "targeted_success", "z_score_sd", "z_score_variance")
SHARES = ("accuracy", "attack_success_rate", "targeted_success", "top_class_share", "image_to_text", "text_to_image")
ONE_MODEL = "One model: the spread between models is not in it."
Model = tuple[Pair, int]  # pair, seed


class Place(NamedTuple):
    """Where a point stands."""

    series: str
    arm: str
    x: float


Models = dict[Model, tuple[Scored, RunValues]]


def axis_of(figure: FigureSpec) -> str:
    """The fact that the figure's runs are laid out by; a histogram's are laid out by their number of poisons."""
    return "num_poisons" if figure.axis == "similarity" else figure.axis


def condition_at(axis: str, x: float, condition: str) -> str:
    """How a row names its place: "num_poisons=8", "num_poisons=8, clean"."""
    at = f"{axis}={x:.10g}"
    return at if condition in BARE_CONDITIONS else f"{at}, {condition}"


def condition_of(name: str) -> str:
    """The condition that a figure reads a measure under: clean images for what judges the model, else the attack's."""
    return "clean" if name.startswith("accuracy") or "_recall_" in name else "triggered"


def x_of(row: Row, axis: str) -> float | None:
    """The x that ``condition_at`` wrote, or None for a row of another axis."""
    name, separator, rest = row.condition.partition("=")
    return float(rest.partition(",")[0]) if separator and name == axis else None


def swept(figures: Sequence[FigureSpec], one: Scored) -> bool:
    """Whether the run belongs to a figure rather than to the table of pairs."""
    return one.run.attack.kind in {figure.attack for figure in figures}


def sweep(figures: Sequence[FigureSpec], scored: Sequence[Scored]) -> tuple[Row, ...]:
    """The rows of every figure: each measurement at each point, and differences to the control paired by model.

    Order: figure, series (main first), arm, x, then the order of the measurements.

    Raises:
        SpecError: points that mix settings, or pairs a model; an encoder that lacks the axis; rows of two attacks that
            share a name.
    """
    rows: list[Row] = []
    for attack, axis in dict.fromkeys((figure.attack, axis_of(figure)) for figure in figures):
        here = [one for one in scored if one.run.attack.kind == attack]
        _check_pairs_a_model(here)
        points = points_of(here, axis)
        controls = _controls(points)
        for place, models in points.items():
            rows += _point_rows(axis, place, models, controls)
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        if row[:5] in seen:
            raise SpecError(
                f"two rows {row.name} of {row.arm} at {row.condition}: give runs of different attacks in one report "
                "distinct variant names"
            )
        seen.add(row[:5])
    return tuple(rows)


def points_of(scored: Sequence[Scored], axis: str) -> dict[Place, Models]:
    """The models of each point, series in order of appearance (main first), then arm, then x.

    An encoder that stands in several series (the control, a suspect before two defences) is kept in the first.
    """
    points: dict[Place, Models] = {}
    for one in scored:
        place = Place(one.run.variant, one.arm, _fact(one, axis))
        model = (pair_of(one.run), one.run.seed)
        models = points.setdefault(place, {})
        known = models.setdefault(model, (one, finite(one.measurements)))[0]
        if known is not one and not known.measurements.equals(one.measurements):
            raise SpecError(
                f"two results for {one.arm} at {axis} = {place.x:.10g}, {model[0].label}, seed {one.run.seed}: "
                "give runs that differ otherwise distinct variant names"
            )
    series = {name: index for index, name in enumerate(sorted(dict.fromkeys(p.series for p in points), key=bool))}
    ordered = sorted(points, key=lambda p: (series[p.series], ARMS.index(p.arm), p.x))
    return _first_seen({place: points[place] for place in ordered}, axis)


def _fact(one: Scored, axis: str) -> float:
    if axis not in one.facts:
        raise SpecError(f"a figure over {axis} needs that number of every encoder; the {one.arm}'s run has none")
    return one.facts[axis]


def _first_seen(points: Mapping[Place, Models], axis: str) -> dict[Place, Models]:
    kept: dict[Place, Models] = {}
    seen: set[tuple[str, str, Model]] = set()
    for place, models in points.items():
        settings = {_setting(one) for one, _ in models.values()}
        if len(settings) > 1:
            raise SpecError(
                f"{place.arm} at {axis} = {place.x:.10g} mixes runs that differ in more than seed, trigger and target: "
                "give them distinct variant names"
            )
        here = {(place.arm, next(iter(settings)), model) for model in models}
        if not here <= seen:
            kept[place] = models
        seen |= here
    return kept


def _setting(one: Scored) -> str:
    """All that the encoder and its evaluation depend on, but the seed and the pair."""
    run, arm = one.run, one.arm
    attack = run.attack.any_pair.of_clean if arm in CLEAN_ARMS else run.attack.any_pair
    defences = () if arm in ("control", "suspect") else run.defences
    return canonical_json(
        run.model_copy(update={"seed": 0, "variant": "", "attack": attack, "defences": defences}),
    )


def _check_pairs_a_model(scored: Sequence[Scored]) -> None:
    counts: dict[str, set[int]] = {}
    for run in (one.run for one in scored):
        if run.attack.targets is not None:
            counts.setdefault(run.variant, set()).add(run.attack.targets.num_targets)
    for series, found in counts.items():
        if len(found) > 1:
            raise SpecError(
                f"series {series or 'main'!r} mixes models of {' and '.join(map(str, sorted(found)))} (x', y') pairs: "
                "one figure holds one number of pairs a model"
            )


# ------------------------------------------------------------------------------------------------------- rows


def _controls(points: Mapping[Place, Models]) -> dict[tuple[str, Model], RunValues]:
    """The clean-trained encoders by what was trained and tested."""
    return {
        (_setting(one), model): run
        for place, models in points.items()
        if place.arm == "control"
        for model, (one, run) in models.items()
    }


def _point_rows(
    axis: str, place: Place, models: Models, controls: Mapping[tuple[str, Model], RunValues]
) -> Iterator[Row]:
    for key in dict.fromkeys(key for _, run in models.values() for key in run):
        name, condition, probe = key
        if name.startswith("false_positives:"):
            continue
        head = (name, place.arm, place.series, condition_at(axis, place.x, condition), probe)
        found = [run[key] for _, run in models.values() if key in run]
        yield _pooled(head, found) if name in POOLED else _mean(head, found)
    seconds = [one.facts["seconds"] for one, _ in models.values() if "seconds" in one.facts]
    if seconds:
        head = ("seconds", place.arm, place.series, condition_at(axis, place.x, "triggered"), "")
        text = "Wall-clock seconds of the stage that made the encoder, on whatever it ran."
        yield _over_models(head, seconds, text)
    if place.arm != "control":
        yield from _excess_rows(axis, place, models, controls)


def _excess_rows(
    axis: str, place: Place, models: Models, controls: Mapping[tuple[str, Model], RunValues]
) -> Iterator[Row]:
    joined: list[tuple[RunValues, RunValues]] = []
    for model, (one, run) in models.items():
        before = controls.get((_setting(replace(one, arm="control")), model))
        if before is not None:
            joined.append((run, before))
    for key in dict.fromkeys(key for run, _ in joined for key in run):
        name, condition, probe = key
        found = [(run[key], before[key]) for run, before in joined if key in run and key in before]
        if name not in EXCESS_NAMES or not found:
            continue
        text = f"{place.arm} minus clean-trained control of the same seed, trigger and targets, of: "
        head = (f"{name}_excess", place.arm, place.series, condition_at(axis, place.x, condition), probe)
        values = [after.value - before.value for after, before in found]
        yield _over_models(head, values, text + base_definition(found[0][0].definition))


_Head = tuple[str, str, str, str, str]


def _pooled(head: _Head, found: Sequence[Measured]) -> Row:
    """Hits over all pairs of all models."""
    hits, n = sum(round(one.value * one.n) for one in found), sum(one.n for one in found)
    share = measure_share(head[0], head[3], head[4], hits, n)
    each = found[0].n
    text = f"{base_definition(found[0].definition)} Pooled over {len(found)} model(s) with {each} (x', y') pair(s) each"
    text += f": 95 % Wilson interval over the {n} pairs."
    if len(found) == 1:
        text += f" {ONE_MODEL}"
    if each > 1:
        text += " Pairs of one model are not independent: the interval is narrower than over so many models."
    return Row(*head, share.value, n, share.low, share.high, text, "wilson")


def _mean(head: _Head, found: Sequence[Measured]) -> Row:
    text = base_definition(found[0].definition)
    if len(found) > 1:
        return _over_models(head, [one.value for one in found], text)
    (one,) = found
    if one.low is None or one.high is None:
        return Row(*head, one.value, one.n, None, None, f"{text} No interval. {ONE_MODEL}", "none")
    text = f"{text} 95 % Wilson interval over {one.n:,} test images. {ONE_MODEL}"
    return Row(*head, one.value, one.n, one.low, one.high, text, "wilson")


def _over_models(head: _Head, values: Sequence[float], definition: str) -> Row:
    n = len(values)
    if n == 1:
        return Row(*head, values[0], 1, None, None, f"{definition} No interval. {ONE_MODEL}", "none")
    mean, low, high = t_interval(np.array(values, dtype=np.float64))
    cut = ""
    if head[0].removesuffix("_excess").startswith(SHARES):
        least = -1.0 if head[0].endswith("_excess") else 0.0
        low, high, cut = max(low, least), min(high, 1.0), f", cut to [{least:.0f}, 1]"
    if min(values) == max(values):
        text = f"{definition} The same value in all {n} models: there is no spread to measure."
        return Row(*head, mean, n, None, None, text, "none")
    return Row(*head, mean, n, low, high, f"{definition} Mean over {n} models; 95 % t interval over models{cut}.", "t")


# ---------------------------------------------------------------------------------------------------- reading


class Point(NamedTuple):
    """A row and its x."""

    x: float
    row: Row


class Curve(NamedTuple):
    """One measure of one arm of one series along the axis."""

    measure: str
    series: str
    arm: str
    points: tuple[Point, ...]


def curves_of(figure: FigureSpec, rows: Iterable[Row]) -> tuple[Curve, ...]:
    """The figure's curves, read back from ``rows``; x rises along each."""
    axis = axis_of(figure)
    found: dict[tuple[str, str, str], list[Point]] = {}
    kept = list(rows)
    for measure in figure.measures:
        for row in kept:
            x = x_of(row, axis)
            if x is None or f"{row.name}/{row.probe}" != measure:
                continue
            if row.condition == condition_at(axis, x, condition_of(row.name)):
                found.setdefault((measure, row.variant, row.arm), []).append(Point(x, row))
    return tuple(Curve(*key, tuple(sorted(points))) for key, points in found.items())


def at(rows: Iterable[Row], figure: FigureSpec, measure: str, place: Place) -> Row | None:
    """The row of ``measure`` ("name/probe") at ``place``, or None."""
    name, _, probe = measure.partition("/")
    condition = condition_at(axis_of(figure), place.x, condition_of(name))
    return next((row for row in rows if row[:5] == (name, place.arm, place.series, condition, probe)), None)


def places_of(figure: FigureSpec, rows: Iterable[Row]) -> tuple[Place, ...]:
    """Every place that holds one of the figure's measures, in the order of the rows."""
    return tuple(
        dict.fromkeys(
            Place(curve.series, curve.arm, point.x) for curve in curves_of(figure, rows) for point in curve.points
        )
    )
