"""WebDataset shards as img2dataset writes them: ``key.jpg|png|webp`` with ``key.txt``, ``key.json``, ``key.cls``."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl_backdoor.data.archives import Member, TarFiles, is_hidden
from ssl_backdoor.data.items import IMAGE_SUFFIXES, SPLITS, Item, class_name_of

SIDECARS = frozenset({"txt", "json", "cls"})
_MAX_SIDECAR_BYTES = 2**20


def key_and_field(name: str) -> tuple[str, str]:
    """A member's sample and field, as WebDataset has them: parted at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, field = file.partition(".")
    return folder + slash + key, field.lower()


class WebShards:
    """The images of ``shards``, in their order; the members of one sample follow one another.

    A caption is each line of the .txt or, where there is none, each of the json's "caption" and "captions" (text or a
    list of texts). A class is the json's "label", "class" or "cls" (text or number), or the .cls member; -1 is none.
    The split is the json's "split", or the shard's name where that starts with train, test or val; else train. An
    image with a sidecar over 1 MiB is refused, and so is a sample without an image.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = shards
        stems = [shard.stem for shard in shards]
        is_unique = len(set(stems)) == len(stems)
        self._names = stems if is_unique else [f"{shard.parent.name}/{shard.stem}" for shard in shards]

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        return (item for item, _ in self._items(itertools.repeat(False)))

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``."""
        return (item for item, is_wanted in self._items(keep) if is_wanted)

    def _items(self, keep: Iterator[bool]) -> Iterator[tuple[Item, bool]]:
        """Each item, and whether ``keep`` asked for it."""
        for shard, name in zip(self._shards, self._names, strict=True):
            first_word = re.match(r"[a-z]*", shard.name.lower())
            split = SPLITS.get(first_word[0] if first_word else "", "train")
            asked = _KeepFilter(keep)
            members = TarFiles(shard).members(asked)
            for _, group in itertools.groupby(members, lambda member: key_and_field(member.name)[0]):
                yield from _sample(group, name, split)
            asked.leave_sample()


class _KeepFilter:
    """Which members are read: every sidecar, and the images that ``keep`` asks for.

    A sample without an image is one item too and takes one answer, at the moment that the next sample begins.
    """

    def __init__(self, keep: Iterator[bool]) -> None:
        self._keep = keep
        self._key = ""
        self._fields: set[str] = set()

    def __call__(self, name: str) -> bool:
        key, field = key_and_field(name)
        if key != self._key:
            self.leave_sample()
            self._key = key
        if is_hidden(name) or field not in IMAGE_SUFFIXES | SIDECARS:
            return False
        self._fields.add(field)
        return field in SIDECARS or next(self._keep, False)

    def leave_sample(self) -> None:
        if self._fields and not self._fields & IMAGE_SUFFIXES:
            next(self._keep, False)
        self._fields.clear()


def _sample(group: Iterator[Member], shard: str, split: str) -> Iterator[tuple[Item, bool]]:
    images: dict[str, Member] = {}
    sidecars: dict[str, bytes] = {}
    problem = key = ""
    for member in group:
        key, field = key_and_field(member.name)
        if is_hidden(member.name):
            continue
        if field in IMAGE_SUFFIXES:
            images[member.name] = member
        elif field in SIDECARS:
            sidecars[field] = member.data if member.data is not None else b""
            size = len(sidecars[field])
            if member.problem or size > _MAX_SIDECAR_BYTES:
                sidecars[field] = b""
                problem = f"its .{field} is larger than the {_MAX_SIDECAR_BYTES} bytes that a sidecar may have"
    about = _object(sidecars.get("json", b""))
    split = SPLITS.get(str(about.get("split")), split)
    class_name, caption = _class_name(about, sidecars.get("cls")), _caption(about, sidecars.get("txt"))
    for name, image in images.items():
        is_wanted = image.data is not None or bool(image.problem)
        found = Item(f"{shard}/{name}", split, class_name, caption, image.data, problem or image.problem)
        yield found, is_wanted
    if sidecars and not images:
        yield Item(f"{shard}/{key}", split, problem="has a caption or a label but no image beside it"), False


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``, or an empty one: a malformed sidecar costs the caption, not the image."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _caption(about: dict[str, Any], text: bytes | None) -> str | None:
    """The captions as found, one a line."""
    if text is not None:
        return text.decode("utf-8", "replace") or None
    found: list[str] = []
    for value in (about.get("caption"), about.get("captions")):
        found += (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))
    return "\n".join(one.replace("\n", " ") for one in found) or None


def _class_name(about: dict[str, Any], text: bytes | None) -> str | None:
    values = [about.get(name) for name in ("label", "class", "cls")]
    if text is not None:
        values.append(text.decode("utf-8", "replace"))
    return next(filter(None, map(class_name_of, values)), None)
