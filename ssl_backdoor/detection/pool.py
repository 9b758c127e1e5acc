"""Images as a defender sees them, and what a defender says of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, final

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.data.captions import humanize_class_name
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.features import features
from ssl_backdoor.evaluate.zero_shot import embed_texts
from ssl_backdoor.train.checkpoint import load_backbone, load_text_tower
from ssl_backdoor.train.training_set import tokenize_captions

_BATCH = 256
_Found = TypeVar("_Found")


@final
class Pool:
    """Images under no name, in an order that tells nothing of which are poisoned; row i of all is the same sample."""

    def __init__(
        self,
        images: Tensor | Streamed,
        order: Tensor,
        device: str,
        captions: pa.ChunkedArray | None = None,
        files: Callable[[], Iterable[tuple[int, bytes]]] | None = None,
        vouched: Tensor | None = None,
        num_references: int = 0,
        classes: Sequence[str] = (),
    ) -> None:
        """``images`` uint8 (N, 3, H, W), their ``captions`` and ``files`` by row, seen in ``order``, int64 (N,).

        ``vouched``: rows of the pool that are trusted; the first ``num_references`` of them are for p-values alone.
        """
        self._images = images
        self._order = order
        self._captions = captions
        self._files = files
        self._features: tuple[Path, Tensor] | None = None
        self.device = device
        """Where an encoder runs: "cpu" or "cuda"."""
        self.classes = tuple(classes)
        """Names of the classes that test images have; of training samples none."""
        self.vouched = torch.empty(0, dtype=torch.int64) if vouched is None else vouched
        """int64: rows known to be clean, which are never left out."""
        self.trusted = self.vouched[num_references:]
        """int64: those of them that a defender may learn from."""

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

    def map_files(self, look: Callable[[bytes], _Found]) -> list[_Found]:
        """``look`` at the file of each image: (N,), in the pool's order.

        Raises:
            DataError: a shard is missing or truncated.
        """
        by_row = {row: look(data) for row, data in (self._files() if self._files else ())}
        return [by_row[row] for row in self._order.tolist()]

    def caption_cosines(self, encoder: Path) -> Tensor:
        """Of each image and its captions by the two towers in ``encoder``, their mean: float32 (N,).

        Raises:
            CheckpointError: a tower cannot be loaded, or its features are not finite.
            DataError: an image has no caption.
        """
        tower = load_text_tower(encoder).to(self.device)
        captions = tokenize_captions(self.captions, tower.tokenize)
        with torch.inference_mode():
            texts = torch.cat(
                [tower(part.long().to(self.device)).float().cpu() for part in torch.split(captions.tokens, _BATCH)]
            )
        image, text = F.normalize(self.features(encoder), dim=1), F.normalize(texts, dim=1).clone()
        counts = captions.offsets.diff()
        owner = torch.arange(len(self)).repeat_interleave(counts)
        cosines = (image[owner] * text[captions.which]).sum(1)
        return torch.zeros(len(self)).index_add_(0, owner, cosines) / counts

    def class_texts(self, encoder: Path, texts_of: Callable[[str], Sequence[str]]) -> Tensor:
        """Of ``texts_of`` each class, as many each, by the text tower in ``encoder``: unit rows float32 (C, K, D).

        Raises:
            CheckpointError: there is no text tower, or it cannot be loaded.
            SpecError: the images have no classes.
        """
        if not self.classes:
            raise SpecError("expected the names of the classes of test images, found none: bring labelled test images")
        texts = [texts_of(humanize_class_name(name)) for name in self.classes]
        tower = load_text_tower(encoder).to(self.device)
        found = embed_texts(tower, [text for of_class in texts for text in of_class])
        return found.cpu().reshape(len(texts), -1, found.shape[1])

    def features(self, encoder: Path) -> Tensor:
        """Of all images by the backbone in folder ``encoder``: float32 (N, D) on the CPU, not normalised.

        Raises:
            CheckpointError: the backbone cannot be loaded, or its features are not finite.
        """
        if self._features is None or self._features[0] != encoder:  # filters of one pool share a pass
            backbone = load_backbone(encoder).to(self.device).to(memory_format=torch.channels_last)
            self._features = encoder, features(backbone, self.batches())
        return self._features[1].clone()


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
    """What a score can only be compared under (input_range, normalisation, divisor, ...), and of an encoder what was
    seen on the way to it; plain JSON data."""
    trigger: tuple[Tensor, Tensor] | None = None
    """Of an encoder: the mask (S, S) and the pattern (3, S, S) in [0, 1] that were recovered."""
