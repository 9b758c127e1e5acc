"""WebDataset shards as img2dataset writes them: ``key.jpg|png|webp`` with ``key.txt``, ``key.json``, ``key.cls``."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl_backdoor.data.archives import Member, TarFiles, is_hidden
from ssl_backdoor.data.items import IMAGE_SUFFIXES, SPLITS, Item, printable

SIDECARS = frozenset({"txt", "json", "cls"})
_MAX_SIDECAR_BYTES = 2**20
_MAX_CAPTION = 10_000  # characters
_MAX_CLASS_NAME = 200  # characters


def key_and_field(name: str) -> tuple[str, str]:
    """A member's sample and field, as WebDataset has them: parted at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, field = file.partition(".")
    return folder + slash + key, field.lower()


class WebShards:
    """The images of ``shards``, in their order; the members of one sample follow one another.

    A class is the json's "label", "class" or "cls" (text or number), or the .cls member; -1 is none. The split is the
    json's "split", or the shard's name where that starts with train, test or val; else train.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = shards
        stems = [shard.stem for shard in shards]
        is_unique = len(set(stems)) == len(stems)
        self._names = stems if is_unique else [f"{shard.parent.name}/{shard.stem}" for shard in shards]

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        return self._items(itertools.repeat(False))

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``."""
        return (item for item in self._items(keep) if item.image is not None or item.problem)

    def _items(self, keep: Iterator[bool]) -> Iterator[Item]:
        def wanted(name: str) -> bool:
            field = key_and_field(name)[1]
            if field in IMAGE_SUFFIXES and not is_hidden(name):
                return next(keep, False)
            return field in SIDECARS

        for shard, name in zip(self._shards, self._names, strict=True):
            first_word = re.match(r"[a-z]*", shard.name.lower())
            split = SPLITS.get(first_word[0] if first_word else "", "train")
            members = TarFiles(shard).members(wanted)
            for _, group in itertools.groupby(members, lambda member: key_and_field(member.name)[0]):
                yield from _sample(group, name, split)


def _sample(group: Iterator[Member], shard: str, split: str) -> Iterator[Item]:
    images: dict[str, Member] = {}
    sidecars: dict[str, bytes] = {}
    for member in group:
        field = key_and_field(member.name)[1]
        if field in IMAGE_SUFFIXES and not is_hidden(member.name):
            images[member.name] = member
        elif member.data is not None and len(member.data) <= _MAX_SIDECAR_BYTES:
            sidecars[field] = member.data
    about = _object(sidecars.get("json", b""))
    for name, image in images.items():
        yield Item(
            f"{shard}/{name}",
            SPLITS.get(str(about.get("split")), split),
            _class_name(about, sidecars.get("cls")),
            _caption(about, sidecars.get("txt")),
            image.data,
            image.problem,
        )


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``, or an empty one: a malformed sidecar costs the caption, not the image."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _caption(about: dict[str, Any], text: bytes | None) -> str | None:
    value = about.get("caption") if text is None else text.decode("utf-8", "replace")
    return (printable(value).strip()[:_MAX_CAPTION] or None) if isinstance(value, str) else None


def _class_name(about: dict[str, Any], text: bytes | None) -> str | None:
    values = [about.get(name) for name in ("label", "class", "cls")]
    if text is not None:
        values.append(text.decode("utf-8", "replace"))
    for value in values:
        if isinstance(value, str | int) and not isinstance(value, bool):
            name = printable(str(value)).strip()
            if name and name != "-1" and len(name) <= _MAX_CLASS_NAME:
                return name
    return None
