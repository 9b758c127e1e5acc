"""From the frame to numbers with an interval and an n: values, differences to the control, shares removed.

The unit of replication is the (trigger, target) pair where there are two or more, seeds within a pair averaged first;
otherwise it is the seed. A report may ask for seeds instead: pairs are then averaged within each seed, where there are
two seeds or more. Along the axis of a figure it is the model (of one seed, with its own pairs), and what is asked of
one image a pair is pooled over all pairs. Differences to the control are paired: same dataset, trigger, target, seed.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.metrics import measure_share
from ssl_backdoor.report import frame
from ssl_backdoor.report.frame import CONTROL, Arm, EvaluatedModel, Measure, Pair, Replicate, Statistic
from ssl_backdoor.report.layout import FloatArray, Group, Point, grouped, laid_out, linked
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import FigureSpec

PAIRED_EXCESS = (
    "z_score_sd", "z_score_variance", "target_false_positives", "attack_success_rate", "attack_success_rate_all",
    "top_class_share", "accuracy", "similarity_triggered",
)  # fmt: skip
SWEPT_EXCESS = ("accuracy", "attack_success_rate", "targeted_success", "z_score_sd", "z_score_variance")
SHARES = ("accuracy", "attack_success_rate", "targeted_success", "top_class_share", "image_to_text", "text_to_image")
POOLED = ("targeted_success",)
SECONDS = Measure("seconds", "triggered", "")
NUM_RESAMPLES = 10_000
SHARED = "Pairs of one seed share the clean-trained encoder: its own training noise is not in the interval."
Unit = Literal["pair", "seed", "model"]
_ONE_RUN = "The spread between pairs and seeds is not in it."
_ONE_MODEL = "One model: the spread between models is not in it."


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number of the report. ``n`` counts what ``definition`` says; a missing number is None, never NaN."""

    measure: Measure
    statistic: Statistic
    point: Point
    axis: str = ""
    value: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None
    interval: Literal["t", "bootstrap", "wilson", "none"] = "none"
    definition: str = ""
    unit: Unit = "pair"
    num_units: int = 1
    """Pairs, seeds or models behind it."""
    values: Mapping[Replicate, float] = field(default_factory=dict, compare=False, repr=False)
    """Of each encoder."""

    @property
    def name(self) -> str:
        """As files spell metric, class and statistic."""
        return self.measure.name(self.statistic)

    @property
    def key(self) -> str:
        """``name/arm/condition/probe``; an arm of a side variant reads ``student[variant]``."""
        record = self.record()
        return "/".join(record[name] for name in ("name", "arm", "condition", "probe"))

    @property
    def direction(self) -> Literal["up", "down", "unclear"]:
        """Where the interval of a difference lies; one without an interval is unclear."""
        if self.low is not None and self.low > 0:
            return "up"
        return "down" if self.high is not None and self.high < 0 else "unclear"

    @property
    def pair_range(self) -> tuple[float, float] | None:
        """Least and largest mean of a pair, seeds averaged; None below two pairs."""
        means = pair_means(self.values).values()
        return (min(means), max(means)) if len(means) >= 2 else None

    def record(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "name": self.name,
            "arm": frame.arm_name(self.point.arm, self.point.variant),
            "variant": self.point.variant,
            "condition": frame.place_name(self.axis, self.point.x, self.measure.condition),
            "probe": self.measure.probe,
            "value": self.value,
            "n": self.n,
            "low": self.low,
            "high": self.high,
            "definition": self.definition,
            "interval": self.interval,
        }


class Results:
    """Encoders by point, what was measured of them, and the estimates."""

    def __init__(self, models: Sequence[EvaluatedModel], unit: Unit = "pair") -> None:
        self.models, self.unit = models, unit
        self.arms = tuple(sorted({model.made for model in models}, key=lambda arm: arm.order))
        self.variants = frame.variants_of(models)
        self.frame = pd.DataFrame()
        self.groups: dict[Point, dict[Measure, Group]] = {}
        self.rows: list[Estimate] = []
        self._index: dict[tuple[str, Point, Measure, Statistic], Estimate] = {}

    def get(
        self, measure: Measure, arm: Arm, variant: str = "", statistic: Statistic = "value", *, axis: str = "",
        x: float | None = None,
    ) -> Estimate | None:  # fmt: skip
        """The one estimate so named, or None."""
        return self._index.get((axis, Point(variant, arm, x), measure, statistic))

    def add(self, rows: Iterable[Estimate]) -> None:
        """Append ``rows``.

        Raises:
            SpecError: one is there already.
        """
        for row in rows:
            key = (row.axis, row.point, row.measure, row.statistic)
            if key in self._index:
                raise SpecError(
                    f"two rows {row.key}: give runs of different attacks in one report distinct variant names"
                )
            self._index[key] = row
            self.rows.append(row)

    def probes(self, *variants: str) -> tuple[str, ...]:
        """Every probe of ``variants``, or of all."""
        rows = (row for row in self.rows if not variants or row.point.variant in variants)
        return tuple(dict.fromkeys(row.measure.probe for row in rows))

    def by_replicate(self, group: Group, *columns: FloatArray) -> dict[Replicate, tuple[float, ...]]:
        """The entries of ``columns`` by pair and seed, where all are there."""
        return {
            self.models[model].replicate: values
            for model, *found in zip(group.models, *columns, strict=True)
            if not any(map(math.isnan, values := tuple(map(float, found))))
        }

    def differences(self, point: Point, measure: Measure) -> dict[Replicate, float]:
        """The point's encoders minus their controls, by pair and seed, where both are there."""
        group = self.groups.get(point, {}).get(measure)
        found = {} if group is None else self.by_replicate(group, group.value - group.control)
        return {replicate: value for replicate, (value,) in found.items()}

    def control_variant(self, variant: str) -> str:
        """The variant that holds the controls of ``variant``: its own, else the main one where they are lent."""
        of_suspects = self.groups.get(Point(variant, frame.SUSPECT), {}).values()
        is_lent = any(not np.isnan(group.control).all() for group in of_suspects)
        return "" if is_lent and Point(variant, CONTROL) not in self.groups else variant


def paired(models: Sequence[EvaluatedModel], unit: Unit = "pair") -> Results:
    """Every measurement, its excess over the control and the share of it that a defence removed.

    Intervals are over units of the kind ``unit``, or of the other kind where there is only one of it.
    Order: variant (main first), arm, then the order of the measurements; excess rows and removed shares follow.

    Raises:
        SpecError: an unknown arm, or two results for one arm, variant, pair and seed.
    """
    results = Results(models, unit)
    points = laid_out(models, range(len(models)), "")
    results.frame = linked(models, points)
    results.groups = grouped(results.frame, points)
    for variant in results.variants:
        for rows in (_value_rows, _excess_rows, _removed_rows):
            for point in (point for point in points if point.variant == variant):
                results.add(rows(results, point, len(points[point])))
    return results


def axis_of(figure: FigureSpec) -> str:
    """The covariate that the figure's runs are laid out by; a histogram's are laid out by their number of poisons."""
    return "num_poisons" if figure.axis in ("similarity", "same_label") else figure.axis


def swept(figures: Sequence[FigureSpec], models: Sequence[EvaluatedModel]) -> Results:
    """Each measurement at each point of every figure, and differences to the control paired by model.

    Order: figure, series (main first), arm, x, then the order of the measurements.

    Raises:
        SpecError: points that mix settings, or pairs a model; an encoder without the axis; rows of two attacks that
            share a name.
    """
    results = Results(models, "model")
    tables = [linked(models, {})]
    for attack, axis in dict.fromkeys((figure.attack, axis_of(figure)) for figure in figures):
        here = [position for position, model in enumerate(models) if model.run.attack.kind == attack]
        points = laid_out(models, here, axis)
        tables.append(linked(models, points))
        results.groups = grouped(tables[-1].replace({"condition": {"target": "triggered"}}), points)
        for point, positions in points.items():
            results.add(_value_rows(results, point, len(positions), axis))
            facts = {models[at].replicate: models[at].facts for at in positions}
            seconds = {key: (known["seconds"],) for key, known in facts.items() if "seconds" in known}
            if seconds:
                text = "Wall-clock seconds of the stage that made the encoder, on whatever it ran."
                base = Estimate(measure=SECONDS, statistic="value", point=point, axis=axis, definition=text)
                results.add([_over_units(base, units_of(seconds, "model"))])
            results.add(_excess_rows(results, point, len(positions), axis))
    results.frame = pd.concat(tables).drop_duplicates()
    return results


# ------------------------------------------------------------------------------------------------- replication


class Units(NamedTuple):
    """Values by unit of replication."""

    kind: Unit
    values: FloatArray
    """(units, columns): one column for each value given."""
    fewest: int
    """Runs behind one unit: pairs of a seed, or seeds of a pair."""
    most: int
    shared: bool
    """Several units have one seed, so one clean-trained encoder."""


def units_of(values: Mapping[Replicate, tuple[float, ...]], unit: Unit = "pair") -> Units:
    """Averages ``values`` within units of the kind ``unit``; where there is only one, units are of the other kind."""
    if unit == "model":
        return Units(unit, np.array(list(values.values()), dtype=np.float64), 1, 1, False)
    by_kind: dict[Unit, dict[Pair | int, list[tuple[float, ...]]]] = {"pair": {}, "seed": {}}
    for (pair, seed), value in values.items():
        by_kind["pair"].setdefault(pair, []).append(value)
        by_kind["seed"].setdefault(seed, []).append(value)
    other: Unit = "seed" if unit == "pair" else "pair"
    kind: Unit = unit if len(by_kind[unit]) >= 2 else other
    groups = list(by_kind[kind].values())
    means = np.array([np.mean(group, axis=0) for group in groups], dtype=np.float64)
    sizes = [len(group) for group in groups]
    shared = kind == "pair" and len(by_kind["seed"]) < len(values)
    return Units(kind, means, min(sizes), max(sizes), shared)


def pair_means(values: Mapping[Replicate, float]) -> dict[Pair, float]:
    """Mean over the seeds of each pair."""
    by_pair: dict[Pair, list[float]] = {}
    for (pair, _), value in values.items():
        by_pair.setdefault(pair, []).append(value)
    return {pair: sum(group) / len(group) for pair, group in by_pair.items()}


def t_interval(values: FloatArray) -> tuple[float, float, float]:
    """Mean of ``values`` (n >= 2,) and its 95 % interval by Student's t."""
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _how(units: Units) -> str:
    n, most = len(units.values), units.most
    if units.kind == "pair":
        seeds = ", seeds within a pair averaged first" if most > 1 else ", one seed each"
        return f"Mean over {n} (trigger, target) pairs{seeds}"
    if most == 1:
        return f"Mean over {n} seeds of one (trigger, target) pair; the spread between pairs is not in it"
    count = f"{most}" if units.fewest == most else f"{units.fewest} to {most}"
    return (
        f"Mean over {n} seeds, the {count} (trigger, target) pairs of each averaged first; the spread between pairs is "
        "not in it"
    )


def base_definition(definition: str) -> str:
    """A single run's definition without its interval and its n, which aggregation replaces."""
    text = re.split(r"\s+(?:Interval|No interval):", definition)[0]
    text = re.sub(r"\bn (?=(?:clean |triggered )?test images)", "", text)
    return text if text.endswith(".") else f"{text}."


def _left_out(count: int) -> str:
    return f" {count} run(s) without a finite value are left out." if count else ""


def _over_units(base: Estimate, units: Units, group: Group | None = None) -> Estimate:
    """``base`` over ``units``; a level of one alone keeps the interval over its test images that ``group`` has."""
    values, kind, text = units.values[:, 0], units.kind, base.definition
    n = len(values)
    base = replace(base, n=n, num_units=n, unit=kind, value=float(values[0]))
    if n == 1:
        one, none, spread = (
            ("", "No interval.", _ONE_MODEL) if kind == "model" else ("One run: ", "One run, no interval.", _ONE_RUN)
        )
        if group is not None:
            base = replace(base, n=int(group.n[0]))
            low, high = float(group.low[0]), float(group.high[0])
            if math.isfinite(low) and math.isfinite(high):
                text = f"{text} {one}95 % Wilson interval over {base.n:,} test images. {spread}"
                return replace(base, low=low, high=high, definition=text, interval="wilson")
        return replace(base, definition=f"{text} {none} {spread}")
    mean, low, high = t_interval(values)
    if values.min() == values.max():
        if kind == "model":
            text = f"{text} The same value in all {n} models: there is no spread to measure."
            return replace(base, value=mean, definition=text)
        text = f"{text} One encoder on the same images stands for all {kind}s: there is no spread to measure."
        return replace(base, definition=text)
    if kind == "model":
        cut = ""
        if base.measure.metric.startswith(SHARES):
            least = -1.0 if base.statistic == "excess" else 0.0
            low, high, cut = max(low, least), min(high, 1.0), f", cut to [{least:.0f}, 1]"
        text = f"{text} Mean over {n} models; 95 % t interval over models{cut}."
    else:
        has_control = base.statistic == "excess" or base.point.arm.is_clean
        shared = f" {SHARED}" if has_control and units.shared else ""
        text = f"{text} {_how(units)}; 95 % t interval over {kind}s.{shared}"
    return replace(base, value=mean, low=low, high=high, definition=text, interval="t")


def _value_rows(results: Results, point: Point, num_models: int, axis: str = "") -> Iterator[Estimate]:
    for measure, group in results.groups[point].items():
        if axis and measure.class_name:
            continue
        found = results.by_replicate(group, group.value)
        text = base_definition(group.definition[0]) + ("" if axis else _left_out(num_models - len(found)))
        values = {replicate: value for replicate, (value,) in found.items()}
        base = Estimate(measure=measure, statistic="value", point=point, axis=axis, definition=text, values=values)
        is_pooled = axis and measure.metric in POOLED
        yield _pooled(base, group) if is_pooled else _over_units(base, units_of(found, results.unit), group)


def _pooled(base: Estimate, group: Group) -> Estimate:
    """Hits over all pairs of all models."""
    hits, n = sum(round(v * k) for v, k in zip(group.value.tolist(), group.n.tolist(), strict=True)), int(group.n.sum())
    share = measure_share(base.measure.metric, base.measure.condition, base.measure.probe, hits, n)
    count, each = len(group.n), int(group.n[0])
    text = f"{base.definition} Pooled over {count} model(s) with {each} (x', y') pair(s) each"
    text += f": 95 % Wilson interval over the {n} pairs."
    if count == 1:
        text += f" {_ONE_MODEL}"
    if each > 1:
        text += " Pairs of one model are not independent: the interval is narrower than over so many models."
    base = replace(base, value=share.value, n=n, low=share.low, high=share.high)
    return replace(base, definition=text, interval="wilson", num_units=count, unit="model")


def _excess_rows(results: Results, point: Point, num_models: int, axis: str = "") -> Iterator[Estimate]:
    of = "seed, trigger and targets" if axis else "dataset, trigger, target and seed"
    groups = results.groups[point]
    num_compared = max((int((~np.isnan(group.control)).sum()) for group in groups.values()), default=0)
    for measure, group in groups.items():
        values = results.differences(point, measure)
        if measure.metric not in (SWEPT_EXCESS if axis else PAIRED_EXCESS) or measure.class_name or not values:
            continue
        text = f"{point.arm.name} minus clean-trained control of the same {of}, of: "
        text += base_definition(group.definition[0]) + ("" if axis else _left_out(num_compared - len(values)))
        base = Estimate(measure=measure, statistic="excess", point=point, axis=axis, definition=text, values=values)
        yield _over_units(base, units_of({key: (value,) for key, value in values.items()}, results.unit))


def _removed_rows(results: Results, point: Point, num_models: int) -> Iterator[Estimate]:
    for measure, group in results.groups[point].items():
        is_removable = measure.metric in PAIRED_EXCESS and measure.condition == "triggered"
        found = results.by_replicate(group, group.value, group.undefended, group.control) if is_removable else {}
        if found:
            yield _removed(measure, point, units_of(found, results.unit))


def _removed(measure: Measure, point: Point, units: Units) -> Estimate:
    """Share of the mean excess that the defended encoder lost; an excess of accuracy is a loss of it."""
    after, before, control = units.values.T
    sign = -1.0 if measure.metric == "accuracy" else 1.0
    excess, lost = sign * (before - control), sign * (before - after)
    n = len(excess)
    text = f"(mean poisoned - mean defended) / (mean poisoned - mean control) of {measure.name()}, runs paired."
    base = Estimate(
        measure=measure, statistic="removed_frac", point=point, value=None, n=n, definition=text, unit=units.kind,
        num_units=n,
    )  # fmt: skip
    mean, low, _ = t_interval(excess) if n >= 2 else (float(excess[0]), float(excess[0]), 0.0)
    if low <= 0.0:
        return replace(base, definition=f"{text} Here not defined: no excess significantly above 0 (n = {n}).")
    base = replace(base, value=float(lost.mean()) / mean)
    if n < 3:
        why = "One run" if n == 1 else _how(units)
        return replace(base, definition=f"{text} {why}; no interval below three units.")
    place = (base.name, point.arm.name, point.variant, measure.condition, measure.probe)
    drawn = stream(0, "report", *place).integers(0, n, size=(NUM_RESAMPLES, n))
    below, above = excess[drawn].mean(axis=1), lost[drawn].mean(axis=1)
    low, high = (float(value) for value in np.quantile(above[below > 0] / below[below > 0], (0.025, 0.975)))
    text = (
        f"{text} {_how(units)}; 95 % percentile interval of {NUM_RESAMPLES:,} paired bootstrap resamples of "
        f"{units.kind}s, stream (0, report, row); resamples without an excess are left out."
    )
    return replace(base, low=low, high=high, definition=text, interval="bootstrap")
