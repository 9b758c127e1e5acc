"""Filters and detectors around a pool that tells nothing; what a filter leaves out is not trained on."""

import dataclasses
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.data.rows import rows_of
from ssl_backdoor.defences.trusted import select
from ssl_backdoor.detection.pool import Detection, Pool, Verdicts
from ssl_backdoor.detection.run import detect, filter_samples
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022BackdoorSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.craft import poison
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import Detector, Filter
from ssl_backdoor.specs.family import forget
from tests.support.tiny_sets import tiny_dataset

TRIGGER = GridTriggerSpec(size_px=6)
SEEN: list[torch.Tensor] = []


@pytest.fixture(scope="module", autouse=True)
def _members_of_this_file_alone():
    yield
    forget(__name__)


def brightness(pool: Pool) -> torch.Tensor:
    SEEN[:] = list(pool.batches())
    return torch.cat([images.float().mean((1, 2, 3)) for images in SEEN])


class BrightestSpec(Filter):
    kind: Literal["test_brightest"] = "test_brightest"
    count: int = 3

    def judge(self, pool: Pool, encoder: Path | None, seed: int, on_progress: Any) -> Verdicts:
        scores = brightness(pool)
        return Verdicts(scores, scores.argsort(descending=True).argsort() < self.count)


class BrightSpec(Detector):
    kind: Literal["test_bright"] = "test_bright"
    level: ClassVar[Any] = "input"
    forgets: int = 0

    def detect(self, pool: Pool, encoder: Path, seed: int, on_progress: Any) -> Detection:
        scores = brightness(pool)
        return Detection(scores[self.forgets :], None, "none", 0)


class BrightSampleSpec(BrightSpec):
    kind: Literal["test_bright_sample"] = "test_bright_sample"
    level: ClassVar[Any] = "sample"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("base"), train_per_class=10)


@pytest.fixture(scope="module")
def overlay(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    folder = tmp_path_factory.mktemp("poison")
    attack = Carlini2022BackdoorSpec(trigger=TRIGGER, target_class="cat", num_poisons=4, captions="imagenet80")
    poison(attack, dataset, folder, 0)
    return Overlay(folder, pq.read_table(folder / "overlay.parquet"))


def test_a_filter_s_verdicts_are_those_of_the_samples_it_saw(dataset: Dataset, overlay: Overlay, tmp_path: Path):
    summary = filter_samples(BrightestSpec(), dataset, overlay, None, tmp_path, 5, "cpu")
    table = pq.read_table(tmp_path / "filtered.parquet")
    images = load_resident(dataset, "train", overlay).images
    expected = images.float().mean((1, 2, 3)).double().numpy()
    assert table["key"].to_pylist() == rows_of(dataset, "train", overlay)["key"].to_pylist()
    np.testing.assert_allclose(table["score"].to_numpy(), expected)
    brightest = set(np.argsort(-expected)[:3].tolist())
    assert set(np.flatnonzero(table["is_left_out"].to_numpy()).tolist()) == brightest
    assert summary["num_samples"] == 34
    assert summary["num_left_out"] == 3


def test_the_pool_is_in_another_order_than_the_samples(dataset: Dataset, overlay: Overlay, tmp_path: Path):
    orders = []
    for seed in (0, 0, 1):
        filter_samples(BrightestSpec(), dataset, overlay, None, tmp_path, seed, "cpu")
        orders.append(torch.cat(SEEN).clone())
    images = load_resident(dataset, "train", overlay).images
    assert not torch.equal(orders[0], images)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert orders[0].sum() == images.sum()


class PointsSpec(Filter):
    """Every sample's number in the pool; all that is not vouched for goes."""

    kind: Literal["test_points"] = "test_points"
    trusted_fraction: float = 0.5
    card: ClassVar[Any] = {"score": "place"}

    @property
    def uses_trusted(self) -> bool:
        return True

    def judge(self, pool: Pool, encoder: Path | None, seed: int, on_progress: Any) -> Verdicts:
        SEEN[:] = [pool.vouched, pool.trusted, torch.cat(list(pool.batches()))]
        goes = torch.ones(len(pool), dtype=torch.bool)
        goes[pool.vouched] = False
        scores = torch.arange(len(pool)).double()
        scores[0] = torch.nan
        return Verdicts(scores, goes)


def test_trusted_samples_are_clean_and_half_of_them_are_for_p_values(
    dataset: Dataset, overlay: Overlay, tmp_path: Path
):
    summary = filter_samples(PointsSpec(), dataset, overlay, None, tmp_path, 1, "cpu")
    vouched, trusted, images = SEEN
    assert (len(vouched), len(trusted), summary["num_references"]) == (15, 7, 8)  # half of the 30 clean ones
    assert set(trusted.tolist()) < set(vouched.tolist())
    table = pq.read_table(tmp_path / "filtered.parquet")
    keys = table["key"].to_pylist()
    assert not any(
        key.startswith("poison-") for key in table.filter(pc.invert(table["is_left_out"]))["key"].to_pylist()
    )
    assert len(trusted_keys := set(select(dataset.samples, 0.5, 1)["key"].to_pylist())) == 15
    # p-values: none of the trusted, none without a score, else by counting the references.
    assert {key for key, p in zip(keys, table["p_value"].to_pylist(), strict=True) if p is None} >= trusted_keys
    scores = dict(zip(keys, table["score"].to_pylist(), strict=True))
    references = set(vouched.tolist()) - set(trusted.tolist()) - {0}  # row 0 has no score
    for key, p in zip(keys, table["p_value"].to_pylist(), strict=True):
        if p is not None:
            assert p == (1 + sum(one >= scores[key] for one in references)) / (1 + len(references))
    assert (summary["card"], summary["num_scored"]) == ({"score": "place"}, 33)
    assert len(images) == 34


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_a_filter_that_uses_trusted_samples_needs_some(dataset: Dataset, tmp_path: Path, fraction: float):
    with pytest.raises(SpecError, match="needs 4 trusted images, found"):
        filter_samples(PointsSpec(trusted_fraction=fraction), dataset, None, None, tmp_path, 0, "cpu")


def test_a_poisoned_sample_is_never_trusted(dataset: Dataset, tmp_path: Path):
    attack = Saha2022TargetedSpec(trigger=TRIGGER, target_class="cat", poison_fraction_of_target=1.0)
    poison(attack, dataset, tmp_path / "poison", 0)
    replaced = Overlay(tmp_path / "poison", pq.read_table(tmp_path / "poison" / "overlay.parquet"))
    filter_samples(PointsSpec(trusted_fraction=1.0), dataset, replaced, None, tmp_path, 0, "cpu")
    assert len(SEEN[0]) == 20  # of 30 images, 10 of them cats
    left_out = pq.read_table(tmp_path / "filtered.parquet").filter(pc.field("is_left_out"))["key"].to_pylist()
    assert left_out == replaced.rows["key"].to_pylist()


class MeanOfFileSpec(Filter):
    """Of the pixels in each sample's file."""

    kind: Literal["test_mean_of_file"] = "test_mean_of_file"

    def judge(self, pool: Pool, encoder: Path | None, seed: int, on_progress: Any) -> Verdicts:
        means = pool.map_files(lambda data: float(np.asarray(Image.open(BytesIO(data)).convert("RGB")).mean()))
        return Verdicts(torch.tensor(means), torch.zeros(len(pool), dtype=torch.bool))


def test_a_file_is_that_of_its_image(dataset: Dataset, overlay: Overlay, tmp_path: Path):
    filter_samples(MeanOfFileSpec(), dataset, overlay, None, tmp_path, 2, "cpu")
    images = load_resident(dataset, "train", overlay).images
    found = pq.read_table(tmp_path / "filtered.parquet")["score"].to_numpy()
    np.testing.assert_allclose(found, images.float().mean((1, 2, 3)), atol=1e-3)


def test_a_perfect_filter_leaves_the_clean_data(dataset: Dataset, overlay: Overlay):
    """All poisons gone: what is trained on is the base."""
    nothing = dataclasses.replace(overlay, rows=overlay.rows.slice(0, 0))
    kept = load_resident(dataset, "train", nothing)
    assert torch.equal(kept.images, load_resident(dataset, "train").images)


def test_a_filter_that_leaves_nothing_is_refused(dataset: Dataset, tmp_path: Path):
    with pytest.raises(SpecError, match="leaves out all 30 training samples"):
        filter_samples(BrightestSpec(count=30), dataset, None, None, tmp_path, 0, "cpu")
    assert not (tmp_path / "filtered.parquet").exists()


def test_inputs_are_the_test_images_with_and_without_the_trigger(dataset: Dataset, tmp_path: Path):
    detect(BrightSpec(), dataset, None, tmp_path, TRIGGER, None, tmp_path, 0, "cpu")
    table = pq.read_table(tmp_path / "detections.parquet")
    keys = rows_of(dataset, "test")["key"].to_pylist()
    assert table["key"].to_pylist() == keys * 2
    assert table["is_positive"].to_pylist() == [False] * len(keys) + [True] * len(keys)
    clean = load_resident(dataset, "test").images.float().mean((1, 2, 3)).double().numpy()
    np.testing.assert_allclose(table["score"].to_numpy()[: len(keys)], clean)
    assert (table["score"].to_numpy()[len(keys) :] != clean).any()
    assert table["p_value"].null_count == table.num_rows


def test_samples_are_compared_with_the_plan(dataset: Dataset, overlay: Overlay, tmp_path: Path):
    detect(BrightSampleSpec(), dataset, overlay, tmp_path, None, None, tmp_path, 0, "cpu")
    table = pq.read_table(tmp_path / "detections.parquet")
    positive = table.filter(table["is_positive"])["key"].to_pylist()
    assert positive == overlay.rows["key"].to_pylist()
    assert pq.read_table(tmp_path / "measurements.parquet")["name"].to_pylist() == ["detection_auroc"]
    assert pc.all(pa.array([key.startswith("poison-") for key in positive])).as_py()


@pytest.mark.parametrize(
    ("detector", "trigger", "sentence"),
    [
        (BrightSpec(), None, "judges inputs under a trigger, and the attack has none"),
        (BrightSpec(forgets=1), TRIGGER, "is to say something of each of 24, found 23"),
    ],
)
def test_what_cannot_be_meant_is_refused(dataset, tmp_path, detector, trigger, sentence):
    with pytest.raises(SpecError, match=sentence):
        detect(detector, dataset, None, tmp_path, trigger, None, tmp_path, 0, "cpu")
