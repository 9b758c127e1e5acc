"""The four density scores and neighbours against slow loops; each published form is another number."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from ssl_backdoor.detection.local_density import LocalDensitySpec
from ssl_backdoor.detection.neighbours import k_means, nearest_centre, nearest_others
from ssl_backdoor.seeds import stream, torch_generator

K = 4

torch.set_num_threads(1)


def points(seed: int = 0, count: int = 40, dim: int = 5) -> torch.Tensor:
    return torch.from_numpy(stream(seed, "points").normal(size=(count, dim))).float()


def neighbours_of(rows: np.ndarray, one: int) -> list[tuple[float, int]]:
    """(distance, row) of all others, nearest first."""
    distances = [(math.dist(rows[one], rows[other]), other) for other in range(len(rows)) if other != one]
    return sorted(distances)


def slow(kind: str, features: torch.Tensor) -> list[float]:
    """By the formulas of the paper, one row at a time."""
    rows = features.double().numpy()
    near = [neighbours_of(rows, one)[:K] for one in range(len(rows))]
    reach = [found[-1][0] for found in near]
    dims = [-K / sum(math.log(distance / found[-1][0]) for distance, _ in found) for found in near]
    return [
        {
            "k_dist": lambda one: reach[one],
            "slof": lambda one: float(np.mean([reach[one] / reach[other] for _, other in near[one]])),
            "lid": lambda one: dims[one],
            "dao": lambda one: float(
                np.mean([dims[other] * math.log(reach[one] / reach[other]) for _, other in near[one]])
            ),
        }[kind](one)
        for one in range(len(rows))
    ]


def slow_as_published(kind: str, features: torch.Tensor) -> list[float]:
    """What upstream's indexing comes to: places among the others used as rows of all, and one neighbour too far."""
    rows = features.double().numpy()
    full = [sorted(math.dist(one, other) for other in rows) for one in rows]
    found = []
    for one in range(len(rows)):
        others = [other for other in range(len(rows)) if other != one]
        order = sorted(range(len(others)), key=lambda place: math.dist(rows[one], rows[others[place]]))
        places, distances = order[:K], [math.dist(rows[one], rows[others[place]]) for place in order]

        def dim(sorted_distances: list[float]) -> float:
            return -K / sum(math.log(value / sorted_distances[K] + 1e-4) for value in sorted_distances[:K])

        ratios = [distances[K] / full[place][K] for place in places]
        found.append(
            {
                "k_dist": distances[K],
                "slof": float(np.mean(ratios)),
                "lid": dim(distances),
                "dao": float(
                    np.mean([dim(full[place]) * math.log(ratio) for place, ratio in zip(places, ratios, strict=True)])
                ),
            }[kind]
        )
    return found


def score(measure: Any, features: torch.Tensor, k: int = K, form: Any = "corrected") -> list[float]:
    found: list[float] = LocalDensitySpec(measure=measure, k=k, form=form).of_batch(features).tolist()
    return found


@pytest.mark.parametrize("measure", ["k_dist", "slof", "lid", "dao"])
def test_a_score_is_that_of_its_formula(measure: str) -> None:
    features = points()
    corrected, published = score(measure, features), score(measure, features, form="as_published")
    assert corrected == pytest.approx(slow(measure, features), rel=1e-6)
    assert published == pytest.approx(slow_as_published(measure, features), rel=1e-6)
    assert corrected != pytest.approx(published, rel=1e-3)


def test_upstream_s_places_are_of_other_rows_half_of_the_time() -> None:
    """The trap itself: a place among the others is the row's own number only before the sample."""
    features = points(count=400)
    rows = nearest_others(features, 16).rows
    own = torch.arange(400)[:, None]
    places = torch.where(rows > own, rows - 1, rows)
    assert 0.4 < (places == rows).float().mean() < 0.6


def test_the_published_k_dist_is_of_the_next_neighbour() -> None:
    features = points()
    assert score("k_dist", features, form="as_published") == pytest.approx(score("k_dist", features, K + 1))


def test_duplicates_and_equal_distances_have_scores() -> None:
    same, corners = torch.ones(8, 3), torch.eye(4)
    assert [score(measure, same, 2) for measure in ("slof", "dao", "lid")] == [[1.0] * 8, [0.0] * 8, [0.0] * 8]
    assert score("lid", corners, 2) == [math.inf] * 4
    assert not np.isnan(score("dao", corners, 2)).any()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbours_are_exact_where_products_would_cancel(offset: float) -> None:
    features = points(1, 150) * 0.01 + offset
    found = nearest_others(features, 3)
    rows = features.double().numpy()
    for one in range(0, 150, 7):
        expected = neighbours_of(rows, one)[:3]
        assert found.distances[one].tolist() == pytest.approx([distance for distance, _ in expected], rel=1e-9)


def test_of_equally_near_ones_the_first_is_taken() -> None:
    line = torch.tensor([[0.0], [1.0], [-1.0], [2.0]])
    assert nearest_others(line, 2).rows.tolist() == [[1, 2], [0, 3], [0, 1], [1, 0]]


def test_k_means_is_a_partition_whose_centres_are_means() -> None:
    features = torch.cat([points(seed, 30) + 20 * seed for seed in range(3)])
    found = k_means(features, 3, torch_generator(1, "k"))
    again = k_means(features, 3, torch_generator(1, "k"))
    assert torch.equal(found.labels, again.labels)
    assert len({tuple(found.labels[start : start + 30].tolist()) for start in (0, 30, 60)}) <= 3
    for cluster in found.labels.unique():
        assert torch.allclose(found.centres[cluster], features[found.labels == cluster].mean(0), atol=1e-4)
    labels, distances = nearest_centre(features, found.centres)
    assert torch.allclose(distances.sqrt(), torch.cdist(features, found.centres).min(1).values, atol=1e-3)
    assert torch.equal(labels, found.labels)


def test_no_cluster_stays_empty_while_rows_differ() -> None:
    features = torch.cat([torch.zeros(20, 2), torch.tensor([[5.0, 0], [0, 5.0]])])
    found = k_means(features, 3, torch_generator(0, "k"))
    assert found.labels.bincount(minlength=3).min() > 0
