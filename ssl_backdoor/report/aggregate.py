"""From the measurements of single runs to rows with an interval and an n.

The unit of replication is the (trigger, target) pair where there are two or more, seeds within a pair averaged
first; otherwise it is the seed. A report may ask for seeds instead: pairs are then averaged within each seed, where
there are two seeds or more. Differences to the control are paired: same dataset, trigger, target and seed.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from ssl_backdoor.report.runs import (
    ARMS,
    Index,
    Key,
    Pair,
    Replicate,
    RunValues,
    classes_of,
    control_of,
    indexed,
    of_arm,
    pair_of,
    predicted,
    variants_of,
)
from ssl_backdoor.report.runs import Scored as Scored
from ssl_backdoor.seeds import stream

EXCESS_ARMS = ("suspect", "student", "distilled_control")
EXCESS_NAMES = (
    "z_score_sd",
    "z_score_variance",
    "target_false_positives",
    "attack_success_rate",
    "attack_success_rate_all",
    "top_class_share",
    "accuracy",
    "similarity_triggered",
)
NUM_RESAMPLES = 10_000
SHARED = "Pairs of one seed share the clean-trained encoder: its own training noise is not in the interval."
ONE_RUN = "The spread between pairs and seeds is not in it."
NO_EXCESS = "not defined: no excess to remove"
FloatArray = npt.NDArray[np.float64]
Unit = Literal["pair", "seed"]


class Row(NamedTuple):
    """One number of the report. ``n`` counts what ``definition`` says; a missing number is None, never NaN."""

    name: str
    arm: str
    variant: str
    condition: str
    probe: str
    value: float | None
    n: int
    low: float | None
    high: float | None
    definition: str
    interval: str
    """t, bootstrap, wilson or none."""


class PairRow(NamedTuple):
    """One (pair, seed) of a variant. Keys of ``values``: (name, probe, arm) on triggered images."""

    pair: Pair
    seed: int
    variant: str
    values: Mapping[tuple[str, str, str], float]
    top_class: str
    """Class into which the suspect's kNN (or first) probe puts most triggered images."""

    def excess(self, name: str, probe: str) -> float | None:
        """Suspect minus control, or None where either is missing."""
        suspect, control = (self.values.get((name, probe, arm)) for arm in ("suspect", "control"))
        return None if suspect is None or control is None else suspect - control

    def removed(self, name: str, probe: str) -> float | None:
        """Share of this pair's own excess that the student lost; None where there is no excess."""
        excess = self.excess(name, probe)
        student = self.values.get((name, probe, "student"))
        if excess is None or student is None or excess <= 0:
            return None
        return (self.values[name, probe, "suspect"] - student) / excess


def aggregate(scored: Sequence[Scored], unit: Unit = "pair") -> tuple[Row, ...]:
    """Every measurement, its excess over the control and the share of it that the student removed.

    Intervals are over units of the kind ``unit``, or of the other kind where there is only one of it.
    Order: variant (main first), arm, then the order of the measurements; excess rows and removed shares follow.

    Raises:
        SpecError: an unknown arm, or two results for one arm, variant, pair and seed.
    """
    index = indexed(scored)
    rows: list[Row] = []
    for variant in variants_of(scored):
        for arm in ARMS:
            rows += _measured_rows(index, variant, arm, unit)
        for arm in EXCESS_ARMS:
            rows += _excess_rows(index, variant, arm, unit)
        rows += _removed_rows(index, variant, unit)
    return tuple(rows)


def find(rows: Iterable[Row], name: str, arm: str, condition: str, probe: str, variant: str = "") -> Row | None:
    """The one row so named, or None."""
    wanted = (name, arm, variant, condition, probe)
    return next((row for row in rows if row[:5] == wanted), None)


def per_pair(scored: Sequence[Scored]) -> tuple[PairRow, ...]:
    """Every pair and seed that has a suspect, in order of variant and then of appearance."""
    index = indexed(scored)
    table = []
    for variant in variants_of(scored):
        for suspect, _ in of_arm(index, variant, "suspect").values():
            replicate = (pair_of(suspect.run), suspect.run.seed)
            runs = {"suspect": index.get((variant, "suspect", replicate)), "control": control_of(index, suspect)}
            runs["student"] = index.get((variant, "student", replicate))
            values = {
                (name, probe, arm): measured.value
                for arm, found in runs.items()
                if found is not None
                for (name, condition, probe), measured in found[1].items()
                if condition == "triggered"
            }
            table.append(PairRow(replicate[0], suspect.run.seed, variant, values, _top_class(suspect)))
    return tuple(table)


def _top_class(suspect: Scored) -> str:
    classes = classes_of(suspect)
    probes = suspect.predictions.column("probe").unique().to_pylist()
    if not probes or not classes:
        return ""
    _, guess = predicted(suspect, "triggered", "knn" if "knn" in probes else probes[0])
    if not len(guess):
        return ""
    top = int(np.bincount(guess).argmax())
    return classes[top] if top < len(classes) else str(top)


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


def differences(index: Index, variant: str, arm: str, key: Key) -> dict[Replicate, float]:
    """``arm`` minus its control in one measurement, by pair and seed, where both are there."""
    return _differences(_with_control(index, variant, arm), key)


def _with_control(index: Index, variant: str, arm: str) -> dict[Replicate, tuple[RunValues, ...]]:
    return _joined(index, variant, arm, lambda one: (control_of(index, one),))


def _differences(joined: Mapping[Replicate, tuple[RunValues, ...]], key: Key) -> dict[Replicate, float]:
    return {
        replicate: runs[0][key].value - runs[1][key].value
        for replicate, runs in joined.items()
        if all(key in run for run in runs)
    }


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


def _replicated(head: tuple[str, str, str, str, str], units: Units, definition: str, control: bool) -> Row:
    """A row over two units or more; ``control`` says whether the clean-trained encoder is part of it."""
    if units.values[:, 0].min() == units.values[:, 0].max():
        text = (
            f"{definition} One encoder on the same images stands for all {units.kind}s: there is no spread to measure."
        )
        return Row(*head, float(units.values[0, 0]), len(units.values), None, None, text, "none")
    mean, low, high = t_interval(units.values[:, 0])
    text = f"{definition} {_how(units)}; 95 % t interval over {units.kind}s."
    if control and units.shared:
        text = f"{text} {SHARED}"
    return Row(*head, mean, len(units.values), low, high, text, "t")


def base_definition(definition: str) -> str:
    """A single run's definition without its interval and its n, which aggregation replaces."""
    text = re.split(r"\s+(?:Interval|No interval):", definition)[0]
    text = re.sub(r"\bn (?=(?:clean |triggered )?test images)", "", text)
    return text if text.endswith(".") else f"{text}."


def _measured_rows(index: Index, variant: str, arm: str, unit: Unit) -> Iterable[Row]:
    runs = {replicate: run for replicate, (_, run) in of_arm(index, variant, arm).items()}
    for name, condition, probe in dict.fromkeys(key for run in runs.values() for key in run):
        found = {
            replicate: run[name, condition, probe] for replicate, run in runs.items() if (name, condition, probe) in run
        }
        head = (name, arm, variant, condition, probe)
        first = next(iter(found.values()))
        units = units_of({replicate: (measured.value,) for replicate, measured in found.items()}, unit)
        definition = base_definition(first.definition) + _left_out(len(runs) - len(found))
        if len(units.values) >= 2:
            yield _replicated(head, units, definition, arm in ("control", "distilled_control"))
        elif first.low is not None and first.high is not None:
            text = f"{definition} One run: 95 % Wilson interval over {first.n:,} test images. {ONE_RUN}"
            yield Row(*head, first.value, first.n, first.low, first.high, text, "wilson")
        else:
            text = f"{definition} One run, no interval. {ONE_RUN}"
            yield Row(*head, first.value, first.n, None, None, text, "none")


def _excess_rows(index: Index, variant: str, arm: str, unit: Unit) -> Iterable[Row]:
    joined = _with_control(index, variant, arm)
    for key in dict.fromkeys(key for runs in joined.values() for key in runs[0]):
        name, condition, probe = key
        if name not in EXCESS_NAMES:
            continue
        found = _differences(joined, key)
        if not found:
            continue
        measured = next(runs[0][key] for runs in joined.values() if key in runs[0])
        definition = (
            f"{arm} minus clean-trained control of the same dataset, trigger, target and seed, of: "
            f"{base_definition(measured.definition)}"
        ) + _left_out(len(joined) - len(found))
        head = (f"{name}_excess", arm, variant, condition, probe)
        units = units_of({replicate: (value,) for replicate, value in found.items()}, unit)
        if len(units.values) >= 2:
            yield _replicated(head, units, definition, control=True)
        else:
            text = f"{definition} One run, no interval. {ONE_RUN}"
            yield Row(*head, float(units.values[0, 0]), 1, None, None, text, "none")


def _removed_rows(index: Index, variant: str, unit: Unit) -> Iterable[Row]:
    def suspect_and_control(student: Scored) -> tuple[tuple[Scored, RunValues] | None, ...]:
        suspect = index.get((variant, "suspect", (pair_of(student.run), student.run.seed)))
        return suspect, None if suspect is None else control_of(index, suspect[0])

    joined = _joined(index, variant, "student", suspect_and_control)
    for key in dict.fromkeys(key for runs in joined.values() for key in runs[0]):
        if key[0] not in EXCESS_NAMES or key[1] != "triggered":
            continue
        found = {
            replicate: tuple(run[key].value for run in runs)
            for replicate, runs in joined.items()
            if all(key in run for run in runs)
        }
        if found:
            yield _removed(key, variant, units_of(found, unit))


def _joined(
    index: Index,
    variant: str,
    arm: str,
    partners: Callable[[Scored], tuple[tuple[Scored, RunValues] | None, ...]],
) -> dict[Replicate, tuple[RunValues, ...]]:
    """The runs of ``arm`` with their partners' beside them, where all are there."""
    joined = {}
    for replicate, (one, run) in of_arm(index, variant, arm).items():
        found = [partner[1] for partner in partners(one) if partner is not None]
        if len(found) == len(partners(one)):
            joined[replicate] = (run, *found)
    return joined


def _removed(key: Key, variant: str, units: Units) -> Row:
    """Share of the mean excess that the student lost; an excess of accuracy is a loss of it."""
    name, condition, probe = key
    student, suspect, control = units.values.T
    sign = -1.0 if name == "accuracy" else 1.0
    excess, lost = sign * (suspect - control), sign * (suspect - student)
    n = len(excess)
    head = (f"{name}_removed_frac", "student", variant, condition, probe)
    definition = f"(mean suspect - mean student) / (mean suspect - mean control) of {name}, runs paired."
    mean, low, _ = t_interval(excess) if n >= 2 else (float(excess[0]), float(excess[0]), 0.0)
    if low <= 0.0:
        return Row(*head, None, n, None, None, f"{definition} Here {NO_EXCESS} clear of 0 (n = {n}).", "none")
    share = float(lost.mean()) / mean
    if n < 3:
        why = "One run" if n == 1 else _how(units)
        return Row(*head, share, n, None, None, f"{definition} {why}; no interval below three units.", "none")
    rng = stream(0, "report", *head)
    drawn = rng.integers(0, n, size=(NUM_RESAMPLES, n))
    below, above = excess[drawn].mean(axis=1), lost[drawn].mean(axis=1)
    shares = above[below > 0] / below[below > 0]
    bottom, top = (float(value) for value in np.quantile(shares, (0.025, 0.975)))
    text = (
        f"{definition} {_how(units)}; 95 % percentile interval of {NUM_RESAMPLES:,} paired bootstrap resamples of "
        f"{units.kind}s, stream (0, report, row); resamples without an excess are left out."
    )
    return Row(*head, share, n, bottom, top, text, "bootstrap")


def _left_out(count: int) -> str:
    return f" {count} run(s) without a finite value are left out." if count else ""
