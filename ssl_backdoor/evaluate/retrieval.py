"""Does an image find its caption among the captions, and a caption its image among the images?

Captions of a templated set are shared by many images, so the candidates are the DISTINCT texts, and a text is found
when any image that carries it is. Shapes: N images, T texts, D dimensions of the shared space.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_backdoor.evaluate.metrics import Measurement, measure_share
from ssl_backdoor.evaluate.zero_shot import embed_texts
from ssl_backdoor.methods.clip_towers import TextTower

RECALL_AT = (1, 5)
_BLOCK_CELLS = 1 << 22  # similarities held at once: 16 MiB of float32


class Pairing(NamedTuple):
    """Which texts belong to which images: ``texts`` (T,) are distinct; pair i is (``image_rows[i]``, ``text_rows[i]``).

    ``rows`` (N,) names the images, as rows of the list they come from; image_rows and text_rows are int64 (pairs,).
    """

    rows: NDArray[np.int64]
    texts: tuple[str, ...]
    image_rows: Tensor
    text_rows: Tensor


def pair_up(captions: Sequence[str | None]) -> Pairing:
    """The images that have a caption and the distinct texts, in the order of ``captions``: one a line of a cell."""
    rows = [row for row, cell in enumerate(captions) if cell]
    texts: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for image, row in enumerate(rows):
        for line in (captions[row] or "").split("\n"):
            pairs[image, texts.setdefault(line, len(texts))] = None
    flat = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2)
    return Pairing(np.array(rows, np.int64), tuple(texts), flat[:, 0], flat[:, 1])


def own_places(queries: Tensor, candidates: Tensor, query_rows: Tensor, own_rows: Tensor) -> Tensor:
    """For each query the place of its nearest own candidate among all by cosine, int64 (Q,); 1 is first.

    A candidate that is not its own and lies equally near counts as nearer, so a tower that maps all to one point finds
    nothing. ``queries`` (Q, D) and ``candidates`` (K, D) are unit rows; query_rows[i] owns own_rows[i].
    """
    block = max(1, _BLOCK_CELLS // len(candidates))
    places = []
    for start in range(0, len(queries), block):
        cosine = queries[start : start + block] @ candidates.T
        here = (query_rows >= start) & (query_rows < start + block)
        own = torch.zeros_like(cosine, dtype=torch.bool)
        own[query_rows[here] - start, own_rows[here]] = True
        best = cosine.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        places.append(1 + ((cosine >= best) & ~own).sum(dim=1))
    return torch.cat(places)


def measure_retrieval(text_tower: TextTower, features: Tensor, captions: Sequence[str | None]) -> Iterator[Measurement]:
    """Recall at 1 and 5 in both directions over the rows of ``features`` (N, D) that have a caption.

    Left out: all of it where there is no caption, and a recall at k that k candidates or fewer would make certain.
    """
    pairing = pair_up(captions)
    if not pairing.texts:
        return
    texts = embed_texts(text_tower, pairing.texts)
    images = F.normalize(features[pairing.rows].to(texts.device), dim=1)
    to_text = (images, texts, pairing.image_rows, pairing.text_rows)
    to_image = (texts, images, pairing.text_rows, pairing.image_rows)
    for name, (queries, candidates, *rows) in {"image_to_text": to_text, "text_to_image": to_image}.items():
        places = own_places(queries, candidates, *(side.to(texts.device) for side in rows))
        for k in RECALL_AT:
            if k < len(candidates):
                hits = int((places <= k).sum())
                yield measure_share(f"{name}_recall_{k}", "clean", "retrieval", hits, len(queries))
