import re
import sys
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison import caption_sets
from ssl_backdoor.poison.caption_sets import caption_set, edit_words, prompts, search
from ssl_backdoor.seeds import stream
from ssl_backdoor.tables import SAMPLES


def column(*cells: str | None) -> pa.ChunkedArray:
    half = len(cells) // 2
    return pa.chunked_array([cells[:half], cells[half:]], pa.string())


def samples(*captions: str | None, split: str = "train") -> pa.Table:
    rows = [{"key": f"{split}{i}", "split": split, "label": 0, "caption": text} for i, text in enumerate(captions)]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("cat", ["a cat", "Cat!", "(CAT)", "the cat's hat", "a black-cat"]),
        ("fire truck", ["a Fire Truck here"]),
        ("c++", ["code in C++ again"]),
        ("écl", ["un Écl."]),
    ],
)
def test_whole_words_in_any_case_are_found_and_nothing_else(phrase: str, expected: list[str]) -> None:
    cells = column(
        "a cat", "cattle", None, "concat", "Cat!", "(CAT)", "cat_tail", "the cat's hat", "a black-cat", "écat", "",
        "a Fire Truck here", "a firetruck", "fire trucks", "code in C++ again", "abc++", "un Écl.", "écls", "2cat",
    )  # fmt: skip
    assert search(cells, phrase).to_pylist() == expected


def test_of_several_captions_of_one_image_only_those_that_match_are_taken() -> None:
    cells = column("a cat\na dog\nthe cat", "a dog\ncattle", "one fire\ntruck", "cat")
    assert search(cells, "cat").to_pylist() == ["a cat", "the cat", "cat"]
    with pytest.raises(DataError):
        search(cells, "fire truck")


def test_search_goes_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = column(*(f"number {index} cat" if index % 3 else f"number {index}" for index in range(50)))
    expected = search(cells, "cat").to_pylist()
    monkeypatch.setattr(caption_sets, "BLOCK_ROWS", 7)
    assert search(cells, "cat").to_pylist() == expected
    assert len(expected) == 33


@given(
    st.lists(st.one_of(st.none(), st.text("abAB é.+*?\\[]()\n", max_size=12)), max_size=8),
    st.text("abé .+*?\\[]()", min_size=1, max_size=3),
)
def test_search_agrees_with_a_slow_scan(cells: list[str | None], phrase: str) -> None:
    pattern = re.compile(rf"(?:^|\W){re.escape(phrase)}(?:$|\W)", re.IGNORECASE)
    expected = [line for cell in cells if cell is not None for line in cell.split("\n") if pattern.search(line)]
    try:
        found = search(pa.chunked_array([cells], pa.string()), phrase).to_pylist()
    except DataError:
        found = []
    assert found == expected


def test_when_nothing_is_found_near_words_are_named_with_their_counts() -> None:
    cells = column("An airplane", "the airplane\nmy airplane", "a plane", None, "dogs")
    with pytest.raises(DataError, match=r"contains 'airplan'; near it are airplane \(3\), plane \(1\): choose"):
        search(cells, "airplan")
    with pytest.raises(DataError, match=r"'dog house'; near it are dogs \(1\)"):
        search(cells, "dog house")
    with pytest.raises(DataError, match=r"'zzzz'; nothing is near it, the commonest words are airplane \(3\)"):
        search(cells, "zzzz")


def test_a_set_without_captions_says_so() -> None:
    for cells in (column(None, None), column()):
        with pytest.raises(DataError, match=r"no training image has a caption.*dataset.captions of kind templates"):
            search(cells, "cat")


def test_prompts_are_the_eighty_of_clip() -> None:
    filled = prompts("fire truck")
    assert len(filled) == len(set(filled)) == 80
    assert "a photo of a fire truck." in filled
    assert all("fire truck" in one for one in filled)


def test_prompts_without_open_clip_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(SpecError, match=r"pip install 'ssl-backdoor\[clip\]'"):
        prompts("cat")


def test_a_set_is_cut_or_repeated_in_a_seeded_order() -> None:
    table = samples("a cat", "one cat", "a cat", "my cat", "the dog", "old cat", "new cat")
    whole = caption_set("search", table, "cat", 5, 0)
    assert sorted(whole) == ["a cat", "my cat", "new cat", "old cat", "one cat"]  # each distinct caption once
    assert caption_set("search", table, "cat", 3, 0) == whole[:3]
    assert caption_set("search", table, "cat", 12, 0) == [*whole, *whole, *whole[:2]]
    assert len({tuple(caption_set("search", table, "cat", 5, seed)) for seed in range(6)}) > 3
    shuffled = table.take(stream(0, "order").permutation(table.num_rows))
    assert caption_set("search", shuffled, "cat", 5, 0) == whole
    ours = caption_set("imagenet80", table, "cat", 81, 0)
    assert set(ours) == set(prompts("cat"))
    assert ours[80] == ours[0]


def test_only_training_captions_are_searched() -> None:
    table = pa.concat_tables([samples("a cat on a mat", split="test"), samples("a cat", "a dog")])
    assert caption_set("search", table, "cat", 2, 0) == ["a cat", "a cat"]
    with pytest.raises(DataError, match="no training caption contains 'mat'"):
        caption_set("search", table, "mat", 1, 0)


def test_an_edit_drops_or_doubles_one_word_that_is_not_the_name() -> None:
    caption = "a big Fire truck, parked outside"
    edits = Counter(edit_words(caption, "fire truck", seed) for seed in range(400))
    free = ["a", "big", "parked", "outside"]
    expected = {" ".join(caption.replace(word, "", 1).split()) for word in free[1:]}
    expected |= {caption.replace(word, f"{word} {word}", 1) for word in free[1:]}
    expected |= {"big Fire truck, parked outside", "a a big Fire truck, parked outside"}
    assert set(edits) == expected
    assert min(edits.values()) > 20


def test_a_caption_that_is_the_name_alone_stays() -> None:
    assert all(edit_words("Fire truck.", "fire truck", seed) == "Fire truck." for seed in range(5))
