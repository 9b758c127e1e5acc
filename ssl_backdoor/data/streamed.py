"""A split left encoded in its shards: a step's rows are read and decoded when they are needed, or a little before.

Memory is the samples' places (some hundred bytes each) and the batches read ahead, whatever the size of the images.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.resident import decode_framed, load_resident
from ssl_backdoor.data.rows import Encoded, encoded_rows, rows_of
from ssl_backdoor.errors import DataError
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.threads import num_decode_threads

_CHUNK_IMAGES = 32
_MAX_THREADS = 16
_AHEAD = 2
"""Prefetched batches that wait; the oldest is dropped for a newer one."""


class _Reading(NamedTuple):
    images: np.ndarray
    tasks: list[Future[None]]


class Streamed:
    """The split of ``load_resident``, bit for bit, decoded on indexing instead of in memory: (N, 3, H, W) uint8."""

    def __init__(
        self, dataset: Dataset, split: str, overlay: Overlay | None = None, resize_px: int = 0, crop_px: int = 0
    ) -> None:
        """Args as ``load_resident``; the first image is decoded to learn the size.

        Raises:
            DataError: no image in the split, an overlay of another dataset, or the first image does not decode.
        """
        rows = rows_of(dataset, split, overlay).drop_columns(["label", "caption"]).combine_chunks()
        shards = rows["shard"].dictionary_encode()
        self._rows = rows.set_column(rows.column_names.index("shard"), "shard", shards)
        self._dataset = dataset
        self._overlay = overlay
        self._resize_px, self._crop_px = resize_px, crop_px
        height, width, _ = self._decode(next(encoded_rows(dataset, overlay, self._rows.slice(0, 1)))).shape
        self.shape = torch.Size((self._rows.num_rows, 3, height, width))
        self._pool = ThreadPoolExecutor(num_decode_threads(pc.mean(rows["size"]).as_py(), _MAX_THREADS), "stream")
        self._ahead: dict[bytes, _Reading] = {}

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the whole split if it were in memory."""
        return self.shape.numel()

    def prefetch(self, rows: Tensor) -> None:
        """Start reading ``rows`` (B,) in the background, for a call with the same rows soon."""
        name = _name(rows)
        if name not in self._ahead:
            while len(self._ahead) >= _AHEAD:
                dropped = self._ahead.pop(next(iter(self._ahead)))
                for task in dropped.tasks:
                    task.cancel()
            self._ahead[name] = self._start(rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The images of ``rows`` (B,), in their order, repeats included: (B, 3, H, W) uint8.

        Raises:
            DataError: an image does not decode, is not the recorded one, or is of another size than the first.
        """
        reading = self._ahead.pop(_name(rows), None) or self._start(rows)
        for task in reading.tasks:
            task.result()
        return torch.from_numpy(reading.images)

    def _start(self, rows: Tensor) -> _Reading:
        wanted = rows.cpu().numpy()
        images = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        by_place = np.split(np.argsort(wanted, kind="stable"), range(_CHUNK_IMAGES, len(wanted), _CHUNK_IMAGES))
        return _Reading(images, [self._pool.submit(self._read, images, wanted, part) for part in by_place])

    def _read(self, images: np.ndarray, wanted: np.ndarray, part: np.ndarray) -> None:
        """Decode the rows ``wanted[part]`` into ``images[part]``."""
        rows = self._rows.take(pa.array(wanted[part]))
        for encoded in encoded_rows(self._dataset, self._overlay, rows):
            image = self._decode(encoded)
            if image.shape[:2] != self.shape[2:]:
                (height, width), (found_height, found_width) = self.shape[2:], image.shape[:2]
                raise DataError(
                    f"images of one batch need one size, but {encoded.key!r} has {found_width} x {found_height} px and "
                    f"the first of all has {width} x {height} px: set dataset.resident_px or dataset.frame_px to bring "
                    "all to one side"
                )
            images[part[encoded.row]] = image.transpose(2, 0, 1)

    def _decode(self, encoded: Encoded) -> UInt8Image:
        return decode_framed(encoded, self._dataset.spec, self._resize_px, self._crop_px)


def _name(rows: Tensor) -> bytes:
    name: bytes = rows.cpu().numpy().tobytes()
    return name


def load_or_stream(
    dataset: Dataset, split: str, overlay: Overlay | None, max_bytes: int, on_progress: OnProgress = silent
) -> Tensor | Streamed:
    """The split decoded in memory where it takes at most ``max_bytes``, else streamed: the same pixels either way.

    Raises:
        DataError: as ``load_resident``.
    """
    streamed = Streamed(dataset, split, overlay)
    if streamed.nbytes > max_bytes:
        return streamed
    return load_resident(dataset, split, overlay, on_progress=on_progress).images
