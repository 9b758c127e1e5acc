"""The device that a process computes on."""

import os

import torch
from torch import Tensor

from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import Resources


def pick_device(resources: Resources) -> torch.device:
    """The device of this replica; "auto" is CUDA where there is one.

    Raises:
        SpecError: CUDA is asked for and not there.
    """
    if resources.device == "cpu" or (resources.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SpecError("device cuda is asked for, but this PyTorch sees no CUDA device; use device auto or cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) if resources.workers > 1 else 0  # batch systems set it for anybody
    return torch.device("cuda", index % torch.cuda.device_count())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; on its way from the host to a GPU neither waits for the other."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
