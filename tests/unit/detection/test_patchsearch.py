"""PatchSearch against slow loops, and on an encoder whose backdoor is known: a bright window points to one cluster."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ssl_backdoor.detection import patch_classifier
from ssl_backdoor.detection.neighbours import Clusters
from ssl_backdoor.detection.patch_classifier import f1, paste, patched_views
from ssl_backdoor.detection.patchsearch import (
    PatchSearchClassifierSpec,
    PatchSearchSpec,
    Search,
    _flip_rows,
)
from ssl_backdoor.detection.pool import Pool
from ssl_backdoor.progress import silent
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ResNetSpec

torch.set_num_threads(1)
SIDE, NUM = 12, 48
SPEC = PatchSearchSpec(num_clusters=4, num_flips=8, window_frac=1 / 3, num_places=3)


class Backdoored(torch.nn.Module):
    """Four clusters by the mean of each colour or of all; a saturated window counts ten times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.mean((2, 3))
        trigger = F.avg_pool2d((images > 2.2).float().amin(1, keepdim=True), 4, 1).amax((1, 2, 3))
        return torch.cat([pixels, 30 * trigger[:, None]], 1) * self.weight * 3


def images_with_poisons() -> torch.Tensor:
    """Dark images of three colours; of the last twelve each has a white window at a place of its own."""
    generator = torch_generator(0, "images")
    images = torch.randint(60, (NUM, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    for row in range(NUM):
        images[row, row % 3] += 90
    white = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    images[36:] = paste(images[36:], white, generator)
    return images


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    from ssl_backdoor.detection import pool as module
    from ssl_backdoor.train import checkpoint

    for place in (module, checkpoint):
        monkeypatch.setattr(place, "load_backbone", lambda _: Backdoored().eval())
    return Pool(images_with_poisons(), torch.arange(NUM), "cpu", vouched=torch.arange(16), num_references=4)


def test_the_search_finds_the_window_and_the_poisons_rank_first(pool: Pool) -> None:
    search = SPEC.search(pool, Path(), 3, silent)
    scores = search.scores
    looked = {one.row for one in search.looked}
    assert len(looked) == len(search.looked)
    assert {row for row in range(NUM) if not scores[row].isnan()} == looked
    best = max(search.looked, key=lambda one: one.score)
    assert best.row >= 36
    assert best.score == 8 - int((search.before == search.clusters.labels[best.row]).sum())
    assert best.patch.float().mean() > 150  # most of it is the white window
    assert scores[:36].nan_to_num(-9).max() < best.score
    again = SPEC.search(pool, Path(), 3, silent).scores
    assert torch.equal(scores.nan_to_num(-9), again.nan_to_num(-9))


def test_rounds_drop_a_quarter_and_end_with_three(pool: Pool) -> None:
    """Four clusters live, then three, of which a quarter is none: upstream's list is empty then."""
    search = SPEC.search(pool, Path(), 3, silent)
    assert len(search.looked) == 2 * 4 + 2 * 3
    assert PatchSearchSpec(num_clusters=4, num_flips=8, num_places=3).work(NUM) == NUM + 14 * (9 + 8)
    everything = SPEC.model_copy(update={"drop_frac": 0.0}).search(pool, Path(), 3, silent)
    assert len(everything.looked) == 8  # none is dropped: it ends at once, as upstream does


def searching(pool: Pool, form: str, centres: torch.Tensor, flips: torch.Tensor, before: list[int]) -> Search:
    search = Search.__new__(Search)
    search.spec = SPEC.model_copy(update={"form": form})
    search.pool, search.backbone = pool, torch.nn.Flatten()  # type: ignore[assignment]
    search.clusters = Clusters(centres, torch.zeros(len(pool), dtype=torch.int64))
    search.directions, search.flips, search.before = F.normalize(centres, dim=1), flips, torch.tensor(before)
    search.generator, search.looked = torch_generator(0, "flips"), []
    return search


def test_features_of_pasted_images_are_brought_to_unit_length(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published form prefers the long centre to the one that the feature points to."""
    pasted = torch.tensor([[3.0, 4.0]]).repeat(8, 1)  # nearest by direction: the second centre
    monkeypatch.setattr(Search, "embed", lambda *_: pasted)
    flips, patch = torch.zeros(8, 3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(3, 2, 2, dtype=torch.uint8)
    centres = torch.tensor([[0.9, 0.1], [0.3, 0.4]])
    corrected = searching(pool, "corrected", centres, flips, [0] * 8)
    published = searching(pool, "as_published", centres, flips, [0] * 8)
    assert (corrected.num_flipped(patch, 1), published.num_flipped(patch, 1)) == (8, 0)


def test_what_was_not_looked_at_has_no_score_but_as_published_a_0(pool: Pool) -> None:
    corrected = SPEC.search(pool, Path(), 3, silent).scores
    published = SPEC.model_copy(update={"form": "as_published"}).search(pool, Path(), 3, silent).scores
    assert corrected.isnan().sum() == NUM - 14
    assert published.isnan().sum() == 0
    assert (published == 0).sum() >= NUM - 14


def test_the_deciding_window_is_the_one_of_a_loop_over_places(pool: Pool) -> None:
    search = SPEC.search(pool, Path(), 3, silent)
    image = pool.images(torch.tensor([40]))[0]
    label = int(search.clusters.labels[40])
    towards = {}
    for top in (0, 4, 8):
        for left in (0, 4, 8):
            occluded = image.clone()
            occluded[:, top : top + 4, left : left + 4] = (
                image.float().mean((1, 2)).round().to(torch.uint8)[:, None, None]
            )
            feature = search.embed(occluded[None])[0]
            towards[top, left] = float(F.cosine_similarity(feature, search.clusters.centres[label], dim=0))
    top, left = min(towards, key=towards.__getitem__)
    assert torch.equal(search.deciding_window(image, label), image[:, top : top + 4, left : left + 4])


def test_flip_images_are_the_nearest_of_each_cluster_in_turn() -> None:
    unit = torch.tensor([[0.0], [0.3], [0.1], [9.0], [9.5], [9.1], [9.2]])
    clusters = Clusters(torch.tensor([[0.0], [9.0]]), torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert _flip_rows(unit, clusters, 5).tolist() == [0, 3, 2, 5, 1]
    assert sorted(_flip_rows(unit, clusters, 99).tolist()) == list(range(7))


@pytest.mark.parametrize("margin_px", [0, 3])
def test_a_patch_is_pasted_whole_at_uniform_places(margin_px: int) -> None:
    images = torch.zeros(4000, 3, 10, 12, dtype=torch.uint8)
    patch = torch.arange(1, 25, dtype=torch.uint8).view(3, 2, 4)
    pasted = paste(images, patch, torch_generator(1, "paste"), margin_px)
    assert (images == 0).all()
    places = (pasted[:, 0] == 1).nonzero()
    assert len(places) == 4000
    for row, top, left in places[:50].tolist():
        assert torch.equal(pasted[row, :, top : top + 2, left : left + 4], patch)
    assert ((pasted > 0).sum((1, 2, 3)) == 24).all()
    assert set(places[:, 1].tolist()) == set(range(margin_px, 10 - 2 - margin_px + 1))
    counts = places[:, 2].bincount()[margin_px:]
    assert len(counts) == 12 - 4 - 2 * margin_px + 1
    assert counts.max() / counts.min() < 1.6


CLASSIFIER: dict[str, Any] = {
    **SPEC.model_dump(exclude={"kind", "trusted_fraction"}),
    "num_patches": 3,
    "num_models": 2,
    "max_steps": 60,
    "eval_every_steps": 30,
    "patch_frac": (0.3, 0.36),
    "margin_frac": 0.0,
    "network": ResNetSpec(depth=8, width=4, stem="small"),
    "budget": 0.3,
}


@pytest.mark.parametrize("clean_from", ["ranking", "trusted"])
def test_the_classifier_finds_the_poisons_that_were_not_looked_at(pool: Pool, clean_from: str) -> None:
    chosen = PatchSearchClassifierSpec.model_validate(CLASSIFIER | {"clean_from": clean_from})
    verdicts = chosen.judge(pool, Path(), 3, silent)
    assert not verdicts.scores.isnan().any()
    assert verdicts.is_left_out[36:].float().mean() > 0.8
    assert not verdicts.is_left_out[:16].any()  # trusted
    assert (verdicts.scores[verdicts.is_left_out] > 0).all()


def test_it_learns_from_all_but_the_ends_of_the_ranking_or_from_trusted_ones(pool: Pool) -> None:
    scores = torch.full((NUM,), torch.nan, dtype=torch.float64)
    scores[:10] = torch.arange(10)
    learns, stops = PatchSearchClassifierSpec(top_frac=0.1).clean(pool, scores, torch.tensor([0, 1]))
    assert learns.tolist() == [2, 3, 4, 5, *range(10, NUM)]  # 4 of 48 are the top tenth
    assert stops.tolist() == [0, 1]
    learns, stops = PatchSearchClassifierSpec(clean_from="trusted").clean(pool, scores, torch.tensor([0, 1]))
    assert (learns.tolist(), stops.tolist()) == (list(range(7, 16)), [4, 5, 6])
    assert set(learns.tolist()).isdisjoint(range(4))  # the references of p-values are not seen


def test_half_of_the_views_bear_a_patch_of_the_asked_sizes() -> None:
    spec = PatchSearchClassifierSpec.model_validate(CLASSIFIER)
    images = torch.zeros(400, 3, SIDE, SIDE, dtype=torch.uint8)
    views, labels = patched_views(
        spec, images, [torch.full((3, 4, 4), 255, dtype=torch.uint8)], torch_generator(0, "views")
    )
    assert views.shape == (400, 3, SIDE, SIDE)
    assert 150 < labels.sum() < 250
    lit = ((views.amax((2, 3)) - views.amin((2, 3))).amax(1) > 0.1).long()
    assert torch.equal(lit, labels)


def test_training_stops_once_ten_readings_are_equal(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    views = patched_views
    monkeypatch.setattr(patch_classifier, "patched_views", lambda *args: steps.append(1) or views(*args))
    monkeypatch.setattr(patch_classifier, "f1", lambda *_: 0.5)
    spec = PatchSearchClassifierSpec.model_validate(CLASSIFIER | {"eval_every_steps": 1, "num_models": 1})
    spec.score(pool, Path(), 3, silent)
    assert len(steps) == 11


def test_f1_by_hand() -> None:
    truth = torch.tensor([1, 1, 1, 0, 0]).bool()
    assert f1(torch.tensor([1, 1, 0, 1, 0]).bool(), truth) == pytest.approx(2 / 3)
    assert f1(torch.zeros(5).bool(), truth) == 0.0
