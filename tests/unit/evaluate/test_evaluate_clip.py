"""A CLIP end to end: zero_shot beside the trained probes, targets, retrieval; and the stage around it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.evaluate.evaluate import evaluate
from ssl_backdoor.evaluate.features import Condition, split_features
from ssl_backdoor.evaluate.metrics import measure_predictions, measure_targets, measurements_table
from ssl_backdoor.evaluate.zero_shot import class_embeddings
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.targets import choose_targets
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import EvaluationSpec, ResNetSpec, TargetsSpec
from ssl_backdoor.tables import SIMILARITY, TARGETS
from ssl_backdoor.train.checkpoint import save_backbone, save_text_tower
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_towers import tiny_towers

CLASSES = ("bird", "cat", "dog", "fire_truck")
SPEC = EvaluationSpec(
    probes=({"kind": "knn", "neighbours": 3}, "linear", "zero_shot"), label_fractions=(1.0,), unseen_triggers=1
)
TARGETS_SPEC = TargetsSpec(num_targets=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("pairs")
    return tiny_dataset(folder, classes=CLASSES, size=(16, 16), train_per_class=6, test_per_class=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    image_tower, text_tower = tiny_towers(3)
    save_backbone(image_tower, 1, folder)
    save_text_tower(text_tower, folder)
    return folder


def run(dataset: Dataset, model: Path, out: Path, **changes: Any) -> dict[str, float]:
    arguments: dict[str, Any] = {"trigger": None, "trigger_file": None, "target_label": None, "seed": 0} | changes
    summary = evaluate(arguments.pop("spec", SPEC), dataset, model, out=out, **arguments)
    return summary["measurements"]


def test_targets_are_scored_by_every_probe(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    values = run(dataset, model, tmp_path, targets=TARGETS_SPEC, seed=7)
    table = pq.read_table(tmp_path / "targets.parquet")
    assert table.schema == TARGETS
    chosen = choose_targets(dataset.samples, dataset.classes, TARGETS_SPEC, 7)
    predictions = pq.read_table(tmp_path / "predictions.parquet")
    for probe in ("knn", "linear_100", "zero_shot"):
        here = table.filter(pc.equal(table["probe"], probe))
        assert here.select(chosen.column_names).equals(chosen)
        recorded = predictions.filter(pc.equal(predictions["probe"], probe)).to_pylist()
        by_key = {row["key"]: row["predicted"] for row in recorded}
        assert here["predicted"].to_pylist() == [by_key[key] for key in here["key"].to_pylist()]
        hits = [row["predicted"] == row["target_label"] for row in here.to_pylist()]
        assert [row["rank"] == 1 for row in here.to_pylist()] == hits
        assert values[f"targeted_success/target/{probe}"] == sum(hits) / 5
    measurements = pq.read_table(tmp_path / "measurements.parquet")
    again = measurements_table([*measure_predictions(predictions, CLASSES, None), *measure_targets(table)])
    assert measurements.slice(0, again.num_rows).equals(again)


def test_zero_shot_and_retrieval_follow_from_the_embeddings(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    values = run(dataset, model, tmp_path)
    image_tower, text_tower = tiny_towers(3)
    test = split_features(image_tower, dataset, "test", [Condition("clean")], SPEC, seed=0)
    scores = test.values["clean"] @ class_embeddings(text_tower, CLASSES, "imagenet80").T
    assert values["accuracy/clean/zero_shot"] == (scores.argmax(1) == test.labels).double().mean().item()
    # Four captions, one a class: an image is found by its caption as by a single prompt.
    captions = torch.stack([text_tower(text_tower.tokenize([f"a {name}"]))[0] for name in CLASSES])
    hits = (test.values["clean"] @ torch.nn.functional.normalize(captions, dim=1).T).argmax(1) == test.labels
    assert values["image_to_text_recall_1/clean/retrieval"] == hits.double().mean().item()
    assert {name for name in values if name.endswith("retrieval")} == {
        "image_to_text_recall_1/clean/retrieval",  # among four captions the five nearest would always hold one's own
        "text_to_image_recall_1/clean/retrieval",
        "text_to_image_recall_5/clean/retrieval",
    }


def test_zero_shot_alone_needs_no_training_images(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    with_training = run(dataset, model, tmp_path / "a", trigger=GridTriggerSpec(size_px=5), target_label=1)
    is_test = pc.equal(dataset.samples["split"], "test")
    test_only = Dataset(dataset.folder, dataset.samples.filter(is_test), dataset.classes, dataset.spec)
    alone = run(
        test_only,
        model,
        tmp_path / "b",
        spec=EvaluationSpec(probes=("zero_shot",), unseen_triggers=1),
        trigger=GridTriggerSpec(size_px=5),
        target_label=1,
    )
    assert alone == {
        name: value for name, value in with_training.items() if name.split("/")[-1] not in ("knn", "linear_100")
    }
    assert {name.split("/")[1] for name in alone} == {"clean", "triggered", "unseen_trigger"}
    assert "attack_success_rate/triggered/zero_shot" in alone
    assert "z_score_sd/triggered/features" in alone
    with pytest.raises(DataError, match="no train images"):
        run(test_only, model, tmp_path / "c")
    similarity = pq.read_table(tmp_path / "b" / "similarity.parquet")
    assert similarity.schema == SIMILARITY
    pairs = similarity.group_by("condition").aggregate([("num_pairs", "sum")]).to_pylist()
    assert {row["condition"]: row["num_pairs_sum"] for row in pairs} == {
        "clean": 190,
        "triggered": 190,
        "clean_same_label": 115,
    }


def test_images_without_captions_leave_retrieval_out(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    nulls = pa.nulls(dataset.samples.num_rows, pa.string())
    index = dataset.samples.column_names.index("caption")
    bare = Dataset(dataset.folder, dataset.samples.set_column(index, "caption", nulls), CLASSES, dataset.spec)
    assert not any(name.endswith("retrieval") for name in run(bare, model, tmp_path))


def test_a_second_evaluation_gives_the_same_bytes(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(dataset, model, tmp_path / name, targets=TARGETS_SPEC)
    files = sorted(file.name for file in (tmp_path / "a").glob("*.parquet"))
    assert files == ["measurements.parquet", "predictions.parquet", "similarity.parquet", "targets.parquet"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_does_not_fit_is_refused(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    resnet = tmp_path / "resnet"
    resnet.mkdir()
    save_backbone(build_backbone(ResNetSpec(depth=8, width=4, stem="small"), 1, 0), 1, resnet)
    with pytest.raises(SpecError, match="zero_shot needs a model with a text tower"):
        run(dataset, resnet, tmp_path / "out")
    with pytest.raises(SpecError, match=r"num_targets asks for 21 .* 20 labelled"):
        run(dataset, model, tmp_path / "out", targets=TargetsSpec(num_targets=21))
