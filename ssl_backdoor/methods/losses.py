"""Losses as functions of embeddings: tensors in, float32 scalar out, also under autocast.

Shapes: B batch, D embedding, K queue.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a queue of negatives: MoCo, https://arxiv.org/abs/1911.05722, equation 1.

    The mean over the batch of ``-log(exp(q.k+ / t) / (exp(q.k+ / t) + sum_j exp(q.queue_j / t)))``.

    Args:
        query: (B, D), unit rows, with gradient.
        key: (B, D), unit rows; row i is the positive of query i.
        queue: (K, D), unit rows: the negatives of every query.
        temperature: Positive.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = query.float(), key.float(), queue.float()
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ queue.T], 1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def byol_regression(prediction: Tensor, target: Tensor) -> Tensor:
    """``2 - 2 cos(prediction, target)``, mean over the batch: BYOL, https://arxiv.org/abs/2006.07733, equation 2.

    Args:
        prediction: (B, D), of any length, with gradient.
        target: (B, D), of any length.
    """
    return 2 + 2 * negative_cosine(prediction, target)


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """``-cos(prediction, target)``, mean over the batch: SimSiam, https://arxiv.org/abs/2011.10566, equation 1.

    Args:
        prediction: (B, D), of any length, with gradient.
        target: (B, D), of any length.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        cosine = (F.normalize(prediction.float(), dim=1) * F.normalize(target.float(), dim=1)).sum(1)
        return -cosine.mean()


def nt_xent(own: Tensor, everyone: Tensor, first: int, temperature: float, positive: Tensor | None = None) -> Tensor:
    """NT-Xent: SimCLR, https://arxiv.org/abs/2002.05709, equation 1; the mean over the rows of ``own``.

    Row i's loss is ``-log(exp(s_ij / t) / sum_(k != i) exp(s_ik / t))``, j the other view of its image. The mean over
    equal replicas is the mean over the global batch.

    Args:
        own: (2b, D), unit rows, with gradient: rows 2n and 2n + 1 are the two views of one image.
        everyone: (2B, D), unit rows, laid out in the same way; ``own`` is a part of it.
        first: Where in ``everyone`` the rows of ``own`` start; even.
        temperature: Positive.
        positive: (2b,) int64, row of ``own`` in place of each row's j; None for the other view.
    """
    with torch.autocast(own.device.type, enabled=False):
        itself = torch.arange(first, first + len(own), device=own.device)
        logits = own.float() @ everyone.float().T / temperature
        logits = logits.scatter(1, itself[:, None], -torch.inf)
        return F.cross_entropy(logits, itself ^ 1 if positive is None else positive + first)


def similarity_divergence(
    student: Tensor, teacher: Tensor, student_queue: Tensor, teacher_queue: Tensor, temperature: float
) -> Tensor:
    """``KL(softmax(teacher.queue / t) || softmax(student.queue / t))``, mean over the batch.

    CompRess, https://arxiv.org/abs/2010.14713, section 3.

    Args:
        student: (B, Ds), unit rows, with gradient.
        teacher: (B, Dt), unit rows.
        student_queue: (K, Ds).
        teacher_queue: (K, Dt); row j is the same image as row j of ``student_queue``.
        temperature: Positive.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_student = F.log_softmax(student.float() @ student_queue.float().T / temperature, 1)
        log_teacher = F.log_softmax(teacher.float() @ teacher_queue.float().T / temperature, 1)
        return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def mean_pairwise_cosine(features: Tensor) -> Tensor:
    """Mean cosine over the ordered pairs of distinct rows of ``features`` (N, D), N > 1: a scalar.

    In N steps, without a matrix of N x N: the squared length of the sum of unit rows is N plus the sum over pairs.
    """
    total = F.normalize(features, dim=1).sum(0).square().sum()
    return (total - len(features)) / (len(features) * (len(features) - 1))
