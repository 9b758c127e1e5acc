from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate import layers
from ssl_backdoor.evaluate.evaluate import evaluate
from ssl_backdoor.evaluate.features import Condition, labelled
from ssl_backdoor.evaluate.layers import Layer, layer_readings, pooled
from ssl_backdoor.evaluate.probes import labelled_subset, linear_on_map, predict
from ssl_backdoor.evaluate.read import EvaluationInputs
from ssl_backdoor.methods.backbones import ResNet
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.progress import Progress
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import EvaluationSpec, ResNetSpec
from ssl_backdoor.train.checkpoint import save_backbone
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_towers import tiny_towers

SPEC = EvaluationSpec(probes=("linear_layers",), label_fractions=(0.5, 1.0))
CONDITIONS = [Condition("clean"), Condition("triggered", GridTriggerSpec(size_px=5))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(
        tmp_path_factory.mktemp("base"), size=(16, 16), train_per_class=8, test_per_class=6, separable=True
    )


def resnet(depth: int = 8, width: int = 4) -> ResNet:
    backbone = build_backbone(ResNetSpec.model_validate({"depth": depth, "width": width, "stem": "small"}), 1, 0)
    assert isinstance(backbone, ResNet)
    return backbone.eval()


# -------------------------------------------------------------------------- the features of a layer


@pytest.mark.parametrize(
    ("channels", "side", "expected"),
    [(64, 112, 12), (64, 56, 12), (128, 28, 8), (256, 14, 6), (512, 7, 4), (16, 16, 16), (16, 8, 8), (2048, 7, 2)],
)
def test_the_grids_are_the_papers_and_no_wider_than_the_map(channels: int, side: int, expected: int) -> None:
    assert pooled(torch.zeros(1, channels, side, side)).shape == (1, channels * expected**2)


def test_pooling_is_the_mean_of_each_cell() -> None:
    maps = torch.from_numpy(stream(0, "maps").normal(0, 1, (2, 1024, 6, 9))).float()
    expected = maps.numpy().reshape(2, 1024, 3, 2, 3, 3).mean(axis=(3, 5))
    np.testing.assert_allclose(pooled(maps[:, :, :, :]).numpy(), expected.reshape(2, -1), atol=1e-6)


def test_the_last_layers_mean_is_the_backbones_feature() -> None:
    backbone = resnet(depth=10)
    images = torch.from_numpy(stream(0, "images").normal(0, 1, (3, 3, 16, 16))).float()
    dims = []
    with torch.inference_mode():
        for index in range(5):
            features = Layer(backbone, index)(images)
            dims.append(features.shape[1])
        torch.testing.assert_close(features.view(3, 32, -1).mean(2), backbone(images))
    assert dims == [4 * 16**2, 4 * 16**2, 8 * 8**2, 16 * 4**2, 32 * 2**2]


def test_the_stem_is_read_before_its_max_pool() -> None:
    backbone = build_backbone(ResNetSpec(depth=18, width=4), 1, 0).eval()
    assert isinstance(backbone, ResNet)
    maps: list[Tensor] = []
    backbone.maxpool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    images = torch.from_numpy(stream(0, "images").normal(0, 1, (2, 3, 32, 32))).float()
    with torch.inference_mode():
        backbone(images)
        assert torch.equal(Layer(backbone, 0)(images), maps[0].flatten(1))


# -------------------------------------------------------------------------- the probes


def test_each_layer_gives_a_probe_a_fraction(dataset: Dataset, tmp_path: Path) -> None:
    save_backbone(resnet(), 1, tmp_path)
    heard: list[Progress] = []
    spec = EvaluationSpec(probes=("knn", "linear_layers"), label_fractions=(0.5, 1.0), unseen_triggers=1)
    evaluate(
        spec,
        dataset,
        tmp_path,
        trigger=CONDITIONS[1].trigger,
        trigger_file=None,
        target_label=1,
        out=tmp_path / "out",
        seed=0,
        on_progress=heard.append,
    )
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet")
    names = ["knn", *(f"linear_layer{index}_{percent}" for index in range(4) for percent in (50, 100))]
    assert list(dict.fromkeys(predictions["probe"].to_pylist())) == names
    assert predictions.num_rows == 18 * 3 * len(names)
    assert {p.unit: (p.done, p.total) for p in heard}["layers"] == (4, 4)
    measured = pq.read_table(tmp_path / "out" / "measurements.parquet").to_pylist()
    accuracy = {row["probe"]: row["value"] for row in measured if row["name"] == "accuracy"}
    assert accuracy["linear_layer3_100"] > 0.5  # colours alone tell the three classes


def test_a_probe_learns_on_its_layer_and_its_share_of_the_labels(dataset: Dataset) -> None:
    backbone = resnet()
    samples = labelled(dataset, "train")
    half = labelled_subset(samples["key"], samples["label"].to_numpy(), 0.5, 3)
    everything = np.arange(samples.num_rows)
    with torch.inference_mode():
        for index, reading in enumerate(layer_readings(EvaluationInputs(backbone, dataset, CONDITIONS, SPEC, 3))):
            full = SPEC.model_copy(update={"label_fractions": (1.0,)})
            train = layers.split_features(Layer(backbone, index), dataset, "train", CONDITIONS[:1], full, 3)
            clean = train.values["clean"]
            test = reading.test.values["triggered"]
            for probe, rows in zip(reading.probes, (half, everything), strict=True):
                expected = linear_on_map(clean[rows], train.labels[rows], 3, 3, f"linear_layer{index}")
                assert torch.equal(predict(probe.scores, test, 3), predict(expected, test, 3))
    assert index == 3


def test_only_the_labelled_share_is_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    split_features = layers.split_features

    def counted(part: Layer, images: Dataset, split: str, *rest: object) -> object:
        counts.append(labelled(images, split).num_rows)
        read: Callable[..., object] = split_features
        return read(part, images, split, *rest)

    monkeypatch.setattr(layers, "split_features", counted)
    spec = SPEC.model_copy(update={"label_fractions": (0.25, 0.125)})
    next(iter(layer_readings(EvaluationInputs(resnet(), dataset, CONDITIONS, spec, 0))))
    assert counts == [6, 18]


# -------------------------------------------------------------------------- what is not done


def test_other_backbones_are_refused_before_anything_is_read(dataset: Dataset) -> None:
    elsewhere = replace(dataset, folder=dataset.folder / "gone")
    with pytest.raises(SpecError, match="and this backbone is of class ImageTower: leave linear_layers out"):
        layer_readings(EvaluationInputs(tiny_towers()[0], elsewhere, CONDITIONS, SPEC, 0))


def test_features_over_the_limit_are_refused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 training images, and 18 test images under each of two conditions."""
    monkeypatch.setattr(layers, "_MAX_BYTES", 60 * 4 * 9216)
    layer_readings(EvaluationInputs(resnet(), dataset, CONDITIONS, SPEC, 0))
    monkeypatch.setattr(layers, "_MAX_BYTES", 60 * 4 * 9216 - 1)
    with pytest.raises(SpecError, match=r"of 60 images, over the limit.*lower evaluation\.label_fractions"):
        layer_readings(EvaluationInputs(resnet(), dataset, CONDITIONS, SPEC, 0))
