"""The data of a training: images, in memory or streamed, and their captions as tokens."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.rows import captions_of
from ssl_backdoor.data.streamed import Streamed, load_or_stream
from ssl_backdoor.errors import DataError
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.specs import Resources

TOKENISED_AT_ONCE = 10_000


class TrainingSet(NamedTuple):
    """Row i of each field is the same sample."""

    images: Tensor | Streamed
    """(N, 3, H, W) uint8."""
    captions: pa.ChunkedArray | None = None
    """(N,) strings, several captions of one image joined by line breaks; only methods with a text tower read them."""
    stretch: Tensor | None = None
    """(N,) width over height of each true image over that of the one that is held; None where all are equal."""


class Captions(NamedTuple):
    """All captions, each distinct one tokenised once."""

    tokens: Tensor
    """(T, L) int32, of the T distinct captions; L is the longest one's length."""
    which: Tensor
    """(C,) int64, row of ``tokens`` of each image's captions, image after image."""
    offsets: Tensor
    """(N + 1,) int64: image i has ``which[offsets[i] : offsets[i + 1]]``."""

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One caption of each image of ``rows`` (B,), all equally likely: (B, L) int64."""
        first, count = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        uniform = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        return self.tokens[self.which[first + (uniform * count).long()]].long()


def load_training_set(
    dataset: Dataset, overlay: Overlay | None, resources: Resources, on_progress: OnProgress = silent
) -> TrainingSet:
    """The training split of ``dataset`` under ``overlay``, its images in memory where ``resources`` allow it.

    Raises:
        DataError: An image cannot be read or sizes differ.
    """
    images = load_or_stream(dataset, "train", overlay, resources.max_resident_bytes, on_progress)
    return TrainingSet(images, captions_of(dataset, "train", overlay), _stretch(len(images), overlay))


def _stretch(num_images: int, overlay: Overlay | None) -> Tensor | None:
    """Of the images in order: those that the overlay adds come last."""
    if overlay is None or "stretch" not in overlay.rows.column_names:
        return None
    added = overlay.rows.filter(pc.equal(overlay.rows["action"], "add"))["stretch"]
    return torch.cat([torch.ones(num_images - len(added)), torch.tensor(added.to_pylist())])


def tokenize_captions(captions: pa.ChunkedArray | None, tokenize: Callable[[Sequence[str]], Tensor]) -> Captions:
    """``captions`` (N,) as tokens.

    Raises:
        DataError: An image has no caption.
    """
    if captions is None or captions.null_count:
        missing = "all" if captions is None else f"{captions.null_count} of {len(captions)}"
        raise DataError(
            f"this method learns from captions, but {missing} training images lack a caption; set dataset.captions to "
            "kind templates to have them written from the class, or dataset.captions_required to leave such images out"
        )
    lists = pa.chunked_array(pc.split_pattern(captions.cast(pa.large_string()), "\n")).combine_chunks()
    encoded = lists.flatten().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    parts = [tokenize(texts[at : at + TOKENISED_AT_ONCE]).int() for at in range(0, len(texts), TOKENISED_AT_ONCE)]
    tokens = torch.cat(parts)
    length = int(tokens.any(0).nonzero().max()) + 1
    offsets = torch.from_numpy(lists.offsets.to_numpy().astype("int64"))
    return Captions(tokens[:, :length].clone(), torch.from_numpy(encoded.indices.to_numpy().astype("int64")), offsets)
