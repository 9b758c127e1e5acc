"""Recall in both directions against slow loops, and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_backdoor.evaluate import retrieval
from ssl_backdoor.evaluate.retrieval import measure_retrieval, own_places, pair_up
from ssl_backdoor.evaluate.zero_shot import embed_texts
from ssl_backdoor.seeds import stream
from tests.support.tiny_towers import tiny_text_tower

CAPTIONS = [
    "a red bird",
    None,
    "a dog\nthe dog",
    "a red bird",
    "a cat",
    "",
    "the dog",
    "two cats in a box\na cat",
    "an old ship",
    "my car",
    "a frog in the rain",
]


def slow_places(features: np.ndarray, texts: dict[str, np.ndarray]) -> tuple[list[int], list[int]]:
    """Places by sorting, strangers first among equals; images without a caption are nowhere."""
    images = {row: features[row] / np.linalg.norm(features[row]) for row, cell in enumerate(CAPTIONS) if cell}
    own = {row: set((CAPTIONS[row] or "").split("\n")) for row in images}

    def place(query: np.ndarray, candidates: dict, mine: set) -> int:
        order = sorted(candidates, key=lambda name: (-float(query @ candidates[name]), name in mine))
        return 1 + min(order.index(name) for name in mine)

    to_text = [place(images[row], texts, own[row]) for row in images]
    to_image = [place(texts[text], images, {row for row in images if text in own[row]}) for text in texts]
    return to_text, to_image


@pytest.mark.parametrize("cells", [1, 20, 1 << 22])
def test_recall_equals_the_slow_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_CELLS", cells)
    tower = tiny_text_tower()
    features = torch.from_numpy(stream(0, "images").normal(0, 1, (len(CAPTIONS), tower.feature_dim))).float()
    distinct = list(dict.fromkeys(line for cell in CAPTIONS if cell for line in cell.split("\n")))
    texts = dict(zip(distinct, embed_texts(tower, distinct).numpy(), strict=True))
    to_text, to_image = slow_places(features.numpy(), texts)
    rows = {row.name: row for row in measure_retrieval(tower, features, CAPTIONS)}
    assert {name: (row.value, row.n) for name, row in rows.items()} == {
        "image_to_text_recall_1": (np.mean([place <= 1 for place in to_text]), 9),
        "image_to_text_recall_5": (np.mean([place <= 5 for place in to_text]), 9),
        "text_to_image_recall_1": (np.mean([place <= 1 for place in to_image]), 8),
        "text_to_image_recall_5": (np.mean([place <= 5 for place in to_image]), 8),
    }
    assert 0 < rows["image_to_text_recall_5"].value < 1  # else the loop above would prove little
    assert {(row.condition, row.probe) for row in rows.values()} == {("clean", "retrieval")}
    assert all(
        row.low is not None and row.high is not None and row.low <= row.value <= row.high for row in rows.values()
    )


def test_distinct_texts_are_paired_with_every_image_that_has_them() -> None:
    found = pair_up(CAPTIONS[:5])
    assert found.rows.tolist() == [0, 2, 3, 4]
    assert found.texts == ("a red bird", "a dog", "the dog", "a cat")
    pairs = zip(found.image_rows.tolist(), found.text_rows.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0), (1, 1), (1, 2), (2, 0), (3, 3)]
    assert pair_up([None, ""]).texts == ()


def test_places_by_hand() -> None:
    texts = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    images = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.9]]), dim=1)
    # image 0 owns texts 1 and 2, image 1 owns text 1
    found = own_places(images, texts, torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1]))
    assert found.tolist() == [2, 3]


def test_an_encoder_that_maps_all_to_one_point_finds_nothing() -> None:
    same = F.normalize(torch.ones(6, 4), dim=1)
    assert own_places(same, same, torch.arange(6), torch.arange(6)).tolist() == [6] * 6


def test_a_recall_that_could_not_fail_is_left_out() -> None:
    tower = tiny_text_tower()
    features = torch.ones(3, tower.feature_dim)
    names = [row.name for row in measure_retrieval(tower, features, ["a", "b", "a"])]
    assert names == ["image_to_text_recall_1", "text_to_image_recall_1"]
    assert list(measure_retrieval(tower, features, [None, None, None])) == []
