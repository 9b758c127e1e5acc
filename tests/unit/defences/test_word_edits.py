"""Word edits on tokens against the same edits on lists of words."""

import pytest
import torch
from torch import Tensor

from ssl_backdoor.methods.word_edits import draw_edits, edit_words
from ssl_backdoor.seeds import stream, torch_generator

START, END, VOCABULARY = 98, 99, 100
ENDS_WORD = torch.arange(VOCABULARY) < 60
"""Tokens 0 to 59 end a word, 60 to 97 go on."""
LENGTH = 14


def caption(words: list[list[int]]) -> list[int]:
    tokens = [START, *(token for word in words for token in word), END]
    return tokens + [0] * (LENGTH - len(tokens))


def random_words(index: int) -> list[list[int]]:
    """Up to six words of one or two tokens; every seventh caption has none."""
    random = stream(0, "words", index)
    words = [[int(random.integers(0, 60))] for _ in range(index % 7)]
    return [[int(random.integers(60, 98)), *word] if random.random() < 0.4 else word for word in words]


def slow(words: list[list[int]], p: float, draws: Tensor) -> list[list[int]]:
    """The edits one by one on a list, a dropped word leaving None."""
    count = len(words)
    line: list[list[int] | None] = list(words)
    where = {index: index for index in range(count)}
    num_edits = min(max(1, round(p * count)), count - 1)
    for drawn, operation, partner in draws[: max(0, num_edits)].tolist():
        first = int(drawn * count)
        second = [index for index in range(count) if index != first][int(partner * (count - 1))]
        if operation < 0.5:
            line[where[first]] = None
        elif line[where[first]] is not None and line[where[second]] is not None:
            line[where[first]], line[where[second]] = line[where[second]], line[where[first]]
            where[first], where[second] = where[second], where[first]
    return [word for word in line if word is not None]


@pytest.mark.parametrize("p", [0.1, 0.35, 0.6, 1.0])
def test_agrees_with_edits_on_lists(p: float) -> None:
    captions = [random_words(index) for index in range(140)]
    tokens = torch.tensor([caption(words) for words in captions])
    draws = draw_edits(len(tokens), LENGTH, p, torch_generator(0, "edits"))
    edited = edit_words(tokens, ENDS_WORD, p, draws)
    expected = [caption(slow(words, p, rows)) for words, rows in zip(captions, draws, strict=True)]
    assert edited.tolist() == expected
    changed = (edited != tokens).any(1)
    assert changed.float().mean() > 0.4
    assert not changed[[len(words) < 2 for words in captions]].any()


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        ([0.0, 0.1, 0.0], [[2], [63, 3], [4]]),  # the first word goes
        ([0.3, 0.1, 0.9], [[1], [63, 3], [4]]),  # the second
        ([0.0, 0.9, 0.0], [[2], [1], [63, 3], [4]]),  # the first and the next swap
        ([0.6, 0.9, 0.99], [[1], [2], [4], [63, 3]]),  # the third, of two tokens, and the last swap
    ],
)
def test_single_edits_by_hand(draw: list[float], expected: list[list[int]]) -> None:
    tokens = torch.tensor([caption([[1], [2], [63, 3], [4]])])
    assert edit_words(tokens, ENDS_WORD, 0.1, torch.tensor([[draw]])).tolist() == [caption(expected)]


def test_a_caption_cut_within_its_last_word() -> None:
    tokens = torch.tensor([[START, 1, 2, 70, 71, END]])
    assert edit_words(tokens, ENDS_WORD, 0.1, torch.tensor([[[0.0, 0.9, 0.99]]])).tolist() == [
        [START, 70, 71, 2, 1, END]
    ]


def test_each_word_is_edited_equally_often() -> None:
    tokens = torch.tensor([caption([[1], [2], [3], [4], [5]])]).repeat(6000, 1)
    edited = edit_words(tokens, ENDS_WORD, 0.1, draw_edits(6000, LENGTH, 0.1, torch_generator(0, "share")))
    shorter = edited[edited[:, 5] == END]
    assert len(shorter) == pytest.approx(3000, abs=150)
    missing = [int((shorter != word).all(1).sum()) for word in range(1, 6)]
    assert sum(missing) == len(shorter)
    assert missing == pytest.approx([len(shorter) / 5] * 5, abs=90)


def test_no_share_no_edit() -> None:
    tokens = torch.tensor([caption([[1], [2]])])
    draws = draw_edits(1, LENGTH, 0.0, torch_generator(0, "none"))
    assert torch.equal(edit_words(tokens, ENDS_WORD, 0.0, draws), tokens)
