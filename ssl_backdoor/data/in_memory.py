"""Images that a program hands over one by one: written to Parquet files as they come, with a digest of their content.

Memory holds some dozens of images; the folder holds all of them, and is read as any other data are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.data.images import encode_png
from ssl_backdoor.errors import DataError

_SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string()), ("caption", pa.list_(pa.string()))])
_ROWS, _BYTES = 256, 2**24  # of a group, whichever is fewer
_IMAGE, _LABEL, _CAPTION = ("image", "img"), ("label", "labels", "fine_label", "class"), ("caption", "captions", "text")


@runtime_checkable
class Indexed(Protocol):
    """What a torch or Hugging Face dataset offers."""

    def __len__(self) -> int:
        """How many samples."""
        ...

    def __getitem__(self, index: int) -> Any:
        """One of them."""
        ...


_Row = tuple[bytes, str | None, list[str] | None]
Samples = Iterable[Any] | Indexed
"""(image, label) or (image, label, caption), or mappings with such fields, as Hugging Face's datasets yield."""


def write_samples(train: Samples, test: Samples | None, class_names: Sequence[str] | None, folder: Path) -> str:
    """Write ``folder``/train.parquet and, where there are some, test.parquet; return the digest of their content.

    Args:
        train: see ``Samples``; or a mapping of splits, as Hugging Face's DatasetDict, whose "train" and "test" (else
            "validation") are taken. An image is uint8 (H, W), (H, W, 1) or (H, W, 3), NumPy or torch, or torch's (1 or
            3, H, W); float ones lie in [0, 1]; or a PIL image, or the bytes of a file. A label is a class's name or
            number, or None.
        test: the same, or None.
        class_names: of classes that are numbers; None takes those that ``train`` has (``classes``, or the names of a
            Hugging Face ClassLabel), or the numbers themselves.
        folder: there and empty.

    Returns:
        sha256 over split, label, caption and pixels (or bytes) of every sample in order.

    Raises:
        DataError: a sample is none of these, or there are none.
    """
    train, test = _splits(train, test)
    names = _class_names(train) if class_names is None else tuple(map(str, class_names))
    digest = hashlib.sha256("\0".join(["in memory", *(names or ())]).encode())
    for split, samples in (("train", train), ("test", test)):
        if samples is None:
            continue
        with pq.ParquetWriter(folder / f"{split}.parquet", _SCHEMA, compression="none", use_dictionary=False) as writer:
            number = _write(split, samples, names, writer, digest)
        if not number:
            raise DataError(f"expected images, found no {split} sample: give (image, label) pairs")
    return digest.hexdigest()


def _splits(train: Any, test: Any) -> tuple[Samples, Samples | None]:
    if not hasattr(train, "keys"):
        return train, test
    if "train" not in train or (test is not None and len(train) > 1):
        found = ", ".join(sorted(map(str, train.keys()))[:6])
        raise DataError(
            f"expected samples, or a mapping of splits with 'train' and perhaps 'test', found one with {found}"
            f"{' and test samples beside it' * (test is not None)}; of arrays give zip(images, labels)"
        )
    held_out = next((train[name] for name in ("test", "validation") if name in train), None)
    return train["train"], held_out if test is None else test


def _write(split: str, samples: Samples, names: Sequence[str] | None, writer: pq.ParquetWriter, digest: Any) -> int:
    rows: list[_Row] = []
    number = size = 0
    for number, sample in enumerate(_each(samples), start=1):
        place = f"{split} sample {number - 1}"
        image, label, caption = _fields(sample, place)
        name = _name_of(label, names, place)
        data, seen = _encode(image, place)
        digest.update(repr((split, name, caption)).encode())
        digest.update(seen)
        rows.append((data, name, caption))
        size += len(data)
        if len(rows) == _ROWS or size > _BYTES:
            _flush(rows, writer)
            rows, size = [], 0
    if rows:
        _flush(rows, writer)
    return number


def _flush(rows: Sequence[_Row], writer: pq.ParquetWriter) -> None:
    columns = zip(*rows, strict=True)
    writer.write_table(
        pa.table([pa.array(one, field.type) for one, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
    )


def _each(samples: Samples) -> Iterator[Any]:
    """Every sample: of an indexed dataset by its length, since torch's have no end of their own."""
    if isinstance(samples, Indexed) and not isinstance(samples, Sequence):
        return (samples[index] for index in range(len(samples)))
    return iter(samples)


def _class_names(samples: Samples) -> tuple[str, ...] | None:
    features = getattr(samples, "features", None)
    if features is not None and hasattr(features, "get"):
        for field in _LABEL:
            if (names := getattr(features.get(field), "names", None)) is not None:
                return tuple(map(str, names))
    names = getattr(samples, "classes", None)
    return tuple(map(str, names)) if isinstance(names, Sequence) and not isinstance(names, str) else None


def _fields(sample: Any, place: str) -> tuple[Any, Any, list[str] | None]:
    if hasattr(sample, "keys"):
        found = [next((sample[name] for name in names if name in sample), None) for names in (_IMAGE, _LABEL, _CAPTION)]
    else:
        if not isinstance(sample, Sequence) or not 2 <= len(sample) <= 3:
            raise DataError(
                f"{place}: expected (image, label), (image, label, caption) or a mapping with the fields image, label "
                f"and caption, found {type(sample).__name__}; of arrays give zip(images, labels)"
            )
        found = [*sample, None][:3]
    image, label, caption = found
    return image, label, None if caption is None else [caption] if isinstance(caption, str) else [*map(str, caption)]


def _name_of(label: Any, names: Sequence[str] | None, place: str) -> str | None:
    if label is None or isinstance(label, str):
        return label
    try:
        index = int(label)
    except (TypeError, ValueError):
        index = None
    if index is None or index != label:
        raise DataError(f"{place}: expected a class's name or number as its label, found {label!r:.80}")
    if names is None:
        return str(index)
    if not 0 <= index < len(names):
        raise DataError(f"{place}: label {index} is not one of the {len(names)} classes 0 to {len(names) - 1}")
    return names[index]


def _encode(image: Any, place: str) -> tuple[bytes, bytes]:
    """The image as a file's bytes, and what of it the digest sees."""
    if isinstance(image, bytes):
        return image, hashlib.sha256(image).digest()
    if hasattr(image, "convert"):  # PIL
        image = np.asarray(image.convert("RGB"))
    pixels = to_uint8(image, place)
    shown = hashlib.sha256(repr(pixels.shape).encode())
    shown.update(np.ascontiguousarray(pixels).data)
    return encode_png(pixels), shown.digest()


def to_uint8(image: Any, place: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """``image`` as uint8 (H, W, 3): of NumPy (H, W), (H, W, 1 or 3), of torch also (1 or 3, H, W).

    Raises:
        DataError: it is neither, or a float outside [0, 1].
    """
    is_torch = hasattr(image, "detach")
    pixels = np.asarray(image.detach().cpu() if is_torch else image)
    if is_torch and pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise DataError(
            f"{place}: expected an image of shape (H, W), (H, W, 3) or torch's (3, H, W), found {type(image).__name__} "
            f"of shape {pixels.shape}"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(f"{place}: expected float pixels in [0, 1], found {pixels.min():g} to {pixels.max():g}")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DataError(f"{place}: expected uint8 pixels, or float ones in [0, 1], found {pixels.dtype}")
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
