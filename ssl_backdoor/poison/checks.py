"""Whether a poison is what it should be, before anything is trained on it: looked at on demand, stored nowhere.

It depends on the crops of the training, which the poison's key does not: so it is no part of its artifact. Needs no
torch. NOTE: crops are RandomResizedCrop's boxes, resized by Pillow and without colour, so that what is lost is lost to
the crop alone.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ssl_backdoor.data.dataset import Dataset, LazyDataset, Overlay, lookup_locations
from ssl_backdoor.data.images import UInt8Image, decode, encode_jpeg75, encode_png, inspect
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.poison.plan import chosen_rows, label_of, training
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import AttackSpec, ViewsSpec

_MOST = 200
_CROPS = 8
_VISIBLE_LEVELS = 4
_RATIO = (math.log(3 / 4), math.log(4 / 3))
_TOLD_APART = 0.9


class PoisonChecks(NamedTuple):
    """Of up to 200 poisons; shares lie in [0, 1]. None where there is nothing to measure it by."""

    num_planned: int
    """Poisons and re-encoded clean images that were asked for."""
    num_found: int
    psnr_db: float | None
    """Mean over the poisons that differ from their originals, codec and resizing to the held frame included."""
    changed_frac: float | None
    """Mean share of the pixels that differ."""
    visible_frac: float | None
    """Share of random crops, at the size of a view, in which the trigger is left: one pixel differs by 4 levels, or, of
    a poison made of two images, half of the trigger's box is inside."""
    auroc: dict[str, float]
    """Of a trivial detector, 0.5 where it tells nothing: file size, aspect ratio, JPEG quality."""

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"poisons: {self.num_found} found, {self.num_planned} asked for"
        if self.changed_frac is not None:
            loudness = "no pixel changed" if self.psnr_db is None else f"PSNR {self.psnr_db:.1f} dB"
            yield f"stamp: {loudness}, {100 * self.changed_frac:.3g} % of the pixels, once resized and encoded"
        if self.visible_frac is not None:
            yield f"stamp: left in {100 * self.visible_frac:.3g} % of random crops"
        told = ", ".join(f"{name} {value:.2f}" for name, value in self.auroc.items())
        yield f"told from clean images by (AUROC, 0.5 tells nothing): {told}"

    def problems(self) -> Iterator[str]:
        """What makes the poison useless, or an experiment with it meaningless."""
        if self.num_found != self.num_planned:
            yield f"expected {self.num_planned} samples in the poison, found {self.num_found}: poison the data again"
        if self.changed_frac == 0:
            yield "no poison differs from its original once it is resized and encoded: make the trigger stronger"
        elif self.visible_frac is not None and self.visible_frac < 0.1:
            yield (
                f"the trigger is left in {100 * self.visible_frac:.2g} % of random crops, so that little can be learnt "
                "from it: make it larger or stronger, or crop less (train.fit.views.crop_scale)"
            )
        for name, value in self.auroc.items():
            if value >= _TOLD_APART:
                yield f"poisoned files are told from clean ones by their {name} alone (AUROC {value:.2f})"


def check_poison(
    attack: AttackSpec, dataset: Dataset | LazyDataset, overlay: Overlay, views: ViewsSpec, seed: int
) -> PoisonChecks | None:
    """Look at a poison of ``attack`` on ``dataset``; None for one that has no samples.

    Raises:
        DataError: an image cannot be read.
    """
    is_poison = pc.is_in(overlay.rows["action"], pa.array(["poison", "add"]))
    rows = overlay.rows.filter(is_poison)
    if not rows.num_rows:
        return None
    labels = np.concatenate([block["label"].to_numpy() for block in training(dataset.samples, ["label"])])
    planned = attack.num_planned(
        lambda name: int((labels == label_of(name, dataset.classes)).sum()) if dataset.classes else len(labels),
        len(labels),
    )
    some = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, min(_MOST, rows.num_rows)).astype(np.int64)))
    files = list(read_bytes(overlay.folder, some))
    found = list(_stamps(attack, dataset, some, files, views, seed))
    changed = [one.changed_frac for one in found if one.changed_frac is not None]
    noise = [one.psnr_db for one in found if one.psnr_db is not None]
    visible = [one.visible_frac for one in found if one.visible_frac is not None]
    clean = _clean_files(dataset, overlay, seed)
    return PoisonChecks(
        planned,
        overlay.rows.num_rows,
        float(np.mean(noise)) if noise else None,
        float(np.mean(changed)) if changed else None,
        float(np.mean(visible)) if visible else None,
        {
            name: _auroc(*(np.array([of(one) for one in side]) for side in (files, clean)))
            for name, of in _TRIVIAL.items()
        }
        if clean
        else {},
    )


class _Stamp(NamedTuple):
    psnr_db: float | None = None
    changed_frac: float | None = None
    visible_frac: float | None = None


def _stamps(
    attack: AttackSpec, dataset: Dataset | LazyDataset, rows: pa.Table, files: list[bytes], views: ViewsSpec, seed: int
) -> Iterator[_Stamp]:
    limit, held_px = dataset.spec.max_image_pixels, dataset.spec.frame_px or dataset.spec.resident_px
    originals = dataset.read(lookup_locations(dataset.samples, rows["source_key"]))
    for row, file, original in zip(rows.to_pylist(), files, originals, strict=True):
        poison, rng = decode(file, limit, held_px), stream(seed, "check", row["key"])
        if attack.composes:
            box = [row[f"box_{name}"] for name in ("x", "y", "width", "height")]
            if box[2]:
                crops = [_crop(poison.shape, views, row["stretch"], rng) for _ in range(_CROPS)]
                yield _Stamp(visible_frac=float(np.mean([_covers(crop, box) for crop in crops])))
            continue
        clean = decode(original, limit, dataset.spec.frame_px)
        clean = decode(encode_jpeg75(clean), limit) if file.startswith(b"\xff\xd8") else clean
        clean = decode(encode_png(clean), limit, held_px) if held_px and clean.shape != poison.shape else clean
        apart = np.abs(clean.astype(np.int16) - poison)
        error = float((apart.astype(np.float64) ** 2).mean())
        left = [_is_visible(clean, poison, _crop(clean.shape, views, 1.0, rng), views.size_px) for _ in range(_CROPS)]
        psnr = 10 * math.log10(255**2 / error) if error else None
        yield _Stamp(psnr, float((apart.max(axis=2) > 0).mean()), float(np.mean(left)))


def _crop(
    shape: tuple[int, ...], views: ViewsSpec, stretch: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """x, y, width, height of a random crop of an image of ``shape``; all of it where ten draws do not fit."""
    height, width = shape[:2]
    for _ in range(10):
        area = rng.uniform(*views.crop_scale) * height * width
        ratio = math.exp(rng.uniform(*_RATIO)) / stretch
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1)), across, down
    return 0, 0, width, height


def _covers(crop: tuple[int, int, int, int], box: list[int]) -> bool:
    """Whether at least half of ``box`` lies inside ``crop``."""
    across, down = (
        min(crop[axis] + crop[axis + 2], box[axis] + box[axis + 2]) - max(crop[axis], box[axis]) for axis in (0, 1)
    )
    return across > 0 and down > 0 and 2 * across * down >= box[2] * box[3]


def _is_visible(clean: UInt8Image, poison: UInt8Image, crop: tuple[int, int, int, int], size_px: int) -> bool:
    x, y, width, height = crop
    views = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(one[y : y + height, x : x + width])).resize(
                (size_px, size_px), Image.Resampling.BILINEAR
            ),
            np.int16,
        )
        for one in (clean, poison)
    ]
    return bool(np.abs(views[0] - views[1]).max() >= _VISIBLE_LEVELS)


# ------------------------------------------------------------------------------------------- trivial detectors


def _clean_files(dataset: Dataset | LazyDataset, overlay: Overlay, seed: int) -> list[bytes]:
    """Up to 200 training images that are what they were."""
    replaced = overlay.rows["key"].combine_chunks()

    def kept() -> Iterator[pa.RecordBatch]:
        for block in training(dataset.samples, ["key"]):
            yield block.filter(pc.invert(pc.is_in(block["key"], value_set=replaced)))

    count = min(_MOST, sum(block.num_rows for block in kept()))
    if not count:
        return []
    return list(dataset.read(lookup_locations(dataset.samples, chosen_rows(kept(), count, seed, "check")["key"])))


def _aspect(file: bytes) -> float:
    header = inspect(file, 2**40)
    return abs(math.log(header.width / header.height))


def _quality(file: bytes) -> float:
    """Mean of the first quantisation table, which falls as a JPEG's quality rises; 0 for other formats."""
    if not file.startswith(b"\xff\xd8"):
        return 0.0
    at = file.find(b"\xff\xdb")
    return float(np.frombuffer(file[at + 5 : at + 69], np.uint8).mean()) if at >= 0 else 0.0


_TRIVIAL: dict[str, Any] = {"file size": len, "aspect ratio": _aspect, "JPEG quality": _quality}


def _auroc(poisons: npt.NDArray[np.float64], clean: npt.NDArray[np.float64]) -> float:
    """Of the better of the two directions; ties count as half."""
    over = (poisons[:, None] > clean).mean() + 0.5 * (poisons[:, None] == clean).mean()
    return float(max(over, 1 - over))
