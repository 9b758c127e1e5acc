"""From the frame to numbers with an interval and an n: values, differences to the control, shares removed.

The unit of replication is the (trigger, target) pair where there are two or more, seeds within a pair averaged first;
otherwise it is the seed. A report may ask for seeds instead: pairs are then averaged within each seed, where there are
two seeds or more. Along the axis of a figure it is the model (of one seed, with its own pairs), and what is asked of
one image a pair is pooled over all pairs. Differences to the control are paired: same dataset, trigger, target, seed.

An interval needs independent trainings of each encoder behind the number. All pairs of a seed share its clean-trained
encoder: over pairs its training noise is added to theirs, and below three seeds there is no interval.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ssl_backdoor.errors import SpecError
from ssl_backdoor.report import frame
from ssl_backdoor.report.frame import CONTROL, Arm, EvaluatedModel, Measure, Pair, Replicate, Statistic
from ssl_backdoor.report.intervals import ALPHA, UNLIMITED, Limits, infer_mean, infer_ratio, infer_share
from ssl_backdoor.report.layout import FloatArray, Group, Point, grouped, laid_out, linked
from ssl_backdoor.specs import FigureSpec

PAIRED_EXCESS = (
    "z_score_sd", "z_score_variance", "target_false_positives", "attack_success_rate", "attack_success_rate_all",
    "top_class_share", "accuracy", "similarity_triggered",
)  # fmt: skip
SWEPT_EXCESS = ("accuracy", "attack_success_rate", "targeted_success", "z_score_sd", "z_score_variance")
SHARES = (
    "accuracy", "attack_success_rate", "targeted_success", "top_class_share", "image_to_text", "text_to_image",
    "filter_", "detection_auroc", "detection_true", "detection_false", "detection_p", "detection_found",
)  # fmt: skip
COUNTS = ("target_false_positives", "false_positives")
POOLED = ("targeted_success",)
SECONDS = Measure("seconds", "triggered", "")
FEWEST_CONTROLS = 3
FEW_CONTROLS = (
    f"Pairs share clean-trained encoders, fewer than {FEWEST_CONTROLS}: their training noise is not known, so there is "
    "no interval."
)
Unit = Literal["pair", "seed", "model"]
FEWEST: dict[Unit, int] = {"seed": 2, "model": 3, "pair": 3}
"""Units below which no interval reaches its coverage on data like ours."""
FEWEST_PAIRS_COMPARED = 8
"""The same of differences over pairs, of which some reach their target and others do not."""


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
    """A 95 % interval over units; None where there are too few independent trainings."""
    p: float | None = None
    """Two-sided, of a difference being 0, where there is an interval."""
    interval: Literal["t", "beta", "wilson", "fieller", "none"] = "none"
    within: tuple[float, float] | None = None
    """Of a single model: the 95 % interval over its test images or samples, which says nothing of other models."""
    definition: str = ""
    unit: Unit = "pair"
    num_units: int = 1
    """Pairs, seeds or models behind it."""
    num_images: int = 0
    """Test images (or samples) behind one model's value; 0: not known."""
    num_trainings: int = 1
    """Independent trainings of the encoders behind it, of the arm with the fewest."""
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
    def is_difference(self) -> bool:
        """Whether it has a sign."""
        return self.statistic in ("excess", "specific_excess")

    @property
    def told_interval(self) -> tuple[float | None, float | None, str]:
        """Its ends and what it is over; of one model that over its own images, marked as such."""
        if self.within is not None:
            return *self.within, f"within 1 model, over its {self.num_images:,}"
        return self.low, self.high, self.interval

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

    def specific_differences(self, point: Point, measure: Measure) -> dict[Replicate, float]:
        """``differences`` under the trigger minus those under unseen ones, by pair and seed, where both are there."""
        own = self.differences(point, measure)
        unseen = self.differences(point, measure._replace(condition="unseen_trigger"))
        return {replicate: value - unseen[replicate] for replicate, value in own.items() if replicate in unseen}

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
                results.add([over_units(base, units_of(seconds, "model"), None)])
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
    by_control: FloatArray
    """(trainings, columns): means over what shares a clean-trained encoder, all of one seed and dataset."""
    shares_control: bool
    """Whether several units have one clean-trained encoder."""

    def noise_of(self, values: FloatArray, by_control: FloatArray) -> tuple[float, float]:
        """Of the mean of ``values``: its variance over that of independent units, and the degrees of freedom."""
        own, shared = values.var(ddof=1) / len(values), by_control.var(ddof=1) / len(by_control)
        if not self.shares_control or not own or not shared:
            return 1.0, len(values) - 1.0
        df = (own + shared) ** 2 / (own**2 / (len(values) - 1) + shared**2 / (len(by_control) - 1))
        return 1.0 + float(shared / own), float(df)


def units_of(values: Mapping[Replicate, tuple[float, ...]], unit: Unit = "pair") -> Units:
    """Averages ``values`` within units of the kind ``unit``; where there is only one, units are of the other kind."""
    places: dict[str, list[object]] = {
        "pair": [pair for pair, _ in values],
        "seed": [seed for _, seed in values],
        "model": list(values),
        "control": [(pair.dataset, seed) for pair, seed in values],
    }
    other: Unit = "seed" if unit == "pair" else "pair"
    kind: Unit = unit if unit == "model" or len(set(places[unit])) >= 2 else other
    table = np.array(list(values.values()), dtype=np.float64)
    means, sizes = _means(table, places[kind])
    by_control, _ = _means(table, places["control"])
    shares_control = kind == "pair" and len(by_control) < len(values)
    return Units(kind, means, min(sizes), max(sizes), by_control, shares_control)


def _means(table: FloatArray, places: Sequence[object]) -> tuple[FloatArray, list[int]]:
    """The mean of the rows of each place, and how many they are."""
    rows: dict[object, list[int]] = {}
    for position, place in enumerate(places):
        rows.setdefault(place, []).append(position)
    if len(rows) == len(table):
        return table, [1]
    return np.stack([table[group].mean(0) for group in rows.values()]), [len(group) for group in rows.values()]


def pair_means(values: Mapping[Replicate, float]) -> dict[Pair, float]:
    """Mean over the seeds of each pair."""
    by_pair: dict[Pair, list[float]] = {}
    for (pair, _), value in values.items():
        by_pair.setdefault(pair, []).append(value)
    return {pair: sum(group) / len(group) for pair, group in by_pair.items()}


def limits_of(measure: Measure, statistic: Statistic, n: int) -> Limits | None:
    """What values over ``n`` images are possible; None where that is not known."""
    steps = float(n or 1e6)
    if measure.metric.startswith("z_score"):
        return UNLIMITED
    if measure.metric.startswith("similarity"):
        limits = Limits(-1.0, 1.0)
    elif measure.metric in COUNTS and n:
        limits = Limits(0.0, float(n), steps)
    elif measure.metric.startswith(SHARES):
        limits = Limits(0.0, 1.0, steps)
    else:
        return None
    times = {"excess": 1, "specific_excess": 2}.get(statistic, 0)
    reach = times * (limits.high - limits.low)
    return Limits(-reach, reach, 2 * times * limits.steps) if times else limits


def fewest_units(kind: Unit, statistic: Statistic) -> int:
    """How many units an interval takes."""
    return FEWEST_PAIRS_COMPARED if kind == "pair" and statistic != "value" else FEWEST[kind]


def _how(units: Units) -> str:
    n, most = len(units.values), units.most
    if units.kind == "model":
        return f"Mean over {n} models"
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


_INTERVALS = {"t": "95 % t interval", "beta": "95 % interval by the likelihood of a beta distribution"}


def over_units(
    base: Estimate, units: Units, limits: Limits | None, has_control: bool = True, alpha: float = ALPHA
) -> Estimate:
    """``base`` with the mean over ``units`` of their first column, its interval at level 1 - ``alpha`` and p.

    Args:
        base: what it is, with a definition to add to.
        units: what was measured of each.
        limits: see ``limits_of``; without them there is no interval.
        has_control: whether clean-trained encoders are behind it, which the pairs of a seed share.
        alpha: one minus the level.
    """
    values, by_control, n = units.values[:, 0], units.by_control[:, 0], len(units.values)
    is_shared = has_control and units.shares_control
    num_trainings = len(by_control) if is_shared else n
    base = replace(base, n=n, num_units=n, unit=units.kind, value=float(values.mean()), num_trainings=num_trainings)
    text = f"{base.definition} {_how(units)}" if n > 1 else base.definition
    if n == 1:
        return replace(base, definition=f"{text} 1 model: no interval over models.")
    if limits is None:
        return replace(base, definition=f"{text}; no interval: which values are possible is not known, or not asked.")
    if is_shared and num_trainings < FEWEST_CONTROLS:
        return replace(base, definition=f"{text}. {FEW_CONTROLS}")
    if n < (fewest := fewest_units(units.kind, base.statistic)):
        return replace(base, definition=f"{text}; below {fewest} {units.kind}s no interval reaches its coverage.")
    if float(np.ptp(values)) <= 1e-9 * float(np.abs(values).max()):
        return replace(base, definition=f"{text}. The same value in all {n} {units.kind}s: no spread to measure.")
    stretch, df = units.noise_of(values, by_control) if has_control else (1.0, n - 1.0)
    found = infer_mean(values[None], limits, stretch=stretch, df=df, alpha=alpha)
    kind: Literal["t", "beta"] = "t" if limits == UNLIMITED else "beta"
    shared = " The training noise of the clean-trained encoders that pairs share is in it." if is_shared else ""
    return replace(
        base, low=float(found.low[0]), high=float(found.high[0]), p=float(found.p[0]), interval=kind,
        definition=f"{text}; {_INTERVALS[kind]} over {units.kind}s.{shared}",
    )  # fmt: skip


def _value_rows(results: Results, point: Point, num_models: int, axis: str = "") -> Iterator[Estimate]:
    for measure, group in results.groups[point].items():
        if axis and measure.class_name:
            continue
        found = results.by_replicate(group, group.value)
        text = base_definition(group.definition[0]) + ("" if axis else _left_out(num_models - len(found)))
        values = {replicate: value for replicate, (value,) in found.items()}
        base = Estimate(measure=measure, statistic="value", point=point, axis=axis, definition=text, values=values)
        units = units_of(found, results.unit)
        if axis and measure.metric in POOLED and len(found) > 1:
            yield _pooled(base, group)
            continue
        limits = None if measure.class_name else limits_of(measure, "value", int(group.n.min()))
        row = replace(over_units(base, units, limits, point.arm.is_clean), num_images=int(group.n.min()))
        low, high = float(group.low[0]), float(group.high[0])
        is_within = len(units.values) == 1 and math.isfinite(low) and math.isfinite(high)
        yield replace(row, within=(low, high)) if is_within else row


def _pooled(base: Estimate, group: Group) -> Estimate:
    """Hits over all pairs of all models."""
    trials = group.n.astype(np.float64)
    hits = np.round(group.value * trials)
    low, high = infer_share(hits, trials)
    count, n = len(trials), int(trials.sum())
    text = (
        f"{base.definition} Pooled over {count} models with {int(trials[0])} (x', y') pair(s) each: 95 % Wilson "
        "interval by Student's t over models, of as many independent pairs as the spread between models is worth."
    )
    return replace(
        base, value=float(hits.sum()) / n, n=n, low=low, high=high, definition=text, interval="wilson",
        num_units=count, num_trainings=count, unit="model",
    )  # fmt: skip


def _excess_rows(results: Results, point: Point, num_models: int, axis: str = "") -> Iterator[Estimate]:
    of = "seed, trigger and targets" if axis else "dataset, trigger, target and seed"
    groups = results.groups[point]
    num_compared = max((int((~np.isnan(group.control)).sum()) for group in groups.values()), default=0)
    for measure, group in groups.items():
        if measure.metric not in (SWEPT_EXCESS if axis else PAIRED_EXCESS) or measure.class_name:
            continue
        definition = base_definition(group.definition[0])
        plain = f"{point.arm.name} minus clean-trained control of the same {of}, of: {definition}"
        specific = f"The same difference under the attack's trigger minus that under unseen ones, of: {definition}"
        found: list[tuple[Statistic, dict[Replicate, float], str]] = [
            ("excess", results.differences(point, measure), plain)
        ]
        if measure.condition == "triggered":
            found.append(("specific_excess", results.specific_differences(point, measure), specific))
        for statistic, values, text in found:
            if values:
                text += "" if axis else _left_out(num_compared - len(values))
                base = Estimate(
                    measure=measure, statistic=statistic, point=point, axis=axis, definition=text, values=values
                )
                yield estimate_difference(base, results.unit, int(group.n.min()))


def estimate_difference(base: Estimate, unit: Unit, num_images: int, alpha: float = ALPHA) -> Estimate:
    """``base`` with mean, interval and p of its ``values``, each a difference of paired encoders."""
    units = units_of({key: (value,) for key, value in base.values.items()}, unit)
    return over_units(base, units, limits_of(base.measure, base.statistic, num_images), alpha=alpha)


def _removed_rows(results: Results, point: Point, num_models: int) -> Iterator[Estimate]:
    for measure, group in results.groups[point].items():
        is_removable = measure.metric in PAIRED_EXCESS and measure.condition == "triggered"
        found = results.by_replicate(group, group.value, group.undefended, group.control) if is_removable else {}
        if found:
            yield _removed(measure, point, units_of(found, results.unit))


def _removed(measure: Measure, point: Point, units: Units) -> Estimate:
    """Share of the mean excess that the defended encoder lost, at most all; an excess of accuracy is a loss of it."""
    sign = -1.0 if measure.metric == "accuracy" else 1.0
    (excess, lost), (excess_by_control, _) = (
        (sign * (before - control), sign * (before - after))
        for after, before, control in (units.values.T, units.by_control.T)
    )
    n = len(excess)
    num_trainings = len(excess_by_control) if units.shares_control else n
    text = f"(mean poisoned - mean defended) / (mean poisoned - mean control) of {measure.name()}, runs paired."
    base = Estimate(
        measure=measure, statistic="removed_frac", point=point, value=None, n=n, definition=text, unit=units.kind,
        num_units=n, num_trainings=num_trainings,
    )  # fmt: skip
    found = None
    has_trainings = num_trainings >= FEWEST_CONTROLS or not units.shares_control
    if has_trainings and n >= fewest_units(units.kind, "removed_frac") and np.ptp(excess) > 0:
        found = infer_ratio(lost, excess, *units.noise_of(excess, excess_by_control))
    if found is None:
        return replace(base, definition=f"{text} Here not defined: no excess above 0 at 1 % (n = {n}).")
    low, high = found
    text = f"{text} {_how(units)}; Fieller's 95 % interval. A share above 1 is told as 1: to below the control."
    value = float(lost.mean() / excess.mean())
    return replace(
        base, value=min(value, 1.0), low=min(low, 1.0), high=min(high, 1.0), definition=text, interval="fieller"
    )
