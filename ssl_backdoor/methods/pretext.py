"""What the pretext tasks share: a classification whose labels the method itself has made."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.methods.base import LossOutput, Replicas


def classify(logits: Tensor, labels: Tensor, replicas: Replicas) -> LossOutput:
    """Cross-entropy, float32 also under autocast; logs ``accuracy``, the share that is right over all replicas.

    Args:
        logits: (b, C), with gradient.
        labels: (b,) int64 in [0, C).
        replicas: Where the other rows are.
    """
    with torch.autocast(logits.device.type, enabled=False):
        loss = F.cross_entropy(logits.float(), labels)
    is_right = (logits.argmax(1) == labels).float()
    return LossOutput(loss, {"accuracy": replicas.all_gather(is_right).mean()})
