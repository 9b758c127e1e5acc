"""Images as a defender sees them, and what a defender says of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, final

import pyarrow as pa
import torch
from torch import Tensor

from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.evaluate.features import features
from ssl_backdoor.train.checkpoint import load_backbone

_BATCH = 256


@final
class Pool:
    """Images under no name, in an order that tells nothing of which are poisoned; row i of all is the same sample."""

    def __init__(
        self, images: Tensor | Streamed, order: Tensor, device: str, captions: pa.ChunkedArray | None = None
    ) -> None:
        """``images`` uint8 (N, 3, H, W) and their ``captions``, seen in ``order``, int64 (N,)."""
        self._images = images
        self._order = order
        self._captions = captions
        self.device = device
        """Where an encoder runs: "cpu" or "cuda"."""

    def __len__(self) -> int:
        return len(self._order)

    @property
    def captions(self) -> pa.ChunkedArray | None:
        """Strings (N,), several captions of one image joined by line breaks; None where images have none."""
        return None if self._captions is None else self._captions.take(pa.array(self._order.numpy()))

    def images(self, rows: Tensor) -> Tensor:
        """Those of ``rows``, int64 (B,): uint8 (B, 3, H, W).

        Raises:
            DataError: one cannot be read.
        """
        return self._images[self._order[rows]]

    def batches(self) -> Iterator[Tensor]:
        """All images, in order: uint8 (at most 256, 3, H, W) each."""
        for rows in torch.split(torch.arange(len(self)), _BATCH):
            yield self.images(rows)

    def features(self, encoder: Path) -> Tensor:
        """Of all images by the backbone in folder ``encoder``: float32 (N, D) on the CPU, not normalised.

        Raises:
            CheckpointError: the backbone cannot be loaded, or its features are not finite.
        """
        backbone = load_backbone(encoder).to(self.device).to(memory_format=torch.channels_last)
        return features(backbone, self.batches())


class Verdicts(NamedTuple):
    """What a filter says of each sample of a pool."""

    scores: Tensor
    """float (N,): larger is more suspicious; not a number where it cannot say."""
    is_left_out: Tensor
    """bool (N,)."""


class Detection(NamedTuple):
    """What a detector says of each of a pool, or (N = 1) of an encoder."""

    scores: Tensor
    """float (N,): larger is more suspicious; not a number where nothing was found to score."""
    p_values: Tensor | None
    """float (N,) in [0, 1]: how often something clean scores as high; None where the detector gives none."""
    null: str
    """What the p-values compare with, for people."""
    null_n: int
    """How many of those there were."""
    card: Mapping[str, Any] = MappingProxyType({})
    """Of an encoder: what the score can only be compared under (input range, normalisation, divisor, ...), and what
    was seen on the way to it; plain JSON data."""
