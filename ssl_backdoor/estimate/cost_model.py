"""What a stage costs as a linear function of its amount of work, for each kind of stage."""

from typing import NamedTuple

from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    EvaluationSpec,
    Filter,
    FitSpec,
    Repair,
    TargetsSpec,
    TrainSpec,
    TriggerSpec,
)
from ssl_backdoor.stages import DefendStage, DetectStage, FilterStage, TamperStage


class IngestKind(NamedTuple):
    """A unit is an image that is kept; reading it from its source comes on top."""

    frame: DatasetSpec


class PoisonKind(NamedTuple):
    """A unit is a row of the plan."""

    attack: AttackSpec
    frame: DatasetSpec


class TrainKind(NamedTuple):
    """A unit is a step."""

    train: TrainSpec
    frame: DatasetSpec
    is_streamed: bool
    """Images are decoded as steps need them, not kept in memory."""


class DefendKind(NamedTuple):
    """A unit is a step."""

    defence: Repair
    fit: FitSpec
    """Its own."""
    train: TrainSpec
    """Of the suspect."""
    frame: DatasetSpec
    is_streamed: bool


class EvaluateKind(NamedTuple):
    """A unit is an image that is scored: ``num_scored``."""

    evaluation: EvaluationSpec
    trigger: TriggerSpec | None
    targets: TargetsSpec | None
    train: TrainSpec
    """Of any encoder of the same architecture."""
    frame: DatasetSpec

    def num_scored(self, num_train: int, num_test: int) -> int:
        """Training images where a probe learns, and test images under each condition."""
        learns = any(probe.learns for probe in self.evaluation.probes)
        conditions = 1 if self.trigger is None else 2 + self.evaluation.unseen_triggers
        return num_train * learns + num_test * conditions


class JudgeKind(NamedTuple):
    """A filter, a detector, an attack on the encoder or a repair without a ``fit``: a unit is an image.

    Of a filter it is whatever its own ``work`` counts.
    """

    spec: FilterStage | TamperStage | DefendStage | DetectStage
    role: str
    """Of the encoder among its inputs; empty where it needs none."""
    train: TrainSpec
    """Of any encoder of the same architecture."""
    frame: DatasetSpec

    def fitted_to(self, num_images: int) -> "FilterStage | TamperStage | DefendStage | DetectStage":
        """The same on so few images."""
        if isinstance(self.spec, FilterStage) and isinstance(self.spec.defence, Filter):
            return self.spec.model_copy(update={"defence": self.spec.defence.fitted_to(num_images)})
        return self.spec

    def work(self, num_images: int) -> float:
        """Units of work on so many images."""
        fitted = self.fitted_to(num_images)
        if isinstance(fitted, FilterStage) and isinstance(fitted.defence, Filter):
            return fitted.defence.work(num_images)
        if isinstance(fitted, DetectStage):
            return fitted.detector.work(num_images)
        return num_images


StageKind = IngestKind | PoisonKind | TrainKind | DefendKind | EvaluateKind | JudgeKind
"""Stages of one kind differ only in how many units of work they are."""


class LinearCost(NamedTuple):
    """``fixed``, and ``per_unit`` for every unit of work."""

    fixed: float
    per_unit: float

    def at(self, units: float) -> float:
        """The cost of so many units."""
        return self.fixed + self.per_unit * units

    @classmethod
    def through(cls, few: float, cost_of_few: float, many: float, cost_of_many: float) -> "LinearCost":
        """The line through two sizes of the same work; a smaller cost of more work is noise and counts as no growth."""
        per_unit = max(0.0, cost_of_many - cost_of_few) / (many - few) if many > few else 0.0
        return cls(max(0.0, cost_of_many - per_unit * many), per_unit)


class CostModel(NamedTuple):
    """What a stage of one kind takes by its units."""

    seconds: LinearCost
    num_bytes: LinearCost
    """Size of its artifact."""
    note: str = ""
    """In what the measured work differs from the real work, if in anything."""
    cpu_frac: float = 1.0
    """CPU seconds over seconds. Where a stage computes on the CPU the rest went to other processes."""
