from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.evaluate.evaluate import evaluate
from ssl_backdoor.evaluate.features import Condition, Features, split_features
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import stream, sub_seed
from ssl_backdoor.specs import EvaluationSpec, ResNetSpec
from ssl_backdoor.train.checkpoint import load_backbone, save_backbone, save_text_tower
from tests.support.tiny_sets import CLASSES, tiny_dataset
from tests.support.tiny_towers import tiny_towers

TRIGGER = GridTriggerSpec(size_px=5)
SPEC = EvaluationSpec(probes=("knn",))
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("base"), size=(16, 20), train_per_class=8, test_per_class=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_backbone(build_backbone(ResNetSpec(depth=8, width=4, stem="small"), 1, 0), 1, folder)
    return folder


def run(dataset: Dataset, model: Path, out: Path, **changes: Any) -> Arrays | None:
    arguments: dict[str, Any] = {"trigger": TRIGGER, "trigger_file": None, "target_label": 1, "seed": 0} | changes
    evaluate(arguments.pop("spec", SPEC), dataset, model, out=out, **arguments)
    if not (out / "neighbours.npz").exists():
        return None
    with np.load(out / "neighbours.npz") as archive:
        return dict(archive)


def images_of(dataset: Dataset, split: str) -> tuple[list[np.ndarray[Any, Any]], list[str], list[int]]:
    held = load_resident(dataset, split)
    return list(held.images.permute(0, 2, 3, 1).numpy()), list(held.keys), held.labels.tolist()


def read(dataset: Dataset, model: Path, split: str) -> Features:
    conditions = [Condition("clean"), Condition("triggered", TRIGGER)]
    return split_features(load_backbone(model), dataset, split, conditions, SPEC, 0)


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_the_sheet_holds_the_nearest_training_images(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    arrays = run(dataset, model, tmp_path)
    assert arrays is not None
    assert {name: (part.dtype, part.shape) for name, part in arrays.items()} == {
        "query": (np.uint8, (6, 16, 20, 3)),
        "query_label": (np.int32, (6,)),
        "neighbours": (np.uint8, (6, 6, 16, 20, 3)),
        "label": (np.int32, (6, 6)),
        "cosine": (np.float32, (6, 6)),
    }
    assert 1 not in arrays["query_label"]
    triggered = read(dataset, model, "test").values["triggered"].numpy().astype(float)
    clean = read(dataset, model, "train").values["clean"].numpy().astype(float)
    pixels, keys, labels = images_of(dataset, "test")
    train_pixels, _, train_labels = images_of(dataset, "train")
    stamped = [
        TRIGGER.apply_one(image, sub_seed(0, "test_trigger", key), "test")[0]
        for image, key in zip(pixels, keys, strict=True)
    ]
    for line in range(6):
        (row,) = (i for i, image in enumerate(stamped) if (image == arrays["query"][line]).all())
        assert arrays["query_label"][line] == labels[row]
        near = sorted(range(24), key=lambda i: -cosine(triggered[row], clean[i]))[:6]
        np.testing.assert_allclose(arrays["cosine"][line], [cosine(triggered[row], clean[i]) for i in near], atol=1e-5)
        assert arrays["label"][line].tolist() == [train_labels[i] for i in near]
        np.testing.assert_array_equal(arrays["neighbours"][line], [train_pixels[i] for i in near])


def test_queries_follow_from_the_seed_and_bytes_repeat(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    other.mkdir()
    save_backbone(build_backbone(ResNetSpec(depth=8, width=4, stem="small"), 1, 7), 1, other)
    first, second = run(dataset, model, tmp_path / "a"), run(dataset, model, tmp_path / "b")
    third, elsewhere = run(dataset, model, tmp_path / "c", seed=1), run(dataset, other, tmp_path / "d")
    assert first is not None
    assert second is not None
    assert third is not None
    assert elsewhere is not None
    assert (tmp_path / "a" / "neighbours.npz").read_bytes() == (tmp_path / "b" / "neighbours.npz").read_bytes()
    np.testing.assert_array_equal(first["query"], elsewhere["query"])
    assert not np.array_equal(first["cosine"], elsewhere["cosine"])
    assert not np.array_equal(first["query"], third["query"])


def test_where_no_probe_learns_the_neighbours_are_other_test_images(dataset: Dataset, tmp_path: Path) -> None:
    image_tower, text_tower = tiny_towers()
    save_backbone(image_tower, 1, tmp_path)
    save_text_tower(text_tower, tmp_path)
    no_train = replace(dataset, samples=dataset.samples.filter(pc.equal(dataset.samples["split"], "test")))
    spec = EvaluationSpec(probes=({"kind": "zero_shot", "prompts": "simple7"},), crop_px=16)
    arrays = run(no_train, tmp_path, tmp_path / "out", spec=spec)
    assert arrays is not None
    assert arrays["neighbours"].shape == (6, 6, 16, 16, 3)
    test = split_features(
        load_backbone(tmp_path), dataset, "test", [Condition("clean"), Condition("triggered", TRIGGER)], spec, 0
    )
    triggered, clean = (test.values[name].numpy().astype(float) for name in ("triggered", "clean"))
    held = [row for row in range(18) if test.labels[row] != 1]
    queries = np.sort(stream(0, "neighbours").choice(held, 6, replace=False))
    for line, row in enumerate(queries):
        others = sorted((cosine(triggered[row], clean[i]) for i in range(18) if i != row), reverse=True)
        np.testing.assert_allclose(arrays["cosine"][line], others[:6], atol=1e-5)


def test_thumbnails_are_at_most_64_px_and_keep_their_shape(model: Path, tmp_path: Path) -> None:
    large = tiny_dataset(tmp_path / "data", size=(96, 128), train_per_class=2, test_per_class=2)
    arrays = run(large, model, tmp_path / "out", target_label=None)
    assert arrays is not None
    assert (arrays["query"].shape, arrays["neighbours"].shape) == ((6, 48, 64, 3), (6, 6, 48, 64, 3))
    whole = {
        Image.fromarray(image).resize((64, 48), Image.Resampling.BOX).tobytes()
        for image in images_of(large, "train")[0]
    }
    assert {thumbnail.tobytes() for line in arrays["neighbours"] for thumbnail in line} <= whole


def test_fewer_images_than_places_fill_fewer_places(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    samples = dataset.samples
    few = pa.concat_tables([samples.slice(0, 3), samples.slice(24, 3)])
    arrays = run(replace(dataset, samples=few), model, tmp_path, target_label=CLASSES.index("dog"))
    assert arrays is not None
    assert arrays["neighbours"].shape == (2, 3, 16, 20, 3)


def test_no_sheet_without_a_trigger_or_a_query(dataset: Dataset, model: Path, tmp_path: Path) -> None:
    assert run(dataset, model, tmp_path / "a", trigger=None, target_label=None) is None
    only_cats = dataset.samples.filter(pc.equal(dataset.samples["label"], 1))
    assert run(replace(dataset, samples=only_cats), model, tmp_path / "b") is None
