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
    with torch.autocast(prediction.device.type, enabled=False):
        cosine = (F.normalize(prediction.float(), dim=1) * F.normalize(target.float(), dim=1)).sum(1)
        return 2 - 2 * cosine.mean()


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
