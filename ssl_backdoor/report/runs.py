"""One encoder of one run, measured, and how runs belong together.

Controls are tested under each pair's own trigger, so arms meet by dataset, trigger, target, seed and variant; a side
variant without a control of its own takes the main variant's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ssl_backdoor.errors import SpecError
from ssl_backdoor.identity import canonical_json
from ssl_backdoor.specs import (
    RunSpec,
)

ARMS = ("control", "suspect", "student", "distilled_control")
CLEAN_ARMS = ("control", "distilled_control")


@dataclass(frozen=True)
class Scored:
    """One encoder of one run, measured.

    ``run`` is the whole experiment, also for the control: its attack names the trigger and target under which the
    control was tested. ``seconds`` is the wall-clock of the stage that made the encoder plus its evaluation.
    """

    run: RunSpec
    arm: str
    """One of ``ARMS``."""
    measurements: pa.Table
    """tables.MEASUREMENTS; accuracies, rates and shares as fractions in [0, 1], false positives as counts."""
    predictions: pa.Table
    """tables.PREDICTIONS."""
    map_file: Path | None = None
    """npz of features float32 (M, D), label int32 (M,), triggered bool (M,)."""
    seconds: float = 0.0
    curves: pa.Table | None = None
    """tables.CURVES of the training or distillation that made the encoder."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What ``facts.facts_of`` says of it: num_poisons, num_train, seconds, ..."""
    similarity: pa.Table | None = None
    """tables.SIMILARITY."""
    neighbours: Path | None = None
    """npz of triggered test images and the clean images nearest to them, as evaluation writes it."""


class Pair(NamedTuple):
    """A trigger and its target on a dataset: the unit that a claim about a recipe generalises over."""

    dataset: str
    trigger: str
    target: str
    label: str
    """For people: trigger seed (or file name) / target class."""


class Measured(NamedTuple):
    """A finite number of one run, as tables.MEASUREMENTS holds it."""

    value: float
    n: int
    low: float | None
    high: float | None
    definition: str


_LINEAR_FAMILIES = ("linear", "linear_sgd", "linear_adam")
Key = tuple[str, str, str]  # name, condition, probe
Replicate = tuple[Pair, int]  # pair, seed
RunValues = dict[Key, Measured]
Index = dict[tuple[str, str, Replicate], tuple[Scored, RunValues]]  # by variant, arm, replicate


def pair_of(run: RunSpec) -> Pair:
    """The pair that ``run`` stands for; poison fraction and codec are not part of it."""
    trigger = run.attack.trigger
    shown = run.attack.pair_label
    return Pair(canonical_json(run.dataset), "" if trigger is None else canonical_json(trigger), *shown)


def variants_of(scored: Iterable[Scored]) -> tuple[str, ...]:
    """Names of the variants, the main one ("") first, the others in order of appearance."""
    return tuple(sorted(dict.fromkeys(one.run.variant for one in scored), key=bool))


def classes_of(one: Scored) -> tuple[str, ...]:
    """Class names by label, as the measurements false_positives:<class> list them."""
    names = one.measurements.column("name").to_pylist()
    return tuple(dict.fromkeys(name.partition(":")[2] for name in names if name.startswith("false_positives:")))


def predicted(one: Scored, condition: str, probe: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(label, predicted), each (N,), of the test images under ``condition`` as ``probe`` reads them."""
    table = one.predictions
    keep = np.logical_and(
        table.column("condition").to_numpy(zero_copy_only=False) == condition,
        table.column("probe").to_numpy(zero_copy_only=False) == probe,
    )
    label, guess = (table.column(name).to_numpy().astype(np.int64)[keep] for name in ("label", "predicted"))
    return label, guess


def shown_probes(keys: Iterable[str]) -> tuple[str, ...]:
    """The probes that the page shows: kNN, and the linear one with the most labels.

    Of several with as many labels: L-BFGS, then SGD, then Adam, then the deepest layer's.
    """
    present = set(keys)

    def rank(probe: str) -> tuple[float, int, int, str]:
        family, _, percent = probe.rpartition("_")
        layer = int(family.removeprefix("linear_layer")) if family.startswith("linear_layer") else 0
        known = _LINEAR_FAMILIES.index(family) if family in _LINEAR_FAMILIES else len(_LINEAR_FAMILIES)
        return -float(percent), known, -layer, probe

    linear = sorted((probe for probe in present if probe.startswith("linear_")), key=rank)
    return tuple(probe for probe in ("knn", *linear[:1]) if probe in present)


def indexed(scored: Sequence[Scored]) -> Index:
    """The scored encoders by variant, arm and replicate.

    Raises:
        SpecError: an unknown arm, or two results for one arm, variant, pair and seed.
    """
    index: Index = {}
    for one in scored:
        if one.arm not in ARMS:
            raise SpecError(f"an arm must be one of {', '.join(ARMS)}; found {one.arm!r}")
        pair = pair_of(one.run)
        key = (one.run.variant, one.arm, (pair, one.run.seed))
        if key in index:
            raise SpecError(
                f"two results for arm {one.arm}, variant {one.run.variant!r}, pair {pair.label}, seed {one.run.seed}: "
                "give runs that differ otherwise distinct variant names"
            )
        index[key] = (one, finite(one.measurements))
    return index


def finite(measurements: pa.Table) -> RunValues:
    """The finite numbers of tables.MEASUREMENTS by name, condition and probe."""
    run: RunValues = {}
    for row in measurements.to_pylist():
        if row["value"] is not None and math.isfinite(row["value"]):
            measured = Measured(row["value"], row["n"] or 0, _known(row["low"]), _known(row["high"]), row["definition"])
            run[row["name"], row["condition"], row["probe"]] = measured
    return run


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def of_arm(index: Index, variant: str, arm: str) -> dict[Replicate, tuple[Scored, RunValues]]:
    """The replicates of one arm of one variant."""
    return {key[2]: found for key, found in index.items() if key[:2] == (variant, arm)}


def control_of(index: Index, one: Scored) -> tuple[Scored, RunValues] | None:
    """The clean-trained encoder under the same trigger: the variant's own, else the main one of the same training."""
    replicate = (pair_of(one.run), one.run.seed)
    own = index.get((one.run.variant, "control", replicate))
    main = index.get(("", "control", replicate))
    if own is not None or main is None:
        return own
    same = main[0].run.train == one.run.train and main[0].run.evaluation == one.run.evaluation
    return main if same else None
