"""WebDataset shards as img2dataset writes them: ``key.jpg|png|webp`` with ``key.txt``, ``key.json``, ``key.cls``."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from ssl_backdoor.data.archives import MAX_MEMBER_BYTES, Amount, Member, TarFiles
from ssl_backdoor.data.captions import decode_text
from ssl_backdoor.data.items import (
    Found,
    Item,
    claim_of,
    kind_of,
    looks_like_image,
    stem_of,
    suffix_of,
)
from ssl_backdoor.data.splits import LABEL_FIELDS, SPLIT_FIELDS, SplitWords, class_name_of, split_of_shards
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import TxtCaptions

Pair = tuple[Member, str]
_TOO_LARGE = "its sample is too large"
_MAX_SIDECAR_BYTES = 2**20
_MAX_FIELDS = 64
"""Of one sample; more members whose names agree up to the first dot are samples with a dot in their keys."""


def key_and_field(name: str) -> tuple[str, str]:
    """A member's sample and field, as WebDataset has them: parted at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, field = file.partition(".")
    return folder + slash + key, field.lower()


class WebShards:
    """The images of ``shards``, in their order; the members of one sample follow one another.

    A caption is the .txt (or each of its lines, if ``txt_captions`` is "lines") or, where there is none, each of the
    json's "caption" and "captions" (text or a list of texts). A class is the json's "label", "class" or "cls" (text or
    number), or the .cls member; -1 is none. The split is the json's (``SPLIT_FIELDS``), else that which the shard's
    name or folder says; train where no shard says any. A key may hold a dot (22.05.png) where no image has the name
    before it (22.png). An image with a sidecar over 1 MiB or a .txt or .cls that is no text is refused, and so is a
    sample without an image.

    Raises:
        DataError: a shard says two splits, or says none beside others that do; one cannot be read, or holds a member
            of a sample twice.
    """

    def __init__(self, shards: Sequence[Path], words: SplitWords, txt_captions: TxtCaptions = "whole") -> None:
        self.found = Found(f"{len(shards)} WebDataset shard{'s' * (len(shards) > 1)}")
        self._txt_captions = txt_captions
        self._shards = shards
        self._words = words
        around = os.path.commonpath([shard.parent.absolute() for shard in shards])
        relative = [os.path.relpath(shard.absolute(), around)[: -len(shard.suffix) or None] for shard in shards]
        self._splits = split_of_shards(relative, words)
        choices = [shard.stem for shard in shards], [f"{shard.parent.name}/{shard.stem}" for shard in shards], relative
        self._names = next((names for names in choices if len(set(names)) == len(names)), relative)
        self._dotted: set[int] = set()
        self._verdicts = bytearray()

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self.found.clear()
        self._dotted.clear()
        self._verdicts.clear()
        number = itertools.count()
        for shard, name, (split, word) in zip(self._shards, self._names, self._splits, strict=True):
            place = _placer(name, split)
            for _, group in itertools.groupby(self._list_members(shard), lambda pair: key_and_field(pair[0].name)[0]):
                for sample in self._part_group(next(number), group):
                    for item, _ in read_sample(sample, place, self._words, self._txt_captions, self.found, shard=name):
                        if word and item.split == split:
                            self.found.count_split("shard", word, split)
                        yield item
        self._words.check()

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        asking = _Asking(keep, self._dotted, iter(self._verdicts))
        for shard, name, (split, _) in zip(self._shards, self._names, self._splits, strict=True):
            place = _placer(name, split)
            used = ((m, *asking.last) for m in TarFiles(shard).members(asking) if asking.last[0])
            for _, group in itertools.groupby(used, lambda found: found[2]):
                sample = ((member, kind) for member, kind, _ in group)
                items = read_sample(sample, place, self._words, self._txt_captions, shard=name)
                yield from (item for item, is_wanted in items if is_wanted)
            asking.leave_shard()

    def _list_members(self, shard: Path) -> Iterator[tuple[Member, str]]:
        """(member, image or sidecar) of those that are either."""
        kind = ""

        def wanted(name: str) -> Amount:
            nonlocal kind
            kind = kind_of(name)
            return "head" if kind == "unknown" else kind == "sidecar"

        for member in TarFiles(shard).members(wanted):
            if kind == "unknown":
                self._verdicts.append(looks_like_image(member.data))
                kind = "image" if self._verdicts[-1] else f".{suffix_of(member.name)}"
                member = member._replace(data=None)
            if kind in ("image", "sidecar"):
                yield member, kind
            else:
                self.found.ignore(kind, f"{shard.name}/{member.name}")

    def _part_group(self, number: int, group: Iterator[Pair]) -> Iterator[Iterator[Pair]]:
        """The samples among members whose names agree up to the first dot: one, or those of dotted keys."""
        head = list(itertools.islice(group, _MAX_FIELDS))
        has_plain = any(kind == "image" and _is_plain(member.name) for member, kind in head)
        if has_plain or all(kind != "image" for _, kind in head):
            yield self._without_further(itertools.chain(head, group))
            return
        self._dotted.add(number)
        for _, sample in itertools.groupby(itertools.chain(head, group), lambda pair: stem_of(pair[0].name)):
            yield sample

    def _without_further(self, group: Iterator[Pair]) -> Iterator[Pair]:
        """The members of one sample without fields such as seg.png."""
        for member, kind in group:
            if _is_plain(member.name):
                yield member, kind
            else:
                self.found.ignore(f"further {kind} of a sample", member.name)


def _placer(shard: str, split: str) -> Callable[[str], Item]:
    return lambda name: Item(f"{shard}/{name}", split)


def _is_plain(name: str) -> bool:
    """Whether the file's name has one dot at most, but for what a download left behind it."""
    return "." not in stem_of(name.partition("?")[0]).rpartition("/")[2]


class _Asking:
    """Which members are read: every sidecar, and the images that ``keep`` asks for.

    A sample without an image is one item too and takes one answer, at the moment that the next sample begins.
    """

    def __init__(self, keep: Iterator[bool], dotted: Set[int], verdicts: Iterator[int]) -> None:
        self._keep = keep
        self._dotted = dotted
        self._verdicts = verdicts
        self._number = -1
        self._outer: str | None = None
        self._sample: tuple[int, str] = (-1, "")
        self._kinds: set[str] = set()
        self.last: tuple[str, tuple[int, str]] = ("", self._sample)
        """Of the member asked for last: image, sidecar or "" for neither, and its sample."""

    def __call__(self, name: str) -> bool:
        kind = kind_of(name)
        if kind == "unknown":
            kind = "image" if next(self._verdicts, 0) else ""
        if kind not in ("image", "sidecar"):
            self.last = ("", self._sample)
            return False
        outer = key_and_field(name)[0]
        if outer != self._outer:
            self._outer = outer
            self._number += 1
        is_dotted = self._number in self._dotted
        sample = self._number, stem_of(name) if is_dotted else ""
        if sample != self._sample:
            self._leave_sample()
            self._sample = sample
        if not (is_dotted or _is_plain(name)):
            self.last = ("", sample)
            return False
        self.last = (kind, sample)
        self._kinds.add(kind)
        return kind == "sidecar" or next(self._keep, False)

    def leave_shard(self) -> None:
        """Samples do not go on in the next shard."""
        self._leave_sample()
        self._outer = None

    def _leave_sample(self) -> None:
        if self._kinds == {"sidecar"}:
            next(self._keep, False)
        self._kinds.clear()


def read_sample(
    group: Iterable[Pair],
    place: Callable[[str], Item],
    words: SplitWords,
    txt_captions: TxtCaptions,
    found: Found | None = None,
    *,
    shard: str = "",
) -> Iterator[tuple[Item, bool]]:
    """The images of a sample, each with its captions, class and split, and whether its bytes were asked for.

    Args:
        group: the images and sidecars of one sample.
        place: an image's own name, split and class, from a member's name.
        words: what names of splits mean.
        txt_captions: whether a .txt is one caption, or each of its lines.
        found: where the words of splits are counted.
        shard: its name, where the sample is of one; a sample without an image is then an item with a problem.

    Raises:
        DataError: a shard holds a member twice.
    """
    images, sidecars, name, problem = _gather(group, shard)
    about = _object(sidecars.get("json", b"{}"))
    if about is None:
        about = {}
        if found is not None:
            found.ignore("json that holds no object", f"{stem_of(name)}.json")
    word = next((about[field] for field in SPLIT_FIELDS if about.get(field) is not None), None)
    split = words.of_field(word, f"the json of {place(stem_of(name)).name}") if word is not None else None
    class_name = caption = None
    try:
        class_name = _class_name(about, sidecars.get("cls"))
        caption = _caption(about, sidecars.get("txt"), txt_captions)
    except DataError as error:
        problem = problem or f"its .txt or .cls {error}"
    for image in images:
        placed = place(image.name)
        if split and found is not None:
            found.count_split("json", str(word)[:100], split)
        is_wanted = image.data is not None or bool(image.problem)
        yield (
            placed._replace(
                split=split or placed.split,
                class_name=placed.class_name or class_name,
                caption=caption,
                image=image.data,
                problem=placed.problem or problem or image.problem,
                claim=claim_of(about),
            ),
            is_wanted,
        )
    if sidecars and not images and found is not None and not shard:
        found.ignore(f".{suffix_of(name)}", name)
    if shard and sidecars and not images:
        lone = place(stem_of(name))
        problem = "has a caption or a label but no image beside it"
        yield lone._replace(split=split or lone.split, problem=problem), False


def _gather(group: Iterable[Pair], shard: str) -> tuple[list[Member], dict[str, bytes], str, str]:
    """The images and sidecars of a sample, the name of its last member, and why its images are refused."""
    images: list[Member] = []
    sidecars: dict[str, bytes] = {}
    seen: set[str] = set()
    problem = name = ""
    num_bytes = 0
    for member, kind in group:
        name, field = member.name, suffix_of(member.name)
        if shard and name.lower() in seen:
            raise DataError(
                f"shard {shard} holds the .{field} of sample {stem_of(name)!r:.200} twice: pack each member once"
            )
        seen.add(name.lower())
        num_bytes += len(member.data or b"")
        if kind == "image":
            is_kept = num_bytes <= MAX_MEMBER_BYTES or member.data is None
            images.append(member if is_kept else member._replace(data=None, problem=_TOO_LARGE))
            continue
        if field in sidecars:
            problem = f"has two .{field} files"
        sidecars[field] = member.data if member.data is not None else b""
        if member.problem:
            problem = f"its .{field} {member.problem}"
        elif len(sidecars[field]) > _MAX_SIDECAR_BYTES:
            sidecars[field] = b""
            problem = f"its .{field} is larger than the {_MAX_SIDECAR_BYTES} bytes that a sidecar may have"
    if num_bytes > MAX_MEMBER_BYTES:
        images = [one if one.data is None else one._replace(data=None, problem=_TOO_LARGE) for one in images]
    return images, sidecars, name, problem


def _object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in ``data``, or None: a malformed sidecar costs the caption, not the image."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _caption(about: dict[str, Any], text: bytes | None, txt_captions: TxtCaptions) -> str | None:
    """The captions as found, one a line."""
    if text is not None:
        found_text = decode_text(text)
        return (found_text if txt_captions == "lines" else " ".join(found_text.splitlines())) or None
    found: list[str] = []
    for value in (about.get("caption"), about.get("captions")):
        found += (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))
    return "\n".join(one.replace("\n", " ") for one in found) or None


def _class_name(about: dict[str, Any], text: bytes | None) -> str | None:
    values = [about.get(field) for field in LABEL_FIELDS]
    if text is not None:
        values.append(decode_text(text))
    return next(filter(None, map(class_name_of, values)), None)
