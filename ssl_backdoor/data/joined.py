"""Training images of one source, test images of another."""

from array import array
from collections.abc import Iterator

from ssl_backdoor.data.items import Item, Source

PREFIX = "test//"
"""Begins the names of the second source's images. No other name holds two slashes in a row, so that none is shared."""


class Joined:
    """The images of ``train`` that are not test images, then the test images of ``test`` (all where it marks none).

    Memory: one byte an image. ``test`` is listed twice, since only its end shows whether it has a test split.
    """

    def __init__(self, train: Source, test: Source) -> None:
        self._train = train
        self._test = test
        self._trains = array("b")
        self._tests = array("b")

    @property
    def num_left_out(self) -> int:
        """Test images of ``train``, known once it was listed."""
        return self._trains.count(0)

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self._trains = array("b")
        for item in self._train.listing():
            self._trains.append(item.split != "test")
            if self._trains[-1]:
                yield item
        self._tests = array("b", (item.split == "test" for item in self._test.listing()))
        if 1 not in self._tests:
            self._tests = array("b", [1]) * len(self._tests)
        for item, is_used in zip(self._test.listing(), self._tests, strict=False):
            if is_used:
                yield _as_test(item)

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        yield from self._train.read(_answers(self._trains, keep))
        yield from map(_as_test, self._test.read(_answers(self._tests, keep)))


def _as_test(item: Item) -> Item:
    return item._replace(name=PREFIX + item.name, split="test")


def _answers(used: "array[int]", keep: Iterator[bool]) -> Iterator[bool]:
    """``keep``, which knows the used images only, for every image."""
    return (bool(is_used) and next(keep, False) for is_used in used)
