"""A look at data before anything is computed: what an ingest would read, and what stands out in it.

Every image is decoded once, as by an ingest, and none is kept: memory is some sixty bytes an image, and 24 thumbnails.
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ssl_backdoor.data.images import UInt8Image, decode
from ssl_backdoor.data.ingest import CheckedImage, read_checked
from ssl_backdoor.data.items import Claim, Source, printable
from ssl_backdoor.data.selection import Selection, fingerprint
from ssl_backdoor.data.sources import open_source
from ssl_backdoor.data.survey import Listing, Rejections, describe, list_source
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec

SHEET_IMAGES = 24
THUMBNAIL_PX = 128
_EXAMPLES = 10
_MAX_DISTINCT = 10_000  # captions and sizes that are counted
_SHOWN_CHARS = 300
_EVERY = 128
_PHASH_BITS = 10  # of 64 that may differ in what is perceptually equal


class Shown(NamedTuple):
    """An image of the contact sheet."""

    key: str
    split: str
    class_name: str
    caption: str
    width: int
    height: int
    pixels: UInt8Image
    """The centre, (THUMBNAIL_PX, THUMBNAIL_PX, 3)."""


class Inspection(NamedTuple):
    """What was found."""

    listing: Listing
    """By names; with the images that do not decode among the rejected."""
    facts: Mapping[str, Any]
    """Plain JSON data: num_images, formats, bytes, sizes, captions, duplicates, hashes_in_json."""
    sheet: tuple[Shown, ...]


def inspect_data(
    spec: DatasetSpec, data: str | None, test_data: str | None = None, on_progress: OnProgress = silent
) -> Inspection:
    """Read the source as an ingest does, and keep nothing.

    Returns:
        The listing and, of the images that are kept and decode, the facts and a sheet drawn by ``spec.subset_seed``.

    Raises:
        DataError: the source cannot be used, or can be read in more than one way.
        SpecError: a class or split that the data do not have; ``test_data`` missing, or given and not asked for.
    """
    source, rejections = open_source(spec, data, test_data), Rejections()
    selection = list_source(source, spec, rejections.add)
    total = int(selection.keep.sum())
    seen = _Seen(selection, spec)
    for done, checked in enumerate(read_checked(source, selection, spec), start=1):
        if checked.reason:
            rejections.add(checked.item.name, checked.reason)
        else:
            seen.add(checked)
        if done % _EVERY == 0 or done == total:
            on_progress(Progress(done, total, "images"))
    return Inspection(describe(source, selection, rejections), seen.facts(source), seen.sheet())


class _Seen:
    """What the images showed so far."""

    def __init__(self, selection: Selection, spec: DatasetSpec) -> None:
        self._selection, self._spec = selection, spec
        self._wanted = {row: place for place, row in enumerate(_choose(selection, spec.subset_seed))}
        self._sheet: dict[int, Shown] = {}
        self._rows, self._hashes, self._texts = array("q"), array("Q"), array("Q")
        self._widths, self._heights, self._bytes, self._chars = array("I"), array("I"), array("Q"), array("I")
        self._formats: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._captions: Counter[str] = Counter()
        self._hash_verdicts: Counter[str] = Counter()
        self._differing: list[str] = []
        self._smallest: tuple[int, dict[str, Any]] = (2**63, {})
        self._largest: tuple[int, dict[str, Any]] = (0, {})
        self._longest: dict[str, str] = {"text": ""}

    def add(self, checked: CheckedImage) -> None:
        """One image that decodes."""
        suffix, width, height = checked.header
        self._rows.append(checked.row)
        self._hashes.append(int(checked.sha256[:16], 16))
        self._widths.append(width)
        self._heights.append(height)
        self._bytes.append(len(checked.data))
        self._formats[suffix] += 1
        _count(self._sizes, f"{width} x {height}")
        sized = {"key": checked.key, "width": width, "height": height}
        if min(width, height) < self._smallest[0]:
            self._smallest = min(width, height), sized
        if width * height > self._largest[0]:
            self._largest = width * height, sized
        self._add_caption(checked.key, checked.item.caption)
        if (claim := checked.item.claim) is not None:
            verdict = compare_with_claim(claim, checked.data, checked.sha256, self._spec.max_image_pixels)
            self._hash_verdicts[verdict] += 1
            if verdict == "different" and len(self._differing) < _EXAMPLES:
                self._differing.append(checked.key)
        if (place := self._wanted.get(checked.row)) is not None:
            label = int(self._selection.labels[checked.row])
            self._sheet[place] = Shown(
                checked.key,
                "test" if self._selection.is_test[checked.row] else "train",
                self._selection.classes[label] if label >= 0 else "",
                (checked.item.caption or "")[:_SHOWN_CHARS],
                width,
                height,
                decode(checked.data, self._spec.max_image_pixels, THUMBNAIL_PX),
            )

    def _add_caption(self, key: str, caption: str | None) -> None:
        self._texts.append(fingerprint(caption) if caption is not None else 0)
        for one in caption.split("\n") if caption is not None else ():
            self._chars.append(len(one))
            _count(self._captions, one[:_SHOWN_CHARS])
            if len(one) > len(self._longest["text"]):
                self._longest = {"key": key, "text": one}

    def sheet(self) -> tuple[Shown, ...]:
        """The first ``SHEET_IMAGES`` of the drawn ones that decode."""
        return tuple(shown for _, shown in islice(sorted(self._sheet.items()), SHEET_IMAGES))

    def facts(self, source: Source) -> dict[str, Any]:
        """Everything, as plain JSON data."""
        total = int(np.frombuffer(self._bytes, np.uint64).sum()) if self._rows else 0
        return {
            "num_images": len(self._rows),
            "formats": dict(self._formats.most_common()),
            "bytes": {"total": total, "of_an_image": _quantiles(self._bytes)},
            "sizes": {
                "most_common": dict(self._sizes.most_common(_EXAMPLES)),
                "num_distinct": len(self._sizes),
                "width": _quantiles(self._widths),
                "height": _quantiles(self._heights),
                "smallest": self._smallest[1],
                "largest": self._largest[1],
            },
            "captions": self._caption_facts(),
            "duplicates": self._duplicate_facts(source),
            "hashes_in_json": {**self._hash_verdicts, "examples_of_different": self._differing},
        }

    def _caption_facts(self) -> dict[str, Any]:
        texts = np.frombuffer(self._texts, np.uint64) if self._texts else np.empty(0, np.uint64)
        repeated = [(text, count) for text, count in self._captions.most_common(_EXAMPLES) if count > 1]
        return {
            "num_images_with": int((texts != 0).sum()),
            "num_captions": len(self._chars),
            "num_distinct_of_an_image": len(np.unique(texts[texts != 0])),
            "characters": _quantiles(self._chars),
            "longest": {name: text[:_SHOWN_CHARS] for name, text in self._longest.items()},
            "most_repeated": [{"text": text[:_SHOWN_CHARS], "count": count} for text, count in repeated],
        }

    def _duplicate_facts(self, source: Source) -> dict[str, Any]:
        """Of images with the same bytes: surplus copies, test images that are trained on, contradicting classes."""
        rows = np.array(self._rows, np.int64)
        _, group, sizes = np.unique(np.array(self._hashes, np.uint64), return_inverse=True, return_counts=True)
        is_test, labels = self._selection.is_test[rows], self._selection.labels[rows]
        of_train, of_test = (np.bincount(group[mask], minlength=len(sizes)) for mask in (~is_test, is_test))
        of_class = np.unique(np.stack([group, labels], axis=1), axis=0)[:, 0] if len(rows) else group
        texts = np.array(self._texts, np.uint64)
        largest = [int(at) for at in np.argsort(-sizes, kind="stable")[:_EXAMPLES] if sizes[at] > 1]
        members = [np.flatnonzero(group == at) for at in largest]
        names = _names(source, {int(rows[at]) for places in members for at in places[:3]})
        return {
            "num_within_train": int(np.maximum(of_train - 1, 0).sum()),
            "num_within_test": int(np.maximum(of_test - 1, 0).sum()),
            "num_test_also_train": int(of_test[of_train > 0].sum()),
            "num_of_several_classes": int((np.bincount(of_class, minlength=len(sizes)) > 1).sum()),
            "largest": [
                {
                    "num_images": len(places),
                    "num_captions": len(np.unique(texts[places][texts[places] != 0])),
                    "names": [names[int(rows[at])] for at in places[:3]],
                }
                for places in members
            ],
        }


def compare_with_claim(claim: Claim, data: bytes, sha256: str, max_pixels: int) -> str:
    """What the hashes that came with an image say of its bytes.

    ``match``: the sha256. ``perceptually equal`` or ``different``: where that differs and there is a perceptual hash,
    64 bits as imagehash's phash. ``not comparable``: without one. A downloader's sha256 is of the file before it was
    resized or encoded again, so that it may differ where nothing is wrong.
    """
    if sha256 == claim.sha256:
        return "match"
    if claim.phash is None:
        return "not comparable"
    return "perceptually equal" if (claim.phash ^ phash(data, max_pixels)).bit_count() <= _PHASH_BITS else "different"


def phash(data: bytes, max_pixels: int) -> int:
    """64 bits, most significant first: which low frequencies of the grey image at 32 x 32 px are above their median."""
    from scipy.fft import dctn  # takes a second to import

    grey = Image.fromarray(decode(data, max_pixels)).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, np.float64))[:8, :8]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _choose(selection: Selection, seed: int) -> list[int]:
    """Rows for the sheet: of each class and split in turn, in an order drawn by ``seed``; twice as many as it shows."""
    rows = np.flatnonzero(selection.keep)
    rows = rows[stream(seed, "contact sheet").permutation(len(rows))]
    group = selection.labels[rows] * 2 + selection.is_test[rows]
    by_group = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[by_group], prepend=-9))
    turn = np.arange(len(rows)) - np.repeat(starts, np.diff([*starts, len(rows)]))
    chosen: list[int] = rows[by_group][np.argsort(turn, kind="stable")[: 2 * SHEET_IMAGES]].tolist()
    return chosen


def _count(counter: Counter[str], text: str) -> None:
    """Count ``text``, unless too many others are counted already."""
    if text in counter or len(counter) < _MAX_DISTINCT:
        counter[text] += 1


def _quantiles(values: "array[int]") -> dict[str, float]:
    """Least, 5 %, median, 95 % and largest; empty of nothing."""
    if not values:
        return {}
    found = np.quantile(np.array(values), (0.0, 0.05, 0.5, 0.95, 1.0))
    return dict(zip(("min", "p5", "median", "p95", "max"), found.round(1).tolist(), strict=True))


def _names(source: Source, rows: set[int]) -> dict[int, str]:
    """Of the images at these rows of the listing, which is read again."""
    if not rows:
        return {}
    return {
        row: printable(item.name) for row, item in enumerate(islice(source.listing(), max(rows) + 1)) if row in rows
    }
