from collections.abc import Sequence

import pyarrow as pa
import pytest
import torch

from ssl_backdoor.errors import DataError
from ssl_backdoor.methods.base import SingleProcess
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ViewsSpec
from ssl_backdoor.train.batches import make_batches
from ssl_backdoor.train.training_set import Captions, tokenize_captions
from tests.support.tiny_training import BATCH, NUM_IMAGES, tiny_images

CPU = torch.device("cpu")


class Letters:
    """A tokenizer: one token a letter, 99 at the end; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        rows = torch.zeros(len(texts), 12, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text) + 1] = torch.tensor([ord(letter) - 96 for letter in text] + [99])
        return rows


def said(tokens: torch.Tensor) -> list[str]:
    return ["".join(chr(96 + int(token)) for token in row if 0 < token < 99) for row in tokens]


def captions_of(cells: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells[:2], pa.string()), pa.array(cells[2:], pa.string())])


def test_each_distinct_caption_is_tokenised_once_and_cut_to_the_longest() -> None:
    tokenize = Letters()
    captions = tokenize_captions(captions_of(["dog", "cat\ndog", "bird", "dog"]), tokenize)
    assert sorted(tokenize.asked) == ["bird", "cat", "dog"]
    assert captions.tokens.shape == (3, 5)
    assert captions.tokens.dtype == torch.int32
    assert captions.offsets.tolist() == [0, 1, 3, 4, 5]
    assert said(captions.tokens[captions.which]) == ["dog", "cat", "dog", "bird", "dog"]


def test_one_caption_of_each_image_is_drawn_all_equally_often() -> None:
    captions = tokenize_captions(captions_of(["dog", "cat\nbird\nfish", "bird"]), Letters())
    rows = torch.tensor([1] * 3000 + [0, 2])
    drawn = captions.draw(rows, torch_generator(0, "caption", 0))
    assert drawn.dtype == torch.int64
    texts = said(drawn)
    assert texts[-2:] == ["dog", "bird"]
    for text in ("cat", "bird", "fish"):
        assert 900 < texts[:3000].count(text) < 1100


@pytest.mark.parametrize(
    ("cells", "count"), [(["dog", None, "bird"], "1 of 3"), ([None, None, None], "3 of 3"), (None, "all")]
)
def test_images_without_a_caption(cells: list[str | None] | None, count: str) -> None:
    with pytest.raises(DataError, match=rf"{count} training images lack a caption; .*captions_required"):
        tokenize_captions(captions_of(cells) if cells else None, Letters())


class Second(SingleProcess):  # the test plays one of two replicas
    count = 2
    index = 1


def numbered() -> Captions:
    """Image i has the captions "a" * (i % 10 + 1) and the same with a "b"; tokens count the letters."""
    cells: list[str | None] = [f"{'a' * (i % 10)}\n{'a' * (i % 10)}b" for i in range(NUM_IMAGES)]
    return tokenize_captions(captions_of(cells), Letters())


def test_captions_follow_their_images_the_step_and_the_share() -> None:
    images = torch.arange(NUM_IMAGES, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 12, 12).contiguous()
    still = ViewsSpec(size_px=12, crop_scale=(1.0, 1.0), flip_p=0, jitter_p=0, grey_p=0, blur_p=0)
    args = (images, numbered(), BATCH, [still], 0)
    whole, half = make_batches(*args, SingleProcess(), CPU), make_batches(*args, Second(), CPU)
    endings = set()
    for step in range(8):
        batch = whole(step)
        assert batch.tokens is not None
        shown = (batch.views[0][:, 0, 5, 5] * 0.229 + 0.485).mul(255).round().int().tolist()
        texts = said(batch.tokens)
        assert [text.count("a") for text in texts] == [image % 10 for image in shown]
        endings |= {text.endswith("b") for text in texts}
        assert torch.equal(whole(step).tokens, batch.tokens)
        assert torch.equal(half(step).tokens, batch.tokens[BATCH // 2 :])
    assert endings == {True, False}


def test_each_view_has_its_own_distribution() -> None:
    views = [ViewsSpec(size_px=12), ViewsSpec(size_px=8)]
    first, second = make_batches(tiny_images(), None, BATCH, views, 0, SingleProcess(), CPU)(0).views
    assert (first.shape[-1], second.shape[-1]) == (12, 8)
