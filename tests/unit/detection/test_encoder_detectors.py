"""Detectors of encoders: statistics against slow oracles, the published traps, the null of siblings."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from ssl_backdoor.detection import inversion
from ssl_backdoor.detection.collapse import (
    CollapseSpec,
    SuspectedTriggerSpec,
    cluster_centres,
    stamped_by_patches,
    stands_out,
    top_share,
)
from ssl_backdoor.detection.decree import DECREESpec, Weight
from ssl_backdoor.detection.measure import rank_among
from ssl_backdoor.detection.pool import Detection
from ssl_backdoor.detection.run import detect
from ssl_backdoor.detection.ssl_cleanse import SSLCleanseSpec, anomaly_index, reached
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.losses import mean_pairwise_cosine
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import Detector
from ssl_backdoor.specs.family import forget
from tests.support.backdoors import SIDE_PX, save_fresh, tiny_pool
from tests.support.tiny_sets import tiny_dataset

NAN = float("nan")
torch.set_num_threads(1)  # two threads of tiny work wait for each other on a busy machine


@pytest.fixture(scope="module", autouse=True)
def _members_of_this_file_alone():
    yield
    forget(__name__)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fresh(tmp_path_factory.mktemp("encoder"))


class Corner:
    """Stands for a backdoored encoder: white in the lower right corner leads all images to one feature."""

    device = "cpu"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        own = F.adaptive_avg_pool2d(images, 3).flatten(1) - 0.5
        weight = 20 * images[:, :, -2:, -2:].mean((1, 2, 3), keepdim=True).flatten(1) ** 8
        return F.normalize(own + weight * torch.eye(own.shape[1])[0], dim=1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self(images)


class Plain(Corner):
    """The same without a backdoor."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.adaptive_avg_pool2d(images, 3).flatten(1) - 0.5, dim=1)


@pytest.mark.parametrize(("score", "null", "expected"), [
    (2.0, [], None),
    (2.0, [1.0, 1.5, 1.9], 1 / 4),
    (2.0, [1.0, 2.0, 3.0], 3 / 4),
    (0.0, [1.0, 2.0, 3.0], 1.0),
    (NAN, [1.0, 2.0, NAN], 1.0),
    (2.0, [NAN, NAN, 3.0], 2 / 4),
    (1.0, [0.0] * 19, 1 / 20),
])  # fmt: skip
def test_a_p_value_is_the_rank_among_siblings(score: float, null: list[float], expected: float | None):
    assert rank_among(score, null) == expected


def test_ranks_of_clean_encoders_among_clean_siblings_are_uniform():
    scores = np.random.default_rng(0).normal(size=(4000, 20))
    found = np.array([rank_among(row[0], row[1:].tolist()) for row in scores])
    counts = np.bincount(np.rint(found * 20).astype(int), minlength=21)[1:]
    assert counts.sum() == 4000
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


def test_the_mean_pairwise_cosine_is_that_of_a_loop():
    features = torch.randn(7, 4, generator=torch_generator(0, "features"))
    unit = F.normalize(features, dim=1)
    slow = np.mean([float(unit[i] @ unit[j]) for i in range(7) for j in range(7) if i != j])
    assert float(mean_pairwise_cosine(features)) == pytest.approx(slow, abs=1e-6)


def test_how_far_the_largest_stands_out_is_robust():
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0])
    assert stands_out(values) == pytest.approx((5.0 - 0.3) / (1.4826 * 0.1), rel=1e-5)


def test_patches_are_of_four_styles_and_four_areas_and_cover_nothing_else():
    pool = tiny_pool(40)
    images = inversion.split(pool, 20, 0, 2)
    sizes: dict[int, set[int]] = {}
    for number, stamped in enumerate(stamped_by_patches(images, 32, 0)):
        changed = (stamped != images.search).any(1)
        rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
        sizes.setdefault(number // 4 % 4, set()).add(int(torch.stack([rows, columns]).max()))
        assert float(stamped.min()) >= 0
        assert float(stamped.max()) <= 1
    assert [max(of) for of in sizes.values()] == [1, 2, 3, 4]  # of 12 px: areas of 1, 2, 5 and 10 %
    first, again = (next(stamped_by_patches(images, 1, 0)) for _ in range(2))
    assert torch.equal(first, again)


def test_search_and_check_images_are_apart_and_too_few_are_refused():
    images = inversion.split(tiny_pool(40), 15, 0, 2)
    together = torch.cat([images.search, images.held_out]).flatten(1)
    assert len(together.unique(dim=0)) == 30
    with pytest.raises(SpecError, match="needs 4 images or more"):
        inversion.split(tiny_pool(3), 15, 0, 2)


def search_of(model: Any, **changes: Any) -> Any:
    """DECREE's on a model that stands for an encoder: candidates by area, successes, images."""
    images = inversion.split(tiny_pool(64), 32, 0, 2)
    spec = DECREESpec(**({"num_starts": 1, "steps": 100, "batch_size": 16} | changes))
    return (*spec.search(model, images.search, 0, 0, {}), images)


def test_decree_finds_the_corner_and_its_smallest_mask_holds_on_other_images():
    by_area, successes, images = search_of(Corner())
    smallest = successes[0]
    assert smallest.area == min(one.area for one in successes)
    assert smallest.mask[-2:, -2:].mean() > 5 * smallest.mask[:-2, :-2].mean()
    assert inversion.collapse_of(Corner(), smallest, images.held_out) > 0.98
    curve = [one.collapse for _, one in sorted(by_area.items())]
    assert curve == sorted(curve)
    assert all(one.area <= area for area, one in by_area.items())
    _, of_plain, _ = search_of(Plain())
    assert smallest.area < 0.5 * min([1.0, *(one.area for one in of_plain)])


def test_decree_s_weight_follows_the_paper_s_rule():
    weight = Weight()
    seen = []
    for is_success in [True] * 6 + [False] * 12:
        weight.update(is_success)
        seen.append(weight.value)
    assert seen[4] == 1e-3
    assert seen[5] == pytest.approx(5e-3)
    assert seen[11] == pytest.approx(1e-3)
    assert seen[17] == pytest.approx(2e-4)
    weight.value = 9e-8
    for _ in range(11):
        weight.update(True)
    assert weight.value == 1e-3
    for _ in range(60):
        weight.update(False)
    assert 1e-8 < weight.value < 1e-7  # below the least it stays


def card_of(spec: Any, encoder: Path, count: int = 40) -> Detection:
    return spec.detect(tiny_pool(count), encoder, 0, lambda _: None)


def test_decree_s_divisor_as_published_gives_three_times_the_share_of_pixels(encoder: Path):
    fields: dict[str, Any] = {"num_starts": 1, "steps": 12, "batch_size": 8, "held_out": -1.0}
    ours = card_of(DECREESpec(**fields), encoder)
    published = card_of(DECREESpec(**fields, divisor="as_published"), encoder)
    assert ours.card["divisor"] == f"{SIDE_PX} x {SIDE_PX} pixels"
    assert "three channels" in published.card["divisor"]
    area = min(one for one in ours.card["areas"] if one is not None)
    assert float(ours.scores[0]) == pytest.approx(-area)
    assert float(published.scores[0]) == pytest.approx(-3 * area)
    assert 0 < area <= 1  # a threshold of 0.1 means two things under the two divisors


def test_nothing_found_is_no_large_number(encoder: Path):
    never = DECREESpec(num_starts=1, steps=3, batch_size=8, held_out=1.0)
    found = card_of(never, encoder)
    assert torch.isnan(found.scores).all()
    assert found.card["areas"] == [None]
    assert found.p_values is None
    assert "no p-value possible" in found.null


def test_ssl_cleanse_s_index_is_one_sided_and_corrects_once():
    from scipy import stats

    sizes = [0.30, 0.32, 0.29, 0.31, 0.33, 0.02]
    mad = stats.median_abs_deviation(sizes, scale="normal")  # 1.4826 times the raw one
    assert anomaly_index(sizes) == pytest.approx((np.median(sizes) - 0.02) / mad, rel=1e-3)
    assert anomaly_index(sizes, "as_published") == pytest.approx(0.6745 * anomaly_index(sizes), rel=1e-6)
    hard_to_reach = [0.30, 0.32, 0.29, 0.31, 0.33, 0.90]
    assert anomaly_index(hard_to_reach) < 2
    assert anomaly_index(hard_to_reach, "as_published") > 2


def test_ssl_cleanse_s_success_is_that_of_the_nearest_image():
    generator = torch_generator(0, "nearest")
    found, clean = (F.normalize(torch.randn(n, 3, generator=generator), dim=1) for n in (9, 12))
    members = torch.arange(12) % 3 == 0
    slow = [bool(members[max(range(12), key=lambda j: float(one @ clean[j]))]) for one in found]
    assert reached(found, clean, members) == pytest.approx(np.mean(slow))


def test_a_mask_of_black_pixels_is_not_free_as_published():
    """Published: the regulariser is mean(mask x pattern), which black makes 0 whatever the mask covers."""
    mask, black = torch.ones(4, 4), torch.zeros(3, 4, 4)
    assert float((mask * black).mean()) == 0.0
    assert inversion.Candidate(mask, black, 1.0).area == 1.0


def test_ssl_cleanse_finds_the_cluster_that_the_corner_leads_to():
    images = inversion.split(tiny_pool(64), 32, 0, 2)
    model = Corner()
    white = images.search.clone()
    white[:3, :, -2:, -2:] = 1.0
    clean = model.features(white)
    members = torch.arange(32) < 3
    spec = SSLCleanseSpec(steps=120, batch_size=16)
    found = spec.search(model, white, clean, members, 0, 0)
    assert found is not None
    assert reached(model.features(found.on(images.held_out)), clean, members) > 0.8
    assert spec.search(model, white, clean, torch.zeros(32, dtype=torch.bool), 0, 0) is None


def test_the_share_of_the_top_cluster_is_counted():
    centres = torch.eye(3)
    features = F.normalize(torch.tensor([[1.0, 0.2, 0], [1, 0, 0.1], [0, 1, 0], [0.9, 0, 0]]), dim=1)
    assert top_share(features, centres) == 0.75
    assert cluster_centres(features, 0, 2).shape == (2, 3)


@pytest.mark.parametrize("spec", [
    DECREESpec(num_starts=2, steps=8, batch_size=8),
    CollapseSpec(num_patches=16, num_images=16),
    SSLCleanseSpec(num_clusters=3, steps=6, batch_size=8),
    SuspectedTriggerSpec(trigger=GridTriggerSpec(size_px=4), num_patches=19, num_images=16),
], ids=lambda spec: spec.kind)  # fmt: skip
def test_each_is_a_pure_function_with_a_card(spec: Any, encoder: Path):
    first, again = (card_of(spec, encoder, 20) for _ in range(2))
    assert torch.equal(first.scores.nan_to_num(), again.scores.nan_to_num())
    assert first.scores.shape == (1,)
    json.dumps(dict(first.card), allow_nan=False)
    assert {"input_range", "normalisation", "divisor", "frame_px", "num_search", "num_held_out"} <= set(first.card)
    assert (first.p_values is None) == (first.null_n == 0)
    assert spec.needs_gradients == (spec.kind in ("decree", "ssl_cleanse"))
    assert spec.reduced[1] >= 1


def test_a_suspected_trigger_is_ranked_among_patterns_of_its_own_style(encoder: Path):
    spec = SuspectedTriggerSpec(trigger=GridTriggerSpec(size_px=4), num_patches=19, num_images=16)
    found = card_of(spec, encoder)
    assert found.p_values is not None
    assert found.null_n == len(found.card["null"]) == 19
    expected = (1 + sum(one >= float(found.scores[0]) for one in np.float32(found.card["null"]))) / 20
    assert float(found.p_values[0]) == pytest.approx(expected)


class ScoresSpec(Detector):
    kind: Literal["test_scores"] = "test_scores"
    level: ClassVar[Any] = "encoder"
    score: float = 2.0
    finds: bool = True

    def detect(self, pool: Any, encoder: Path, seed: int, on_progress: Any) -> Detection:
        told = {"divisor": "144 pixels", "clean_cosine": 0.5}
        return Detection(torch.tensor([self.score if self.finds else NAN]), None, "none", 0, told)


@pytest.mark.parametrize(("spec", "siblings", "expected"), [
    (ScoresSpec(), (), {"detection_found": 1.0, "detection_score": 2.0}),
    (ScoresSpec(), (1.0, 3.0), {"detection_found": 1.0, "detection_score": 2.0, "detection_p_value": 2 / 3}),
    (ScoresSpec(finds=False), (1.0, NAN), {"detection_found": 0.0, "detection_p_value": 1.0}),
])  # fmt: skip
def test_what_is_written_of_an_encoder(spec: Any, siblings: Any, expected: Any, tmp_path: Path):
    dataset = tiny_dataset(tmp_path / "data")
    told = detect(spec, dataset, None, tmp_path, None, None, tmp_path, 0, "cpu", siblings=siblings)
    assert told["measurements"] == expected
    assert told["card"] == {"divisor": "144 pixels", "clean_cosine": 0.5}
    assert told["null_scores"] == [None if np.isnan(one) else one for one in siblings]
    assert told["smallest_p_value"] == (1 / (len(siblings) + 1) if siblings else None)
    definitions = pq.read_table(tmp_path / "measurements.parquet")["definition"].to_pylist()
    assert all("divisor 144 pixels" in text for text in definitions)
    (row,) = pq.read_table(tmp_path / "detections.parquet").to_pylist()
    assert row["score"] == (2.0 if spec.finds else None)
