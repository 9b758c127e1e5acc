from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.errors import CheckpointError, DataError, SpecError
from ssl_backdoor.evaluate.evaluate import evaluate
from ssl_backdoor.evaluate.features import Condition, features, split_features, stamped_batches
from ssl_backdoor.evaluate.metrics import average_unseen, measure_features, measure_predictions, measurements_table
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.progress import Progress
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import EvaluationSpec, ResNetSpec
from ssl_backdoor.tables import MEASUREMENTS, PREDICTIONS
from ssl_backdoor.train.checkpoint import save_backbone
from tests.support.tiny_sets import tiny_dataset

TRIGGER = GridTriggerSpec(size_px=5)
SPEC = EvaluationSpec(
    probes=({"kind": "knn", "neighbours": 3}, "linear", "linear_sgd"), label_fractions=(0.5, 1.0), unseen_triggers=2
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(
        tmp_path_factory.mktemp("base"), size=(16, 16), train_per_class=8, test_per_class=6, separable=True
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_backbone(build_backbone(ResNetSpec(depth=8, width=4, stem="small"), 1, 0), 1, folder)
    return folder


def run(dataset: Dataset, model: Path, out: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"trigger": TRIGGER, "trigger_file": None, "target_label": 1, "seed": 0} | changes
    return evaluate(arguments.pop("spec", SPEC), dataset, model, out=out, **arguments)


@pytest.fixture(scope="module")
def whole(dataset: Dataset, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One evaluation as above, for all who only read it: its summary and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return run(dataset, model, folder), folder


def test_the_record_is_complete_and_the_numbers_follow_from_it(
    dataset: Dataset, whole: tuple[dict[str, Any], Path]
) -> None:
    summary, folder = whole
    predictions = pq.read_table(folder / "predictions.parquet")
    measurements = pq.read_table(folder / "measurements.parquet")
    assert (predictions.schema, measurements.schema) == (PREDICTIONS, MEASUREMENTS)
    probes = ["knn", "linear_50", "linear_100", "linear_sgd_50", "linear_sgd_100"]
    assert predictions.num_rows == 18 * 4 * len(probes)
    assert set(predictions["probe"].to_pylist()) == set(probes)
    conditions = {"clean", "triggered", "unseen_trigger_1", "unseen_trigger_2"}
    assert set(predictions["condition"].to_pylist()) == conditions
    again = measurements_table(average_unseen(measure_predictions(predictions, dataset.classes, 1)))
    assert measurements.slice(0, again.num_rows).equals(again)
    rows = measurements.to_pylist()
    assert summary == {"measurements": {f"{r['name']}/{r['condition']}/{r['probe']}": r["value"] for r in rows}}
    assert len(summary["measurements"]) == len(rows)
    assert {r["condition"] for r in rows if r["probe"] == "features"} == {"triggered", "unseen_trigger"}


def test_few_labels_are_drawn_several_times_and_the_spread_is_told(
    dataset: Dataset, model: Path, tmp_path: Path
) -> None:
    spec = EvaluationSpec(
        probes=({"kind": "knn", "neighbours": (1, 5)}, "linear"), label_fractions=(0.05, 1.0), label_subsets=3
    )
    values = run(dataset, model, tmp_path, spec=spec)["measurements"]
    predictions = pq.read_table(tmp_path / "predictions.parquet")
    assert set(predictions["probe"].to_pylist()) == {
        "knn_k1", "knn_k5", "linear_5", "linear_5#2", "linear_5#3", "linear_100"
    }  # fmt: skip
    each = {
        row.probe: row.value
        for row in measure_predictions(predictions, dataset.classes, 1)
        if (row.name, row.condition) == ("target_false_positives", "triggered")
    }
    drawn = [each[name] for name in ("linear_5", "linear_5#2", "linear_5#3")]
    assert values["target_false_positives/triggered/linear_5"] == pytest.approx(np.mean(drawn))
    assert values["label_sd_target_false_positives/triggered/linear_5"] == pytest.approx(np.std(drawn, ddof=1))
    assert values["target_false_positives/triggered/linear_100"] == each["linear_100"]
    assert not any("#" in name or ("label_sd" in name and "linear_100" in name) for name in values)
    rows = pq.read_table(tmp_path / "measurements.parquet").to_pylist()
    (accuracy,) = [r for r in rows if (r["name"], r["condition"], r["probe"]) == ("accuracy", "clean", "linear_5")]
    assert (accuracy["n"], 0 < accuracy["low"] < accuracy["value"] <= accuracy["high"]) == (18, True)
    assert "Mean over 3 draws of the labelled subset" in accuracy["definition"]


def test_probes_find_what_is_there(whole: tuple[dict[str, Any], Path]) -> None:
    values = whole[0]["measurements"]
    assert values["accuracy/clean/knn"] == values["accuracy/clean/linear_100"] == 1.0


def test_a_second_evaluation_gives_the_same_bytes(
    dataset: Dataset, model: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    run(dataset, model, tmp_path)
    for file in ("predictions.parquet", "measurements.parquet"):
        assert (tmp_path / file).read_bytes() == (whole[1] / file).read_bytes()


def test_the_map_pairs_clean_with_triggered(whole: tuple[dict[str, Any], Path]) -> None:
    with np.load(whole[1] / "map.npz") as archive:
        parts = dict(archive)
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == {
        "features": (np.float32, (36, 16)),
        "label": (np.int32, (36,)),
        "triggered": (np.bool_, (36,)),
    }
    assert parts["triggered"].sum() == 18
    np.testing.assert_array_equal(parts["label"][:18], parts["label"][18:])
    z = {row.name: row.value for row in measure_features(parts["features"][:18], parts["features"][18:], "triggered")}
    names, values = (pq.read_table(whole[1] / "measurements.parquet")[c].to_pylist() for c in ("name", "value"))
    assert values[names.index("z_score_sd")] == pytest.approx(z["z_score_sd"])


def test_without_a_trigger_only_clean_images_are_scored(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    values = run(dataset, model, tmp_path, trigger=None, target_label=None)["measurements"]
    assert {name.split("/")[1] for name in values} == {"clean"}
    assert not any(name.startswith(("target", "attack", "z_score")) for name in values)
    with np.load(tmp_path / "map.npz") as archive:
        assert not archive["triggered"].any()


def test_only_the_probes_asked_for_are_trained(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    run(dataset, model, tmp_path, spec=EvaluationSpec(probes=("linear",), label_fractions=(0.125,)))
    assert set(pq.read_table(tmp_path / "predictions.parquet")["probe"].to_pylist()) == {"linear_12.5"}


def test_progress_covers_both_splits_and_the_probes(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    run(dataset, model, tmp_path, on_progress=heard.append)
    assert {p.unit: (p.done, p.total) for p in heard} == {
        "train images": (24, 24),
        "test images": (18, 18),
        "probes": (20, 20),
    }


# -------------------------------------------------------------------------- triggers in the evaluated frame


def test_every_test_image_is_stamped_in_the_evaluated_frame(dataset: Dataset) -> None:
    images = load_resident(dataset, "test", resize_px=12, crop_px=10)
    (batch,) = stamped_batches(images, Condition("triggered", TRIGGER), seed=3)
    for before, after, key in zip(images.images, batch, images.keys, strict=True):
        place = sub_seed(3, "test_trigger", key)
        expected, _ = TRIGGER.apply_one(before.permute(1, 2, 0).numpy(), place, "test")
        np.testing.assert_array_equal(after.permute(1, 2, 0).numpy(), expected)
    assert (load_resident(dataset, "test", resize_px=12, crop_px=10).images == images.images).all()


def test_an_unseen_trigger_lies_in_the_same_boxes(dataset: Dataset) -> None:
    images = load_resident(dataset, "test")
    unseen = GridTriggerSpec(size_px=5, seed=9_999)
    seen_batch, unseen_batch = (next(stamped_batches(images, Condition("x", t), 0)) for t in (TRIGGER, unseen))
    differs = (TRIGGER.render(5) != unseen.render(5)).any(axis=2)
    for seen, other in zip(seen_batch, unseen_batch, strict=True):
        rows, columns = np.nonzero((seen != other).any(dim=0).numpy())
        top, left = rows.min(), columns.min()
        found = np.zeros((5, 5), bool)
        found[rows - top, columns - left] = True
        np.testing.assert_array_equal(
            found[: np.ptp(rows) + 1, : np.ptp(columns) + 1], differs[differs.any(1)][:, differs.any(0)]
        )


class Pixels(nn.Module):
    """A backbone that returns its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return (self.scale * images).flatten(1)


def test_features_keep_the_tables_order_across_chunks(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = [Condition("clean"), Condition("triggered", TRIGGER)]
    whole = split_features(Pixels(), dataset, "test", conditions, SPEC, seed=0)
    monkeypatch.setattr("ssl_backdoor.evaluate.features._CHUNK", 5)
    monkeypatch.setattr("ssl_backdoor.evaluate.features._BATCH", 2)
    pieces = split_features(Pixels(), dataset, "test", conditions, SPEC, seed=0)
    assert (
        whole.keys.to_pylist()
        == pieces.keys.to_pylist()
        == [k for k in dataset.samples["key"].to_pylist() if "test" in k]
    )
    assert whole.labels.tolist() == pieces.labels.tolist() == [0, 1, 2] * 6
    for condition in ("clean", "triggered"):
        assert torch.equal(whole.values[condition], pieces.values[condition])


def test_an_image_trigger_is_read_from_the_kept_copy(
    dataset: Dataset, model: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    from ssl_backdoor.data.images import encode_png

    (tmp_path / "trigger.png").write_bytes(encode_png(np.array(TRIGGER.render(5))))
    gone = ImageTriggerSpec(size_px=5, file=str(tmp_path / "gone.png"))
    values = run(dataset, model, tmp_path / "a", trigger=gone, trigger_file=tmp_path / "trigger.png")["measurements"]
    other = whole[0]["measurements"]  # under unseen triggers of another style
    assert {name: value for name, value in values.items() if "unseen" not in name} == {
        name: value for name, value in other.items() if "unseen" not in name
    }
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        run(dataset, model, tmp_path / "c", trigger=gone)


# -------------------------------------------------------------------------- what is refused


def test_a_dataset_without_a_test_split_is_refused(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test images"):
        run(replace(dataset, samples=dataset.samples.slice(0, 24)), model, tmp_path)


def test_a_dataset_without_labels_is_refused_and_unlabelled_rows_are_skipped(
    dataset: Dataset, model: Path, tmp_path: Path
) -> None:
    index = dataset.samples.column_names.index("label")

    def with_labels(labels: list[int]) -> Dataset:
        column = pa.array(labels, pa.int32())
        return replace(
            dataset, samples=dataset.samples.set_column(index, dataset.samples.schema.field("label"), column)
        )

    labels = dataset.samples["label"].to_pylist()
    with pytest.raises(DataError, match="none of the 24 train images has a label"):
        run(with_labels([-1] * 24 + labels[24:]), model, tmp_path)
    run(with_labels([*labels[:24], -1, *labels[25:]]), model, tmp_path)
    assert len(set(pq.read_table(tmp_path / "predictions.parquet")["key"].to_pylist())) == 17


def test_a_trigger_larger_than_the_evaluated_frame_is_refused(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="17x17 px is larger than the image of 16x16"):
        run(dataset, model, tmp_path, trigger=GridTriggerSpec(size_px=17))


def test_a_trigger_without_other_patterns_is_measured_without_that_control(
    dataset: Dataset, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GridTriggerSpec, "unseen", lambda self, seed: None)
    values = run(dataset, model, tmp_path)
    assert {name.split("/")[1] for name in values["measurements"]} == {"clean", "triggered"}


def test_features_that_are_not_finite_are_refused() -> None:
    broken = Pixels()
    torch.nn.init.constant_(broken.scale, float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        features(broken, iter([torch.zeros(2, 3, 4, 4, dtype=torch.uint8)]))


def test_a_folder_without_a_backbone_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run(dataset, tmp_path, tmp_path / "out")
