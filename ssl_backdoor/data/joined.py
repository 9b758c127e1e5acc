"""Training images of one source, test images of another."""

from array import array
from collections.abc import Iterator

from ssl_backdoor.data.items import Found, Ignored, Item, Source
from ssl_backdoor.data.splits import HELD_OUT, IGNORED, choose_test_split

PREFIX = "test//"
"""Begins the names of the second source's images. No other name holds two slashes in a row, so that none is shared."""


class Joined:
    """The training images of ``train``, then the test images of ``test`` (all where it marks none).

    Memory: two bytes an image. ``test`` is listed twice, since only its end shows whether it has a test split.
    """

    def __init__(self, train: Source, test: Source) -> None:
        self._train = train
        self._test = test
        self._trains = array("b")
        self._tests = array("b")
        self.found = Found()

    @property
    def num_left_out(self) -> int:
        """Test images of ``train``, known once it was listed."""
        return self._trains.count(0)

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self._trains = array("b")
        for item in self._train.listing():
            self._trains.append(item.split == "train")
            if self._trains[-1]:
                yield item
        splits = [*HELD_OUT, "train", IGNORED]
        codes = array("b", (splits.index(item.split) for item in self._test.listing()))
        chosen = choose_test_split(split for code, split in enumerate(HELD_OUT) if code in codes)
        is_marked = splits.index(chosen) in codes
        self._tests = array("b", (splits[code] == (chosen if is_marked else "train") for code in codes))
        self._describe()
        for code, split in enumerate(splits):
            if (num := codes.count(code)) and split != (chosen if is_marked else "train"):
                self.found.ignored[f"test data: images of the split {split}"] = Ignored(num, (split,))
        for item, is_used in zip(self._test.listing(), self._tests, strict=False):
            if is_used:
                yield _as_test(item)

    def _describe(self) -> None:
        """What both are, the second's kinds and words with "test data: " before them."""
        one, two = self._train.found, self._test.found
        self.found.layout = f"{one.layout}; test data: {two.layout}"
        self.found.splits = one.splits | {
            (f"test data: {where}", word): use for (where, word), use in two.splits.items()
        }
        self.found.ignored = one.ignored | {f"test data: {kind}": use for kind, use in two.ignored.items()}

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        yield from self._train.read(_answers(self._trains, keep))
        yield from map(_as_test, self._test.read(_answers(self._tests, keep)))


def _as_test(item: Item) -> Item:
    return item._replace(name=PREFIX + item.name, split="test")


def _answers(used: "array[int]", keep: Iterator[bool]) -> Iterator[bool]:
    """``keep``, which knows the used images only, for every image."""
    return (bool(is_used) and next(keep, False) for is_used in used)
