"""What the words for splits and labels mean, wherever they stand: folder, file name, table or json."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ssl_backdoor.errors import DataError, SpecError

HELD_OUT = ("test", "eval", "val")
"""Splits that hold test images: the first of these that a source has is its test split, the others are left out."""
IGNORED = "ignore"
LABEL_FIELDS = ("label", "class", "cls")
SPLIT_FIELDS = ("split", "partition", "subset", "data_split")
_MAX_CLASS_NAME = 200  # characters
_MAX_FIELD = 10_000  # characters or bytes, blanks and all
_SHOWN = 5
_REMEMBERED = 1000

_WORDS = {
    "train": "train training trainset traindata trn trainval trainvalid restval",
    "val": "val valid validation validate valset minival dev devel development",
    "eval": "eval evaluation evaluate evalset",
    "test": "test testing testset testdata tst holdout heldout",
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words.split()}
# Words that add nothing to the name of a split: test_images, TRAIN_SPLIT, train-00000-of-00005, train64x64.
_GENERIC = frozenset(
    re.findall(
        r"\w+",
        "set sets split splits data dataset datasets image images img imgs picture pictures photo photos jpeg jpg png "
        "jpegs jpegimages frames file files folder shard shards part parts chunk sample samples of x px full all raw "
        "small large mini big new final original orig resized cropped crop official public private",
    )
)
_PARTS = re.compile(r"[^\W\d_]+|\d+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


class _Words(NamedTuple):
    """A name taken apart."""

    splits: frozenset[str]
    """What its split words mean; empty where it has none."""
    affix: tuple[str, ...]
    """Its other words, without numbers, single letters and what says nothing."""


def plain(text: str) -> str:
    """``text`` as it is compared: composed (NFC), without the lone surrogates of undecodable bytes or blanks around."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode()).strip()


def class_name_of(value: object) -> str | None:
    """The class that a label names by text, bytes or a whole number, 1.0 being 1.

    None for none: empty, -1, longer than 200 characters, or any other value.
    """
    if isinstance(value, bytes | str) and len(value) > _MAX_FIELD:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    name = plain(str(value))
    return name if name and name != "-1" and len(name) <= _MAX_CLASS_NAME else None


def is_generic(name: str) -> bool:
    """Whether a folder's name says nothing of what it holds, such as "images"."""
    words = _take_apart(name)
    return not words.splits and not words.affix


def _take_apart(name: str) -> _Words:
    parts = [part.casefold() for part in _PARTS.findall(_HUMP.sub(" ", plain(name)))]
    found, affix, at = set[str](), list[str](), 0
    while at < len(parts):
        pair = "".join(parts[at : at + 2])
        if len(parts) > at + 1 and pair in _SPLIT_OF:  # hold-out, train_val
            found.add(_SPLIT_OF[pair])
            at += 1
        elif parts[at] in _SPLIT_OF:
            found.add(_SPLIT_OF[parts[at]])
        elif len(parts[at]) > 1 and parts[at] not in _GENERIC and not parts[at].isdecimal():
            affix.append(parts[at])
        at += 1
    return _Words(frozenset(found), tuple(affix))


class SplitWords:
    """Reads the names of splits, those of ``mapping`` (``DatasetSpec.splits``) first, in any case.

    A word that is not known never means train: it is remembered, and ``check`` refuses it.
    """

    def __init__(self, mapping: Iterable[tuple[str, str]] = ()) -> None:
        self._mapping = {plain(word).casefold(): split for word, split in mapping}
        self._unused = dict.fromkeys(self._mapping)
        self._known: dict[str, str] = {}
        self._unknown: dict[str, str] = {}

    def of_field(self, value: object, where: str) -> str | None:
        """The split that a field of a table or json names; None where it is empty.

        ``where`` is said where the word is not known.
        """
        value = value[:_MAX_FIELD] if isinstance(value, bytes | str) else value
        word = plain(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
        if value is None or word in ("", "nan", "None"):
            return None
        if (split := self._known.get(word)) is None:
            if (split := self._of_words(word)) is None:
                if len(self._unknown) < _REMEMBERED:
                    self._unknown.setdefault(word[:100], where)
                return IGNORED
            if len(self._known) < _REMEMBERED:
                self._known[word] = split
        return split

    def of_name(self, name: str) -> str | None:
        """The split that the name of a shard or of its folder holds as a word; None where it has none.

        Raises:
            DataError: it holds the words of two.
        """
        if (split := self._of_words(name)) is None and len(_take_apart(name).splits) > 1:
            raise DataError(f"{name!r} holds the words of two splits: rename it, or say which{how_to_map(name)}")
        return split

    def of_folders(self, names: Collection[str]) -> dict[str, str]:
        """Which of the folders beside one another are splits, and which.

        A name of further words is one only beside another split of the same words (seg_train, seg_test): test_tube and
        bullet_train are classes.
        """
        words = {name: _take_apart(name) for name in names}
        of_affix: dict[tuple[str, ...], set[str]] = {}
        for one in words.values():
            of_affix.setdefault(one.affix, set()).update(one.splits if len(one.splits) == 1 else ())
        found = {}
        for name, (splits, affix) in words.items():
            if (split := self._of_mapping(name, exact=True)) is not None:
                found[name] = split
            elif len(splits) == 1 and (not affix or len(of_affix[affix]) > 1):
                (split,) = splits
                found[name] = self._of_mapping(name) or split
        return found

    def is_ignored(self, folder: str) -> bool:
        """Whether the mapping leaves this folder out."""
        return bool(self._mapping) and self._of_mapping(folder, exact=True) == IGNORED

    def check(self) -> None:
        """Refuse the fields whose word was not known.

        Raises:
            DataError: there are some.
        """
        if self._unknown:
            word, where = next(iter(self._unknown.items()))
            shown = ", ".join(map(repr, list(self._unknown)[:_SHOWN]))
            raise DataError(
                f"{where} names the split {word!r}, which is not known (of this kind: {shown}): "
                f"say what it is{how_to_map(*self._unknown)}"
            )

    def check_mapping(self, found: Iterable[str]) -> None:
        """Refuse a mapping of words that the data, which name ``found``, do not have.

        Raises:
            SpecError: there is one.
        """
        if self._unused:
            names = ", ".join(sorted(set(found))[:_SHOWN]) or "no splits"
            raise SpecError(
                f"dataset.splits maps {next(iter(self._unused))!r}, but the data have no such split: they name {names}"
            )

    def _of_words(self, name: str) -> str | None:
        splits = _take_apart(name).splits
        return self._of_mapping(name) or (next(iter(splits)) if len(splits) == 1 else None)

    def _of_mapping(self, name: str, *, exact: bool = False) -> str | None:
        if not self._mapping:
            return None
        whole = plain(name).casefold()
        for word in (whole, *(() if exact else _PARTS.findall(whole))):
            if word in self._mapping:
                self._unused.pop(word, None)
                return self._mapping[word]
        return None


def split_of_shards(names: Sequence[str], words: SplitWords) -> list[tuple[str, str]]:
    """(split, the word that says it) of each shard, from its relative path without the suffix; "" where none says it.

    Raises:
        DataError: a shard's name and folder say two splits, or it says none beside others that do.
    """
    found: list[tuple[str, str]] = []
    for name in names:
        said = {part: split for part in name.split("/") if part and (split := words.of_name(part)) is not None}
        if len(set(said.values())) > 1:
            raise DataError(f"{name!r} says two splits, {', '.join(map(repr, said))}: rename one of them")
        part, split = next(iter(said.items()), ("", "train"))
        found.append((split, re.sub(r"\d+", "*", part)))
    known = {affix for name, (_, word) in zip(names, found, strict=True) if word for affix in _take_apart(name).affix}
    if not any(word for _, word in found):
        return found
    for name, (_, word) in zip(names, found, strict=True):
        if not word and (unknown := [one for one in _take_apart(name).affix if one not in known]):
            raise DataError(
                f"{name!r} names no known split, but lies beside {_first_said(names, found)!r}: say what "
                f"{unknown[-1]!r} is{how_to_map(unknown[-1])}"
            )
    return found


def _first_said(names: Sequence[str], found: Sequence[tuple[str, str]]) -> str:
    return next(name for name, (_, word) in zip(names, found, strict=True) if word)


def how_to_map(*words: str) -> str:
    """The end of a sentence: how the user says what ``words`` mean."""
    entries = ",".join(f'"{word}":"..."' for word in words[:_SHOWN])
    return f" with --set 'dataset.splits={{{entries}}}', each train, val, test or ignore"


def choose_test_split(splits: Iterable[str] | Mapping[str, object]) -> str:
    """The one of ``HELD_OUT`` whose images are the test images; "test" where there is none."""
    found = set(splits)
    return next((split for split in HELD_OUT if split in found), "test")
