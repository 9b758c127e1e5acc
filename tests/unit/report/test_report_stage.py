"""What the report stage gathers from the store, without a training."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssl_backdoor.identity import canonical
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.report import gather
from ssl_backdoor.report.stealth import Stealth
from ssl_backdoor.specs import BYOLSpec, DatasetSpec, EvaluationSpec, ReportSpec, ResNetSpec, RunSpec, TrainSpec
from ssl_backdoor.stages import EvaluateStage, IngestStage, PoisonStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store
from ssl_backdoor.tables import CURVES
from ssl_backdoor.train.checkpoint import save_backbone
from tests.support.tiny_sets import tiny_dataset

BACKBONE = ResNetSpec(depth=8, width=4, stem="small")
RUN = RunSpec(
    dataset=DatasetSpec(frame_px=24),
    attack=Saha2022TargetedSpec(trigger=GridTriggerSpec(size_px=6), target_class="cat", poison_fraction_of_target=1.0),
    train=TrainSpec(method=BYOLSpec(), backbone=BACKBONE),
    evaluation=EvaluationSpec(probes=({"kind": "knn", "neighbours": 3},)),
)


def committed(store: ArtifactStore, stage: Any, key: str, folder: Path, **manifest: Any) -> ArtifactRef:
    return store.commit(
        stage, key * 64, folder, **({"spec": {}, "inputs": {}, "summary": {}, "seconds": 1.0} | manifest)
    )


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[ArtifactStore, dict[str, ArtifactRef]]:
    """Sixty images of the target, all poisoned; control and suspect are untrained."""
    store = open_store(str(tmp_path / "store"))
    data = tmp_path / "data"
    dataset = tiny_dataset(data, train_per_class=60, test_per_class=6, spec=RUN.dataset)
    pq.write_table(dataset.samples, data / "samples.parquet")
    spec = canonical(IngestStage(dataset=dataset.spec))
    summary = {"classes": list(dataset.classes), "num_train": 180}
    images = committed(store, "ingest", "a", data, spec=spec, summary=summary)
    poison = run_stage(StageCall(PoisonStage(attack=RUN.attack, seed=0), {"dataset": images}), store).ref
    refs = {"000/poison": poison}
    evaluation = EvaluateStage(evaluation=RUN.evaluation, trigger=RUN.attack.trigger, target_class="cat", seed=0)
    for seed, arm in enumerate(("clean", "poisoned")):
        folder = tmp_path / arm
        folder.mkdir()
        save_backbone(build_backbone(BACKBONE, 1, seed), 1, folder)
        pq.write_table(CURVES.empty_table(), folder / "curves.parquet")
        model = committed(store, "train", "bc"[seed], folder)
        scores = run_stage(StageCall(evaluation, {"dataset": images, "model": model}), store).ref
        refs |= {f"000/{arm}/model": model, f"000/{arm}/scores": scores}
    return store, refs


def test_the_page_gets_neighbours_and_how_visible_the_attack_is(
    inputs: tuple[ArtifactStore, dict[str, ArtifactRef]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, refs = inputs
    heard: dict[str, Any] = {}

    def write_report(
        spec: ReportSpec, scored: Any, examples: Any, *rest: Any, stealth: Any, setup: Any
    ) -> dict[str, Any]:
        heard.update(scored=scored, examples=examples, stealth=stealth, setup=setup)
        return {}

    monkeypatch.setattr(gather, "write_report", write_report)
    run_stage(StageCall(ReportSpec(recipe="tiny", question="?", runs=(RUN,)), refs), store)
    assert [one.arm for one in heard["scored"]] == ["control", "suspect"]
    assert {"data", "encoders", "attack saha2022 targeted", "repeats"} <= set(heard["setup"].words)
    assert heard["setup"].data == {RUN.dataset: "3 classes, 180 images, 24 px"}
    assert [file.name for file in heard["setup"].triggers.values()] == ["trigger.png"]
    for one in heard["scored"]:
        with np.load(one.neighbours) as sheet:
            assert sheet["neighbours"].shape == (6, 6, 24, 24, 3)
    assert [example.attack for example in heard["examples"]] == ["saha2022_targeted"] * 6
    measured: Stealth = heard["stealth"]["saha2022_targeted"]
    assert (measured.n, measured.area_frac, measured.num_unchanged) == (50, 1 / 16, 0)
    assert measured.ssim is not None
    assert 0 < measured.ssim < 1
    assert measured.psnr_db is not None


def test_an_evaluation_without_a_sheet_is_read_all_the_same(
    inputs: tuple[ArtifactStore, dict[str, ArtifactRef]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, refs = inputs
    folder = tmp_path / "scores"
    shutil.copytree(store.fetch(refs["000/clean/scores"]), folder)
    for name in ("neighbours.npz", "manifest.json"):
        (folder / name).unlink()
    refs["000/clean/scores"] = committed(store, "evaluate", "d", folder)
    found: list[bool] = []

    def write_report(spec: ReportSpec, scored: Any, *rest: Any, stealth: Any, setup: Any) -> dict[str, Any]:
        found.extend(one.neighbours is None for one in scored)
        return {}

    monkeypatch.setattr(gather, "write_report", write_report)
    run_stage(StageCall(ReportSpec(recipe="tiny", question="?", runs=(RUN,)), refs), store)
    assert found == [True, False]
