"""Images in a tree of folders, on disk or in an archive, with any number of folders around it.

split/class/file, class/split/file, class/file, split/file or plain files.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import groupby
from typing import Literal, NamedTuple

from ssl_backdoor.data.archives import Files, Member, TarFiles
from ssl_backdoor.data.items import SIDECARS, Found, Item, kind_of, stem_of
from ssl_backdoor.data.remote import uri_of
from ssl_backdoor.data.scan import Scan
from ssl_backdoor.data.splits import IGNORED, SplitWords, class_name_of, how_to_map
from ssl_backdoor.data.webshards import read_sample
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import TxtCaptions

_NO_CLASS = frozenset(
    re.findall(
        r"\w+",
        "images image imgs img jpegimages jpeg jpg png photos pictures frames files data samples",
    )
)
"""Folders below a split that name no class, as in train/images/1.png."""
_SHOWN = 3

Folder = tuple[str, ...]
Shape = Literal["split/class", "class/split", "class", "flat"]


class Rule(NamedTuple):
    """How a path names split and class."""

    wrapped: Folder
    """The folders around everything; ignored."""
    shape: Shape
    splits: Mapping[str, str] = {}
    """Of the folders that are splits: which."""
    num_between: int = 0
    """Folders between split and class, the same everywhere, that say nothing: train/images/cat."""
    has_classes: bool = True
    """False where the folders below the splits, or around all images, say nothing."""


def find_rule(folders: Mapping[Folder, int], words: SplitWords, *, takes_outer: bool = False) -> Rule:
    """The rule of a tree, from the number of images directly in each of its folders.

    Args:
        folders: names from the root on.
        words: what names of splits mean.
        takes_outer: where classes hold further folders, take the outer ones as classes and do not ask.

    Raises:
        DataError: two readings fit, or a folder beside the splits is not known.
    """
    folders = {folder: count for folder, count in folders.items() if not any(map(words.is_ignored, folder))}
    depth = 0
    while len(tops := _names(folders, depth)) == 1:
        if words.of_folders(tops) and len(set(words.of_folders(_names(folders, depth + 1)).values())) < 2:
            break
        if _names(folders, depth + 1):
            depth += 1
        else:  # a folder of images, and of nothing else
            depth += 1 if depth == 0 and not folders.get((), 0) else 0
            break
    wrapped = next((folder[:depth] for folder in folders if len(folder) >= depth), ())
    inner = Counter[Folder]()
    for folder, count in folders.items():
        if len(folder) > depth:
            inner[folder[depth:]] += count
    tops = _names(inner, 0)
    splits = _splits_on_top(inner, tops, words)
    if splits:
        between, has_classes = _find_classes(inner, 1, takes_outer, splits)
        return Rule(wrapped, "split/class", splits, between, has_classes)
    if splits := _splits_inside(inner, tops, words):
        return Rule(wrapped, "class/split", splits)
    if not tops:
        return Rule(wrapped, "flat")
    if not takes_outer:
        _check_depth(inner, 0)
    has_classes = len(tops) > 1 or not {name.casefold() for name in tops} <= _NO_CLASS
    return Rule(wrapped, "class", has_classes=has_classes)


def _names(folders: Collection[Folder], depth: int) -> set[str]:
    return {folder[depth] for folder in folders if len(folder) > depth}


def _splits_on_top(inner: Mapping[Folder, int], tops: set[str], words: SplitWords) -> dict[str, str]:
    """The splits among the outermost folders, or none where these are classes ("train" may be the class of trains).

    Raises:
        DataError: some are splits, and others are not known.
    """
    splits = words.of_folders(tops)
    unknown = sorted(tops - splits.keys())
    if not splits or not unknown:
        return splits
    has_inner = any(len(folder) > 1 and folder[0] in splits for folder in inner)
    if set(splits.values()) == {"train"} and not has_inner:
        return {}
    raise DataError(
        f"the folder {unknown[0]!r} ({len(unknown)} of this kind) lies beside {_list(splits)}: a split that is not "
        f"known, or a class beside the folder of a split? Say what it is{how_to_map(*unknown)}, or move it away"
    )


def _splits_inside(inner: Mapping[Folder, int], tops: set[str], words: SplitWords) -> dict[str, str]:
    """The splits among the folders inside the outermost ones: class/split.

    Raises:
        DataError: only some hold splits, or there are folders inside of the splits too.
    """
    seconds = _names(inner, 1)
    splits = words.of_folders(seconds)
    if not splits or (seconds - splits.keys() and len(set(splits.values())) == 1):
        return {}
    with_splits = {folder[0] for folder in inner if len(folder) > 1 and folder[1] in splits}
    others = sorted({"/".join(folder[:2]) for folder in inner if len(folder) < 2 or folder[1] not in splits})
    if others:
        raise DataError(
            f"two readings fit: class/split, since {_list(with_splits)} hold {_list(splits)}, or class/file, since "
            f"{_list(others)} hold images themselves: give one of both kinds alone as --data"
        )
    if thirds := _names(inner, 2):
        raise DataError(
            f"two readings fit: class/split, with the classes {_list(tops)}, or sets that each hold {_list(splits)}, "
            f"with the classes {_list(thirds)}: give one of these sets alone as --data"
        )
    return splits


def _find_classes(
    inner: Mapping[Folder, int], depth: int, takes_outer: bool, splits: Mapping[str, str]
) -> tuple[int, bool]:
    """How many folders lie between splits and classes, and whether there are classes."""
    used = [folder for folder in inner if splits[folder[0]] != IGNORED]
    below = [folder for folder in used if len(folder) > depth]
    if below and all(folder[depth] == folder[0] for folder in below) and _names(below, depth + 1):
        depth += 1  # seg_train/seg_train/class
    while len(names := _names(used, depth)) == 1 and _names(used, depth + 1):
        if any(len(folder) == depth + 1 for folder in used) and not {name.casefold() for name in names} <= _NO_CLASS:
            break
        if {name.casefold() for name in _names(used, depth + 1)} <= _NO_CLASS:
            break  # train/cat/images
        depth += 1
    names = {name.casefold() for name in _names(used, depth)}
    if not takes_outer:
        _check_depth({folder: inner[folder] for folder in used}, depth)
    return depth - 1, bool(names) and not names <= _NO_CLASS


def _check_depth(folders: Mapping[Folder, int], depth: int) -> None:
    """Refuse classes that hold folders of different names and next to no images themselves.

    Raises:
        DataError: there is another level of folders that may be the classes.
    """
    deeper = {folder: count for folder, count in folders.items() if len(folder) > depth + 1}
    num_direct = sum(count for folder, count in folders.items() if len(folder) == depth + 1)
    insides = _names(deeper, depth + 1)
    if not deeper or num_direct * 10 > sum(deeper.values()):
        return
    if len(insides) == 1 and {name.casefold() for name in insides} <= _NO_CLASS:
        return
    outsides = _names(folders, depth)
    raise DataError(
        f"two readings fit: the classes are {_list(outsides)}, or the folders inside of these, {_list(insides)}: "
        "for the first give --set dataset.source.layout=folder; for the second move the inner folders up; if the outer "
        f"ones are splits, say so{how_to_map(*sorted(outsides)[:2])}"
    )


def _list(names: Collection[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    return ", ".join(map(repr, shown)) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


class Tree:
    """The images of a scanned tree.

    With ``txt_captions`` the .txt, .json and .cls of the same name beside an image are read as in a shard; folders that
    name a class are believed first. With ``is_indexed`` items say where in a tar their bytes lie.
    """

    def __init__(
        self,
        files: Files,
        scan: Scan,
        rule: Rule,
        words: SplitWords,
        txt_captions: TxtCaptions | None,
        *,
        is_indexed: bool = False,
    ) -> None:
        self.found = Found()
        self._files = files
        self._scan = scan
        self._rule = rule
        self._words = words
        self._txt_captions = txt_captions
        self._prefix = "".join(f"{part}/" for part in rule.wrapped)
        self._places: dict[str, Item] = {}
        self._archive = uri_of(files.path) if is_indexed and isinstance(files, TarFiles) else ""
        shape = f"folders {rule.shape}" if rule.shape != "flat" else "images in one folder"
        shape = (
            shape if rule.has_classes else shape.replace("/class", "").replace("folders class", "images in one folder")
        )
        around = f" inside {self._prefix}" if self._prefix else ""
        beside = ", with captions and labels in files beside the images" if txt_captions else ""
        self.found.layout = shape + around + beside

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self.found.clear()
        skipped = {f".{suffix}" for suffix in SIDECARS if self._txt_captions}
        kinds = self._scan.found.ignored.items()
        self.found.ignored.update((kind, one) for kind, one in kinds if kind not in skipped)
        for folder, count in self._scan.folders.items():
            place = self._place(f"{folder}/x" if folder else "x")
            word = self._split_folder(folder)
            if word and not place.problem:
                self.found.count_split("folder", word, place.split, count)
        if self._txt_captions:
            yield from (item for item, _ in self._samples(self._txt_captions, lambda _: False, self.found))
            self._words.check()
        else:
            yield from (
                self._place(name)._replace(problem=problem) if problem else self._place(name)
                for name, problem in self._scan.names()
            )

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        is_image = self._scan.is_image_again()
        if self._txt_captions:
            asked = array("b")

            def ask(_: str) -> bool:
                asked.append(next(keep, False))
                return bool(asked[-1])

            for item, _ in self._samples(self._txt_captions, ask):
                if asked.pop(0):
                    yield item
            return
        chosen = False

        def wanted(name: str) -> bool:
            nonlocal chosen
            chosen = is_image(name) and next(keep, False)
            return chosen

        for member in self._files.members(wanted):
            if chosen:
                item = self._place(member.name)
                yield item._replace(
                    image=member.data,
                    problem=item.problem or member.problem,
                    offset=member.offset if item.archive else -1,
                )

    def _samples(
        self, txt_captions: TxtCaptions, ask: Callable[[str], bool], found: Found | None = None
    ) -> Iterator[tuple[Item, bool]]:
        """Every image with what lies beside it, in order."""
        is_image = self._scan.is_image_again()
        kinds: dict[str, str] = {}

        def wanted(name: str) -> bool:
            kinds.clear()
            kinds[name] = "image" if is_image(name) else kind_of(name)
            return ask(name) if kinds[name] == "image" else kinds[name] == "sidecar"

        def used() -> Iterator[tuple[Member, str]]:
            for member in self._files.members(wanted):
                kind = kinds[member.name]
                if kind in ("image", "sidecar"):
                    yield member, kind

        for _, group in groupby(used(), lambda pair: stem_of(pair[0].name)):
            yield from read_sample(group, self._place, self._words, txt_captions, found)

    def _split_folder(self, folder: str) -> str:
        """The part of the path that is a split; "" for none."""
        parts = folder[len(self._prefix) :].split("/") if f"{folder}/".startswith(self._prefix) else []
        at = 1 if self._rule.shape == "class/split" else 0
        return parts[at] if self._rule.splits and len(parts) > at and parts[at] in self._rule.splits else ""

    def _place(self, name: str) -> Item:
        folder, slash, _ = name.rpartition("/")
        if (known := self._places.get(folder)) is None:
            known = self._place_folder(folder)
            if len(self._places) < 100_000:
                self._places[folder] = known
        path = name[len(self._prefix) :] if f"{folder}{slash}".startswith(self._prefix) else name
        return known._replace(name=path, archive=self._archive)

    def _place_folder(self, folder: str) -> Item:
        """Split and class of the images of a folder, as an item without a name."""
        rule = self._rule
        if any(map(self._words.is_ignored, folder.split("/"))):
            return Item("", IGNORED)
        outside = "lies outside the train and test folders" if rule.splits else "lies outside the class folders"
        if not f"{folder}/".startswith(self._prefix):
            return Item("", "train", problem=outside)
        parts = [part for part in folder[len(self._prefix) :].split("/") if part]
        if rule.shape == "flat":
            return Item("", "train")
        if rule.shape == "class":
            if parts:
                return Item("", "train", class_name_of(parts[0]) if rule.has_classes else None)
            return Item("", "train", problem=outside)
        if rule.shape == "class/split":
            if len(parts) < 2 or parts[1] not in rule.splits:
                return Item("", "train", problem=outside)
            return Item("", rule.splits[parts[1]], class_name_of(parts[0]))
        if not parts or parts[0] not in rule.splits:
            return Item("", "train", problem=outside)
        below = parts[1 + rule.num_between :]
        is_named = rule.has_classes and below and below[0].casefold() not in _NO_CLASS
        return Item("", rule.splits[parts[0]], class_name_of(below[0]) if is_named else None)
