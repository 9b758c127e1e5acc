"""Similarities within a batch that is spread over replicas, with gradients across them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.methods.base import Replicas
from ssl_backdoor.methods.clip import open_clip_loss


def similarities(rows: Tensor, columns: Tensor, scale: Tensor, replicas: Replicas) -> tuple[Tensor, Tensor]:
    """``scale * rows @ all columns'`` and ``scale * columns @ all rows'``, each (b, B), as open_clip makes them.

    Gathering passes gradients on: averaged over replicas, they are those of one replica with the whole batch.

    Args:
        rows: (b, D), unit rows, of this replica.
        columns: (b, D), unit rows; row i belongs to row i of ``rows``.
        scale: Scalar.
        replicas: Where the other rows and columns are.
    """
    with open_clip_loss(rows.device, replicas) as loss:
        both: tuple[Tensor, Tensor] = loss.get_logits(rows, columns, scale)
    return both


def in_modal_loss(rows: Tensor, twins: Tensor, scale: Tensor, replicas: Replicas) -> Tensor:
    """InfoNCE from ``rows`` (b, D) to their ``twins`` among those of all replicas: the mean of -log softmax_ii."""
    logits = similarities(rows, twins, scale, replicas)[0]
    own = torch.arange(len(rows), device=rows.device) + replicas.index * len(rows)
    return F.cross_entropy(logits, own)


def affinity_mimicry(
    student: Tensor, teacher: Tensor, captions: Tensor, scale: Tensor, replicas: Replicas
) -> tuple[Tensor, Tensor]:
    """Cross-entropy from the teacher's to the student's image-to-caption and caption-to-image similarities.

    Args:
        student: (b, D), unit rows, with gradient.
        teacher: (b, D), unit rows, of the same images.
        captions: (b, D), unit rows; row i is the caption of image i.
        scale: Scalar, of both.
        replicas: Where the other pairs are.

    Returns:
        The mean of the two directions, with gradient, and its least value, the teacher's own entropy.
    """
    loss, least = student.new_zeros(()), student.new_zeros(())
    for found, wanted in zip(
        similarities(student, captions, scale, replicas), similarities(teacher, captions, scale, replicas), strict=True
    ):
        target = wanted.softmax(1)
        loss = loss + F.cross_entropy(found, target) / 2
        least = least + F.cross_entropy(wanted, target) / 2
    return loss, least
