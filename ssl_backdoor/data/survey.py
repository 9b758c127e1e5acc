"""What a source of images is understood to be, before anything of it is decoded."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ssl_backdoor.data.counts import count
from ssl_backdoor.data.items import Found, Ignored, Item, Source, printable
from ssl_backdoor.data.selection import Selection, select
from ssl_backdoor.data.sources import open_source
from ssl_backdoor.data.splits import IGNORED
from ssl_backdoor.specs import DatasetSpec

_SHOWN = 100
_NAMED = 10


class ClassCount(NamedTuple):
    """How many images of a class are kept."""

    train: int
    test: int


class SplitUse(NamedTuple):
    """A word that was taken for the name of a split."""

    where: str
    """folder, shard, file, table or json."""
    word: str
    split: str
    """What it means: train, test, eval, val or ignore."""
    num_images: int


class Listing(NamedTuple):
    """A source by its names alone: what it is, what is kept, rejected and ignored."""

    layout: str
    """In words."""
    splits: tuple[SplitUse, ...]
    """Empty where no word names a split, so that all images train."""
    classes: Mapping[str, ClassCount]
    """Of the images that are kept, in the order of their labels."""
    num_unlabelled: ClassCount
    """Kept images without a class."""
    left_out: Mapping[str, int]
    """Images of splits that are not used, by split: val where there is a test split, and what is to be ignored."""
    num_rejected: int
    rejected: tuple[tuple[str, str], ...]
    """(name, reason) of the first 100. Images that do not decode are not among them."""
    rejected_by_reason: Mapping[str, int]
    ignored: Mapping[str, Ignored]
    """Files that are no images, by kind."""
    questions: tuple[str, ...]
    """What is unlikely to be meant, one sentence each."""

    def sentences(self) -> list[str]:
        """All of it for people, in a few short sentences."""
        train, test = (sum(one[at] for one in (*self.classes.values(), self.num_unlabelled)) for at in (0, 1))
        words = {f"{use.where} {use.word}: {use.split}" for use in self.splits}
        facts = [
            f"read as {self.layout}: {train} training and {test} test images of {len(self.classes)} classes",
            f"splits: {', '.join(sorted(words)[:_NAMED])}"
            if words
            else f"no splits named: {'the test images are drawn from all' if test else 'all images train'}",
            *(f"{count} images of {split} left out" for split, count in self.left_out.items()),
            *(f"{count} rejected: {reason}" for reason, count in list(self.rejected_by_reason.items())[:_NAMED]),
        ]
        if self.ignored:
            facts.append(f"ignored: {Found(ignored=dict(self.ignored)).list_ignored()}")
        return [*facts, *self.questions]


def survey(spec: DatasetSpec, data: str | None, test_data: str | None = None) -> Listing:
    """List the source as an ingest does.

    Raises:
        DataError: the source cannot be used, or can be read in more than one way.
        SpecError: a class or a split that the data do not have; ``test_data`` missing, or given and not asked for.
    """
    source = open_source(spec, data, test_data)
    rejections = Rejections()
    return describe(source, list_source(source, spec, rejections.add), rejections)


def list_source(source: Source, spec: DatasetSpec, reject: Callable[[str, str], None]) -> Selection:
    """Which images are kept; ``reject`` hears of the others' names and problems.

    Raises:
        DataError, SpecError: as ``survey``.
    """

    def items() -> Iterator[Item]:
        for item in source.listing():
            if item.problem and item.split != IGNORED:
                reject(item.name, item.problem)
            yield item

    return select(items(), spec, source.found)


class Rejections:
    """The images of a source that are refused: all counted, the first named."""

    def __init__(self) -> None:
        self.num = 0
        self.first: list[tuple[str, str]] = []
        self.by_reason: Counter[str] = Counter()

    def add(self, name: str, reason: str) -> None:
        """Count one image."""
        name, reason = printable(name), printable(reason)
        self.num += 1
        if len(self.first) < _SHOWN:
            self.first.append((name, reason))
        kind = re.sub(r"\d+", "N", reason)
        self.by_reason[kind if kind in self.by_reason or len(self.by_reason) < _SHOWN else "other"] += 1


def describe(source: Source, selection: Selection, rejections: Rejections) -> Listing:
    """A source that was listed, what was chosen of it, and what was refused.

    Raises:
        SpecError: ``dataset.splits`` maps a word that the data do not have.
    """
    if source.found.words is not None:
        source.found.words.check_mapping(word for _, word in source.found.splits)
    numbers = count(selection)
    counts = [*map(ClassCount, numbers.train_per_class, numbers.test_per_class)]
    unlabelled = ClassCount(numbers.num_unlabelled, numbers.num_unlabelled_test)
    found = source.found
    return Listing(
        found.layout,
        tuple(SplitUse(*key, *use) for key, use in sorted(found.splits.items())),
        dict(zip(selection.classes, counts, strict=True)),
        unlabelled,
        selection.left_out,
        rejections.num,
        tuple(rejections.first),
        dict(rejections.by_reason.most_common()),
        dict(sorted(found.ignored.items())),
        tuple(_questions(counts)),
    )


def _questions(counts: Sequence[ClassCount]) -> Iterator[str]:
    if len(counts) == 1:
        yield "all images are of one class: probes need several, so is a level of folders missing?"
