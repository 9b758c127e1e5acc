"""The plan of a flow: the spec and inputs of each stage, and the reference that its artifact will have.

A stage's key is known before its work is done, so an estimate, which only lists the stages (``DryRunPlanner``), and a
run, which does them (``StageScheduler``), share this code.
"""

import abc
from collections.abc import Callable, Mapping
from typing import NamedTuple, final

from typing_extensions import override  # of typing itself from Python 3.12 on

from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    Detector,
    EvaluationSpec,
    Filter,
    Repair,
    ReportSpec,
    TamperAttack,
    TrainSpec,
)
from ssl_backdoor.stages import (
    DefendStage,
    DetectStage,
    EvaluateStage,
    FilterStage,
    IngestStage,
    PoisonStage,
    StageCall,
    StageSpec,
    TamperStage,
    TrainStage,
)
from ssl_backdoor.store import ArtifactRef, ArtifactStore

Digest = Callable[[DatasetSpec, str | None, str | None], str]
"""``source_digest``: of a dataset's spec, its data and the second source's."""


class Sources(NamedTuple):
    """Where raw data lie: a folder, an archive, shards or a table each; None where a recipe needs none."""

    data: str | None = None
    test_data: str | None = None
    """Labelled test images, of data that have none."""
    probe_data: str | None = None
    """Another labelled set, to probe on."""


NO_SOURCES = Sources()


class StagePlanner(abc.ABC):
    """Each method submits its stage and returns the reference that the stage will have."""

    def __init__(self, digest: Digest, sources: Sources) -> None:
        self._digest = digest
        self.sources = sources
        self._digests: dict[tuple[str | None, ...], str] = {}

    @abc.abstractmethod
    def submit(self, call: StageCall) -> ArtifactRef:
        """Add ``call`` to the plan, unless it is there already; its reference."""

    def ingest(self, dataset: DatasetSpec) -> ArtifactRef:
        """The images."""
        return self._ingest(dataset, self.sources.data, "ingest", self.sources.test_data)

    def ingest_other(self, dataset: DatasetSpec) -> ArtifactRef:
        """The images of another labelled set, for probes.

        Raises:
            SpecError: none was given.
        """
        if self.sources.probe_data is None:
            raise SpecError("these runs are probed on another labelled set: give it with --probe-data PATH")
        return self._ingest(dataset, self.sources.probe_data, "ingest, to probe on")

    def digest(self, dataset: DatasetSpec, data: str | None, test_data: str | None) -> str:
        """``source_digest``, of the same data computed once."""
        key = (dataset.source.model_dump_json(), dataset.test_source.model_dump_json(), data, test_data)
        if key not in self._digests:
            self._digests[key] = self._digest(dataset, data, test_data)
        return self._digests[key]

    def _ingest(self, dataset: DatasetSpec, data: str | None, title: str, test_data: str | None = None) -> ArtifactRef:
        source = self.digest(dataset, data, test_data)
        spec = IngestStage(dataset=dataset)
        return self.submit(StageCall(spec, {}, source=source, data=data, test_data=test_data, title=title))

    def poison(self, attack: AttackSpec, images: ArtifactRef, seed: int, title: str) -> ArtifactRef:
        """The plan of an attack and its overlay."""
        return self._submit(PoisonStage(attack=attack, seed=seed), f"poison {title}", dataset=images)

    def train(self, train: TrainSpec, seed: int, title: str, **inputs: ArtifactRef) -> ArtifactRef:
        """An encoder, from ``dataset`` and perhaps ``poison``."""
        return self._submit(TrainStage(train=train, seed=seed), f"train {title}", **inputs)

    def filter(self, defence: Filter, seed: int, title: str, **inputs: ArtifactRef) -> ArtifactRef:
        """Which samples of ``dataset`` and perhaps ``poison`` are left out, perhaps by an encoder, ``model``."""
        return self._submit(FilterStage(defence=defence, seed=seed), f"filter {title}", **inputs)

    def tamper(
        self, attack: TamperAttack, clean: ArtifactRef, images: ArtifactRef, seed: int, title: str
    ) -> ArtifactRef:
        """A backdoored encoder, made of a clean one."""
        return self._submit(TamperStage(attack=attack, seed=seed), f"tamper {title}", dataset=images, model=clean)

    def repair(self, defence: Repair, suspect: ArtifactRef, images: ArtifactRef, seed: int, title: str) -> ArtifactRef:
        """A repaired encoder."""
        return self._submit(DefendStage(defence=defence, seed=seed), f"repair {title}", dataset=images, suspect=suspect)

    def detect(
        self,
        detector: Detector,
        attack: AttackSpec,
        seed: int,
        title: str,
        unseen_triggers: int = 0,
        **inputs: ArtifactRef,
    ) -> ArtifactRef:
        """What ``detector`` says of ``model``, trained on ``dataset`` and perhaps ``poison``, or of inputs to it.

        Inputs are shown under the attack's trigger, and under so many ``unseen_triggers`` of its style.
        """
        trigger = attack.trigger if detector.level == "input" else None
        if detector.level != "sample":
            inputs.pop("poison", None)
        if trigger is None or not trigger.is_from_file:
            inputs.pop("trigger", None)
        unseen = unseen_triggers if trigger is not None else 0
        spec = DetectStage(detector=detector, trigger=trigger, unseen_triggers=unseen, seed=seed)
        return self._submit(spec, f"detect {title}", **inputs)

    def evaluate(
        self,
        evaluation: EvaluationSpec,
        attack: AttackSpec,
        seed: int,
        title: str,
        *,
        is_other: bool = False,
        **inputs: ArtifactRef,
    ) -> ArtifactRef:
        """The measurements of ``model`` on ``dataset`` under the attack's trigger, or for its target images.

        ``is_other``: the dataset is another than the attack was made for; it has neither its target class nor its
        target images.
        """
        if attack.trigger is None or not attack.trigger.is_from_file:
            inputs.pop("poison", None)  # a grid is drawn from its seed; an image trigger travels with the poison
        spec = EvaluateStage(
            evaluation=evaluation,
            trigger=attack.trigger,
            target_class="" if is_other else attack.target_class,
            targets=None if is_other else attack.targets,
            seed=seed,
        )
        return self._submit(spec, f"evaluate {title}", **inputs)

    def report(self, report: ReportSpec, evidence: Mapping[str, ArtifactRef]) -> ArtifactRef:
        """The page, the tables, the answer."""
        return self.submit(StageCall(report, dict(evidence), title="report"))

    def _submit(self, spec: StageSpec, title: str, **inputs: ArtifactRef) -> ArtifactRef:
        return self.submit(StageCall(spec, inputs, title=title))


@final
class DryRunPlanner(StagePlanner):
    """Records each stage of a flow and runs none."""

    def __init__(self, store: ArtifactStore, digest: Digest, sources: Sources) -> None:
        super().__init__(digest, sources)
        self._store = store
        self.calls: dict[ArtifactRef, StageCall] = {}

    @override
    def submit(self, call: StageCall) -> ArtifactRef:
        ref = self._store.ref(call.stage, call.key)
        self.calls.setdefault(ref, call)
        return ref
