"""From artifacts to one tidy frame: a row an encoder, measurement and statistic.

The only place that reads or writes names as keys, specs and evaluation spell them: arms, probes,
``false_positives:<class>``, ``<metric>_excess``, ``num_poisons=8, clean``. All other code sees columns.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.metrics import UNSEEN
from ssl_backdoor.identity import canonical_json
from ssl_backdoor.specs import RunSpec
from ssl_backdoor.store import Manifest
from ssl_backdoor.tables import MEASUREMENTS

Statistic = Literal["value", "excess", "specific_excess", "removed_frac"]
_CLASS_METRIC = "false_positives"
_ON_FEATURES = ("z_score_", "similarity_")  # of the features alone: no probe of their own
_SUFFIX: dict[Statistic, str] = {
    "value": "", "excess": "_excess", "specific_excess": "_specific_excess", "removed_frac": "_removed_frac"
}  # fmt: skip
_TEXTS = (
    "recipe", "variant", "arm", "trained_on", "defence", "encoder", "dataset", "method", "backbone", "attack",
    "trigger", "target", "pair", "condition", "probe", "probe_family", "class", "metric", "statistic", "definition",
)  # fmt: skip
_COUNTS = ("run", "seed", "layer", "n")
_COVARIATES = ("num_poisons", "poison_fraction_of_target", "poison_fraction_of_dataset", "poison_fraction_of_pairs",
               "num_train", "num_parameters", "patch_frac", "seconds")  # fmt: skip
FRAME = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.int64()) for name in _COUNTS),
        *((name, pa.float64()) for name in (*_COVARIATES, "label_frac", "value", "low", "high")),
    ]
)
"""One row an encoder of a run, measurement and statistic. Reports can be concatenated; what does not apply is null."""


class Arm(NamedTuple):
    """How an encoder was made: on which data, and by which defence afterwards ("": none)."""

    trained_on: Literal["clean", "poisoned"]
    defence: str = ""
    """Its kind."""
    words: str = ""
    """What people call the defence."""

    @property
    def name(self) -> str:
        """As specs, roles of artifacts and files spell it."""
        return next(name for name, how in _HOW.items() if how == (self.trained_on, bool(self.defence)))

    @property
    def label(self) -> str:
        """For people: "poisoned + CompRess"."""
        first = "clean-trained" if self.is_clean else "poisoned"
        return f"{first} + {self.words or self.defence}" if self.defence else first

    @property
    def is_clean(self) -> bool:
        """Whether it never saw a poison."""
        return self.trained_on == "clean"

    @property
    def order(self) -> tuple[bool, bool, str]:
        """Clean-trained, poisoned, poisoned and defended, clean-trained and defended; defences by name."""
        return bool(self.defence), self.is_clean is bool(self.defence), self.defence

    @classmethod
    def made(cls, trained_on: str, defence: str, words: str = "") -> "Arm":
        """As two columns of the results frame tell it."""
        return cls("clean" if trained_on == "clean" else "poisoned", defence, words)

    @classmethod
    def named(cls, name: str, defence: str, words: str = "") -> "Arm":
        """The arm that is spelled ``name``, of a run whose defence is of the kind ``defence``, in ``words``.

        Raises:
            SpecError: no such arm.
        """
        if name not in _HOW:
            raise SpecError(f"an arm must be one of {', '.join(_HOW)}; found {name!r}")
        trained_on, is_defended = _HOW[name]
        return cls(trained_on, defence, words) if is_defended else cls(trained_on)


_HOW: dict[str, tuple[Literal["clean", "poisoned"], bool]] = {
    "control": ("clean", False),
    "suspect": ("poisoned", False),
    "student": ("poisoned", True),
    "distilled_control": ("clean", True),
}
ARMS = tuple(_HOW)
CONTROL, SUSPECT = Arm("clean"), Arm("poisoned")


class Measure(NamedTuple):
    """What is measured, under which condition, by which probe."""

    metric: str
    condition: str
    probe: str
    class_name: str = ""

    def name(self, statistic: Statistic = "value") -> str:
        """As files spell it."""
        return f"{self.metric}{':' * bool(self.class_name)}{self.class_name}{_SUFFIX[statistic]}"

    @property
    def under_unseen(self) -> "Measure":
        """The same under triggers that no encoder was trained on."""
        return self._replace(condition=UNSEEN)

    @classmethod
    def of_table(cls, metric: str, condition: str, probe: str) -> "Measure":
        """A table's metric: what is measured on the features alone has no probe of its own."""
        return cls(metric, condition, "features" if metric.startswith(_ON_FEATURES) else probe)

    @classmethod
    def of_figure(cls, measure: str) -> "Measure":
        """A figure's "name/probe": on clean images what judges the model, else under the attack."""
        metric, _, probe = measure.partition("/")
        return cls(metric, "clean" if metric.startswith("accuracy") or "_recall_" in metric else "triggered", probe)


class Pair(NamedTuple):
    """A trigger and its target on a dataset: the unit that a claim about a recipe generalises over."""

    dataset: str
    trigger: str
    target: str
    label: str
    """For people: trigger seed (or file name) / target class."""


Replicate = tuple[Pair, int]  # pair, seed


@dataclass(frozen=True)
class EvaluatedModel:
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
    """Its ``covariates``: num_poisons, num_train, seconds, ..."""
    similarity: pa.Table | None = None
    """tables.SIMILARITY."""
    neighbours: Path | None = None
    """npz of triggered test images and the clean images nearest to them, as evaluation writes it."""
    encoder: str = ""
    """Key of its artifact."""

    @cached_property
    def made(self) -> Arm:
        """Its arm."""
        defence = next(iter(self.run.defences), None)
        return Arm.named(self.arm, defence.kind, defence.label) if defence else Arm.named(self.arm, "")

    @cached_property
    def replicate(self) -> Replicate:
        """Its pair and seed."""
        return pair_of(self.run), self.run.seed

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by label, as false positives are counted for each."""
        names = (name.partition(":") for name in self.measurements["name"].to_pylist())
        return tuple(dict.fromkeys(class_name for metric, _, class_name in names if metric == _CLASS_METRIC))

    def setting(self, arm: Arm) -> str:
        """All that an encoder of ``arm`` in this run and its evaluation depend on, but the seed and the pair."""
        attack = self.run.attack.any_pair.of_clean if arm.is_clean else self.run.attack.any_pair
        defences = self.run.defences if arm.defence else ()
        return canonical_json(
            self.run.model_copy(update={"seed": 0, "variant": "", "attack": attack, "defences": defences})
        )

    @property
    def target_name(self) -> str:
        """Class that the attack aims at; else empty."""
        return self.run.attack.target_class

    def predicted(self, condition: str, probe: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(label, predicted), each (N,), of the test images under ``condition`` as ``probe`` reads them."""
        table = self.predictions
        kept = table.filter(pc.and_(pc.equal(table["condition"], condition), pc.equal(table["probe"], probe)))
        label, guess = (kept[name].to_numpy().astype(np.int64) for name in ("label", "predicted"))
        return label, guess

    def headline_probe(self) -> str | None:
        """The first of the probes that the page shows, among those with predictions."""
        return next(iter(headline_probes(self.predictions["probe"].unique().to_pylist())), None)


def pair_of(run: RunSpec) -> Pair:
    """The pair that ``run`` stands for; poison fraction and codec are not part of it."""
    trigger = run.attack.trigger
    shown = run.attack.pair_label
    return Pair(canonical_json(run.dataset), "" if trigger is None else canonical_json(trigger), *shown)


def variants_of(models: Iterable[EvaluatedModel]) -> tuple[str, ...]:
    """Names of the variants, the main one ("") first, the others in order of appearance."""
    return tuple(sorted(dict.fromkeys(model.run.variant for model in models), key=bool))


def covariates(run: RunSpec, is_clean: bool, model: Manifest, poison: Manifest, dataset: Manifest) -> dict[str, float]:
    """Numbers of one encoder that figures are drawn over and tables show, as its manifests tell them.

    ``num_poisons`` (added pairs for each x' where targeted; 0 for a clean-trained encoder),
    ``poison_fraction_of_dataset``, ``num_train`` (clean training images), ``num_parameters`` (of the image tower,
    where the training counted them), ``patch_frac`` (side of the patch over that of the evaluated frame, where both
    are stated), ``seconds`` (wall-clock of the stage that made the encoder) and ``num_replicas`` (devices that it was
    trained on, where the training recorded them).
    """
    total = int(poison.summary["num_poisons"])
    facts = {
        "num_poisons": 0.0 if is_clean else float(run.attack.poisons_per_target(total)),
        "poison_fraction_of_dataset": 0.0 if is_clean else float(poison.summary["poison_fraction_of_dataset"]),
        "num_train": float(dataset.summary["num_train"]),
        "seconds": float(model.seconds),
    }
    if poison.summary.get("poison_fraction_of_target") is not None:
        facts["poison_fraction_of_target"] = 0.0 if is_clean else float(poison.summary["poison_fraction_of_target"])
    for name in ("num_parameters", "num_replicas"):
        if name in model.summary:
            facts[name] = float(model.summary[name])
    if run.attack.trigger is not None:
        frame_px = run.evaluation.crop_px or run.dataset.frame_px or run.dataset.resident_px
        if (side_frac := run.attack.trigger.side_frac(frame_px)) is not None:
            facts["patch_frac"] = side_frac
    return facts


# ---------------------------------------------------------------------------------------------------- probes

_FAMILIES = ("linear", "linear_sgd", "linear_adam")


class Probe(NamedTuple):
    """What a probe's name tells."""

    family: str
    label_frac: float | None
    """Share of the labels that it learns from."""
    layer: int | None


def probe_of(name: str) -> Probe:
    """``name`` as "linear_sgd_1", "linear_layer2_100", "fine_tune_1", "knn" or "zero_shot"."""
    family, _, percent = name.rpartition("_")
    if not family or not re.fullmatch(r"[\d.]+", percent):
        return Probe(name, None, None)
    layer = re.fullmatch(r"linear_layer(\d+)", family)
    return Probe("linear_layer" if layer else family, float(percent) / 100, int(layer[1]) if layer else None)


def headline_probes(names: Iterable[str]) -> tuple[str, ...]:
    """The probes that the page shows: kNN, and the linear one with the most labels.

    Of several with as many labels: L-BFGS, then SGD, then Adam, then the deepest layer's.
    """

    def rank(name: str) -> tuple[float, int, int, str]:
        family, label_frac, layer = probe_of(name)
        known = _FAMILIES.index(family) if family in _FAMILIES else len(_FAMILIES)
        return -(label_frac or 0.0), known, -(layer or 0), name

    present = set(names)
    linear = sorted((name for name in present if name.startswith("linear_")), key=rank)
    return tuple(name for name in ("knn", *linear[:1]) if name in present)


def is_of_plugin(name: str) -> bool:
    """Whether the probe of that name did not come with the project."""
    return probe_of(name)[0] not in (*_FAMILIES, "knn", "zero_shot", "fine_tune", "linear_layer")


def probe_label(name: str) -> str:
    """For people: kNN, zero-shot, linear 100 %, linear SGD 1 %, linear layer 2 1 %, fine-tuned 1 %."""
    family, label_frac, layer = probe_of(name)
    words = {"knn": "kNN", "zero_shot": "zero-shot", "fine_tune": "fine-tuned", "linear_layer": f"linear layer {layer}",
             "linear_sgd": "linear SGD", "linear_adam": "linear Adam"}  # fmt: skip
    shown = words.get(family, family.replace("_", " "))
    return shown if label_frac is None else f"{shown} {100 * label_frac:.10g} %"


# ----------------------------------------------------------------------------------------------------- frame


def measured(models: Sequence[EvaluatedModel]) -> pd.DataFrame:
    """The finite numbers of ``models`` in their order: a row a measurement, ``model`` its position."""
    tables = [MEASUREMENTS.empty_table().append_column("model", pa.array([], pa.int64()))]
    for position, model in enumerate(models):
        table = model.measurements.filter(pc.is_finite(model.measurements["value"]))
        tables.append(table.append_column("model", pa.array(np.full(table.num_rows, position))))
    frame = pa.concat_tables(tables).to_pandas()
    split = {
        name: name.partition(":") if name.startswith(_CLASS_METRIC) else (name, "", "") for name in set(frame.name)
    }
    frame["metric"], frame["class"] = frame.name.map(lambda n: split[n][0]), frame.name.map(lambda n: split[n][2])
    frame["n"] = frame.n.fillna(0).astype(np.int64)
    return frame


def tidy(recipe: str, models: Sequence[EvaluatedModel], frame: pd.DataFrame) -> pd.DataFrame:
    """``measured`` with the column ``control_value`` as ``FRAME``.

    ``excess`` is a number less its control's. Of one encoder it has no interval, so a share of it is not told.
    """
    runs = {run: position for position, run in enumerate(dict.fromkeys(model.run for model in models))}
    told = pd.DataFrame([_described(model) | {"recipe": recipe, "run": runs[model.run]} for model in models])
    probes = {name: probe_of(name)._asdict() for name in dict.fromkeys(frame.probe)}
    known = pd.DataFrame([probes[name] for name in frame.probe], columns=list(Probe._fields), index=frame.index)
    frame = frame.join(told, on="model").join(known.rename(columns={"family": "probe_family"}))
    excess = frame.assign(statistic="excess", value=frame.value - frame.control_value, low=np.nan, high=np.nan, n=1)
    parts = [frame.assign(statistic="value"), excess[excess.value.notna()]]
    return pd.concat(parts, ignore_index=True).reindex(columns=FRAME.names)


def _described(model: EvaluatedModel) -> dict[str, object]:
    run, pair = model.run, model.replicate[0]
    of_dataset = model.facts.get("poison_fraction_of_dataset", math.nan)
    return {
        "variant": run.variant,
        "arm": model.arm,
        "trained_on": model.made.trained_on,
        "defence": model.made.defence,
        "encoder": model.encoder,
        "dataset": pair.dataset,
        "method": run.train.method.kind,
        "backbone": run.train.backbone.kind,
        "attack": run.attack.kind,
        "trigger": pair.trigger,
        "target": pair.target,
        "pair": pair.label,
        "seed": run.seed,
        **{name: model.facts.get(name, math.nan) for name in _COVARIATES},
        "poison_fraction_of_pairs": of_dataset / (1 + of_dataset) if run.attack.adds_pairs else math.nan,
    }


def place_name(axis: str, x: float | None, condition: str) -> str:
    """How files name a place of an axis: "num_poisons=8" under the attack, else "num_poisons=8, clean"."""
    if x is None:
        return condition
    return f"{axis}={x:.10g}" + ("" if condition == "triggered" else f", {condition}")


def arm_name(arm: Arm, variant: str) -> str:
    """How files name an arm of a side variant: "suspect[variant]"."""
    return f"{arm.name}[{variant}]" if variant else arm.name
