"""The evaluate stage: what it is called, what is in its key, what it fetches."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_backdoor.errors import SpecError
from ssl_backdoor.identity import canonical
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec, Carlini2022TargetedSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec, Saha2022UntargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.specs import (
    AttackSpec,
    CLIPSpec,
    DatasetSpec,
    EvaluationSpec,
    NoAttackSpec,
    OpenCLIPSpec,
    RunSpec,
    TargetsSpec,
    TrainSpec,
)
from ssl_backdoor.stages import EvaluateStage, IngestStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store
from ssl_backdoor.train.checkpoint import save_backbone, save_text_tower
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_towers import tiny_towers

GRID = GridTriggerSpec(seed=3, size_px=4)
FOUR = TargetsSpec(num_targets=4)


@pytest.mark.parametrize(
    ("attack", "trigger", "target_class", "targets", "name"),
    [
        (NoAttackSpec(), None, "", None, "no attack, seed 5"),
        (Saha2022TargetedSpec(trigger=GRID, target_class="cat"), GRID, "cat", None, "trigger 3 -> cat, seed 5"),
        (Saha2022UntargetedSpec(trigger=GRID), GRID, "", None, "trigger 3, seed 5"),
        (
            Saha2022TargetedSpec(trigger=ImageTriggerSpec(file="a/b.png", size_px=4), target_class="cat"),
            ImageTriggerSpec(file="a/b.png", size_px=4),
            "cat",
            None,
            "b.png -> cat, seed 5",
        ),
        (
            Carlini2022BackdoorSpec(trigger=GRID, target_class="cat", num_poisons=50),
            GRID,
            "cat",
            None,
            "trigger 3 -> cat, 50 poisons, seed 5",
        ),
        (Carlini2022TargetedSpec(num_poisons=1), None, "", TargetsSpec(), "1 target image, 1 poison, seed 5"),
        (Carlini2022TargetedSpec(targets=FOUR), None, "", FOUR, "4 target images, 8 poisons each, seed 5"),
    ],
)
def test_an_attack_in_the_words_of_the_evaluation(
    attack: AttackSpec, trigger: object, target_class: str, targets: TargetsSpec | None, name: str
) -> None:
    assert (attack.trigger, attack.target_class, attack.targets) == (trigger, target_class, targets)
    train = TrainSpec(method=CLIPSpec(), backbone=OpenCLIPSpec())
    run = RunSpec(dataset=DatasetSpec(), attack=attack, train=train, seed=5)
    assert run.label == name
    assert run.model_copy(update={"variant": "fixed place"}).label == name.replace(", seed", ", fixed place, seed")


def test_targets_are_in_the_key_and_their_absence_is_not() -> None:
    stage = EvaluateStage(evaluation=EvaluationSpec(), trigger=None, target_class="", seed=0)
    assert "targets" not in canonical(stage)
    keys = {StageCall(stage.model_copy(update={"targets": targets})).key for targets in (None, TargetsSpec(), FOUR)}
    assert len(keys) == 3


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[ArtifactStore, dict[str, ArtifactRef]]:
    """A dataset and a model of two towers in a store; without their spec, as no stage made the latter."""
    store = open_store(str(tmp_path / "store"))
    data, towers = tmp_path / "data", tmp_path / "towers"
    dataset = tiny_dataset(data, size=(16, 16))
    pq.write_table(dataset.samples, data / "samples.parquet")
    towers.mkdir()
    image_tower, text_tower = tiny_towers()
    save_backbone(image_tower, 1, towers)
    save_text_tower(text_tower, towers)
    spec = canonical(IngestStage(dataset=dataset.spec))
    summary = {"classes": list(dataset.classes)}
    return store, {
        "dataset": store.commit("ingest", "a" * 64, data, spec=spec, inputs={}, summary=summary, seconds=0.0),
        "model": store.commit("train", "b" * 64, towers, spec={}, inputs={}, summary={}, seconds=0.0),
    }


def test_the_stage_fetches_the_text_tower_and_passes_the_targets(
    inputs: tuple[ArtifactStore, dict[str, ArtifactRef]],
) -> None:
    store, refs = inputs
    evaluation = EvaluationSpec(probes=({"kind": "zero_shot", "prompts": "simple7"},))
    stage = EvaluateStage(evaluation=evaluation, trigger=None, target_class="", targets=FOUR, seed=2)
    ref = run_stage(StageCall(stage, refs), store).ref
    targets = pq.read_table(store.fetch(ref) / "targets.parquet")
    assert (targets.num_rows, set(targets["probe"].to_pylist())) == (4, {"zero_shot"})
    assert "targeted_success/target/zero_shot" in store.manifest(ref).summary["measurements"]
    assert pa.types.is_int32(targets.schema.field("rank").type)


def test_a_model_without_a_text_tower_leaves_nothing_behind(
    inputs: tuple[ArtifactStore, dict[str, ArtifactRef]], tmp_path: Path
) -> None:
    store, refs = inputs
    for name in ("text.safetensors", "text.json"):
        (tmp_path / "towers" / name).unlink()
    image_only = store.commit("train", "c" * 64, tmp_path / "towers", spec={}, inputs={}, summary={}, seconds=0.0)
    spec = EvaluationSpec(probes=("zero_shot",))
    call = StageCall(
        EvaluateStage(evaluation=spec, trigger=None, target_class="", seed=0), refs | {"model": image_only}
    )
    with pytest.raises(SpecError, match="train with method clip"):
        run_stage(call, store)
    assert store.find(call.stage, call.key) is None
