"""What a store on S3 would be asked while a recipe runs: each stage's requests, from the sizes of its files.

The lines follow ``stages.run_stage``, the Prefect tasks around it and the record in MLflow; one cache for all workers.
"""

from collections import defaultdict
from collections.abc import Container, Mapping

from ssl_backdoor.poison.craft import AT_ONCE
from ssl_backdoor.specs import ReportSpec, Resources, Stage
from ssl_backdoor.stages import NUM_LOOKED_AT, DefendStage, EvaluateStage, PoisonStage, StageCall, TrainStage
from ssl_backdoor.store import ArtifactRef
from ssl_backdoor.store.base import MANIFEST as MANIFEST_FILE
from ssl_backdoor.store.s3_requests import (
    CHECK,
    FIND,
    LOAD_CHECKPOINT,
    MANIFEST,
    Requests,
    checkpoints,
    commit,
    fetch,
    read,
)

Sizes = Mapping[str, int]
"""Bytes of an artifact's files by name; of the manifest, which is asked for by itself, too."""
_RECORDED = MANIFEST.times(7)  # for each encoder that goes to MLflow
_STATE = 3  # a training's state in bytes, over those of its weights: gradients' moments and slow copies


class Bill:
    """Counts as a run goes: what was fetched once is in the cache."""

    def __init__(
        self,
        calls: Mapping[ArtifactRef, StageCall],
        sizes: Mapping[ArtifactRef, Sizes],
        units: Mapping[ArtifactRef, int],
    ) -> None:
        """``units`` are the steps of a training and the rows of a poison's plan."""
        self._calls = calls
        self._sizes = sizes
        self._units = units
        self._cached: set[tuple[ArtifactRef, str]] = set()

    def of_stages(self, there: Container[ArtifactRef]) -> dict[Stage, Requests]:
        """By stage, of a whole run; of artifacts that are ``there`` it is only asked whether they are."""
        found: dict[Stage, Requests] = defaultdict(Requests)
        for ref, call in self._calls.items():
            found[call.stage] += FIND
            if ref not in there:
                found[call.stage] += self.of_stage(ref)
                if call.stage == "report":
                    found[call.stage] += CHECK.times(2) + self._after(ref, call)
        return found

    def of_stage(self, ref: ArtifactRef) -> Requests:
        """Of ``run_stage`` alone."""
        call = self._calls[ref]
        asked = (
            FIND
            + self._inputs(ref, call)
            + commit(size for name, size in self._sizes[ref].items() if name != MANIFEST_FILE)
        )
        saved = 0
        if isinstance(call.spec, TrainStage | DefendStage):
            asked += LOAD_CHECKPOINT
            saved = max(0, self._units[ref] - 1) // Resources().checkpoint_every_steps
        weights = sum(size for name, size in self._sizes[ref].items() if name.endswith(".safetensors"))
        return asked + checkpoints(saved, _STATE * weights)

    def _inputs(self, ref: ArtifactRef, call: StageCall) -> Requests:
        inputs = call.inputs
        if isinstance(call.spec, ReportSpec):
            return self._evidence(call.spec, inputs)
        if isinstance(call.spec, PoisonStage):
            return self._some_images(inputs["dataset"], self._units[ref])
        asked = MANIFEST + self._fetch(inputs["dataset"]) if "dataset" in inputs else Requests()
        match call.spec:
            case TrainStage() if "poison" in inputs:
                asked += self._fetch(inputs["poison"])
            case DefendStage():
                asked += self._fetch(inputs["suspect"])
            case EvaluateStage(evaluation=evaluation, trigger=trigger):
                text = (
                    ("text.safetensors", "text.json")
                    if any(probe.needs_text_tower for probe in evaluation.probes)
                    else ()
                )
                asked += MANIFEST + self._fetch(inputs["model"], "backbone.safetensors", "backbone.json", *text)
                if trigger is not None and trigger.is_from_file:
                    asked += self._fetch(inputs["poison"], "trigger.png")
        return asked

    def _evidence(self, spec: ReportSpec, inputs: Mapping[str, ArtifactRef]) -> Requests:
        asked, first = MANIFEST.times(len(set(inputs.values()))), dict[str, ArtifactRef]()
        for index, run in enumerate(spec.runs):
            first.setdefault(run.attack.kind, inputs[f"{index:03d}/poison"])
            asked += MANIFEST.times(2)
        for role, scores in inputs.items():
            if role.endswith("/scores"):
                model = inputs[f"{role.removesuffix('/scores')}/model"]
                asked += self._fetch(scores) + MANIFEST.times(2) + self._fetch(model, "curves.parquet")
        for poison in first.values():
            images = self._calls[poison].inputs["dataset"]
            looked_at = min(NUM_LOOKED_AT, self._units[poison])
            asked += MANIFEST + self._some_images(images, looked_at) + self._fetch(poison)
        return asked

    def _some_images(self, dataset: ArtifactRef, count: int) -> Requests:
        """Of a catalogue, ``count`` of whose images are read."""
        return MANIFEST + self._fetch(dataset, "samples.parquet") + read(count, AT_ONCE)

    def _after(self, ref: ArtifactRef, call: StageCall) -> Requests:
        """The record in MLflow, the page in Prefect, the answer at the terminal."""
        encoders = {
            (role.split("/")[1], call.inputs[f"{role.removesuffix('/scores')}/model"], scores)
            for role, scores in call.inputs.items()
            if role.endswith("/scores")
        }
        asked = MANIFEST.times(2) + _RECORDED.times(len(encoders)) + self._fetch(ref)
        return asked + MANIFEST + self._fetch(ref) + self._fetch(ref)

    def _fetch(self, ref: ArtifactRef, *names: str) -> Requests:
        sizes = self._sizes[ref]
        held = sizes.keys() - {MANIFEST_FILE}
        wanted = {(ref, name) for name in names or held if name in held} - self._cached
        self._cached |= wanted
        return fetch(sizes[name] for _, name in wanted)
