"""What a curator looks at first: samples that come more than once, and files that are unlike the others.

Neither needs an encoder. Carlini & Terzis's targeted attack repeats one image, and an attack that stores its poisons by
another encoder than the rest of the data is found by that alone: what such a filter finds is the attack's carelessness,
not its trigger.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.detection.ranking import RankingFilter
from ssl_backdoor.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress


class FileSignalsSpec(RankingFilter):
    """A file is suspicious by how rare its kind is: format, colour mode, size in pixels, JPEG quantisation tables.

    The score is minus the logarithm of the share of files of the same kind; the commonest kind is kept.
    """

    kind: Literal["file_signals"] = "file_signals"
    card: ClassVar[dict[str, str]] = {
        "input_range": "bytes of the file, as stored by ingestion or by the attack",
        "normalisation": "none",
        "divisor": "number of files of the same kind",
    }

    @property
    def label(self) -> str:
        """For people."""
        return "file signals"

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``; 0 for the commonest kind of file."""
        import torch

        kinds = pool.map_files(file_kind)
        counts = Counter(kinds)
        most = max(counts.values())
        return torch.tensor([most / counts[kind] for kind in kinds], dtype=torch.float64).log()

    def is_suspicious(self, scores: "Tensor", seed: int) -> "Tensor":
        """All but the commonest kind."""
        return scores > 0


class DuplicatesSpec(RankingFilter):
    """A sample is suspicious by how many others are like it; one that is like no other is kept."""

    kind: Literal["duplicates"] = "duplicates"
    of: Literal["images", "captions"] = "images"
    max_bits: int = Field(default=0, ge=0, le=64)
    """Images are alike whose 64-bit difference hashes differ in no more bits."""
    card: ClassVar[dict[str, str]] = {
        "input_range": "[0, 255], as stored; captions as text",
        "normalisation": "none",
        "divisor": "none",
        "images": "difference hash: mean luminance of 8 x 9 cells, each compared with the next",
        "captions": "equal once case and spaces are left out of account",
    }

    @property
    def label(self) -> str:
        """For people."""
        return f"duplicate {self.of}"

    def is_suspicious(self, scores: "Tensor", seed: int) -> "Tensor":
        """One that has a duplicate."""
        return scores > 0

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """As ``RankingFilter.score``: how many others are like it.

        Raises:
            SpecError: duplicates of captions are asked for, and there are none.
        """
        import torch

        if self.of == "captions":
            if pool.captions is None:
                raise SpecError(
                    "the filter duplicates is to compare captions, and these images have none: set of=images"
                )
            texts = [" ".join(text.lower().split()) if text else None for text in pool.captions.to_pylist()]
            return torch.tensor(_others_alike(texts), dtype=torch.float64)
        hashes = torch.cat([difference_hash(images) for images in pool.batches()])
        return num_alike(hashes, self.max_bits).double()


def difference_hash(images: "Tensor") -> "Tensor":
    """Of images uint8 (B, 3, H, W): bool (B, 64), whether a cell of 8 x 9 is brighter than the next to its right."""
    import torch
    import torch.nn.functional as F

    luminance = (images.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    cells = F.adaptive_avg_pool2d(luminance, (8, 9))[:, 0]
    return (cells[:, :, 1:] > cells[:, :, :-1]).flatten(1)


def num_alike(hashes: "Tensor", max_bits: int) -> "Tensor":
    """How many other rows of ``hashes`` bool (N, 64) differ in at most ``max_bits``: int64 (N,)."""
    import torch

    signs = hashes.float() * 2 - 1
    if max_bits == 0:
        found: tuple[Tensor, ...] = torch.unique(hashes.to(torch.uint8), dim=0, return_inverse=True, return_counts=True)
        return found[2][found[1]] - 1
    least = 64 - 2 * max_bits
    return torch.cat([(some @ signs.T >= least).sum(1) for some in torch.split(signs, 1024)]) - 1


def file_kind(data: bytes) -> tuple[Any, ...]:
    """What an image's file tells without its pixels: format, size, the header of a PNG or the tables of a JPEG."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return ("png", data[16:29])
    if data[:2] == b"\xff\xd8":
        return ("jpeg", *_jpeg_segments(data))
    return (data[:4],)


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """The quantisation tables and the frame header, up to the pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if data[at + 1] in (0xDB, 0xC0, 0xC1, 0xC2):
            yield data[at : at + 2 + length]
        at += 2 + length


def _others_alike(texts: list[str | None]) -> list[int]:
    counts = Counter(texts)
    return [0 if text is None else counts[text] - 1 for text in texts]
