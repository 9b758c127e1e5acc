"""An encoder evaluated on another labelled set than its own: the trigger is there, its target class is not."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ssl_backdoor.identity import canonical
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.specs import EvaluationSpec, ResNetSpec, TriggerSpec
from ssl_backdoor.stages import EvaluateStage, IngestStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store
from ssl_backdoor.train.checkpoint import save_backbone
from tests.support.tiny_sets import tiny_dataset

SPEC = EvaluationSpec(probes=({"kind": "knn", "neighbours": 3}, "linear", "linear_layers"), label_fractions=(1.0,))
OTHER = ("circle", "line", "ring", "square")


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[ArtifactStore, dict[str, ArtifactRef]]:
    """Four other classes, and a backbone that never saw them."""
    store = open_store(str(tmp_path / "store"))
    data, model = tmp_path / "data", tmp_path / "model"
    dataset = tiny_dataset(data, classes=OTHER, size=(16, 16))
    pq.write_table(dataset.samples, data / "samples.parquet")
    model.mkdir()
    save_backbone(build_backbone(ResNetSpec(depth=8, width=4, stem="small"), 1, 0), 1, model)
    spec = canonical(IngestStage(dataset=dataset.spec))
    summary = {"classes": list(OTHER)}
    return store, {
        "dataset": store.commit("ingest", "a" * 64, data, spec=spec, inputs={}, summary=summary, seconds=0.0),
        "model": store.commit("train", "b" * 64, model, spec={}, inputs={}, summary={}, seconds=0.0),
    }


def measured(store: ArtifactStore, refs: dict[str, ArtifactRef], trigger: TriggerSpec) -> dict[str, float]:
    stage = EvaluateStage(evaluation=SPEC, trigger=trigger, target_class="", seed=2)
    ref = run_stage(StageCall(stage, refs), store).ref
    assert (store.fetch(ref) / "neighbours.npz").is_file()
    values: dict[str, float] = store.manifest(ref).summary["measurements"]
    return values


def test_everything_that_needs_no_target_is_measured(inputs: tuple[ArtifactStore, dict[str, ArtifactRef]]) -> None:
    values = measured(*inputs, GridTriggerSpec(size_px=5))
    for probe in ("knn", "linear_100", "linear_layer0_100", "linear_layer3_100"):
        for condition in ("clean", "triggered", "unseen_trigger"):
            assert 0 <= values[f"accuracy/{condition}/{probe}"] <= 1
            assert 1 / 4 <= values[f"top_class_share/{condition}/{probe}"] <= 1
            assert all(f"false_positives:{name}/{condition}/{probe}" in values for name in OTHER)
    for name in ("z_score_sd", "z_score_variance", "similarity_clean", "similarity_triggered"):
        assert f"{name}/triggered/features" in values
    assert not any(name.startswith(("target", "attack")) for name in values)


def test_the_triggers_file_comes_with_the_poison(
    inputs: tuple[ArtifactStore, dict[str, ArtifactRef]], tmp_path: Path
) -> None:
    from ssl_backdoor.data.images import encode_png

    store, refs = inputs
    kept = tmp_path / "poison"
    kept.mkdir()
    (kept / "trigger.png").write_bytes(encode_png(GridTriggerSpec(size_px=5).render(5)))
    poison = store.commit("poison", "c" * 64, kept, spec={}, inputs={}, summary={}, seconds=0.0)
    gone = ImageTriggerSpec(file="gone.png", size_px=5)
    own, grid = measured(store, refs | {"poison": poison}, gone), measured(store, refs, GridTriggerSpec(size_px=5))
    assert {name: own[name] for name in own if "unseen" not in name} == {
        name: grid[name] for name in grid if "unseen" not in name
    }
