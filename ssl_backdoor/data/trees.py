"""Images in a tree of folders, on disk or in an archive: split/class/file, class/file or plain files."""

import tempfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ssl_backdoor.data.archives import Files, read_none
from ssl_backdoor.data.items import SPLITS, Item, is_image, printable

_LENGTH_BYTES = 4


class Rule(NamedTuple):
    """How a path names split and class."""

    wrapped: bool
    """One folder around everything is ignored."""
    shape: Literal["split", "class", "flat"]
    """split: split/class/file or split/file; class: class/file."""


def find_rule(folders: set[tuple[str, ...]]) -> Rule:
    """The rule of a tree, from the leading folder names (at most three) of its images.

    A first folder called train, test, val, valid or validation is a split if all first folders are called so or if
    it holds folders in turn; so "train" may also be the class of trains.
    """
    tops = {folder[:1] for folder in folders}
    wrapped = len(tops) == 1 and all(top and top[0].lower() not in SPLITS for top in tops)
    if wrapped:
        folders = {folder[1:] for folder in folders}
    named = {folder for folder in folders if folder}
    splits = {folder for folder in named if folder[0].lower() in SPLITS}
    if splits and (splits == named or any(len(folder) > 1 for folder in splits)):
        return Rule(wrapped, "split")
    return Rule(wrapped, "class" if named else "flat")


class Tree:
    """The images among ``files``; what is no image by its name is passed over."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._rule = Rule(False, "flat")

    def listing(self) -> Iterator[Item]:
        """See ``Source``. The names wait in a file that has no name until the last one has shown the rule."""
        folders: set[tuple[str, ...]] = set()
        with tempfile.TemporaryFile() as kept:
            for member in self._files.members(read_none):
                if is_image(member.name):
                    folders.add(tuple(member.name.split("/")[:-1][:3]))
                    raw = member.name.encode("utf-8", "surrogateescape")
                    kept.write(len(raw).to_bytes(_LENGTH_BYTES, "big") + raw)
            self._rule = find_rule(folders)
            kept.seek(0)
            while length := kept.read(_LENGTH_BYTES):
                yield self._place(kept.read(int.from_bytes(length, "big")).decode("utf-8", "surrogateescape"))

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        chosen = False

        def wanted(name: str) -> bool:
            nonlocal chosen
            chosen = is_image(name) and next(keep, False)
            return chosen

        for member in self._files.members(wanted):
            if chosen:
                item = self._place(member.name)
                yield item._replace(image=member.data, problem=item.problem or member.problem)

    def _place(self, name: str) -> Item:
        path = name.split("/", 1)[1] if self._rule.wrapped else name
        folders = path.split("/")[:-1]
        if self._rule.shape == "flat":
            return Item(path, "train")
        if self._rule.shape == "class":
            if folders:
                return Item(path, "train", printable(folders[0]))
            return Item(path, "train", problem="lies outside the class folders")
        if folders and (split := SPLITS.get(folders[0].lower())) is not None:
            return Item(path, split, printable(folders[1]) if len(folders) > 1 else None)
        return Item(path, "train", problem="lies outside the train and test folders")
